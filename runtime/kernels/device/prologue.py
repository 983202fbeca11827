"""The prologue: what a product needs of the activations, in one launch.

    T[s, m, r] = U_scales[r] * sum over k of part s of A[m, k] U[k, r]          float32
    scale      = max |A[m, k]| / 127, over a token or over each stored block of it
    code       = round(A[m, k] / scale), half to even                            int8

Its results, as the constants say: T, always; with ROUND either the codes with their scales and sums
(CODES), for integer tensor cores, or the rounded activations as floats, for a product of floats.

Layout of codes: rows of `k_padded` bytes, a multiple of 256, zeros from K on. SPLIT: even channels in the
first half of a row, odd ones in the second, for a byte of a weight holds two codes. `sums[m, i]` is the
sum of the codes of channels 128 i to 128 i + 127, by which zero points are taken off.

Grid: (tokens / BM, parts of K, ranks / 16 or 1). Where tokens have scales, every part reads the whole row
first to find its maximum, and then its own part again, from the second-level cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda

from zq2onnx.runtime.kernels.device.epilogue import RANK_TILE

SUMMED: tl.constexpr = tl.constexpr(128)
"""Channels whose codes have one sum."""

BY_TOKEN: tl.constexpr = tl.constexpr(1)
BY_BLOCK: tl.constexpr = tl.constexpr(2)

_LEAST: tl.constexpr = tl.constexpr(1.1754943508222875e-38)  # the least normal float32: 0 / 0 is no number
_ROUNDER: tl.constexpr = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds half to even
_ATOM: tl.constexpr = tl.constexpr(16)  # the smallest block


@triton.jit
def magnitude_bits(a):
    """|a| as int32 bits, which order as the floats do; above all of them what is no number."""
    return a.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scale_of(bits):
    """The scale of what has a maximum of these bits; infinite or no number where that is."""
    scale = bits.to(tl.float32, bitcast=True) / 127.0
    return tl.where(scale < _LEAST, _LEAST, scale)


@triton.jit
def scales_of_blocks(bits, block, BM: tl.constexpr, BK: tl.constexpr):
    """Scales of stored blocks, each for every 16 channels of it: int32 [BM, BK] to float32 [BM, BK / 16].

    Blocks are of any multiple of 16 that divides BK, so the greatest of 16 are compared with each other.
    """
    atoms = tl.max(bits.reshape(BM, BK // _ATOM, _ATOM), axis=2)
    owner = tl.arange(0, BK // _ATOM) * _ATOM // block
    same = owner[None, :, None] == owner[None, None, :]
    return scale_of(tl.max(tl.where(same, atoms[:, None, :], 0), axis=2))


@triton.jit
def prologue(
    A, U, U_scales, T, X, sums, x_scales,
    M, K, k_padded, block, k_blocks, rank, u_int8,
    ROUND: tl.constexpr, CODES: tl.constexpr, SPLIT: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module's text.

    Args:
        A: [M, K], float16, bfloat16 or float32.
        U: int8 or A's type [K, rank], as `u_int8` says; U_scales [rank] in A's type.
        T: float32 [parts, M, rank].
        X: codes, int8 [M, k_padded]; or rounded activations, A's type [M, K].
        sums: float32 [M, k_padded / 128].
        x_scales: float32 [M], or [M, k_blocks] where blocks have scales.
        block: channels that share a scale: a multiple of 16 that divides 256.
    """
    if PDL:
        cuda.gdc_launch_dependents()
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    part, parts = tl.program_id(1), tl.num_programs(1)
    known = (m < M)[:, None]
    rows = A + m.to(tl.int64)[:, None] * K
    first = tl.program_id(2) == 0  # of the programs that read these activations
    r = tl.program_id(2) * RANK_TILE + tl.arange(0, RANK_TILE)

    scale = tl.zeros((BM,), tl.float32)
    if ROUND == BY_TOKEN:
        greatest = tl.zeros((BM, BK), tl.int32)
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            a = tl.load(rows + k[None, :], mask=known & (k < K)[None, :], other=0.0)
            greatest = tl.maximum(greatest, magnitude_bits(a))
        scale = scale_of(tl.max(greatest, axis=1))
        if first & (part == 0):
            tl.store(x_scales + m, scale, mask=m < M)

    t = tl.zeros((BM, RANK_TILE), tl.float32)
    tiles = k_padded // BK
    share = (tiles + parts - 1) // parts
    for tile in range(part * share, min(tiles, (part + 1) * share)):
        k = tile * BK + tl.arange(0, BK)
        a = tl.load(rows + k[None, :], mask=known & (k < K)[None, :], other=0.0)
        if rank > 0:
            at = k[:, None] * rank + r[None, :]
            within = (k < K)[:, None] & (r < rank)[None, :]
            if u_int8:
                u = tl.load(U.to(tl.pointer_type(tl.int8)) + at, mask=within, other=0).to(a.dtype)
            else:
                u = tl.load(U.to(A.dtype) + at, mask=within, other=0.0)
            t = tl.dot(a, u, t, input_precision=PRECISION)
        if ROUND != 0:
            if first:
                each = tl.broadcast_to(scale[:, None], (BM, BK))
                if ROUND == BY_BLOCK:
                    of_blocks = scales_of_blocks(magnitude_bits(a), block, BM, BK)
                    atom = tile * BK + tl.arange(0, BK // _ATOM) * _ATOM
                    at = m.to(tl.int64)[:, None] * k_blocks + (atom // block)[None, :]
                    begins = (atom % block == 0) & (atom < k_blocks * block)
                    tl.store(x_scales + at, of_blocks, mask=known & begins[None, :])
                    spread = tl.broadcast_to(of_blocks[:, :, None], (BM, BK // _ATOM, _ATOM))
                    each = spread.reshape(BM, BK)
                rounded = a.to(tl.float32) * (1.0 / each) + _ROUNDER
                if CODES:
                    codes = (rounded.to(tl.int32, bitcast=True) & 0xFF).to(tl.uint8).to(tl.int8, bitcast=True)
                    codes = tl.where((k < K)[None, :], codes, 0)  # what is no number has bits beyond K too
                    store_codes(X, codes, m, tile, known, k_padded, SPLIT, BM, BK)
                    summed = tl.sum(codes.to(tl.int32).reshape(BM, BK // SUMMED, SUMMED), axis=2)
                    i = tile * (BK // SUMMED) + tl.arange(0, BK // SUMMED)
                    at = m.to(tl.int64)[:, None] * (k_padded // SUMMED) + i[None, :]
                    tl.store(sums + at, summed.to(tl.float32), mask=known)
                else:
                    floats = (rounded - _ROUNDER) * each
                    at = m.to(tl.int64)[:, None] * K + k[None, :]
                    tl.store(X + at, floats.to(X.dtype.element_ty), mask=known & (k < K)[None, :])
    if rank > 0:
        t = t * tl.load(U_scales + r, mask=r < rank, other=0.0).to(tl.float32)[None, :]
        at = (part * M + m)[:, None] * rank + r[None, :]
        tl.store(T + at, t, mask=known & (r < rank)[None, :])


@triton.jit
def store_codes(
    X, codes, m, tile, known, k_padded, SPLIT: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """Store a tile of codes, int8 [BM, BK]."""
    rows = X + m.to(tl.int64)[:, None] * k_padded
    if SPLIT:
        even, odd = tl.split(codes.reshape(BM, BK // 2, 2))
        at = (tile * (BK // 2) + tl.arange(0, BK // 2))[None, :]
        tl.store(rows + at, even, mask=known)
        tl.store(rows + (at + k_padded // 2), odd, mask=known)
    else:
        tl.store(rows + (tile * BK + tl.arange(0, BK))[None, :], codes, mask=known)
