"""Bring a model to the opset that the written operators need."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.opset import DOMAIN
from zq2onnx.passes.normalize import name_nodes
from zq2onnx.passes.trace_weights import all_nodes

OLDEST_OPSET = 11
NEWEST_OPSET = 25
QDQ_OPSET = 21
"""Blocked DequantizeLinear and 4-bit tensors."""
INT2_OPSET = 25
"""2-bit tensors."""
BODY_OPSET = 18
"""What the operators' bodies need: BitwiseAnd, Split with num_outputs."""
LOWEST_IR_VERSION = 10
NOISE = re.compile(r" at 0x[0-9a-fA-F]+|^\S+:\d+: .*?Assertion `.*?` failed: ?")
"""Addresses of objects, and where in ONNX's C++ source an assertion stands."""


class RaiseOpsetPass(ir.passes.InPlacePass):
    """Replaces operators of an older opset with those of `target`, or else of `least`; names stay.

    Runs after `NormalizePass`, for the converter works on plain graphs. A model that is at `target` or
    above is left as it is, and so is one that holds operators of `ai.zq2onnx`: the converter would
    inline them.

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
        version = model.opset_imports.get("")
        if version is None or not OLDEST_OPSET <= version <= NEWEST_OPSET:
            raise UserError(
                "the model imports no ONNX opset" if version is None else f"the model's opset is {version}",
                f"{OLDEST_OPSET} to {NEWEST_OPSET}",
                "export it again with a supported opset_version",
            )
        if version >= self.target:
            return ir.passes.PassResult(model, False)
        reason = _convert(model, self.target)
        if reason is None:
            return ir.passes.PassResult(model, True)
        failed = f"raising it to {self.target} failed: {reason}"
        if version >= self.least:
            self.warnings.append(f"opset {version} was kept: {failed}")
            return ir.passes.PassResult(model, False)
        if self.least < self.target:
            reason = _convert(model, self.least)
        if reason is not None:
            raise UserError(
                f"opset {version} cannot be raised to {self.least}: {reason}",
                f"opset {self.least} or later",
                f"export the model with opset_version={self.target}",
            )
        self.warnings.append(f"opset {version} was raised to {self.least} only: {failed}")
        return ir.passes.PassResult(model, True)


class _Skipped(logging.Handler):
    """Collects the converter's warnings that it left a node as it was."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reasons: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith(("Skipping version conversion", "Failed to convert")):
            cause = record.exc_info[1] if record.exc_info else None
            self.reasons.append(_root_cause(cause) if cause is not None else message)


@contextlib.contextmanager
def _watched() -> Iterator[list[str]]:
    """Keep the converter's log from the user, and tell what in it matters."""
    log = logging.getLogger("onnxscript.version_converter")
    handler = _Skipped()
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield handler.reasons
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


def _root_cause(error: BaseException) -> str:
    """The first line of what was raised first, without `NOISE`."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(error).strip().splitlines()
    return NOISE.sub("", lines[0]) if lines else type(error).__name__


def _convert(model: ir.Model, target: int) -> str | None:
    """Convert in place; the reason if it failed, with the model as it was."""
    from onnxscript import version_converter

    if any(node.domain == DOMAIN for node in all_nodes(model)):
        return f"it holds operators of {DOMAIN}, whose bodies are written for the opset it has"
    trial = model.clone()
    metadata = {node.name: dict(node.metadata_props) for node in all_nodes(model)}
    try:
        with _watched() as reasons:
            version_converter.convert_version(trial, target, fallback=True)
    except Exception as error:  # the converter raises whatever its adapters raise
        return _root_cause(error)
    if reasons or trial.opset_imports.get("") != target:
        return reasons[0] if reasons else "the version converter gave up"
    for node in all_nodes(trial):
        if not node.metadata_props:
            node.metadata_props.update(metadata.get(node.name, {}))
    model.graph = trial.graph
    model.functions.clear()
    model.functions.update(trial.functions)
    name_nodes(model)
    return None
