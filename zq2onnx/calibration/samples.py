"""Reads what a model is calibrated on and cuts it into batches of the graph's inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from zq2onnx.archive import read_arrays
from zq2onnx.calibration.documents import read_documents
from zq2onnx.configuration import context_length
from zq2onnx.errors import UserError
from zq2onnx.feeds import TextInput, feed_text, text_inputs
from zq2onnx.language import (
    check_tokenizer,
    check_vocabulary,
    fixed_length,
    free_inputs,
    read_config,
    static_dim,
    vocabulary,
)
from zq2onnx.text import Windows, cut_ids, cut_windows, load_tokenizer

BATCH_TOKENS = 2048
"""Samples are run together up to this many tokens: enough to keep the cores busy, small in memory."""

HELD_OUT_SHARE = 8
"""One sample in this many, the last ones, is held out."""

OPTIONS = ("--calib-samples", "--calib-length")
"""What calibration samples are counted and cut with."""

_OWN_INPUTS = "--calib FILE.npz with the model's own inputs"


@dataclass(frozen=True, eq=False)
class Samples:
    """What a model is calibrated on.

    Attributes:
        batches: feeds of the graph's inputs; a batch holds whole samples, in order.
        held_out: by batch, whether its samples are held out: what is chosen by the others can be
            judged by these. They are the last eighth of the samples, one at least if there are two.
        digest: SHA-256 of all that is fed, and of which of it is held out.
        tokens: how many tokens are fed; samples, where the model reads no tokens.
        warnings: what the user should know.
    """

    batches: tuple[dict[str, np.ndarray], ...]
    held_out: tuple[bool, ...]
    digest: str
    tokens: int
    warnings: tuple[str, ...] = ()


def load_samples(
    model: ir.Model,
    path: Path,
    calib: Path,
    tokenizer: Path | None,
    samples: int,
    length: int,
    *,
    options: tuple[str, str] = OPTIONS,
) -> Samples:
    """Read calibration samples for a model.

    A text (`.txt`) is encoded whole without special tokens, the documents of a `.jsonl` one by one;
    their first `samples` windows of `length` tokens are taken. A `.npz` holds arrays under the names of
    the graph's inputs, whose first axis counts samples; `length` is of no concern then.

    Args:
        model: the graph to calibrate.
        path: its file, beside which config.json and tokenizer.json are looked for.
        calib: the file of samples.
        tokenizer: the model's `tokenizer.json`, or the folder that holds it; a text needs it.
        samples: how many to take at most.
        length: tokens in a sample; shortened to what the model takes.
        options: what the user says `samples` and `length` with.

    Raises:
        UserError: a file is missing or is not what it should be, the samples do not fit the model's
            inputs or its vocabulary, or there is not one whole sample.
    """
    for option, value, least in zip(options, (samples, length), (1, 2), strict=True):
        if value < least:
            raise UserError(f"{option} {value}", f"at least {least}")
    if calib.suffix == ".npz":
        feeds = read_arrays(model, path, calib, samples)
    elif calib.suffix in (".txt", ".jsonl"):
        windows = _windows(model, path, calib, tokenizer, samples, length, options[1])
        feeds = feed_text(_text_inputs(model, path), windows.ids)
    else:
        raise UserError(f"{calib}: samples of an unknown kind", "a .txt, .jsonl or .npz file")
    _check_ids(model, path, calib, feeds)
    return _cut(model, path, calib, feeds, samples)


def _text_inputs(model: ir.Model, path: Path) -> tuple[TextInput, ...]:
    """How inputs are made from text; batches are cut along their first axes."""
    inputs = text_inputs(model, path, _OWN_INPUTS)
    if joint := next((each for each in inputs if each.cache and each.cache[0] is not None), None):
        raise UserError(
            f"{path}: input {joint.name} holds keys and values, and begins with another axis than the batch",
            "inputs [batch, ..]",
            "export it with keys and values apart, or without a cache",
        )
    return inputs


def _windows(
    model: ir.Model,
    path: Path,
    calib: Path,
    tokenizer: Path | None,
    samples: int,
    length: int,
    length_option: str,
) -> Windows:
    """The first windows of a text, of the length that the model takes."""
    if not any(value.name == "input_ids" for value in free_inputs(model)):
        raise UserError(
            f"{path}: no input named input_ids, and {calib} is a text",
            "samples of the model's own inputs",
            "--calib FILE.npz",
        )
    if tokenizer is None:
        own = path.parent / "tokenizer.json"
        raise UserError(
            f"{calib}: a text, without a tokenizer",
            "the model's own",
            f"--tokenizer {own if own.is_file() else 'DIR'}",
        )
    length = _fitting(model, path, length)
    encode = load_tokenizer(tokenizer)
    check_tokenizer(path, tokenizer)
    if calib.suffix == ".txt":
        windows = cut_windows(calib, encode, length, samples, option=length_option)
    else:
        ids = read_documents(calib, encode, samples * length)
        windows = cut_ids(calib, ids, length, samples, option=length_option)
    check_vocabulary(path, _known(model, path), [windows], tokenizer)
    return windows


def _fitting(model: ir.Model, path: Path, length: int) -> int:
    """The length asked for, shortened to the model's context; what the graph fixes is no choice."""
    fixed = fixed_length(free_inputs(model))
    return fixed or min(length, context_length(read_config(path)) or length)


def _known(model: ir.Model, path: Path) -> int | None:
    """How many tokens the model knows; None where nothing tells."""
    logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
    return vocabulary(model, logits, read_config(path))


def _check_ids(model: ir.Model, path: Path, calib: Path, feeds: Mapping[str, np.ndarray]) -> None:
    ids, known = feeds.get("input_ids"), _known(model, path)
    if ids is None or ids.size == 0 or known is None:
        return
    least, greatest = int(ids.min()), int(ids.max())
    if least < 0 or greatest >= known:
        raise UserError(
            f"{calib}: input_ids from {least} to {greatest}, and {path} knows {known} tokens",
            f"ids from 0 to {known - 1}",
        )


def _cut(model: ir.Model, path: Path, calib: Path, feeds: Mapping[str, np.ndarray], wanted: int) -> Samples:
    """Cut feeds along their first axis, held-out samples apart from the others."""
    ids = feeds.get("input_ids")
    found = len(next(iter(feeds.values())))
    fixed = next(filter(None, (static_dim(value, 0) for value in free_inputs(model))), None)
    step = fixed or max(1, BATCH_TOKENS // _positions(feeds))
    unit = fixed or 1
    count = found // unit * unit
    if count == 0:
        raise UserError(
            f"{calib}: {found} samples", f"at least the {unit} that the graph of {path} takes at once"
        )
    fitted = count - _held_out(count // unit) * unit
    starts = [*range(0, fitted, step), *range(fitted, count, step)]
    ends = [*starts[1:], count]
    batches = tuple(
        {name: array[start:end] for name, array in feeds.items()}
        for start, end in zip(starts, ends, strict=True)
    )
    held_out = tuple(start >= fitted for start in starts)
    tokens = count if ids is None else count * _positions({"input_ids": ids})
    warnings = (f"{calib}: {count} samples, fewer than the {wanted} asked for",) if count < wanted else ()
    return Samples(batches, held_out, _digest(batches, held_out), tokens, warnings)


def _positions(feeds: Mapping[str, np.ndarray]) -> int:
    """Tokens in a sample; numbers in it, where there are no tokens."""
    ids = feeds.get("input_ids")
    arrays = feeds.values() if ids is None else (ids,)
    return max(1, *(array[:1].size for array in arrays))


def _held_out(count: int) -> int:
    return max(1, count // HELD_OUT_SHARE) if count > 1 else 0


def _digest(batches: tuple[dict[str, np.ndarray], ...], held_out: tuple[bool, ...]) -> str:
    digest = hashlib.sha256(repr(held_out).encode())
    for batch in batches:
        for name, array in sorted(batch.items()):
            digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
