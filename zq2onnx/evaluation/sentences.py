"""Reads the sentences that encoders are compared on: the lines of a text, as tokens."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from zq2onnx.errors import UserError
from zq2onnx.text import read_lines, read_tokenizer, tokenizer_file

_PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")


@dataclass(frozen=True)
class Sentences:
    """One text's sentences.

    Attributes:
        text: the file, as it was given.
        ids: int32, the tokens of all, special ones included.
        ends: int64 `[sentences]`, where in `ids` each ends.
        largest_id: the greatest token id.
    """

    text: Path
    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    largest_id: int

    def __len__(self) -> int:
        return len(self.ends)

    def sentence(self, index: int) -> npt.NDArray[np.int32]:
        """The tokens of one."""
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]


class SentenceEncoder:
    """A tokenizer with its special tokens, but with neither padding nor the truncation of its file.

    Args:
        path: a `tokenizer.json`, or the folder that holds it.

    Attributes:
        longest: tokens that the file cuts a text to; None where it does not.
        padding: the id that fills up a graph of fixed length.

    Raises:
        UserError: there is none, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._tokenizer = read_tokenizer(tokenizer_file(path))
        own = self._tokenizer.truncation
        self.longest: int | None = own["max_length"] if own else None
        self.padding = _padding_id(self._tokenizer)
        self._tokenizer.no_padding()

    def read(self, text: Path, length: int, most: int | None) -> Sentences:
        """The lines of a text that are not blank, each cut to `length` tokens; the first `most` of them.

        Raises:
            UserError: the file cannot be read or has no such line, or `length` has no room for a token
                beside the special ones.
        """
        self._check_room(length)
        self._tokenizer.enable_truncation(length)
        ids, ends = array("i"), array("q")
        for line in read_lines(text):
            if line.strip():
                ids.extend(self._tokenizer.encode(line).ids)
                ends.append(len(ids))
            if len(ends) == most:
                break
        if not ids:
            raise UserError(f"{text}: no sentences", "at least one line that is not blank")
        tokens = np.frombuffer(ids, np.int32)
        return Sentences(text, tokens, np.frombuffer(ends, np.int64), int(tokens.max()))

    def _check_room(self, length: int) -> None:
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if length <= special:
            raise UserError(
                f"--length {length}", f"more than the {special} special tokens that every sentence has"
            )


def _padding_id(tokenizer: Tokenizer) -> int:
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    known = (tokenizer.token_to_id(token) for token in _PAD_TOKENS)
    return next((index for index in known if index is not None), 0)
