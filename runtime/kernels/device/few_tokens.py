"""The product for few tokens (up to 16): bound by the reading of the weights.

    Y[m, n] = sum over k of X[m, k] (code[n, k] - zero[n, g(k)]) scales[n, g(k)] + bias[n] + branch

Every warp has a part of K of its own, so that even a small N fills the GPU with loads; the parts are added
up at the end inside the block, in one order. Weights travel through shared memory by asynchronous copies of
16 bytes, each word once, STAGES tiles ahead, and are unpacked where the tensor cores take them, in
registers. Scales and zero points are too small for asynchronous copies: a step loads its own, of a line of
the cache that serves many steps, and other blocks work while it waits.

    PARTS   parts of K, in turns: step i reads tiles i * PARTS to i * PARTS + PARTS - 1
    BK      codes in a tile; where UNIT is BK, sums of exact integers are scaled after the product, else
            weights before it
    UNIT    codes of a tile that share a scale for sure: divides the group and BK
    BLOCK   codes in a stored block (2 and 3 bits)

Activations are floats of T's type, or int8 codes of the prologue: then the sums are int32, zero points are
taken off by the sums of the codes, and a block of activations is UNIT = BK codes or more.

Preconditions: rows of B begin at multiples of 16 bytes, K is a multiple of 16, groups of UNIT.

Grid: (N / BN, tokens / BM).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda

from zq2onnx.runtime.kernels.device.codes import (
    bytes_of,
    channels_of,
    float_codes,
    int8_codes,
    load_words,
    load_zero_points,
    offset_of,
    segment_of,
)
from zq2onnx.runtime.kernels.device.epilogue import finish
from zq2onnx.runtime.kernels.device.prologue import SUMMED


@triton.jit
def few_tokens(
    X, sums, x_scales, B, scales, zero_points, bias, T, V, V_scales, Y,
    M, N, K, x_stride, x_shift, x_blocks, row_bytes, group_shift, groups, zero_bytes, zero_packed,
    rank, parts, has_bias, v_int8, x_waits,
    BITS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr, INT8: tl.constexpr,
    PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module's text; `epilogue.finish` has the branch.

    Args:
        X: activations [M, x_stride], T's type; or int8 codes.
        sums, x_scales: of int8 codes, as the prologue writes them.
        B: uint8, N rows of row_bytes (8 bits: 2N).
        scales: [N, groups]; zero_points: N rows (8 bits: 2N) of zero_bytes.
        x_shift, x_blocks: 2^x_shift channels share a scale of int8 codes; scales in a token.
        group_shift: 2^group_shift codes share a stored scale.
        x_waits: whether X is the prologue's, and so read behind a wait.
    """
    if PDL:
        if x_waits:
            cuda.gdc_wait()
    FLOAT: tl.constexpr = Y.dtype.element_ty
    UNITS: tl.constexpr = BK // UNIT
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    n = tl.minimum(rows, N - 1)[None, :]  # rows beyond the last read the last
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    words = B.to(tl.pointer_type(tl.uint32))
    row_words = row_bytes // 4
    row = words + (n.to(tl.int64) * row_words)[:, :, None]
    other_row = row + (N.to(tl.int64) * row_words if BITS == 8 else 0)

    part = tl.arange(0, PARTS)
    steps = tl.cdiv(tl.cdiv(K, BK), PARTS)
    total = tl.zeros((PARTS, BN, BM), tl.float32)
    for step in range(0, steps):
        k0 = (step * PARTS + part) * BK
        first, second, third = load_words(row, other_row, k0[:, None, None], row_words, BITS, BLOCK, BK)
        scale = load_scales(scales, n, k0, K, group_shift, groups, UNIT, UNITS)
        zero = load_zeros(zero_points, n, k0, K, N, group_shift, zero_bytes, zero_packed, BITS, UNIT, UNITS)
        if INT8:
            sum_of = int8_product(first, second, third, X, m, M, k0, x_stride, BITS, BLOCK, PARTS, BM, BN, BK)
            total += scaled(
                sum_of, sums, x_scales, scale, zero, m, M, k0, K, x_stride, x_shift, x_blocks,
                BITS, PARTS, BM, BN, BK,
            )  # fmt: skip
        else:
            sum_of = float_product(
                first, second, third, X, m, M, k0, K, x_stride, scale, zero,
                FLOAT, BITS, BLOCK, UNIT, PARTS, BM, BN, BK,
            )  # fmt: skip
            total += sum_of * scale.to(tl.float32) if UNITS == 1 else sum_of
    finish(
        tl.sum(total, axis=0), rows, m, Y, T, V, V_scales, bias, M, N, rank, parts, has_bias, v_int8,
        PRECISION, PDL,
    )  # fmt: skip


@triton.jit
def load_scales(scales, n, k0, K, group_shift, groups, UNIT: tl.constexpr, UNITS: tl.constexpr):
    """Scales of rows n [1, BN] of tiles k0 [PARTS]: [PARTS, BN, UNITS].

    Where there is one in a tile it is loaded as a matrix: with three axes, Triton chooses a layout by which
    the unpacked weights go through shared memory.
    """
    if UNITS == 1:
        at = n.to(tl.int64) * groups + (k0 >> group_shift)[:, None]
        found = tl.load(scales + at, mask=(k0 < K)[:, None], other=0.0)[:, :, None]
    else:
        unit = (k0[:, None] + tl.arange(0, UNITS)[None, :] * UNIT)[:, None, :]
        at = (n.to(tl.int64) * groups)[:, :, None] + (unit >> group_shift)
        found = tl.load(scales + at, mask=unit < K, other=0.0)
    return found


@triton.jit
def load_zeros(
    zero_points, n, k0, K, N, group_shift, row_bytes, packed,
    BITS: tl.constexpr, UNIT: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Zero points of the same, int32."""
    if UNITS == 1:
        within, index = (k0 < K)[:, None], (k0 >> group_shift)[:, None]
        zero = load_zero_points(zero_points, n, index, N, row_bytes, packed, within, BITS)[:, :, None]
    else:
        unit = (k0[:, None] + tl.arange(0, UNITS)[None, :] * UNIT)[:, None, :]
        row, index = n[:, :, None], (unit >> group_shift)
        zero = load_zero_points(zero_points, row, index, N, row_bytes, packed, unit < K, BITS)
    return zero


@triton.jit
def float_product(
    first, second, third, X, m, M, k0, K, x_stride, scale, zero,
    FLOAT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
    PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Product of a tile for each part, float32 [PARTS, BN, BM]; scaled where UNIT is less than BK."""
    SEGMENTS: tl.constexpr = 4 if BITS == 3 else (2 if BITS == 2 else 1)
    LENGTH: tl.constexpr = BK // SEGMENTS  # codes of one segment in a tile
    UNITS: tl.constexpr = BK // UNIT
    OFFSET: tl.constexpr = offset_of(BITS, FLOAT)
    total = tl.zeros((PARTS, BN, BM), tl.float32)
    spread: tl.constexpr = (PARTS, BN, UNITS, LENGTH // UNITS)
    for segment in tl.static_range(SEGMENTS):
        nibbles = segment_of(first, second, third, BITS, segment)
        weight = float_codes(nibbles, second, BITS, FLOAT).reshape(PARTS, BN, LENGTH)
        if UNITS == 1:
            weight = weight - (zero + OFFSET).to(FLOAT)
        else:
            off = tl.broadcast_to((zero + OFFSET).to(FLOAT)[:, :, :, None], spread)
            each = tl.broadcast_to(scale[:, :, :, None], spread)
            weight = (weight - off.reshape(PARTS, BN, LENGTH)) * each.reshape(PARTS, BN, LENGTH)
        k = channels_of(segment, LENGTH, BLOCK, SEGMENTS, 1)
        k = (k0[:, None] + k[None, :])[:, :, None]
        x = tl.load(X + m[None, None, :] * x_stride + k, mask=(m < M)[None, None, :] & (k < K), other=0.0)
        total = tl.dot(weight, x, total)
    return total


@triton.jit
def int8_product(
    first, second, third, X, m, M, k0, x_stride,
    BITS: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Product of a tile of `int8_codes` for each part, int32 [PARTS, BN, BM]."""
    SEGMENTS: tl.constexpr = 4 if BITS == 3 else (2 if BITS == 2 else 1)
    FIELDS: tl.constexpr = 1 if BITS == 9 else 2  # even and odd codes of a nibble word
    LENGTH: tl.constexpr = BK // SEGMENTS // FIELDS
    total = tl.zeros((PARTS, BN, BM), tl.int32)
    for segment in tl.static_range(SEGMENTS):
        nibbles = segment_of(first, second, third, BITS, segment)
        for odd in tl.static_range(FIELDS):
            weight = bytes_of(int8_codes(nibbles, second, odd, BITS)).reshape(PARTS, BN, LENGTH)
            k = channels_of(segment, LENGTH, BLOCK, SEGMENTS, FIELDS)
            k = (k0[:, None] // FIELDS + k[None, :])[:, :, None]
            within = (m < M)[None, None, :] & (k < x_stride // FIELDS)
            x = tl.load(
                X + m[None, None, :] * x_stride + (k + odd * (x_stride // FIELDS)), mask=within, other=0
            )
            total = tl.dot(weight, x, total, out_dtype=tl.int32)
    return total


@triton.jit
def scaled(
    sum_of, sums, x_scales, scale, zero, m, M, k0, K, x_stride, x_shift, x_blocks,
    BITS: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Int32 products to floats: zero points off, times the scales of weights and activations."""
    within = (m < M)[None, :] & (k0 < K)[:, None]
    x_sum = tl.zeros((PARTS, BM), tl.float32)
    for i in tl.static_range(BK // SUMMED):
        at = m[None, :] * (x_stride // SUMMED) + (k0 // SUMMED + i)[:, None]
        x_sum += tl.load(sums + at, mask=within, other=0.0)
    x_scale = tl.load(x_scales + m[None, :] * x_blocks + (k0 >> x_shift)[:, None], mask=within, other=0.0)
    taken = zero - 128 if BITS >= 8 else zero
    exact = sum_of.to(tl.float32) - taken.to(tl.float32) * x_sum[:, None, :]
    return exact * (scale.to(tl.float32) * x_scale[:, None, :])
