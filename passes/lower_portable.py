"""Lower each quantized MatMul to one node of `ai.zq2onnx`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from zq2onnx import opset
from zq2onnx.passes.add_low_rank import branch_of, quantized_weight, unit_scales
from zq2onnx.passes.planned import Part, QuantizedWeight, factor_part, portable_part
from zq2onnx.passes.rewrite import Group, sweep
from zq2onnx.passes.trace_weights import all_nodes, constant_tensor, is_standard
from zq2onnx.scheme import FactorType


@dataclass(frozen=True)
class _Match:
    """A quantized MatMul with what belongs to it downstream; `last` has its result."""

    matmul: ir.Node
    weight: QuantizedWeight
    branch: bool
    bias: ir.Value | None
    last: ir.Node


class LowerToPortablePass(ir.passes.InPlacePass):
    """Replaces `DequantizeLinear` + `MatMul` [+ branch] [+ constant bias] with `ai.zq2onnx::MatMulW4A16…`.

    Runs on planned weights only. The operator's meaning, what it does to its activations included, goes
    along as a model-local function. Twins in one graph become one weight again.

    Args:
        bias: whether a constant bias becomes the operator's; else its Add stays behind.

    Raises:
        UserError: a scheme has no operator, for its activations have one scale for good.
    """

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.bias = bias

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        matches = [match for node in all_nodes(model) if (match := _match(node, self.bias)) is not None]
        shared: dict[tuple[int, QuantizedWeight], QuantizedWeight] = {}
        for match in matches:
            key = (id(match.matmul.graph), match.weight)
            match = dataclasses.replace(match, weight=shared.setdefault(key, match.weight))
            _lower(Group(match.last, model, source=match.matmul), match)
            add_function(model, _operator(match))
        if matches:
            sweep(model)
        return ir.passes.PassResult(model, bool(matches))


def _operator(match: _Match) -> opset.Operator:
    scheme = match.weight.scheme
    return opset.operator_for(scheme if match.branch else scheme.without_lorc())


def _match(node: ir.Node, with_bias: bool) -> _Match | None:
    weight = quantized_weight(node.inputs[1]) if is_standard(node, "MatMul") else None
    if weight is None:
        return None
    branch = branch_of(node)
    last = branch or node
    readers = last.outputs[0].consumers()
    if not with_bias or len(readers) != 1 or last.outputs[0].is_graph_output():
        return _Match(node, weight, branch is not None, None, last)
    add = readers[0]
    other = next((value for value in add.inputs if value is not last.outputs[0]), None)
    if is_standard(add, "Add") and add.graph is node.graph and is_vector_bias(other, weight.view.n):
        return _Match(node, weight, branch is not None, other, add)
    return _Match(node, weight, branch is not None, None, last)


def is_vector_bias(value: ir.Value | None, n: int) -> bool:
    """Whether a value is a constant `[N]`, as an operator's bias input takes it."""
    tensor = constant_tensor(value)
    return tensor is not None and tuple(tensor.shape.numpy()) == (n,)


def _lower(group: Group, match: _Match) -> None:
    weight = match.weight
    parts = [portable_part(weight, part) for part in (Part.CODES, Part.SCALES, Part.ZERO_POINTS)]
    inputs = [match.matmul.inputs[0], *(group.constant(part) for part in parts), _bias(group, match)]
    if match.branch:
        inputs += [group.constant(factor_part(weight, part)) for part in (Part.U, Part.V)]
        for part in (Part.U_SCALES, Part.V_SCALES):
            int8 = weight.scheme.lorc_dtype is FactorType.INT8
            inputs.append(group.constant(factor_part(weight, part) if int8 else unit_scales(weight, part)))
    elif match.bias is None:
        inputs.pop()
    operator = _operator(match)
    group.finish(
        group.node(
            operator.name,
            inputs,
            opset.node_attributes(weight.layout),
            domain=opset.DOMAIN,
            dtype=weight.view.dtype,
        )
    )


def _bias(group: Group, match: _Match) -> ir.Value | None:
    """The bias as the operator takes it: where half bytes are stored, zeros for the high ones follow."""
    tensor = constant_tensor(match.bias)
    if match.bias is None or tensor is None or not match.weight.layout.half_bytes:
        return match.bias
    values = tensor.numpy()
    padded = np.concatenate([values, np.zeros_like(values)])
    return group.constant(ir.tensor(padded, dtype=tensor.dtype, name=f"{group.name}/bias"))


def add_function(model: ir.Model, operator: opset.Operator) -> None:
    """Put the operator's body in the model, for the model's own opset."""
    identifier = (opset.DOMAIN, operator.name, "")
    if identifier not in model.functions:
        proto = opset.function_proto(operator, model.opset_imports[""])
        model.functions[identifier] = ir.serde.deserialize_function(proto)
    model.opset_imports[opset.DOMAIN] = opset.DOMAIN_VERSION
