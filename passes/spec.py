"""What is legal between two passes. Tests check it after every pass; nothing else depends on it."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator

import onnx_ir as ir

from zq2onnx import opset
from zq2onnx.passes.add_low_rank import quantized_weight
from zq2onnx.passes.planned import Form, Part, PlannedTensor
from zq2onnx.passes.trace_weights import all_nodes, is_standard


class Stage(enum.Enum):
    """How far a model has come."""

    NORMAL = "normal"
    """Plain graph, opset 18 or later, every node named; nothing planned."""
    QDQ = "qdq"
    """Planned weights behind DequantizeLinear; no operator of ours."""
    PORTABLE = "portable"
    """Planned weights in operators of ours and GatherBlockQuantized alone."""


def violations(model: ir.Model, stage: Stage) -> Iterator[str]:
    """Each way in which the model is not legal at the stage, as a line."""
    yield from _named(model)
    yield from _ordered(model)
    for node in all_nodes(model):
        if node.domain == opset.DOMAIN:
            yield from _operator(model, node) if stage is Stage.PORTABLE else [f"{node.name}: too early"]
        elif is_standard(node, "DequantizeLinear"):
            yield from _dequantize(node, stage)
    for value in [value for graph in model.graphs() for value in graph.initializers.values()]:
        if isinstance(value.const_value, PlannedTensor):
            yield from _planned(value, value.const_value, stage)


def _named(model: ir.Model) -> Iterator[str]:
    for node in all_nodes(model):
        if not node.name:
            yield f"a {node.op_type} has no name"
        for value in node.outputs:
            if value.name is None:
                yield f"{node.name}: an output has no name"


def _ordered(model: ir.Model) -> Iterator[str]:
    """Every value is made before it is read."""
    seen: set[ir.Value] = set()
    for node in all_nodes(model):
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer.graph is node.graph and value not in seen:
                yield f"{node.name} reads {value.name if value else ''} before it is made"
        seen.update(node.outputs)


def _dequantize(node: ir.Node, stage: Stage) -> Iterator[str]:
    if quantized_weight(node.outputs[0]) is None:
        return
    if stage is not Stage.QDQ:
        yield f"{node.name}: a planned DequantizeLinear at stage {stage.value}"
    readers = node.outputs[0].consumers()
    if len(readers) != 1 or not is_standard(readers[0], "MatMul"):
        yield f"{node.name}: read by {[reader.op_type for reader in readers]}, not by one MatMul"
    if opset.GROUP_KEY not in node.metadata_props:
        yield f"{node.name}: not marked with its group"


def _operator(model: ir.Model, node: ir.Node) -> Iterator[str]:
    operator = opset.OPERATORS.get(node.op_type)
    if operator is None:
        yield f"{node.name}: no operator {node.op_type}"
        return
    if (opset.DOMAIN, node.op_type, "") not in model.functions:
        yield f"{node.name}: its function is missing"
    if tuple(node.attributes) != operator.attributes:
        yield f"{node.name}: attributes {list(node.attributes)}"
    for name, value in zip(operator.inputs, node.inputs, strict=False):
        if value is None and name != "bias":
            yield f"{node.name}: no {name}"
    codes = node.inputs[1].const_value if node.inputs[1] is not None else None
    if isinstance(codes, PlannedTensor) and opset.operator_for(codes.weight.scheme) not in (
        operator,
        dataclasses.replace(operator, lorc=True),
    ):
        yield f"{node.name}: not the operator of {codes.weight.scheme.describe()}"
    required = operator.inputs if operator.lorc else operator.inputs[:-1]
    if not len(required) <= len(node.inputs) <= len(operator.inputs):
        yield f"{node.name}: {len(node.inputs)} inputs"


def _activation_scale(value: ir.Value, stage: Stage) -> Iterator[str]:
    """One group's QuantizeLinear and DequantizeLinear read it: shared ones are not fused."""
    if stage is not Stage.QDQ:
        yield f"{value.name}: an activation's scale at stage {stage.value}"
    readers = sorted(node.op_type for node in value.consumers())
    if readers and readers != ["DequantizeLinear", "QuantizeLinear"]:
        yield f"{value.name}: read by {readers}"


def _planned(value: ir.Value, tensor: PlannedTensor, stage: Stage) -> Iterator[str]:
    if stage is Stage.NORMAL:
        yield f"{value.name}: planned too early"
    if tensor.part is Part.ACT_SCALE:
        yield from _activation_scale(value, stage)
    if tensor.part in (Part.CODES, Part.SCALES, Part.ZERO_POINTS):
        wrong = Form.PORTABLE if stage is Stage.QDQ else Form.QDQ
        if tensor.form is wrong:
            yield f"{value.name}: {tensor.form.value} form at stage {stage.value}"
    if not value.consumers():
        yield f"{value.name}: nobody reads it"
