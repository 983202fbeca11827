"""Look quantized rows up in a form that ONNX Runtime can run in standard operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from zq2onnx.passes.insert_embedding_qdq import planned_gathers
from zq2onnx.passes.planned import Part, PlannedTensor, nibble_part
from zq2onnx.passes.rewrite import Group, sweep
from zq2onnx.passes.trace_weights import all_nodes, is_standard


class UnpackEmbeddingsPass(ir.passes.InPlacePass):
    """Replaces `Gather` of a UINT4 table with `Gather` of its bytes, BitwiseAnd, BitShift and Concat.

    ONNX Runtime gathers no 4-bit tensors, and a DequantizeLinear of the table would run over all of
    it for every token.

    Replaces `MatMul(DequantizeLinear(..), B)` with `MatMul(Squeeze(Unsqueeze(DequantizeLinear(..))), B)`
    where looked-up rows go straight into a product: ONNX Runtime fuses that, if B is of 8 bits, into a
    MatMulIntegerToFloat, which takes no zero points by row.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        lookups = [node for node in all_nodes(model) if planned_gathers(node) is not None]
        shielded = [node for node in lookups if self._shield(model, node)]
        gathers = [node for node in all_nodes(model) if _nibble_table(node) is not None]
        for node in gathers:
            table = _nibble_table(node)
            assert table is not None
            group = Group(node, model)
            tensor = group.constant(nibble_part(table.weight, table.part))
            # The group's name stays with its DequantizeLinear; this node keeps its own.
            suffix = table.part.value
            inputs = [tensor, node.inputs[1]]
            found = group.node("Gather", inputs, {"axis": 0}, suffix=suffix)
            if table.part is Part.CODES:
                found.name = f"{found.name}/bytes"
                found = _unpacked(group, found, table.weight.view.k)
            group.finish(found)
            found.type = ir.TensorType(ir.DataType.UINT8)
        if gathers:
            sweep(model)
        return ir.passes.PassResult(model, bool(gathers or shielded))

    def _shield(self, model: ir.Model, node: ir.Node) -> bool:
        """Part looked-up rows from the MatMuls that read them; whether there are any."""
        rows = node.outputs[0]
        if not any(is_standard(reader, "MatMul") for reader in rows.consumers()):
            return False
        group = Group(node, model)
        first = group.constant(ir.tensor(np.array([0], np.int64), name="zq2onnx/first_axis"))
        found = group.node("DequantizeLinear", node.inputs, _attributes(node))
        found.name = f"{found.name}/rows"
        wide = group.node("Unsqueeze", [found, first], suffix="unsqueeze", marked=False)
        group.finish(group.node("Squeeze", [wide, first], suffix="squeeze", marked=False))
        return True


def _attributes(node: ir.Node) -> dict[str, int]:
    return {name: node.attributes.get_int(name, 0) for name in ("axis", "block_size")}


def _nibble_table(node: ir.Node) -> PlannedTensor | None:
    tensor = node.inputs[0].const_value if is_standard(node, "Gather") and node.inputs[0] else None
    if isinstance(tensor, PlannedTensor) and tensor.dtype is ir.DataType.UINT4:
        return tensor
    return None


def _unpacked(group: Group, packed: ir.Value, width: int) -> ir.Value:
    """The codes `[.., width]` of bytes `[.., ceil(width / 2)]`."""

    def constant(value: object, name: str, dtype: type) -> ir.Value:
        return group.constant(ir.tensor(np.array(value, dtype=dtype), name=f"zq2onnx/{name}"))

    low = group.node("BitwiseAnd", [packed, constant(15, "low_nibble", np.uint8)], suffix="low")
    shift = [packed, constant(4, "nibble_bits", np.uint8)]
    high = group.node("BitShift", shift, {"direction": "RIGHT"}, suffix="high")
    codes = group.node("Concat", [low, high], {"axis": -1}, suffix="unpack")
    if width % 2 == 0:
        return codes
    bounds = [constant([value], f"slice_{value}", np.int64) for value in (0, width, -1)]
    return group.node("Slice", [codes, *bounds], suffix="trim")
