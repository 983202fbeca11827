"""Tell the nodes that can compute in half precision from those that must stay float32."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.passes.float_types import takes_type
from zq2onnx.passes.trace_huge import reads, subgraphs, trace_huge
from zq2onnx.passes.trace_weights import constant_tensor, is_standard

REDUCTIONS = {
    "CumSum",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
}
"""Sums of many numbers, or of their squares: variances among them."""
OVERFLOWING = {"Exp"}
"""What leaves float16's range where its operand is 12."""
ANGULAR = {"Cos", "Sin"}
ELEMENTWISE = {
    "Abs",
    "Add",
    "Cast",
    "Clip",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Pow",
    "Reciprocal",
    "Sqrt",
    "Sub",
    "Sum",
    "Where",
}
MOVING = {"Concat", "Expand", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
ANGLE_MAKING = {"Einsum", "Gather", "GatherElements", "GatherND", "Gemm", "MatMul"}
"""What may look up angles in a table, or compute them, besides what is elementwise or moves."""
NORMALIZING = {f"{kind}LayerNormalization" for kind in ("", "Simplified", "Skip", "SkipSimplified")}
SIZING = {"Shape", "Size"}
"""What tells nothing of a value's numbers."""


@dataclass
class Precision:
    """Which nodes of a float32 model compute in half precision.

    Attributes:
        narrow: these nodes; all others go on in float32.
        huge: float32 values that may be beyond the half type's range, as masks of -3.4e38 are.
    """

    narrow: set[ir.Node] = field(default_factory=set)
    huge: set[ir.Value] = field(default_factory=set)


def is_float32(value: ir.Value | None) -> bool:
    """Whether a value is a tensor of float32."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype is ir.DataType.FLOAT


def trace_precision(model: ir.Model, dtype: ir.DataType) -> Precision:
    """Decide node by node, by what reaches it; weights are not read.

    What descends from float inputs and from constant matrices (weights, tables, codes of quantized ones) is
    *hidden*, and narrow, but for these, which stay float32:

    - what is made of integers and single numbers alone: positions, rotary angles (float16 has no odd
      integers beyond 2048), masks (of -3.4e38);
    - what a Cast from half precision made: whoever wrote it wanted float32;
    - reductions, squares that they read, what else is made for them alone, and what is computed with
      their results up to where they meet the rest again: variances, norms; so with results of Exp;
    - sines and cosines, and what is made for them alone, tables of angles too;
    - normalizations whose mean or deviation is used, which float32 is by their schema;
    - what an operator's schema does not allow; loops; calls of functions; sequences.

    Args:
        model: normalized, types of all values known.
        dtype: float16 or bfloat16.

    Raises:
        UserError: the type of a hidden value is not known.
    """
    tracer = _Tracer(model, dtype)
    tracer.hidden.update(value for value in model.graph.inputs if is_float32(value))
    tracer.visit(model.graph)
    tracer.spread_upwards(model.graph)
    tracer.found.huge = trace_huge(model.graph, tracer.found.narrow, dtype)
    return tracer.found


class _Tracer:
    def __init__(self, model: ir.Model, dtype: ir.DataType) -> None:
        self.version = model.opset_imports.get("", 1)
        self.functions = model.functions
        self.dtype = dtype
        self.found = Precision()
        self.hidden: set[ir.Value] = set()
        self.reduced: set[ir.Value] = set()
        """Results of reductions and exponentials, and what is computed of them alone."""
        self.demanding: set[ir.Node] = set()
        """Nodes whose operands must not be rounded: reductions, sines, and what is made for them alone."""
        self.angular: set[ir.Node] = set()
        """Those of them that are sines, or are made for sines."""

    def visit(self, graph: ir.Graph) -> None:
        """Go through a graph in its order."""
        for node in graph:
            branches = subgraphs(node) if is_standard(node, "If") and _is_plain(node) else []
            for branch in branches:
                self.visit(branch)
            made = any(value in self.hidden for branch in branches for value in branch.outputs)
            made |= is_standard(node, "DequantizeLinear") and constant_tensor(node.inputs[0]) is not None
            if made or any(self._is_hidden(value) for value in reads(node)):
                self._visit_hidden(node)

    def _is_hidden(self, value: ir.Value) -> bool:
        if value in self.hidden:
            return True
        tensor = constant_tensor(value)
        return (
            is_float32(value) and tensor is not None and sum(size != 1 for size in tensor.shape.numpy()) >= 2
        )

    def _visit_hidden(self, node: ir.Node) -> None:
        if any(value.dtype is None and value.uses() for value in node.outputs):
            raise UserError(
                f"node {node.name!r} ({node.op_type}): the type of its result is not known",
                "a model whose values' types can be inferred",
                "convert it without --dtype",
            )
        if is_standard(node, "Cast") and not is_float32(node.inputs[0]):
            return
        self.hidden.update(filter(is_float32, node.outputs))
        if self._must_stay(node) or not _is_plain(node):
            return
        called = node.op_identifier() in self.functions
        if not called and takes_type(node, self.version, self.dtype) is not None:
            self.found.narrow.add(node)

    def _must_stay(self, node: ir.Node) -> bool:
        """Whether a node is a reduction, or of what belongs to one; notes what is reduced."""
        if is_standard(node, *ANGULAR):
            self.demanding.add(node)
            self.angular.add(node)
            return True
        if _is_reduction(node) or is_standard(node, *OVERFLOWING):
            self.reduced.update(node.outputs)
            self.demanding.update([node] if _is_reduction(node) else ())
            return True
        if node.op_type in NORMALIZING:
            return any(value.uses() or value.is_graph_output() for value in node.outputs[1:3])
        floats = [value for value in node.inputs if value is not None and value in self.hidden]
        if not is_standard(node, *ELEMENTWISE, *MOVING) or self.reduced.isdisjoint(floats):
            return False
        if self.reduced.issuperset(floats):
            self.reduced.update(node.outputs)
        return True

    def spread_upwards(self, graph: ir.Graph) -> None:
        """Let stay float32 what is made for demanding nodes alone, and squares that any of them reads."""
        for node in reversed(graph):
            for branch in subgraphs(node):
                self.spread_upwards(branch)
            if node in self.found.narrow and self._is_demanded(node):
                self.found.narrow.discard(node)
                self.demanding.add(node)

    def _is_demanded(self, node: ir.Node) -> bool:
        """Whether a node's results are to stay float32 for those who read them; notes angles."""
        readers = [reader for value in node.outputs for reader in value.consumers()]
        readers = [reader for reader in readers if not is_standard(reader, *SIZING)]
        if _is_square(node) and not self.demanding.isdisjoint(readers):
            return True
        if not readers or any(value.is_graph_output() for value in node.outputs):
            return False
        if is_standard(node, *ELEMENTWISE, *MOVING, *ANGLE_MAKING) and self.angular.issuperset(readers):
            self.angular.add(node)
            return True
        return is_standard(node, *ELEMENTWISE, *MOVING) and self.demanding.issuperset(readers)


def _is_square(node: ir.Node) -> bool:
    """Whether a node raises its one operand to a power."""
    powers = is_standard(node, "Pow") and constant_tensor(node.inputs[1]) is not None
    return powers or (is_standard(node, "Mul") and node.inputs[0] is node.inputs[1])


def _is_reduction(node: ir.Node) -> bool:
    """Whether a node sums many numbers, or by an Einsum of one tensor, with itself too."""
    if not is_standard(node, "Einsum"):
        return is_standard(node, *REDUCTIONS)
    terms, _, result = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    operands = {*terms.split(",")}
    return len({*node.inputs}) == len(operands) == 1 and set(result) < set(operands.pop())


def _is_plain(node: ir.Node) -> bool:
    """Whether a node computes with tensors alone, in no graph of its own but an If's branches."""
    values = (*node.inputs, *node.outputs)
    plain = all(
        value is None or value.type is None or isinstance(value.type, ir.TensorType) for value in values
    )
    return plain and (is_standard(node, "If") or not subgraphs(node))
