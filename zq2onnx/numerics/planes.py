"""The planar forms of 2- and 3-bit codes: nibbles whose free bits carry other nibbles of the block.

bits 2   the bytes of the first half, with the second half's bytes two bits higher
bits 3   three planes, the bytes of quarters 0 to 2, with bit i of quarter 3 in plane i's free bit

A block has 16 to 256 codes, so a quarter of its nibbles is a few bytes long. They are handled as
wide integers, all blocks of a piece at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger]


def join_planes(nibbles: UInt8Array, bits: int, out: UInt8Array) -> None:
    """Lay the nibbles of codes below `2^bits` into planes.

    Args:
        nibbles: uint8 `[n, blocks, block / 2]`, contiguous; 4 bits are left as they are.
        bits: 4, 3 or 2.
        out: uint8 `[n, blocks, block * bits / 8]`, contiguous.
    """
    if bits == 4:
        out[...] = nibbles
        return
    parts, planes = _quarters(nibbles, 4), _quarters(out, bits)
    if bits == 2:
        for half in range(2):
            planes[half] = parts[half] | parts[2 + half] << parts.dtype.type(2)
        return
    for bit in range(3):
        # Bit by bit: shifts cross into the neighbouring nibble, where the mask cuts them off.
        spare = parts[3] >> parts.dtype.type(bit) & _every_nibble(parts.dtype, 1)
        planes[bit] = parts[bit] | spare << parts.dtype.type(3)


def split_planes(packed: UInt8Array, bits: int) -> UInt8Array:
    """The nibbles `[n, blocks, block / 2]` of planes: the inverse of `join_planes`."""
    if bits == 4:
        return packed
    nibbles = np.empty((*packed.shape[:-1], packed.shape[-1] * 4 // bits), np.uint8)
    parts, planes = _quarters(nibbles, 4), _quarters(np.ascontiguousarray(packed), bits)
    if bits == 2:
        for half in range(2):
            parts[half] = planes[half] & _every_nibble(planes.dtype, 3)
            parts[2 + half] = planes[half] >> planes.dtype.type(2) & _every_nibble(planes.dtype, 3)
        return nibbles
    parts[3] = 0
    for bit in range(3):
        parts[bit] = planes[bit] & _every_nibble(planes.dtype, 7)
        parts[3] |= (
            planes[bit] >> planes.dtype.type(3) & _every_nibble(planes.dtype, 1)
        ) << planes.dtype.type(bit)
    return nibbles


def _quarters(array: UInt8Array, count: int) -> Words:
    """A view `[count, words, n * blocks]` of blocks cut in `count` equal parts, in the widest integers."""
    part = array.shape[-1] // count
    word = min(part, 8)
    words = array.view(f"<u{word}").reshape(-1, count, part // word)
    return words.transpose(1, 2, 0)


def _every_nibble(dtype: np.dtype[np.unsignedinteger], value: int) -> np.unsignedinteger:
    """An integer whose nibbles all hold `value`."""
    return dtype.type(int(f"{value:x}" * (2 * dtype.itemsize), 16))
