"""Turns text files into the windows of tokens that a model is calibrated or scored on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from zq2onnx.errors import UserError

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Windows:
    """One text's windows.

    Attributes:
        text: the text file, as it was given.
        ids: int64 `[windows, length]`, consecutive tokens of the text.
        largest_id: the greatest token id in the whole text.
    """

    text: Path
    ids: npt.NDArray[np.int64]
    largest_id: int


def tokenizer_file(path: Path) -> Path:
    """The file meant by a `tokenizer.json` or the folder that holds one.

    Raises:
        UserError: there is none.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file", "a tokenizer.json, or the folder that holds one")
    return file


def _read_tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exception for every fault of the file
        raise UserError(f"{file}: not a tokenizer ({error})", "a tokenizer.json") from error


def base_vocabulary(file: Path) -> dict[str, int]:
    """A `tokenizer.json`'s tokens and ids, without those added to it.

    Raises:
        UserError: it cannot be read.
    """
    vocabulary: dict[str, int] = _read_tokenizer(file).get_vocab(with_added_tokens=False)
    return vocabulary


def load_tokenizer(path: Path) -> Encode:
    """Load a tokenizer: what encodes a text whole, without special tokens, truncation or padding.

    Args:
        path: a `tokenizer.json`, or the folder that holds one.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    tokenizer = _read_tokenizer(tokenizer_file(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def cut_windows(
    text: Path, encode: Encode, length: int, windows: int | None = None, *, option: str = "--length"
) -> Windows:
    """Encode a text and cut it into windows of `length` tokens, one after the other.

    Args:
        text: a UTF-8 file.
        encode: what `load_tokenizer` returned.
        length: tokens in a window; the tail of the text that fills none is dropped.
        windows: take only this many from the start; None for all.
        option: what the user sets the length with.

    Raises:
        UserError: the file is missing or is not UTF-8, or holds less than one window.
    """
    return cut_ids(text, encode(read_text(text)), length, windows, option=option)


def cut_ids(
    text: Path, ids: list[int], length: int, windows: int | None = None, *, option: str = "--length"
) -> Windows:
    """Cut the tokens `ids` of a text as `cut_windows` does.

    Raises:
        UserError: they fill less than one window.
    """
    count = len(ids) // length
    if count == 0:
        raise UserError(
            f"{text}: {len(ids)} tokens",
            f"at least one window of {length} tokens",
            f"give a longer text, or {option} of at most {len(ids)}"
            if len(ids) > 1
            else "give a longer text",
        )
    if windows is not None:
        count = min(count, windows)
    tokens = np.asarray(ids, dtype=np.int64)
    return Windows(text, tokens[: count * length].reshape(count, length), int(tokens.max()))


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file.

    Raises:
        UserError: it is missing, no file, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8", "a UTF-8 text", "convert it with iconv"
        ) from error
    except IsADirectoryError:
        raise UserError(f"{path}: a folder", "a text file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", "a readable text file") from error
