"""Find the values that a constant scales and that linears alone read: there `x / s` costs nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from zq2onnx.numerics.grid import Float32Array
from zq2onnx.passes.candidates import EMBEDDING, MICROSOFT_DOMAINS, find_candidates
from zq2onnx.passes.planned import WeightView
from zq2onnx.passes.trace_weights import FLOAT_TYPES, TracedConstant, is_standard, trace_constant

NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1, None),
    "SimplifiedLayerNormalization": (1, None),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2, None),
}
"""Inputs that hold gamma and beta. The skipping ones add up their inputs first, and normalize the sum."""

REORDERING = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Between two values whose last axis is K long, these keep channel j of one at channel j of the other."""


@dataclass(frozen=True, eq=False)
class Vector:
    """A constant of one number per channel that a node multiplies or adds.

    Attributes:
        node: the node's name.
        index: which of its inputs.
        constant: what it reads there.
    """

    node: str
    index: int
    constant: TracedConstant

    def values(self) -> npt.NDArray[np.generic]:
        """The numbers, in the node's type and shape."""
        stored = self.constant.tensor.numpy()
        return stored.astype(self.constant.dtype.numpy()).reshape(self.constant.shape)

    def divided(self, scales: Float32Array) -> npt.NDArray[np.generic]:
        """The numbers over scales `[K]`, rounded to the same type, in the same shape."""
        values = self.values()
        with np.errstate(over="ignore"):
            return (values.astype(np.float32) / scales).astype(values.dtype)


@dataclass(frozen=True, eq=False)
class Site:
    """A value that a constant vector scales and that linears alone read: `x / s` costs nothing there.

    Attributes:
        norm: name of the node that multiplies by gamma: a normalization, or its last Mul. The site's key.
        vectors: gamma, and beta where there is one: what `SmoothPass` divides.
        linears: names of the MatMuls and Gemms that read the value, whose weights `[N, K]` must be
            multiplied by s along K.
        k: channels.
    """

    norm: str
    vectors: tuple[Vector, ...]
    linears: tuple[str, ...]
    k: int

    def fit(self, scales: Float32Array) -> Float32Array:
        """The scales `[K]` next to these for which `gamma / s` is a number of gamma's type.

        Weights multiplied by what this returns make up for gamma's rounding in float16 and bfloat16; beta
        is rounded no more than their arithmetic rounds its sum. 1 where gamma is 0, and where gamma or beta
        over s would overflow or gamma be subnormal.
        """
        gamma = self.vectors[0].values().astype(np.float32).reshape(-1)
        quotients = [vector.divided(scales).reshape(-1) for vector in self.vectors]
        divided = quotients[0].astype(np.float32)
        usable = np.abs(divided) >= float(ml_dtypes.finfo(quotients[0].dtype).tiny)
        for quotient in quotients:
            usable &= np.isfinite(quotient.astype(np.float32))
        return np.divide(gamma, divided, out=np.ones_like(gamma), where=usable)


@dataclass(frozen=True, eq=False)
class Smoothable:
    """Where a model can be smoothed.

    Attributes:
        sites: in graph order.
        refused: why a linear that was asked for belongs to none, by its name.
    """

    sites: tuple[Site, ...]
    refused: Mapping[str, str]


def find_smoothable(model: ir.Model, nodes: Collection[str]) -> Smoothable:
    """Find the sites of the linears that are to be quantized; the model is normalized.

    A site needs a constant of K numbers that scales the value (the gamma of a normalization, fused or in
    single operators, or any Mul), and no reader but linears among `nodes`: a residual connection that
    starts behind the normalization (BERT), or a linear that stays float, would see the change. A weight
    that is another linear's too cannot be multiplied for one of them alone.

    Args:
        model: float graph; node names are unique.
        nodes: names of the MatMuls and Gemms to be quantized; others among them are passed over.
    """
    linears = {
        found.node: found.view
        for found in find_candidates(model)
        if found.node.name in nodes and found.role != EMBEDDING and isinstance(found.view, WeightView)
    }
    by_source: dict[ir.Value, list[ir.Node]] = {}
    refused: dict[str, str] = {}
    for node in list(linears):
        value = node.inputs[0]
        if value is None or node.attributes.get_int("transA", 0) != 0:
            refused[node.name or ""] = "its input is transposed"
            del linears[node]
        else:
            by_source.setdefault(_source(value), []).append(node)
    sites = []
    for source, readers in by_source.items():
        found = _site(source, readers, linears)
        if isinstance(found, Site):
            sites.append(found)
        else:
            refused.update((node.name or "", found) for node in readers)
    return Smoothable(tuple(sites), refused)


def _passes(node: ir.Node) -> bool:
    """Whether channels come out of a node as they went in."""
    if is_standard(node, "Cast"):
        return ir.DataType(node.attributes["to"].as_int()) in FLOAT_TYPES
    return is_standard(node, *REORDERING)


def _source(value: ir.Value) -> ir.Value:
    """The value before nodes that only reorder or cast."""
    while (node := value.producer()) is not None and _passes(node) and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _uses(value: ir.Value) -> list[tuple[ir.Node, int]] | str:
    """The nodes that compute with a value, and at which input; a string where it is an output.

    Sees through nodes that only reorder or cast; a Shape does not compute with the numbers.
    """
    found = []
    values = [value]
    for each in values:  # grows meanwhile
        if each.is_graph_output():
            return f"its input is {each.name}, an output of a graph"
        for node, index in each.uses():
            if index == 0 and _passes(node):
                values.append(node.outputs[0])
            elif not is_standard(node, "Shape", "Size"):
                found.append((node, index))
    return found


def _site(source: ir.Value, readers: list[ir.Node], linears: Mapping[ir.Node, WeightView]) -> Site | str:
    """The site of linears that read one value, or why there is none."""
    vectors = _vectors(source)
    if isinstance(vectors, str):
        return vectors
    uses = _uses(source)
    if isinstance(uses, str):
        return uses
    for node, index in uses:
        if index != 0 or node not in linears:
            return f"its input is also read by {node.name} ({node.op_type}), which would see the change"
    k = max(vectors[-1].constant.shape)
    for node in readers:
        view = linears[node]
        if view.k != k:
            return f"its input is reshaped from {k} channels to {view.k}"
        for other, its in linears.items():
            if other not in readers and its.storage == view.storage:
                return f"its weight is also read by {other.name}, whose input is another"
    return Site(vectors[-1].node, tuple(reversed(vectors)), tuple(node.name or "" for node in readers), k)


def _vectors(value: ir.Value) -> list[Vector] | str:
    """What scales and shifts a value, the last first and so gamma at the end; or why nothing does."""
    shifts: list[Vector] = []
    while True:
        node = value.producer()
        if node is None:
            return f"its input is {value.name}, an input of the model"
        affine = _norm_vectors(node) if value is node.outputs[0] else None
        if affine is None and is_standard(node, "Mul", "Add"):
            affine = _operand(node)
        if affine is None:
            return (
                f"its input comes from {node.name} ({node.op_type}), which scales no channels by a constant"
            )
        if isinstance(affine, str):
            return affine
        if len({max(vector.constant.shape) for vector in (*shifts, *affine)}) > 1:
            return f"its input comes from {node.name} ({node.op_type}), of another width"
        shifts += affine
        if not is_standard(node, "Add"):
            return shifts
        rest = node.inputs[1 - affine[0].index]
        if rest is None or _uses(value := _source(rest)) != [(node, 1 - affine[0].index)]:
            return f"its input comes from {node.name} (Add), which adds up what others read too"


def _norm_vectors(node: ir.Node) -> list[Vector] | str | None:
    """Beta and gamma of a normalization; None for any other node, a string where they are not constant."""
    if node.op_type not in NORMS or node.domain not in ("", "ai.onnx", *MICROSOFT_DOMAINS):
        return None
    found = []
    for index in reversed(NORMS[node.op_type]):
        if index is None or index >= len(node.inputs) or node.inputs[index] is None:
            continue
        vector = _vector(node, index)
        if vector is None:
            return f"its input comes from {node.name} ({node.op_type}), whose scale or shift is computed"
        found.append(vector)
    return found


def _operand(node: ir.Node) -> list[Vector] | None:
    """The constant vector of a Mul or Add; None where it has none."""
    found = [vector for index in (0, 1) if (vector := _vector(node, index)) is not None]
    return found if len(found) == 1 else None


def _vector(node: ir.Node, index: int) -> Vector | None:
    """What a node reads at an input, if that is a constant `[K]` or `[1, .., K]`."""
    constant = trace_constant(node.inputs[index])
    if isinstance(constant, str) or not constant.shape:
        return None
    if constant.shape[-1] < 2 or any(size != 1 for size in constant.shape[:-1]):
        return None
    return Vector(node.name or "", index, constant)
