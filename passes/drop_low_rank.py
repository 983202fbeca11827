"""Take out the branches that turned out not to pay."""

from __future__ import annotations

import dataclasses
from collections.abc import Container

import onnx_ir as ir
import onnx_ir.passes.common as common

from zq2onnx import opset
from zq2onnx.passes.add_low_rank import branch_of, product_of, quantized_weight
from zq2onnx.passes.lower_portable import add_function
from zq2onnx.passes.planned import PlannedTensor, QuantizedWeight
from zq2onnx.passes.rewrite import Group, sweep
from zq2onnx.passes.trace_weights import all_nodes, is_standard


class DropLowRankPass(ir.passes.InPlacePass):
    """Replaces an operator or group with a branch with the one without.

    Args:
        dropped: the weights whose factors would not lower the error.
    """

    def __init__(self, dropped: Container[QuantizedWeight]) -> None:
        super().__init__()
        self.dropped = dropped

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(all_nodes(model)):
            if node.graph is None:
                continue
            modified |= self._drop_fused(model, node) or self._drop_group(model, node)
        if modified:
            sweep(model)
            common.RemoveUnusedFunctionsPass()(model)
        return ir.passes.PassResult(model, modified)

    def _drop_fused(self, model: ir.Model, node: ir.Node) -> bool:
        operator = opset.OPERATORS.get(node.op_type) if node.domain == opset.DOMAIN else None
        if operator is None or not operator.lorc:
            return False
        tensor = node.inputs[1].const_value if node.inputs[1] is not None else None
        if not isinstance(tensor, PlannedTensor) or tensor.weight not in self.dropped:
            return False
        plain = dataclasses.replace(operator, lorc=False)
        group = Group(node, model)
        inputs = list(node.inputs[: len(plain.inputs)])
        while inputs[-1] is None:
            inputs.pop()
        attributes = opset.node_attributes(tensor.weight.layout)
        group.finish(
            group.node(plain.name, inputs, attributes, domain=opset.DOMAIN, dtype=tensor.weight.view.dtype)
        )
        add_function(model, plain)
        return True

    def _drop_group(self, model: ir.Model, node: ir.Node) -> bool:
        weight = quantized_weight(node.inputs[1]) if is_standard(node, "MatMul") else None
        branch = None if weight is None or weight not in self.dropped else branch_of(node)
        if branch is None:
            return False
        Group(branch, model).finish(product_of(node))
        return True
