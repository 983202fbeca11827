"""Encodes a text of any length in overlapping chunks: the tokens of the whole, in the memory of a chunk."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHUNK = 1 << 16
"""Characters read at a time."""

OVERLAPS = (1 << 12, 1 << 14, 1 << 15)
"""Characters of the chunk before that are encoded again: the second and third where the first is too few."""

RUN = 32
"""Tokens that two chunks must have alike, one after the other, to be joined in their middle."""

VARIETY = 8
"""How many different ones must be among them: in a long run of one thing, chunks may be alike by chance."""


@dataclass(frozen=True)
class Encoded:
    """A text's tokens.

    Attributes:
        ids: of each token.
        spans: where in the text each begins and ends, in characters.
    """

    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]

    def first_from(self, position: int) -> int:
        """The first token that begins at `position` or after it."""
        return bisect_left(self.spans, position, key=_begin)

    def beginning_before(self, position: int) -> int:
        """Where the last token that begins at `position` or before it begins; 0 without one."""
        index = bisect_right(self.spans, position, key=_begin)
        return self.spans[index - 1][0] if index else 0


def _begin(span: tuple[int, int]) -> int:
    return span[0]


def encode_in_chunks(
    encode: Callable[[str], Encoded],
    blocks: Iterable[str],
    enough: int | None = None,
    *,
    chunk: int = CHUNK,
    overlaps: Sequence[int] = OVERLAPS,
) -> npt.NDArray[np.int32] | None:
    """Encode a text that comes in blocks.

    A chunk begins where a token of the one before does, some way ahead of its end. What the cut did to
    the tokens on either side of it has worn off where both chunks have the same `RUN` tokens in the same
    places: there they are joined. Where they have not, the chunk is made larger.

    Args:
        encode: encodes a string; what it makes of a place depends on what is near.
        blocks: the text, in strings of any length.
        enough: stop once there are this many tokens; None for all.
        chunk: characters to a chunk.
        overlaps: at most half a chunk, growing.

    Returns:
        int32 ids, those of the whole text, or `enough` of them and more; None where what follows a chunk
        changes its beginning: then the text must be encoded whole. A unigram tokenizer chooses between splits
        that are equally probable by the rounding of sums over the text: in a long run of one thing, a chunk's
        tokens may be those of the whole in another order.
    """
    reader = _Reader(blocks)
    text = reader.take(chunk)
    head, skipped, size = encode(text), 0, chunk
    ids = array("i")
    while enough is None or len(ids) < enough:
        fresh = reader.take(size)
        if not fresh:
            ids.extend(head.ids[skipped:])
            break
        if joined := _join(encode, text, head, fresh, overlaps):
            begin, tail, (end, skip) = joined
            ids.extend(head.ids[skipped:end])
            text, head, skipped, size = text[begin:] + fresh, tail, skip, chunk
            continue
        text += fresh  # one larger chunk, until what follows agrees with it
        longer, size = encode(text), len(text)
        if longer.ids[: skipped + RUN] != head.ids[: skipped + RUN]:
            return None
        head = longer
    return np.frombuffer(ids, np.int32) if ids else np.empty(0, np.int32)


def _join(
    encode: Callable[[str], Encoded], text: str, head: Encoded, fresh: str, overlaps: Sequence[int]
) -> tuple[int, Encoded, tuple[int, int]] | None:
    """Where the chunk that follows `text` begins in it, its tokens, and where they join those of `text`."""
    for overlap in overlaps:
        begin = head.beginning_before(len(text) - overlap)
        tail = encode(text[begin:] + fresh)
        if joint := _joint(head, tail, begin):
            return begin, tail, joint
    return None


def _joint(head: Encoded, tail: Encoded, begin: int) -> tuple[int, int] | None:
    """The middle of the most varied `RUN` tokens that both have alike, as an index in each.

    Args:
        head: a chunk.
        tail: the one that begins `begin` characters after it.
    """
    i, j, alike = head.first_from(begin), 0, 0
    most, joint = VARIETY - 1, None
    while i < len(head.ids) and j < len(tail.ids):
        here, there = head.spans[i], (tail.spans[j][0] + begin, tail.spans[j][1] + begin)
        if here != there or head.ids[i] != tail.ids[j]:
            i, j, alike = i + (here <= there), j + (there <= here), 0
            continue
        i, j, alike = i + 1, j + 1, alike + 1
        if alike >= RUN and (variety := len(set(head.ids[i - RUN : i]))) > most:
            most, joint = variety, (i - RUN // 2, j - RUN // 2)
    return joint


class _Reader:
    """Gives strings of a wanted length from strings of any."""

    def __init__(self, blocks: Iterable[str]) -> None:
        self._blocks: Iterator[str] = iter(blocks)
        self._held = ""

    def take(self, count: int) -> str:
        """The next `count` characters; fewer at the end."""
        parts, size = [self._held], len(self._held)
        while size < count and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            size += len(block)
        text = "".join(parts)
        self._held = text[count:]
        return text[:count]
