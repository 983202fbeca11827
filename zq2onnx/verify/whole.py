"""Judges the whole model: its optimized graph, and what it answers to a small made-up batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from zq2onnx.errors import CheckFailed
from zq2onnx.opset import DOMAIN, FLOAT_ACTIVATIONS, GROUP_KEY
from zq2onnx.verify.feeds import made_up_feeds
from zq2onnx.verify.groups import find_groups
from zq2onnx.verify.optimized import Violation, findings, naming_failures, optimizing_session
from zq2onnx.verify.walk import all_nodes

if TYPE_CHECKING:
    import onnxruntime

AFFORDABLE_BYTES = 1_000_000_000
"""A model with more data is not opened whole by the sampled check."""

_NAMED = 3
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}

Feeds = dict[str, NDArray[Any]]


def judge_whole_model(model_path: Path, model: onnx.ModelProto) -> list[str]:
    """Read a model's optimized graph, where opening it is cheap.

    Args:
        model_path: the file.
        model: the same, loaded without external data.

    Returns:
        Notes: what was not read and why, and what a qdq model leaves unfused.

    Raises:
        CheckFailed: the model does not load, or the optimized graph breaks a rule.
    """
    size = _data_bytes(model_path, model)
    if size > AFFORDABLE_BYTES:
        return [f"whole model's optimized graph not read: {size / 1e6:.0f} MB are many for a sampled check"]
    return _open(model_path, model)[1]


def run_whole_model(model_path: Path, model: onnx.ModelProto, original: Path | None = None) -> list[str]:
    """Run a model and read its optimized graph.

    Args:
        model_path: the file.
        model: the same, loaded without external data.
        original: the float model that it was made from.

    Returns:
        Notes: what was not run and why, and what a qdq model leaves unfused.

    Raises:
        CheckFailed: the model does not load, a result is not finite, it fails on inputs on which the
            original runs, or the optimized graph breaks a rule.
    """
    session, notes = _open(model_path, model)
    if session is None:
        return notes
    try:
        feeds = made_up_feeds(model.graph)
    except LookupError as error:
        return [*notes, f"whole model not run: input {error.args[0]!r} is not one that can be made up"]
    try:
        with naming_failures("whole model, on inputs made up from their names"):
            results = session.run(None, feeds)
    except CheckFailed as failure:
        if original is not None and _runs(original, feeds):
            raise
        return [*notes, f"whole model not run: the inputs made up do not suit it ({failure})"]
    for output, result in zip(model.graph.output, results, strict=True):
        if _is_float_array(result) and not np.isfinite(result).all():
            bad = int((~np.isfinite(result)).sum())
            raise CheckFailed(
                f"output {output.name!r} of the whole model: {bad} of {result.size} values not finite"
            )
    return notes


def _open(model_path: Path, model: onnx.ModelProto) -> tuple[onnxruntime.InferenceSession | None, list[str]]:
    """A session on the model, None where there can be none here, and notes on its optimized graph."""
    if any(item.data_type == TensorProto.BFLOAT16 for item in model.graph.initializer):
        return None, ["whole model not run: bfloat16 needs a GPU provider"]
    is_portable = any(node.domain == DOMAIN for node in all_nodes(model.graph))
    with naming_failures("whole model"):
        session, optimized = optimizing_session(model_path, None if is_portable else FLOAT_ACTIVATIONS)
    return session, _judge_graph(model, optimized, is_portable)


def _runs(original: Path, feeds: Feeds) -> bool:
    """Whether the float model runs on the feeds."""
    try:
        with naming_failures("float model"):
            optimizing_session(original)[0].run(None, feeds)
    except CheckFailed:
        return False
    return True


def _is_float_array(result: object) -> bool:
    """Not so of sequences, and of what is not computed at all."""
    return isinstance(result, np.ndarray) and np.issubdtype(result.dtype, np.floating)


def _data_bytes(model_path: Path, model: onnx.ModelProto) -> int:
    """Size of the file and of the external data of its initializers."""
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sum(path.stat().st_size for path in (model_path, *(model_path.parent / name for name in names)))


def _judge_graph(model: onnx.ModelProto, optimized: onnx.ModelProto, is_portable: bool) -> list[str]:
    """What was quantized before us keeps its name, carries no group and is not ours to judge."""
    foreign = {
        node.name
        for node in all_nodes(model.graph)
        if all(item.key != GROUP_KEY for item in node.metadata_props)
    }
    may_be_int8 = _int8_weights(model)
    ours = [
        finding
        for finding in findings(optimized)
        if finding.node not in foreign
        and not (finding.violation is Violation.INT8_ACTIVATIONS and may_be_int8(finding.inputs))
    ]
    unfused = [finding for finding in ours if finding.violation is Violation.DEQUANTIZED and not is_portable]
    for finding in ours:
        if finding not in unfused:
            raise CheckFailed(f"in ONNX Runtime's optimized graph of the whole model, {finding}")
    return list(_unfused_note([finding.node for finding in unfused]))


def _int8_weights(model: onnx.ModelProto) -> Callable[[Iterable[str]], bool]:
    """Tells by what a node of the optimized graph reads whether it may multiply int8 activations.

    It reads the codes of a group that may, or what ONNX Runtime folded of them in an inlined function, whose
    values it names after the operator.
    """
    groups = [group for group in find_groups(model).values() if group.may_multiply_int8]
    codes = {
        name
        for group in groups
        for name, tensor in group.constants.items()
        if tensor.data_type not in _FLOATS and tensor.dims
    }
    inlined = tuple(f"_inlfunc_{group.operator.name}_" for group in groups if group.operator is not None)

    def reads_them(inputs: Iterable[str]) -> bool:
        return any(name in codes or (inlined and name.startswith(inlined)) for name in inputs)

    return reads_them


def _unfused_note(nodes: list[str]) -> Iterator[str]:
    if nodes:
        names = ", ".join(map(repr, nodes[:_NAMED])) + (", ..." if len(nodes) > _NAMED else "")
        yield f"{len(nodes)} DequantizeLinear nodes stay unfused in the whole model: {names}"
