"""Codes and zero points as bytes: the operators' layouts, and ONNX's own sub-byte tensors.

The bit order is `zq2onnx.layout`'s. Everything is built of `nib(c)[j] = c[2j] | c[2j+1] << 4`.
Codes are taken as they lie in memory, `[N, K]` or the transpose of `[K, N]`, in pieces that stay
in the cache, and only half bytes are ever transposed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zq2onnx.layout import PackedLayout
from zq2onnx.numerics.planes import join_planes, split_planes

UInt8Array = npt.NDArray[np.uint8]

PIECE = 1 << 18
"""Codes packed at once."""

TILE = (512, 32)
"""Shape of a tile that is transposed."""


def pack_codes(codes: UInt8Array, layout: PackedLayout) -> UInt8Array:
    """Pack codes `[N, K]` as the operator reads them, `layout.codes_shape`.

    The last block is filled up with zeros: no kernel reads past K, and zeros compress.
    """
    packed = np.empty(layout.codes_shape, np.uint8)
    width = layout.k_blocks * layout.block_size
    rows = max(1, PIECE // width)
    for first in range(0, layout.n, rows):
        piece = codes[first : first + rows]
        target = packed[: layout.n][first : first + rows]
        if layout.whole_bytes:
            target[...] = np.pad(piece, ((0, 0), (0, width - layout.k))).reshape(target.shape)
        elif layout.bits == 8:
            target[...] = _nibbles(piece & np.uint8(15), width).reshape(target.shape)
            high = packed[layout.n :][first : first + rows]
            high[...] = _nibbles(piece >> np.uint8(4), width).reshape(target.shape)
        else:
            nibbles = _nibbles(piece, width).reshape(*target.shape[:2], layout.block_size // 2)
            join_planes(nibbles, layout.bits, target)
    return packed


def unpack_codes(packed: UInt8Array, layout: PackedLayout) -> UInt8Array:
    """Codes `[N, K]` of a packed weight: the inverse of `pack_codes`."""
    if layout.whole_bytes:
        codes = packed
    elif layout.bits == 8:
        low, high = np.split(packed, 2)
        codes = _split_nibbles(low) | _split_nibbles(high) << np.uint8(4)
    else:
        codes = _split_nibbles(split_planes(packed, layout.bits))
    return np.ascontiguousarray(codes.reshape(layout.n, -1)[:, : layout.k])


def pack_zero_points(zero_points: UInt8Array, layout: PackedLayout) -> UInt8Array:
    """Pack zero points `[N, G]` as the operator reads them, `layout.zero_points_shape`.

    Two groups share a byte, low nibble first; where the operator repeats a group over several blocks,
    a byte holds the group's nibble twice. 8 bits: N rows of low nibbles, then N of high, or whole bytes.
    """
    if layout.whole_bytes:
        return zero_points
    if layout.bits == 8:
        halves = zero_points & np.uint8(15), zero_points >> np.uint8(4)
        return np.concatenate([_zero_point_bytes(half, layout) for half in halves])
    return _zero_point_bytes(zero_points, layout)


def unpack_zero_points(packed: UInt8Array, layout: PackedLayout) -> UInt8Array:
    """Zero points `[N, G]`: the inverse of `pack_zero_points`."""
    if layout.whole_bytes:
        return packed
    if layout.bits == 8:
        low, high = (_zero_point_nibbles(half, layout) for half in np.split(packed, 2))
        return low | high << np.uint8(4)
    return _zero_point_nibbles(packed, layout)


def pack_bits(values: npt.NDArray[np.integer], bits: int) -> UInt8Array:
    """Pack integers as ONNX packs UINT4, INT4, UINT2 and INT2 tensors.

    Args:
        values: 8-bit integers of any shape and strides, taken in row-major order; the lowest `bits` of
            each are kept, so that signed ones come out in two's complement.
        bits: 4 or 2.

    Returns:
        `[ceil(size * bits / 8)]`, the first value in the lowest bits, the last byte filled up with zeros.

    >>> pack_bits(np.array([1, 2, -1], np.int8), 4).tolist()
    [33, 15]
    """
    flat = row_major(values).reshape(-1).view(np.uint8)
    mask = np.uint8((1 << bits) - 1)
    per_byte = 8 // bits
    packed = np.empty(-(-flat.size // per_byte), np.uint8)
    for first in range(0, flat.size, PIECE):
        piece = flat[first : first + PIECE] & mask
        if spare := -piece.size % per_byte:
            piece = np.concatenate([piece, np.zeros(spare, np.uint8)])
        for width in (bits, 2 * bits)[: per_byte // 2]:
            piece = _join_pairs(piece, width)
        packed[first // per_byte :][: piece.size] = piece
    return packed


def unpack_bits(packed: UInt8Array, bits: int, count: int) -> UInt8Array:
    """The first `count` unsigned values of a tensor that `pack_bits` packed."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    return values.reshape(-1)[:count]


def row_major(values: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """The same array in C order, transposed tile by tile where it is a matrix that lies the other way."""
    if values.flags.c_contiguous or values.ndim != 2:
        return np.ascontiguousarray(values)
    copy = np.empty(values.shape, values.dtype)
    rows, columns = TILE
    # Rows a power of two apart share few cache lines: a tile is first gathered at a distance that does not.
    buffer = np.empty((columns, rows + 64), values.dtype)
    for first in range(0, values.shape[0], rows):
        for column in range(0, values.shape[1], columns):
            source = values[first : first + rows, column : column + columns]
            tile = buffer[: source.shape[1], : source.shape[0]].T
            tile[...] = source
            copy[first : first + rows, column : column + columns] = tile
    return copy


def qdq_codes(codes: UInt8Array, bits: int, midpoint: int = 0) -> bytes:
    """A weight's codes as the raw data of the `[K, N]` tensor that `DequantizeLinear` reads.

    Args:
        codes: uint8 `[N, K]`.
        bits: bits of the tensor's type: 8, 4 or 2.
        midpoint: taken from every code; of a signed type, the code that stands for zero.
    """
    values = codes.T if midpoint == 0 else codes.T - np.uint8(midpoint)
    return (row_major(values) if bits == 8 else pack_bits(values, bits)).tobytes()


def _nibbles(codes: UInt8Array, width: int) -> UInt8Array:
    """`nib` along K of codes `[n, K]` below 16, filled up with zeros to `width`: `[n, width / 2]`."""
    n, k = codes.shape
    if codes.strides[0] < codes.strides[1]:
        pairs = np.zeros((width // 2, n), np.uint8)
        lying = codes.T
        np.copyto(pairs[: k // 2], lying[1::2])
        pairs <<= np.uint8(4)
        pairs[: (k + 1) // 2] |= lying[0::2]
        return np.ascontiguousarray(pairs.T)
    if k != width or not codes.flags.c_contiguous:
        filled = np.zeros((n, width), np.uint8)
        filled[:, :k] = codes
        codes = filled
    return _join_pairs(codes, 4)


def _join_pairs(values: UInt8Array, bits: int) -> UInt8Array:
    """`v[2j] | v[2j+1] << bits` along the last axis of contiguous bytes below `2^bits`."""
    pairs = values.view("<u2")
    return (pairs | pairs >> np.uint16(8 - bits)).astype(np.uint8)


def _split_nibbles(packed: UInt8Array) -> UInt8Array:
    """The inverse of `nib` along the last axis."""
    both = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return both.reshape(*packed.shape[:-1], -1)


def _zero_point_bytes(nibbles: UInt8Array, layout: PackedLayout) -> UInt8Array:
    if layout.repeat > 1:
        return nibbles | nibbles << np.uint8(4)
    if layout.groups % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
    return nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)


def _zero_point_nibbles(packed: UInt8Array, layout: PackedLayout) -> UInt8Array:
    if layout.repeat > 1:
        return packed & np.uint8(15)
    return np.ascontiguousarray(_split_nibbles(packed)[:, : layout.groups])
