"""Fill in the types of values that a file does not tell."""

from __future__ import annotations

import logging

import onnx_ir as ir
import onnx_ir.passes.common as common

from zq2onnx.errors import UserError
from zq2onnx.passes.float_types import is_contributed
from zq2onnx.passes.trace_weights import all_nodes

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
