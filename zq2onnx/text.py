"""Turns text files into the windows of tokens that a model is calibrated or scored on."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from zq2onnx.errors import UserError
from zq2onnx.stitch import Encoded, encode_in_chunks

Encode = Callable[[str], list[int]]

_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Windows:
    """One text's windows.

    Attributes:
        text: the text file, as it was given.
        ids: int32 `[windows, length]`, consecutive tokens of the text; a read-only view.
        largest_id: the greatest token id in them.
        stride: by how many tokens each is ahead of the one before; `length` where they do not overlap.
    """

    text: Path
    ids: npt.NDArray[np.int32]
    largest_id: int
    stride: int

    def scored(self, index: int) -> int:
        """How many tokens a window predicts, the last ones: all but its first, or those that are new."""
        length = self.ids.shape[1]
        return length - 1 if index == 0 else min(self.stride, length - 1)


class TextEncoder:
    """Encodes without special tokens, truncation or padding.

    Args:
        tokenizer: is changed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """The ids of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_file(self, path: Path, enough: int | None = None) -> npt.NDArray[np.int32]:
        """The ids of a text file, encoded whole: in memory are they, and one chunk of the text.

        Args:
            path: a UTF-8 file.
            enough: how many of the first ids are wanted; None for all. There may be more.

        Raises:
            UserError: the file is missing or, as far as it is read, not UTF-8.
        """
        ids = encode_in_chunks(self._encode_with_spans, read_blocks(path), enough)
        return np.array(self(read_text(path)), np.int32) if ids is None else ids

    def _encode_with_spans(self, text: str) -> Encoded:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)


def tokenizer_file(path: Path) -> Path:
    """The file meant by a `tokenizer.json` or the folder that holds one.

    Raises:
        UserError: there is none.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file", "a tokenizer.json, or the folder that holds one")
    return file


def read_tokenizer(file: Path) -> Tokenizer:
    """Read a `tokenizer.json` as it is.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exception for every fault of the file
        raise UserError(f"{file}: not a tokenizer ({error})", "a tokenizer.json") from error


def base_vocabulary(file: Path) -> dict[str, int]:
    """A `tokenizer.json`'s tokens and ids, without those added to it.

    Raises:
        UserError: it cannot be read.
    """
    vocabulary: dict[str, int] = read_tokenizer(file).get_vocab(with_added_tokens=False)
    return vocabulary


def load_tokenizer(path: Path) -> TextEncoder:
    """Load a tokenizer: what encodes a text whole, without special tokens, truncation or padding.

    Args:
        path: a `tokenizer.json`, or the folder that holds one.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    return TextEncoder(read_tokenizer(tokenizer_file(path)))


def cut_windows(
    text: Path,
    encode: TextEncoder,
    length: int,
    windows: int | None = None,
    *,
    stride: int | None = None,
    option: str = "--length",
) -> Windows:
    """Encode a text whole and cut it into windows of `length` tokens.

    Args:
        text: a UTF-8 file; it is read no further than the windows need.
        encode: what `load_tokenizer` returned.
        length: tokens in a window; the tail of the text that fills none is dropped.
        windows: take only this many from the start; None for all.
        stride: by how many tokens each window is ahead of the one before, 1 to `length`; None for
            windows that follow each other without overlap.
        option: what the user sets the length with.

    Raises:
        UserError: the file is missing or is not UTF-8, or holds less than one window.
    """
    enough = None if windows is None else length + (windows - 1) * (stride or length)
    return cut_ids(text, encode.encode_file(text, enough), length, windows, stride=stride, option=option)


def cut_ids(
    text: Path,
    ids: Sequence[int] | npt.NDArray[np.int32],
    length: int,
    windows: int | None = None,
    *,
    stride: int | None = None,
    option: str = "--length",
) -> Windows:
    """Cut the tokens `ids` of a text as `cut_windows` does.

    Raises:
        UserError: they fill less than one window.
    """
    if len(ids) < length:
        raise UserError(
            f"{text}: {len(ids)} tokens",
            f"at least one window of {length} tokens",
            f"give a longer text, or {option} of at most {len(ids)}"
            if len(ids) > 1
            else "give a longer text",
        )
    step = stride or length
    count = min(1 + (len(ids) - length) // step, windows or len(ids))
    used = np.asarray(ids[: length + (count - 1) * step], np.int32)
    cut = np.lib.stride_tricks.sliding_window_view(used, length)[::step]
    return Windows(text, cut, int(used.max()), step)


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file.

    Raises:
        UserError: it is missing, no file, or not UTF-8.
    """
    return "".join(read_blocks(path))


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without what ends them; only the line in hand is in memory.

    Raises:
        UserError: it is missing, no file, or, as far as it is read, not UTF-8.
    """
    held: list[str] = []
    for block in read_blocks(path):
        first, *others = block.split("\n")
        held.append(first)
        for line in others:
            yield "".join(held)
            held = [line]
    yield "".join(held)


def read_blocks(path: Path) -> Iterator[str]:
    """A UTF-8 file in pieces; every end of a line becomes a line feed.

    Raises:
        UserError: it is missing, no file, or, as far as it is read, not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    read = begin = 0  # bytes taken from the file; where those begin that the decoder is at
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                text = decoder.decode(block)
                read += len(block)
                begin = read - len(decoder.getstate()[0])
                yield newlines.decode(text)
            yield newlines.decode(decoder.decode(b"", final=True), final=True)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {begin + error.start} is not UTF-8", "a UTF-8 text", "convert it with iconv"
        ) from error
    except IsADirectoryError:
        raise UserError(f"{path}: a folder", "a text file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", "a readable text file") from error
