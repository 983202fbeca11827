"""How stored words become numbers, in registers: the device's reading of `zq2onnx.layout`.

Glossary:
    word          uint32, 4 bytes of a row as they are stored
    nibble word   a word of 8 codes of at most 4 bits, code `j` in the bits `4j` to `4j + 3`
    segment       codes of a block that lie in one nibble word after the other: a block of 4 or 8 bits is
                  one segment, of 2 bits two (its halves), of 3 bits four (its quarters)
    lane          16 bits of a word; two codes are made floats at once

A code becomes a float without a conversion: its bits under the exponent of 1024 (float16) or 128
(bfloat16) are `offset + code` (as Marlin and FasterTransformer do). GPUs convert 16 integers a cycle, and
mask 64.
"""

from __future__ import annotations

import triton
import triton.language as tl

WHOLE_BYTES: tl.constexpr = tl.constexpr(9)
"""Stands for the bits of codes that are stored as whole bytes; 8 are two half bytes."""


@triton.jit
def offset_of(BITS: tl.constexpr, T: tl.constexpr):
    """What `float_codes` adds to every code."""
    return 1024 if T == tl.float16 else (0 if BITS >= 8 else 128)  # 128 + 255 is no bfloat16


@triton.jit
def load_words(rows, other_rows, k0, mask_k, BITS: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr):
    """Load a tile's words, each once, in 16-byte accesses.

    Args:
        rows: uint32 pointers [.., 1] to the first words of rows of `B`.
        other_rows: the same to the rows of high half bytes; 8 bits only.
        k0: int32 [.., 1], first code of the tile: a multiple of BK.
        mask_k: words of a row; those beyond are 0.
        BLOCK: codes in a stored block; of 2 and 3 bits only, where it divides BK.

    Returns:
        Three tensors of words [.., words]; those that the bits do not need repeat the first.
    """
    if BITS == 3:
        WORDS: tl.constexpr = BK // 32
        PLANE: tl.constexpr = BLOCK // 32
        i = tl.arange(0, WORDS)
        at = k0 // BLOCK * (3 * PLANE) + (i // PLANE) * (3 * PLANE) + i % PLANE
        first = tl.load(rows + at, mask=at < mask_k, other=0)
        second = tl.load(rows + (at + PLANE), mask=at < mask_k, other=0)
        third = tl.load(rows + (at + 2 * PLANE), mask=at < mask_k, other=0)
        return first, second, third
    elif BITS == 8:
        at = k0 // 8 + tl.arange(0, BK // 8)
        low = tl.load(rows + at, mask=at < mask_k, other=0)
        high = tl.load(other_rows + at, mask=at < mask_k, other=0)
        return low, high, low
    else:
        CODES: tl.constexpr = 4 if BITS == 9 else 32 // BITS  # in a word
        at = k0 // CODES + tl.arange(0, BK // CODES)
        words = tl.load(rows + at, mask=at < mask_k, other=0)
        return words, words, words


@triton.jit
def segment_of(first, second, third, BITS: tl.constexpr, SEGMENT: tl.constexpr):
    """The nibble words of one segment, out of what `load_words` returned; 8 bits: of low half bytes."""
    if BITS == 2:
        return (first >> (2 * SEGMENT)) & 0x33333333
    elif BITS == 3:
        if SEGMENT == 0:
            return first & 0x77777777
        elif SEGMENT == 1:
            return second & 0x77777777
        elif SEGMENT == 2:
            return third & 0x77777777
        else:  # a bit of each plane
            return ((first >> 3) & 0x11111111) | ((second >> 2) & 0x22222222) | ((third >> 1) & 0x44444444)
    else:
        return first


@triton.jit
def channels_of(
    segment, LENGTH: tl.constexpr, BLOCK: tl.constexpr, SEGMENTS: tl.constexpr, FIELDS: tl.constexpr
):  # fmt: skip
    """Channels of a tile that a segment's codes meet, int32 [LENGTH]; with two FIELDS, pairs of channels."""
    k = tl.arange(0, LENGTH)
    if SEGMENTS > 1:
        RUN: tl.constexpr = BLOCK // SEGMENTS // FIELDS
        k = k // RUN * (BLOCK // FIELDS) + segment * RUN + k % RUN
    return k


@triton.jit
def lanes(low, high, BITS: tl.constexpr, T: tl.constexpr):
    """Two codes in the lanes of a word to `offset_of + code` as two tensors of T.

    Args:
        low: uint32, a nibble in each lane: a code, or its low half.
        high: the same of high halves; read of 8 bits only.
    """
    if T == tl.float16:
        even, odd = as_floats(low | 0x64006400 | (high << 4 if BITS >= 8 else 0), T)
    elif BITS < 8:
        even, odd = as_floats(low | 0x43004300, T)
    else:  # 128 + low and 2048 + 16 high: either is exact, and so is their sum without the offsets
        even, odd = as_floats(low | 0x43004300, T)
        high_even, high_odd = as_floats(high | 0x45004500, T)
        even = (even - 128.0) + (high_even - 2048.0)
        odd = (odd - 128.0) + (high_odd - 2048.0)
    return even, odd


@triton.jit
def as_floats(bits, T: tl.constexpr):
    """The lanes of a word as two tensors of T."""
    low = (bits & 0xFFFF).to(tl.uint16).to(T, bitcast=True)
    return low, (bits >> 16).to(tl.uint16).to(T, bitcast=True)


@triton.jit
def float_codes(words, high_words, BITS: tl.constexpr, T: tl.constexpr):
    """Nibble words [a, b, w], or words of whole bytes, to codes [a, b, w, ..]: reshape the last axes to one.

    Args:
        high_words: nibble words of high halves; of 8 bits only.

    Returns:
        T, `offset_of + code`, in the order of the codes.
    """
    if BITS == 9:
        c0, c2 = lanes(words & 0x000F000F, (words >> 4) & 0x000F000F, BITS, T)
        c1, c3 = lanes((words >> 8) & 0x000F000F, (words >> 12) & 0x000F000F, BITS, T)
        codes = tl.join(tl.join(c0, c2), tl.join(c1, c3))
    else:  # shift i brings code i under the low lane's mask, and code i + 4 under the high lane's
        c0, c4 = lanes(words & 0x000F000F, high_words & 0x000F000F, BITS, T)
        c1, c5 = lanes((words >> 4) & 0x000F000F, (high_words >> 4) & 0x000F000F, BITS, T)
        c2, c6 = lanes((words >> 8) & 0x000F000F, (high_words >> 8) & 0x000F000F, BITS, T)
        c3, c7 = lanes((words >> 12) & 0x000F000F, (high_words >> 12) & 0x000F000F, BITS, T)
        even = tl.join(tl.join(c0, c4), tl.join(c2, c6))
        codes = tl.join(even, tl.join(tl.join(c1, c5), tl.join(c3, c7)))
    return codes


@triton.jit
def bytes_of(words):
    """Words [.., w] to their bytes as int8 [.., w, 2, 2]: reshape the last axes to one."""
    b0 = (words & 0xFF).to(tl.uint8).to(tl.int8, bitcast=True)
    b1 = ((words >> 8) & 0xFF).to(tl.uint8).to(tl.int8, bitcast=True)
    b2 = ((words >> 16) & 0xFF).to(tl.uint8).to(tl.int8, bitcast=True)
    b3 = (words >> 24).to(tl.uint8).to(tl.int8, bitcast=True)
    return tl.join(tl.join(b0, b2), tl.join(b1, b3))


@triton.jit
def int8_codes(words, high_words, ODD: tl.constexpr, BITS: tl.constexpr):
    """Every second code of nibble words as bytes: `code`, or of 8 bits `code - 128`, four in a word."""
    if BITS == 9:
        codes = words ^ 0x80808080
    elif BITS == 8:
        high = ((high_words >> (4 * ODD)) & 0x0F0F0F0F) << 4
        codes = (((words >> (4 * ODD)) & 0x0F0F0F0F) | high) ^ 0x80808080
    else:
        codes = (words >> (4 * ODD)) & 0x0F0F0F0F
    return codes


@triton.jit
def load_zero_points(zero_points, row, group, N, row_bytes, packed, mask, BITS: tl.constexpr):
    """Zero points of rows and groups, int32 in the shape of `row` and `group` together.

    Args:
        row: int32, rows of the weight.
        group: int32, index of the stored scale.
        row_bytes: bytes in a row of `zero_points`.
        packed: 1 where a byte holds the nibbles of two groups, 0 where it is of one.
    """
    at = row * row_bytes + (group >> packed)
    zero = tl.load(zero_points + at, mask=mask, other=0).to(tl.int32)
    if BITS != 9:
        shift = 4 * (group & packed)
        zero = (zero >> shift) & 15
        if BITS == 8:
            high = tl.load(zero_points + (at + N * row_bytes), mask=mask, other=0).to(tl.int32)
            zero = zero | ((high >> shift) & 15) << 4
    return zero
