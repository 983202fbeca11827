"""Opens the pair of models and makes sure that they can be compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from zq2onnx.diagnosis.running import Opened
from zq2onnx.errors import UserError
from zq2onnx.evaluation.float32_copy import float32_copy
from zq2onnx.evaluation.model_file import external_tensors, read_model
from zq2onnx.language import free_inputs, vocabulary
from zq2onnx.passes.normalize import NormalizePass


@contextlib.contextmanager
def open_pair(of_float: Path, quantized: Path) -> Iterator[tuple[Opened, Opened]]:
    """Read a float model, which is normalized, and a quantized one; bfloat16 ones as a float32 copy.

    Raises:
        UserError: a file is missing, is no ONNX model, or the two do not read the same.
    """
    with contextlib.ExitStack() as stack:
        pair = (
            stack.enter_context(_opened(of_float, normalized=True)),
            stack.enter_context(_opened(quantized, normalized=False)),
        )
        _check_pair(*pair)
        yield pair


@contextlib.contextmanager
def _opened(path: Path, *, normalized: bool) -> Iterator[Opened]:
    for tensor in external_tensors(read_model(path)):
        if not Path(tensor.path).is_file():
            raise UserError(f"{path}: its external data {tensor.path} is missing", "both files of the model")
    with float32_copy(path) as file:
        model = read_model(file)
        if normalized:
            NormalizePass()(model)
        yield Opened(path, file.absolute().parent, model)


def _check_pair(mine: Opened, theirs: Opened) -> None:
    """Refuse two models that cannot be the same one."""
    names, others = ({value.name or "" for value in free_inputs(each.model)} for each in (mine, theirs))
    if names != others:
        raise UserError(
            f"{mine.path} has the inputs {', '.join(sorted(names))}, and {theirs.path}"
            f" {', '.join(sorted(others))}",
            "a model and what was made of it",
        )
    sizes = [_vocabulary(each) for each in (mine, theirs)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise UserError(
            f"{mine.path} knows {sizes[0]} tokens, and {theirs.path} {sizes[1]}",
            "a model and what was made of it",
        )


def _vocabulary(opened: Opened) -> int | None:
    logits = next((value for value in opened.model.graph.outputs if value.name == "logits"), None)
    return vocabulary(opened.model, logits, {})
