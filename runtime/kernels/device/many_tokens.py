"""The product for many tokens: bound by the tensor cores.

    Y[m, n] = sum over k of X[m, k] (code[n, k] - zero[n, g(k)]) scales[n, g(k)] + bias[n] + branch

A block computes BN rows of the weight for BM tokens. Weights are unpacked in registers once for BM tokens
and scaled there. Of int8 codes the sums are int32, made float and scaled once for every tile of BK codes;
where a row has one scale (ONE_GROUP), once at the end.

BITS, BLOCK, UNIT, INT8, BK and the preconditions are those of `few_tokens`. Here activations of int8 codes
have a scale for each token (x_blocks is 1), or for each block of BK or more (BY_BLOCK).

Grid: (N / BN * tokens / BM), tokens first within groups of 16 tiles of tokens: a weight's tile and the
activations of such a group stay in the second-level cache.
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

TOKEN_TILES: tl.constexpr = tl.constexpr(16)
"""Tiles of tokens that are computed beside each other."""


@triton.jit
def many_tokens(
    X, sums, x_scales, B, scales, zero_points, bias, T, V, V_scales, Y,
    M, N, K, x_stride, x_shift, x_blocks, row_bytes, group_shift, groups, zero_bytes, zero_packed,
    rank, parts, has_bias, v_int8, x_waits,
    BITS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr, INT8: tl.constexpr,
    BY_BLOCK: tl.constexpr, ONE_GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module's text; arguments are those of `few_tokens`."""
    if PDL:
        if x_waits:
            cuda.gdc_wait()
    FLOAT: tl.constexpr = Y.dtype.element_ty
    n, m = tile_of(M, N, BM, BN)
    row = tl.minimum(n, N - 1)  # rows beyond the last read the last
    words = B.to(tl.pointer_type(tl.uint32))
    row_words = row_bytes // 4
    first_word = words + (row.to(tl.int64) * row_words)[:, None]
    other_word = first_word + (N.to(tl.int64) * row_words if BITS == 8 else 0)
    token = tl.minimum(m, M - 1)
    x_row = X + token.to(tl.int64)[None, :] * x_stride

    UNITS: tl.constexpr = BK // UNIT
    total = tl.zeros((BN, BM), tl.float32)
    if INT8 and not ONE_GROUP:
        total = zero_product(
            total, sums, x_scales, scales, zero_points, row, token, N, K, x_stride, x_shift, x_blocks,
            group_shift, groups, zero_bytes, zero_packed, BITS, BY_BLOCK,
        )  # fmt: skip
    counted = tl.zeros((BN, BM), tl.int32)
    for k0 in range(0, K, BK):
        first, second, third = load_words(first_word, other_word, k0, row_words, BITS, BLOCK, BK)
        if INT8:
            counted = int8_product(
                counted, first, second, third, x_row, k0, x_stride, BITS, BLOCK, BM, BN, BK
            )
            if not ONE_GROUP:
                at = row.to(tl.int64) * groups + (k0 >> group_shift)
                part = counted.to(tl.float32) * tl.load(scales + at).to(tl.float32)[:, None]
                if BY_BLOCK:
                    part = part * tl.load(x_scales + token * x_blocks + (k0 >> x_shift))[None, :]
                total += part
                counted = tl.zeros((BN, BM), tl.int32)
        else:
            unit = k0 + tl.arange(0, UNITS) * UNIT
            scale = load_scales(scales, row, unit, K, group_shift, groups)
            zero = load_zeros(zero_points, row, unit, K, N, group_shift, zero_bytes, zero_packed, BITS)
            total = float_product(
                total, first, second, third, x_row, k0, K, scale, zero,
                FLOAT, BITS, BLOCK, UNITS, BM, BN, BK,
            )  # fmt: skip
    if INT8:
        if ONE_GROUP:
            x_sum = tl.zeros((BM,), tl.float32)
            for i in range(0, tl.cdiv(K, SUMMED)):
                x_sum += tl.load(sums + token * (x_stride // SUMMED) + i)
            zero = load_zero_points(zero_points, row, 0, N, zero_bytes, zero_packed, row >= 0, BITS)
            taken = (zero - 128 if BITS >= 8 else zero).to(tl.float32)
            exact = counted.to(tl.float32) - taken[:, None] * x_sum[None, :]
            total = exact * tl.load(scales + row).to(tl.float32)[:, None]
        if not BY_BLOCK:
            total = total * tl.load(x_scales + token)[None, :]
    finish(
        total, n, m, Y, T, V, V_scales, bias, M, N, rank, parts, has_bias, v_int8,
        PRECISION, PDL,
    )  # fmt: skip


@triton.jit
def tile_of(M, N, BM: tl.constexpr, BN: tl.constexpr):
    """Rows of the weight and tokens of this block."""
    program = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    band = program // (TOKEN_TILES * tiles_n)
    height = tl.minimum(tiles_m - band * TOKEN_TILES, TOKEN_TILES)
    within = program % (TOKEN_TILES * tiles_n)
    tile_m = band * TOKEN_TILES + within % height
    return within // height * BN + tl.arange(0, BN), tile_m * BM + tl.arange(0, BM)


@triton.jit
def load_scales(scales, row, unit, K, group_shift, groups):
    """Scales of rows [BN] at codes `unit` [UNITS]: [BN, UNITS]."""
    at = (row.to(tl.int64) * groups)[:, None] + (unit >> group_shift)[None, :]
    return tl.load(scales + at, mask=(unit < K)[None, :], other=0.0)


@triton.jit
def load_zeros(zero_points, row, unit, K, N, group_shift, row_bytes, packed, BITS: tl.constexpr):
    """Zero points of the same, int32."""
    within, index = (unit < K)[None, :], (unit >> group_shift)[None, :]
    return load_zero_points(zero_points, row[:, None], index, N, row_bytes, packed, within, BITS)


@triton.jit
def zero_product(
    total, sums, x_scales, scales, zero_points, row, token, N, K, x_stride, x_shift, x_blocks,
    group_shift, groups, zero_bytes, zero_packed, BITS: tl.constexpr, BY_BLOCK: tl.constexpr,
):  # fmt: skip
    """Take off `total` what zero points add to int8 products: scaled, times the sums of the codes.

    It is a product of K / 128 columns, once, where taking them off tile by tile would double the work there.
    """
    COLUMNS: tl.constexpr = 16
    for column in range(0, tl.cdiv(K, SUMMED), COLUMNS):
        i = column + tl.arange(0, COLUMNS)
        unit = i * SUMMED
        scale = load_scales(scales, row, unit, K, group_shift, groups).to(tl.float32)
        zero = load_zeros(zero_points, row, unit, K, N, group_shift, zero_bytes, zero_packed, BITS)
        taken = zero - 128 if BITS >= 8 else zero
        within = (unit < K)[:, None]
        x_sum = tl.load(sums + token[None, :] * (x_stride // SUMMED) + i[:, None], mask=within, other=0.0)
        if BY_BLOCK:
            at = token[None, :] * x_blocks + (unit >> x_shift)[:, None]
            x_sum = x_sum * tl.load(x_scales + at, mask=within, other=0.0)
        total = tl.dot(-taken.to(tl.float32) * scale, x_sum, total, input_precision="tf32x3")
    return total


@triton.jit
def float_product(
    total, first, second, third, x_row, k0, K, scale, zero,
    FLOAT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, UNITS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Add a tile's product of floats to `total`, float32 [BN, BM]."""
    SEGMENTS: tl.constexpr = 4 if BITS == 3 else (2 if BITS == 2 else 1)
    LENGTH: tl.constexpr = BK // SEGMENTS
    OFFSET: tl.constexpr = offset_of(BITS, FLOAT)
    for segment in tl.static_range(SEGMENTS):
        nibbles = segment_of(first, second, third, BITS, segment)
        weight = float_codes(nibbles, second, BITS, FLOAT).reshape(BN, UNITS, LENGTH // UNITS)
        weight = (weight - (zero + OFFSET).to(FLOAT)[:, :, None]) * scale[:, :, None]
        k = channels_of(segment, LENGTH, BLOCK, SEGMENTS, 1)
        k = (k0 + k)[:, None]
        x = tl.load(x_row + k, mask=k < K, other=0.0)
        total = tl.dot(weight.reshape(BN, LENGTH), x, total)
    return total


@triton.jit
def int8_product(
    counted, first, second, third, x_row, k0, x_stride,
    BITS: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Add a tile's product of `int8_codes` to `counted`, int32 [BN, BM]."""
    SEGMENTS: tl.constexpr = 4 if BITS == 3 else (2 if BITS == 2 else 1)
    FIELDS: tl.constexpr = 1 if BITS == 9 else 2
    LENGTH: tl.constexpr = BK // SEGMENTS // FIELDS
    for segment in tl.static_range(SEGMENTS):
        nibbles = segment_of(first, second, third, BITS, segment)
        for odd in tl.static_range(FIELDS):
            weight = bytes_of(int8_codes(nibbles, second, odd, BITS)).reshape(BN, LENGTH)
            k = channels_of(segment, LENGTH, BLOCK, SEGMENTS, FIELDS)
            k = (k0 // FIELDS + k)[:, None]
            half = x_stride // FIELDS
            x = tl.load(x_row + (k + odd * half), mask=k < half, other=0)
            counted = tl.dot(weight, x, counted, out_dtype=tl.int32)
    return counted
