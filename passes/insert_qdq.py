"""Express quantized weights in standard ONNX."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from zq2onnx.passes.planned import Part, QuantizedWeight, WeightView, qdq_part
from zq2onnx.passes.rewrite import Group
from zq2onnx.passes.select_nodes import EMBEDDING, Candidate, Selection
from zq2onnx.scheme import Scheme


@dataclass
class WeightNames:
    """Hands out one `QuantizedWeight` for each matrix and scheme, under a name of its own."""

    infix: str = ""
    _known: dict[tuple[object, ...], QuantizedWeight] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    def weight(self, view: WeightView, scheme: Scheme) -> QuantizedWeight:
        key = (*view.key, scheme)
        if key not in self._known:
            name = f"{view.name}{self.infix}_Q{scheme.bits}"
            while name in self._taken:
                name += "_"
            self._taken.add(name)
            self._known[key] = QuantizedWeight(view, scheme, name)
        return self._known[key]


def dequantized(group: Group, weight: QuantizedWeight) -> ir.Value:
    """A `DequantizeLinear` of the weight, `[K, N]`."""
    inputs = [group.constant(qdq_part(weight, Part.CODES)), group.constant(qdq_part(weight, Part.SCALES))]
    if not weight.scheme.symmetric:
        inputs.append(group.constant(qdq_part(weight, Part.ZERO_POINTS)))
    attributes: dict[str, object] = {"axis": 1}
    if weight.blocked:
        attributes = {"axis": 0, "block_size": weight.scheme.granularity.size}  # type: ignore[union-attr]
    value = group.node("DequantizeLinear", inputs, attributes, suffix="weight", dtype=weight.view.dtype)
    value.shape = ir.Shape((weight.view.k, weight.view.n))
    return value


def _scaled_bias(group: Group, bias: ir.Value, beta: float, dtype: ir.DataType) -> ir.Value:
    """`beta * bias`."""
    if beta == 1.0:
        return bias
    factor = ir.tensor(np.array(beta, dtype=dtype.numpy()), name=f"{group.name}/beta")
    return group.node("Mul", [bias, group.constant(factor)], suffix="beta", dtype=dtype)


class InsertQdqPass(ir.passes.InPlacePass):
    """Replaces `MatMul(A, W)` with `MatMul(A, DequantizeLinear(codes, scales, zero_points))`.

    Replaces `Gemm(A, W, C)` with the same, a Transpose of A for transA, and `Add(., beta * C)`;
    transB and alpha go into the weight. Every reader of a shared weight gets its own
    DequantizeLinear, for ONNX Runtime does not fuse one that has two readers.

    Args:
        selection: nodes and schemes, from `select_nodes`. Embeddings are left to
            `InsertEmbeddingQdqPass`.
    """

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.selection = selection

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = WeightNames()
        modified = False
        for node, (candidate, scheme) in self.selection.chosen.items():
            if candidate.role == EMBEDDING or node.graph is None:
                continue
            assert isinstance(candidate.view, WeightView)
            weight = names.weight(candidate.view, scheme)
            self.selection.weights[node.name or ""] = weight
            self._rewrite(Group(node, model), candidate, weight)
            modified = True
        return ir.passes.PassResult(model, modified)

    def _rewrite(self, group: Group, candidate: Candidate, weight: QuantizedWeight) -> None:
        node = candidate.node
        activation = node.inputs[0]
        dtype = weight.view.dtype
        gemm = node.op_type == "Gemm"
        if gemm and node.attributes.get_int("transA", 0):
            activation = group.node("Transpose", [activation], {"perm": [1, 0]}, suffix="transA", dtype=dtype)
        weight_value = dequantized(group, weight)
        bias = node.inputs[2] if gemm and len(node.inputs) > 2 else None
        beta = node.attributes.get_float("beta", 1.0) if gemm else 1.0
        result = group.node("MatMul", [activation, weight_value], dtype=dtype)
        if bias is not None and beta != 0.0:
            result = group.node(
                "Add", [result, _scaled_bias(group, bias, beta, dtype)], suffix="bias", dtype=dtype
            )
        group.finish(result)
