"""Express quantized embedding tables in standard ONNX."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from zq2onnx.passes.candidates import EMBEDDING
from zq2onnx.passes.insert_qdq import WeightNames
from zq2onnx.passes.planned import Form, Part, PlannedTensor, QuantizedWeight, WeightView, table_part
from zq2onnx.passes.rewrite import Group, sweep
from zq2onnx.passes.select_nodes import Selection
from zq2onnx.passes.trace_weights import is_standard
from zq2onnx.scheme import PerBlock

TABLE_PARTS = (Part.CODES, Part.SCALES, Part.ZERO_POINTS)


def block_size(weight: QuantizedWeight) -> int:
    """The group's size; for a row, the power of two that holds it, as GatherBlockQuantized needs."""
    if isinstance(weight.scheme.granularity, PerBlock):
        return weight.scheme.granularity.size
    return max(16, 1 << (weight.view.k - 1).bit_length())


class InsertEmbeddingQdqPass(ir.passes.InPlacePass):
    """Replaces `Gather(table, ids)` with `DequantizeLinear` of three Gathers: codes, scales, zero points.

    Gathering first, only the rows that are looked up are dequantized. Lookups of one graph share a table.

    Args:
        selection: nodes and schemes, from `select_nodes`.
    """

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.selection = selection

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = WeightNames(model)
        known: dict[tuple[object, ...], QuantizedWeight] = {}
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
            key = (id(node.graph), *table.key, scheme)
            weight = known.get(key) or names.weight(table, scheme, table=True)
            known[key] = weight
            self.selection.weights[node.name or ""] = weight
            self._rewrite(Group(node, model), node, weight)
            modified = True
        if modified:
            sweep(model)
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
                )
            )
        attributes = {"axis": -1, "block_size": block_size(weight)}
        group.finish(group.node("DequantizeLinear", parts, attributes))


def planned_gathers(node: ir.Node) -> tuple[list[ir.Value], ir.Value, QuantizedWeight] | None:
    """Tables, ids and weight of a dequantized lookup."""
    if not is_standard(node, "DequantizeLinear") or len(node.inputs) != 3:
        return None
    gathers = [None if value is None else value.producer() for value in node.inputs]
    tables = []
    ids = None
    for gather in gathers:
        if gather is None or not is_standard(gather, "Gather") or gather.inputs[0] is None:
            return None
        tables.append(gather.inputs[0])
        ids = gather.inputs[1]
    tensor = tables[0].const_value
    if not isinstance(tensor, PlannedTensor) or tensor.form is not Form.TABLE or ids is None:
        return None
    return tables, ids, tensor.weight
