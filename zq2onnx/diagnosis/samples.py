"""Reads what a pair of models is compared on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zq2onnx.archive import read_arrays
from zq2onnx.configuration import context_length
from zq2onnx.diagnosis.running import Array, Opened
from zq2onnx.errors import UserError
from zq2onnx.feeds import feed_text, text_inputs
from zq2onnx.language import (
    check_tokenizer,
    check_vocabulary,
    fixed_length,
    free_inputs,
    read_config,
    static_dim,
    vocabulary,
)
from zq2onnx.text import cut_windows, load_tokenizer

LONGEST_DEFAULT = 512
"""Tokens in a window where nobody says how many: enough to fill the attention of most heads."""

_NPZ = "--npz FILE with the model's own inputs"


def read_texts(
    opened: Opened, texts: Sequence[Path], tokenizer: Path, length: int | None, windows: int
) -> list[dict[str, Array]]:
    """The first windows of texts, each as one feed; caches are empty.

    Args:
        opened: the float model.
        texts: UTF-8 files.
        tokenizer: the model's `tokenizer.json`, or the folder that holds it.
        length: tokens in a window; None for the model's context, at most `LONGEST_DEFAULT`.
        windows: of each text, at most.

    Raises:
        UserError: a file is missing or is not what it should be, a text is shorter than one window, the
            tokenizer is another model's, or the model reads what text cannot give.
    """
    model, path = opened.model, opened.path
    inputs = free_inputs(model)
    if not any(value.name == "input_ids" for value in inputs):
        raise UserError(f"{path}: no input named input_ids", "samples of the model's own inputs", _NPZ)
    config = read_config(path)
    fixed = fixed_length(inputs)
    if length is None:
        length = fixed or min(context_length(config) or LONGEST_DEFAULT, LONGEST_DEFAULT)
    if length < 1 or fixed not in (None, length):
        required = f"{fixed}, which its graph takes" if fixed else "at least 1"
        raise UserError(f"{path}: --length {length}", required)
    encode = load_tokenizer(tokenizer)
    check_tokenizer(path, tokenizer)
    cut = [cut_windows(text, encode, length, windows) for text in texts]
    logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
    check_vocabulary(path, vocabulary(model, logits, config), cut, tokenizer)
    made = text_inputs(model, path, _NPZ)
    ids = np.concatenate([each.ids for each in cut])
    return [feed_text(made, part) for part in _batches(opened, ids)]


def read_npz(opened: Opened, archive: Path, samples: int) -> list[dict[str, Array]]:
    """The first samples of ready-made inputs, each as one feed.

    Raises:
        UserError: the archive does not hold the model's inputs.
    """
    arrays = read_arrays(opened.model, opened.path, archive, samples)
    types = {value.name: value.dtype for value in free_inputs(opened.model)}
    for name, array in arrays.items():
        dtype = types.get(name)
        arrays[name] = array if dtype is None else array.astype(dtype.numpy())
    names = list(arrays)
    parts = (_batches(opened, arrays[name]) for name in names)
    return [dict(zip(names, batch, strict=True)) for batch in zip(*parts, strict=True)]


def _batches(opened: Opened, array: Array) -> list[Array]:
    """As many samples at a time as the graph fixes, else one."""
    fixed = (static_dim(value, 0) for value in free_inputs(opened.model))
    unit = next(filter(None, fixed), 1)
    if len(array) < unit:
        raise UserError(
            f"{opened.path}: its graph takes {unit} samples at once, and there are {len(array)}",
            f"--windows of at least {unit}",
        )
    return [array[start : start + unit] for start in range(0, len(array) // unit * unit, unit)]
