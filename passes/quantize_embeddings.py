"""Quantize embedding tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from zq2onnx.opset import MICROSOFT
from zq2onnx.passes.insert_qdq import WeightNames
from zq2onnx.passes.planned import (
    Form,
    Part,
    PlannedTensor,
    QuantizedWeight,
    WeightView,
    nibble_part,
    table_part,
)
from zq2onnx.passes.rewrite import Group
from zq2onnx.passes.select_nodes import EMBEDDING, Selection, all_nodes
from zq2onnx.passes.trace_weights import is_standard
from zq2onnx.scheme import PerBlock

TABLE_PARTS = (Part.CODES, Part.SCALES, Part.ZERO_POINTS)


def _block_size(weight: QuantizedWeight) -> int:
    """The group's size; for a row, the power of two that holds it, as GatherBlockQuantized needs."""
    if isinstance(weight.scheme.granularity, PerBlock):
        return weight.scheme.granularity.size
    return max(16, 1 << (weight.view.k - 1).bit_length())


class InsertEmbeddingQdqPass(ir.passes.InPlacePass):
    """Replaces `Gather(table, ids)` with `DequantizeLinear` of three Gathers: codes, scales, zero points.

    Gathering first, only the rows that are looked up are dequantized.

    Args:
        selection: nodes and schemes, from `select_nodes`.
    """

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.selection = selection

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = WeightNames("_table")
        modified = False
        for node, (candidate, scheme) in self.selection.chosen.items():
            if candidate.role != EMBEDDING or node.graph is None:
                continue
            assert isinstance(candidate.view, WeightView)
            table = dataclasses.replace(
                candidate.view,
                k=candidate.view.n,
                n=candidate.view.k,
                transposed=not candidate.view.transposed,
            )
            weight = names.weight(table, scheme)
            self.selection.weights[node.name or ""] = weight
            self._rewrite(Group(node, model), node, weight)
            modified = True
        return ir.passes.PassResult(model, modified)

    def _rewrite(self, group: Group, node: ir.Node, weight: QuantizedWeight) -> None:
        parts = []
        for part in TABLE_PARTS:
            tensor = table_part(weight, part)
            parts.append(
                group.node(
                    "Gather",
                    [group.constant(tensor), node.inputs[1]],
                    {"axis": 0},
                    suffix=part.value,
                    dtype=tensor.dtype,
                )
            )
        attributes = {"axis": -1, "block_size": _block_size(weight)}
        group.finish(group.node("DequantizeLinear", parts, attributes, dtype=weight.view.dtype))


class LowerEmbeddingsPass(ir.passes.InPlacePass):
    """Replaces `DequantizeLinear(Gather, Gather, Gather)` with `com.microsoft::GatherBlockQuantized`.

    4 bits are a UINT4 tensor without a `bits` attribute, which runs since ONNX Runtime 1.20;
    8 bits are bytes with `bits=8`, since 1.23. (Nibbles in bytes are read wrongly by 1.23 and 1.24
    where the number of groups is odd.)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gathers = [node for node in all_nodes(model) if _planned_gathers(node) is not None]
        for node in gathers:
            self._rewrite(Group(node, model), node)
            model.opset_imports[MICROSOFT] = 1
        if gathers:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(gathers))

    def _rewrite(self, group: Group, node: ir.Node) -> None:
        found = _planned_gathers(node)
        assert found is not None
        (codes, scales, zero_points), ids, weight = found
        attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": _block_size(weight)}
        if weight.scheme.bits == 8:
            attributes["bits"] = 8
        group.finish(
            group.node(
                "GatherBlockQuantized",
                [codes, ids, scales, zero_points],
                attributes,
                domain=MICROSOFT,
                dtype=weight.view.dtype,
            )
        )


class UnpackEmbeddingsPass(ir.passes.InPlacePass):
    """Replaces `Gather` of a UINT4 table with `Gather` of its bytes, BitwiseAnd, BitShift and Concat.

    ONNX Runtime gathers no 4-bit tensors, and a DequantizeLinear of the table would run over all of
    it for every token.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gathers = [node for node in all_nodes(model) if _nibble_table(node) is not None]
        for node in gathers:
            table = _nibble_table(node)
            assert table is not None
            group = Group(node, model)
            tensor = group.constant(nibble_part(table.weight, table.part))
            # The group's name stays with its DequantizeLinear; this node keeps its own.
            suffix = table.part.value
            inputs = [tensor, node.inputs[1]]
            found = group.node("Gather", inputs, {"axis": 0}, suffix=suffix, dtype=ir.DataType.UINT8)
            if table.part is Part.CODES:
                found.name = f"{found.name}/bytes"
                found = _unpacked(group, found, table.weight.view.k)
            group.finish(found)
            found.type = ir.TensorType(ir.DataType.UINT8)
        if gathers:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(gathers))


def _nibble_table(node: ir.Node) -> PlannedTensor | None:
    tensor = node.inputs[0].const_value if is_standard(node, "Gather") and node.inputs[0] else None
    if isinstance(tensor, PlannedTensor) and tensor.dtype is ir.DataType.UINT4:
        return tensor
    return None


def _unpacked(group: Group, packed: ir.Value, width: int) -> ir.Value:
    """The codes `[.., width]` of bytes `[.., ceil(width / 2)]`."""
    uint8 = ir.DataType.UINT8

    def constant(value: object, name: str, dtype: type) -> ir.Value:
        return group.constant(ir.tensor(np.array(value, dtype=dtype), name=f"zq2onnx/{name}"))

    low = group.node("BitwiseAnd", [packed, constant(15, "low_nibble", np.uint8)], suffix="low", dtype=uint8)
    shift = [packed, constant(4, "nibble_bits", np.uint8)]
    high = group.node("BitShift", shift, {"direction": "RIGHT"}, suffix="high", dtype=uint8)
    codes = group.node("Concat", [low, high], {"axis": -1}, suffix="unpack", dtype=uint8)
    if width % 2 == 0:
        return codes
    bounds = [constant([value], f"slice_{value}", np.int64) for value in (0, width, -1)]
    return group.node("Slice", [codes, *bounds], suffix="trim", dtype=uint8)


def _planned_gathers(node: ir.Node) -> tuple[list[ir.Value], ir.Value, QuantizedWeight] | None:
    """Tables, ids and weight of a dequantized lookup."""
    if not is_standard(node, "DequantizeLinear") or len(node.inputs) != 3:
        return None
    tables = []
    for value in node.inputs:
        gather = None if value is None else value.producer()
        if gather is None or not is_standard(gather, "Gather") or gather.inputs[0] is None:
            return None
        tables.append(gather.inputs[0])
    tensor = tables[0].const_value
    ids = gather.inputs[1]
    if not isinstance(tensor, PlannedTensor) or tensor.form is not Form.TABLE or ids is None:
        return None
    return tables, ids, tensor.weight
