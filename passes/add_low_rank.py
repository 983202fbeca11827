"""Win back what rounding cost: the low-rank branch of ZeroQuant-V2 (section 5)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from zq2onnx.passes.planned import FACTORS, Part, PlannedTensor, QuantizedWeight, factor_part
from zq2onnx.passes.rewrite import Group
from zq2onnx.passes.trace_weights import all_nodes, is_standard
from zq2onnx.scheme import FactorType


def quantized_weight(value: ir.Value | None) -> QuantizedWeight | None:
    """The planned weight that a `DequantizeLinear`'s output stands for."""
    node = None if value is None else value.producer()
    if node is None or not is_standard(node, "DequantizeLinear"):
        return None
    codes = node.inputs[0]
    tensor = None if codes is None else codes.const_value
    return tensor.weight if isinstance(tensor, PlannedTensor) else None


class AddLowRankPass(ir.passes.InPlacePass):
    """Replaces `MatMul(A, W)` with `Add(MatMul(A, W), MatMul(MatMul(A, U), V))`.

    W is a planned weight whose scheme asks for a branch. int8 factors are `Mul(Cast(U), U_scales)`, in
    float32: behind a DequantizeLinear, ONNX Runtime would turn them into an int8 product. Twins in one graph
    share theirs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        shared: dict[tuple[int, QuantizedWeight], QuantizedWeight] = {}
        for node in list(all_nodes(model)):
            weight = quantized_weight(node.inputs[1]) if is_standard(node, "MatMul") else None
            if weight is not None and weight.rank > 0 and branch_of(node) is None:
                weight = shared.setdefault((id(node.graph), weight), weight)
                self._rewrite(Group(node, model), node, weight)
                modified = True
        return ir.passes.PassResult(model, modified)

    def _rewrite(self, group: Group, node: ir.Node, weight: QuantizedWeight) -> None:
        activation, dequantized = node.inputs
        product = group.node("MatMul", [activation, dequantized])
        product.name = f"{group.name}/product"  # the MatMul it replaces may have made /output
        u = _factor(group, weight, Part.U, Part.U_SCALES)
        v = _factor(group, weight, Part.V, Part.V_SCALES)
        down = group.node("MatMul", [activation, u], suffix="lorc_down")
        up = group.node("MatMul", [down, v], suffix="lorc_up")
        group.finish(group.node("Add", [product, up], suffix="lorc"))


def branch_of(matmul: ir.Node) -> ir.Node | None:
    """The Add that joins a quantized MatMul with its low-rank branch."""
    product = product_of(matmul)
    for reader in product.consumers():
        other = next((value for value in reader.inputs if value is not product), None)
        up = None if other is None else other.producer()
        v = None if up is None or not is_standard(up, "MatMul") else up.inputs[1]
        if is_standard(reader, "Add") and v is not None and _is_factor(v):
            return reader
    return None


def product_of(matmul: ir.Node) -> ir.Value:
    """What a quantized MatMul's group has of its product: what a Max of it alone hands on, or itself."""
    product = matmul.outputs[0]
    readers = product.consumers()
    if len(readers) == 1 and is_standard(readers[0], "Max") and len(readers[0].inputs) == 1:
        return readers[0].outputs[0]
    return product


def _is_factor(value: ir.Value) -> bool:
    """Whether a value is a planned factor, or one times its scales."""
    node = value.producer()
    if node is not None and is_standard(node, "Mul", "Cast") and node.inputs[0] is not None:
        return _is_factor(node.inputs[0])
    return isinstance(value.const_value, PlannedTensor) and value.const_value.part in FACTORS


def _factor(group: Group, weight: QuantizedWeight, part: Part, scales: Part) -> ir.Value:
    stored = group.constant(factor_part(weight, part))
    if weight.scheme.lorc_dtype is FactorType.FLOAT:
        return stored
    scale = group.constant(factor_part(weight, scales))
    name, dtype, float32 = part.value, weight.view.dtype, ir.DataType.FLOAT
    cast = group.node("Cast", [stored], {"to": float32.value}, suffix=f"{name}_cast")
    if dtype is float32:
        return group.node("Mul", [cast, scale], suffix=name)
    # ONNX Runtime's CPU cannot fold a Mul of float16, and warns of each.
    wide = group.node("Cast", [scale], {"to": float32.value}, suffix=f"{scales.value}_cast")
    product = group.node("Mul", [cast, wide], suffix=f"{name}_product")
    return group.node("Cast", [product], {"to": dtype.value}, suffix=name)


def unit_scales(weight: QuantizedWeight, part: Part) -> ir.TensorProtocol:
    """The scales of float factors: ones."""
    planned = factor_part(weight, part)
    shape = tuple(int(dim) for dim in planned.shape.numpy())
    return ir.tensor(np.ones(shape, dtype=weight.view.dtype.numpy()), name=planned.name)
