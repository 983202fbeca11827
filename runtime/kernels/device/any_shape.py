"""The product that takes whatever no tuned one fits: any K, block, alignment and type.

    Y[m, n] = sum over k of X[m, k] (code[n, k] - zero[n, g(k)]) scales[n, g(k)] + bias[n] + branch

Codes are fetched one by one, in tiles of 16, the smallest block: all of a tile's codes share a scale.
Their differences from the zero point are exact in every type, and sums are scaled in float32.

Grid: (N / BN * tokens / BM), rows of the weight first.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda

from zq2onnx.runtime.kernels.device.codes import load_zero_points
from zq2onnx.runtime.kernels.device.epilogue import finish


@triton.jit
def any_shape(
    X, B, scales, zero_points, bias, T, V, V_scales, Y,
    M, N, K, x_stride, row_bytes, group, groups, zero_bytes, zero_packed,
    rank, parts, has_bias, v_int8, x_waits, block,
    BITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module's text; arguments are those of `few_tokens`, of which it reads no int8 codes.

    Args:
        group, block: codes that share a stored scale, and codes in a stored block.
    """
    if PDL:
        if x_waits:
            cuda.gdc_wait()
    FLOAT: tl.constexpr = Y.dtype.element_ty
    tiles_n = tl.cdiv(N, BN)
    n = tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)
    m = tl.program_id(0) // tiles_n * BM + tl.arange(0, BM)
    inside = n < N
    row = B + (n.to(tl.int64) * row_bytes)[:, None]
    other_row = row + (N.to(tl.int64) * row_bytes if BITS == 8 else 0)
    x_row = X + m.to(tl.int64)[None, :] * x_stride
    total = tl.zeros((BN, BM), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        index = k0 // group
        scale = tl.load(scales + (n.to(tl.int64) * groups + index), mask=inside, other=0.0).to(tl.float32)
        zero = load_zero_points(zero_points, n, index, N, zero_bytes, zero_packed, inside, BITS)
        codes = load_codes(row, other_row, k, block, inside[:, None], BITS)
        weight = (codes - zero[:, None]).to(FLOAT)
        x = tl.load(x_row + k[:, None], mask=(m < M)[None, :] & (k < K)[:, None], other=0.0)
        total += tl.dot(weight, x, input_precision=PRECISION) * scale[:, None]
    finish(
        total, n, m, Y, T, V, V_scales, bias, M, N, rank, parts, has_bias, v_int8, PRECISION, PDL
    )  # fmt: skip


@triton.jit
def load_codes(row, other_row, k, block, known, BITS: tl.constexpr):
    """Codes k [BK] of rows [BN, 1] as int32 [BN, BK]."""
    if BITS == 9:
        codes = tl.load(row + k[None, :], mask=known, other=0).to(tl.int32)
    elif BITS == 4 or BITS == 8:
        at, shift = (k // 2)[None, :], (4 * (k % 2))[None, :]
        codes = (tl.load(row + at, mask=known, other=0).to(tl.int32) >> shift) & 15
        if BITS == 8:
            high = (tl.load(other_row + at, mask=known, other=0).to(tl.int32) >> shift) & 15
            codes = codes | high << 4
    elif BITS == 2:
        half = block // 2
        at, shift = (k // block * (half // 2) + k % half // 2)[None, :], (4 * (k % 2))[None, :]
        later = (k % block // half)[None, :]
        codes = (tl.load(row + at, mask=known, other=0).to(tl.int32) >> (shift + 2 * later)) & 3
    else:
        plane, quarter = block // 8, block // 4
        at, shift = (k // block * (3 * plane) + k % quarter // 2)[None, :], (4 * (k % 2))[None, :]
        segment = (k % block // quarter)[None, :]
        first = tl.load(row + at, mask=known, other=0).to(tl.int32) >> shift
        second = tl.load(row + (at + plane), mask=known, other=0).to(tl.int32) >> shift
        third = tl.load(row + (at + 2 * plane), mask=known, other=0).to(tl.int32) >> shift
        last = ((first >> 3) & 1) | ((second >> 3) & 1) << 1 | ((third >> 3) & 1) << 2
        own = tl.where(segment == 0, first, tl.where(segment == 1, second, third)) & 7
        codes = tl.where(segment == 3, last, own)
    return codes
