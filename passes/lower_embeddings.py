"""Lower each quantized lookup to one operator of ONNX Runtime's own."""

from __future__ import annotations

import onnx_ir as ir

from zq2onnx.opset import MICROSOFT
from zq2onnx.passes.insert_embedding_qdq import block_size, planned_gathers
from zq2onnx.passes.rewrite import Group, sweep
from zq2onnx.passes.trace_weights import all_nodes


class LowerEmbeddingsPass(ir.passes.InPlacePass):
    """Replaces `DequantizeLinear(Gather, Gather, Gather)` with `com.microsoft::GatherBlockQuantized`.

    4 bits are a UINT4 tensor without a `bits` attribute, which runs since ONNX Runtime 1.20;
    8 bits are bytes with `bits=8`, since 1.23. (Nibbles in bytes are read wrongly by 1.23 and 1.24
    where the number of groups is odd.)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gathers = [node for node in all_nodes(model) if planned_gathers(node) is not None]
        for node in gathers:
            self._rewrite(Group(node, model), node)
            model.opset_imports[MICROSOFT] = 1
        if gathers:
            sweep(model)
        return ir.passes.PassResult(model, bool(gathers))

    def _rewrite(self, group: Group, node: ir.Node) -> None:
        found = planned_gathers(node)
        assert found is not None
        (codes, scales, zero_points), ids, weight = found
        attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": block_size(weight)}
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
