"""Express quantized weights in standard ONNX."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from zq2onnx.passes.candidates import EMBEDDING, Candidate
from zq2onnx.passes.planned import INFIXES, Part, QuantizedWeight, WeightView, qdq_part
from zq2onnx.passes.rewrite import Attributes, Group, sweep
from zq2onnx.passes.select_nodes import Selection
from zq2onnx.passes.trace_weights import all_nodes, constant_tensor, trace_constant
from zq2onnx.scheme import PerBlock, Scheme

SUFFIXES = tuple(f"_{infix}{part.value}" for infix in dict.fromkeys(INFIXES.values()) for part in Part)
"""What a weight's name becomes the names of its tensors with."""


class WeightNames:
    """Makes `QuantizedWeight`s under names that neither the model nor another weight has.

    Args:
        model: its names are read once, now.
    """

    def __init__(self, model: ir.Model) -> None:
        self._taken = {value.name for graph in model.graphs() for value in graph.initializers.values()}
        self._taken.update(value.name for value in model.graph.inputs)
        self._taken.update(value.name for node in all_nodes(model) for value in node.outputs)
        self._count: Counter[str] = Counter()

    def weight(self, view: WeightView, scheme: Scheme, *, table: bool = False) -> QuantizedWeight:
        """The weight under a name of its own; a twin if there was one of the same numbers before."""
        stem = f"{view.name}{'_table' if table else ''}_Q{scheme.bits}"
        while self._in_use(name := self._next(stem)):
            pass
        self._taken.update(name + suffix for suffix in SUFFIXES)
        return QuantizedWeight(view, scheme, name, table)

    def _next(self, stem: str) -> str:
        self._count[stem] += 1
        return stem if self._count[stem] == 1 else f"{stem}_{self._count[stem]}"

    def _in_use(self, name: str) -> bool:
        return any(name + suffix in self._taken for suffix in SUFFIXES)


def dequantized(group: Group, weight: QuantizedWeight) -> ir.Value:
    """A `DequantizeLinear` of the weight, `[K, N]`."""
    inputs = [group.constant(qdq_part(weight, Part.CODES)), group.constant(qdq_part(weight, Part.SCALES))]
    if not weight.scheme.symmetric:
        inputs.append(group.constant(qdq_part(weight, Part.ZERO_POINTS)))
    attributes: Attributes = {"axis": 1}
    if isinstance(weight.scheme.granularity, PerBlock):
        attributes = {"axis": 0, "block_size": weight.scheme.granularity.size}
    return group.node("DequantizeLinear", inputs, attributes, suffix="weight")


def _add_bias(group: Group, product: ir.Value, bias: ir.Value, beta: float, dtype: ir.DataType) -> ir.Value:
    """`product + beta * bias`."""
    tensor = constant_tensor(bias)
    # A bias with several rows fixes the activation's: what is checked on rows of its own has no place for it.
    marked = tensor is None or len(tensor.shape) < 2 or tensor.shape[0] == 1
    if beta != 1.0:
        factor = group.constant(ir.tensor(np.array(beta, dtype=dtype.numpy()), name=f"{group.name}/beta"))
        bias = group.node("Mul", [bias, factor], suffix="beta", marked=marked)
    return group.node("Add", [product, bias], suffix="bias", marked=marked)


def _of_rank(group: Group, node: ir.Node) -> ir.Value:
    """The activation with the unit dimensions that a weight `[1, .., K, N]` gives the result."""
    activation = node.inputs[0]
    weight = trace_constant(node.inputs[1])
    assert activation is not None and not isinstance(weight, str)
    rank = len(weight.shape)
    if rank == 2 or (activation.shape is not None and len(activation.shape) >= rank):
        return activation
    ones = group.constant(ir.tensor(np.ones(rank, np.int64), name=f"zq2onnx/ones_{rank}"))
    return group.node("Expand", [activation, ones], suffix="expand", marked=False)


class InsertQdqPass(ir.passes.InPlacePass):
    """Replaces `MatMul(A, W)` with `MatMul(A, DequantizeLinear(codes, scales, zero_points))`.

    Replaces `Gemm(A, W, C)` with the same, a Transpose of A for transA, and `Add(., beta * C)`;
    transB and alpha go into the weight. Unit dimensions of a weight `[1, .., K, N]` that the activation
    has not go to it, by an Expand. Every reader of a shared weight gets its own
    DequantizeLinear of initializers of its own, for ONNX Runtime fuses neither one that has two readers
    nor two that read the same initializers. They are twins: their bytes are stored once.

    Args:
        selection: nodes and schemes, from `select_nodes`. Embeddings are left to
            `InsertEmbeddingQdqPass`.
    """

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.selection = selection

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = WeightNames(model)
        modified = False
        for node, (candidate, scheme) in self.selection.chosen.items():
            if candidate.role == EMBEDDING or node.graph is None:
                continue
            assert isinstance(candidate.view, WeightView)
            weight = names.weight(candidate.view, scheme)
            self.selection.weights[node.name or ""] = weight
            self._rewrite(Group(node, model), candidate, weight)
            modified = True
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified)

    def _rewrite(self, group: Group, candidate: Candidate, weight: QuantizedWeight) -> None:
        node = candidate.node
        dtype = weight.view.dtype
        activation = _of_rank(group, node)
        gemm = node.op_type == "Gemm"
        if gemm and node.attributes.get_int("transA", 0) != 0:
            activation = group.node("Transpose", [activation], {"perm": [1, 0]}, suffix="transA")
        weight_value = dequantized(group, weight)
        bias = node.inputs[2] if gemm and len(node.inputs) > 2 else None
        beta = node.attributes.get_float("beta", 1.0) if gemm else 1.0
        result = group.node("MatMul", [activation, weight_value])
        if bias is not None and beta != 0.0:
            result = _add_bias(group, result, bias, beta, dtype)
        group.finish(result)
