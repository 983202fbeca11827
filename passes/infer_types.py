"""Fill in the types of values that a file does not tell."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from zq2onnx.errors import UserError
from zq2onnx.passes.float_types import is_contributed
from zq2onnx.passes.trace_huge import subgraphs
from zq2onnx.passes.trace_weights import all_nodes, is_standard

SEQUENCES = {
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceMap",
    "SplitToSequence",
}
"""What makes sequences."""
_LOGGER = logging.getLogger("onnx_ir.passes.common.shape_inference")


def infer_types(model: ir.Model) -> None:
    """Infer the types of all values by the operators' schemas, as far as those tell.

    ONNX Runtime's own operators have none: their results are of their inputs' type, and what reads them is
    inferred in another round. Declared shapes that contradict what is computed are of no concern.

    Raises:
        UserError: the inference fails, with its own reason.
    """
    before = None
    while (unknown := _unknown(model)) and len(unknown) != before:
        before = len(unknown)
        reason = _infer(model) and _infer_without_shapes(model)
        _mend_sequences(unknown)
        for node in unknown:
            called = node.op_identifier() in model.functions
            floats = any(value is not None and value.dtype is ir.DataType.FLOAT for value in node.inputs)
            if floats and not called and is_contributed(node):
                for value in node.outputs:
                    value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    if unknown and reason:
        raise UserError(
            f"the type of {unknown[0].outputs[0].name!r} cannot be inferred ({reason})",
            "a model whose values' types can be inferred",
            "convert it without --dtype",
        )


def _mend_sequences(nodes: Sequence[ir.Node]) -> None:
    """Give sequences their type: onnx-ir takes over that of their elements."""
    for node in reversed(nodes):  # what is in a node's graphs comes behind it
        if is_standard(node, *SEQUENCES):
            for value in node.outputs:
                kind = ir.TensorType(value.dtype) if value.dtype is not None else None
                value.type = kind and ir.SequenceType(kind)
        elif is_standard(node, "If"):
            _take_over(node, subgraphs(node)[0].outputs)
        elif is_standard(node, "Loop"):  # the first is whether it goes on; then what is carried
            _take_over(node, subgraphs(node)[0].outputs[1 : len(node.inputs) - 1])


def _take_over(node: ir.Node, made: Sequence[ir.Value]) -> None:
    for value, inner in zip(node.outputs, made, strict=False):
        if inner.type is not None and not isinstance(inner.type, ir.TensorType):
            value.type = inner.type


def _unknown(model: ir.Model) -> list[ir.Node]:
    return [node for node in all_nodes(model) if any(value.dtype is None for value in node.outputs)]


def _infer(model: ir.Model) -> str:
    """One round; why it failed, which onnx-ir only logs, "" where it did not."""
    failure = _Failure()
    _LOGGER.addFilter(failure)
    try:
        common.ShapeInferencePass()(model)
    finally:
        _LOGGER.removeFilter(failure)
    return failure.reason


class _Failure(logging.Filter):
    """Lets nothing through, and keeps the reason of the exception that was logged."""

    reason = ""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            self.reason = " ".join(str(record.exc_info[1]).split())
        return False


def _infer_without_shapes(model: ir.Model) -> str:
    """A round for the types alone; the shapes that the file declares stay as they are."""
    declared = {value: value.shape for node in all_nodes(model) for value in node.outputs}
    for value in declared:
        value.shape = None
    reason = _infer(model)
    for value, shape in declared.items():
        value.shape = shape
    return reason
