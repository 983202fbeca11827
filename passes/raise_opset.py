"""Bring a model to the opset that the written operators need."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common

from zq2onnx.errors import UserError

OLDEST_OPSET = 11
NEWEST_OPSET = 25
QDQ_OPSET = 21
"""Blocked DequantizeLinear and 4-bit tensors."""
INT2_OPSET = 25
"""2-bit tensors."""
BODY_OPSET = 18
"""What the operators' bodies need: BitwiseAnd, Split with num_outputs."""
LOWEST_IR_VERSION = 10


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The converter logs a line for every node it keeps."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class RaiseOpsetPass(ir.passes.InPlacePass):
    """Replaces operators of an older opset with those of `target`; names stay.

    Local functions are inlined first, for the converter works on plain graphs. A model that is
    at `target` or above is left as it is.

    Args:
        target: opset to reach.
        least: opset that will do if the conversion to `target` fails.

    Raises:
        UserError: the model's opset is unknown, or cannot be raised to `least`.
    """

    def __init__(self, target: int, least: int | None = None) -> None:
        super().__init__()
        self.target = target
        self.least = target if least is None else least
        self.warnings: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        version = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
        if version is None or not OLDEST_OPSET <= version <= NEWEST_OPSET:
            raise UserError(
                f"the model's opset is {version}",
                f"{OLDEST_OPSET} to {NEWEST_OPSET}",
                "export it again with a supported opset_version",
            )
        if version >= self.target:
            return ir.passes.PassResult(model, False)
        reason = _convert(model, self.target)
        if reason is None:
            return ir.passes.PassResult(model, True)
        if version < self.least:
            raise UserError(
                f"opset {version} cannot be raised to {self.target}: {reason}",
                f"opset {self.least} or later",
                f"export the model with opset_version={self.target}",
            )
        self.warnings.append(f"opset {version} was kept: raising it to {self.target} failed: {reason}")
        return ir.passes.PassResult(model, False)


def _convert(model: ir.Model, target: int) -> str | None:
    """Convert in place; the reason if it failed, with the model as it was."""
    from onnxscript import version_converter

    trial = model.clone()
    metadata = {node.name: dict(node.metadata_props) for node in model.graph if node.name}
    try:
        with _quiet():
            version_converter.convert_version(trial, target, fallback=True)
    except Exception as error:  # the converter raises whatever its adapters raise
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    if trial.opset_imports.get("") != target:
        return "the version converter gave up"
    for node in trial.graph:
        if node.name in metadata and not node.metadata_props:
            node.metadata_props.update(metadata[node.name])
    _take_over(model, trial)
    return None


def _take_over(model: ir.Model, converted: ir.Model) -> None:
    model.graph = converted.graph
    model.functions.clear()
    model.functions.update(converted.functions)


class NormalizePass(ir.passes.InPlacePass):
    """Replaces calls of local functions with their bodies, and default-valued inputs with constants.

    Functions of `ai.zq2onnx` stay: they are operators. An initializer that is also listed as a
    graph input is a constant from here on.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        inline = common.InlinePass(criteria=lambda function: function.domain != "ai.zq2onnx")
        steps = [inline, common.RemoveInitializersFromInputsPass(), common.RemoveUnusedFunctionsPass()]
        modified = False
        for step in steps:
            modified |= step(model).modified
        for number, node in enumerate(ir.traversal.RecursiveGraphIterator(model.graph)):
            if not node.name:
                node.name = f"{node.op_type}_{number}"
                modified = True
        return ir.passes.PassResult(model, modified)
