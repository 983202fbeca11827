"""What every product ends with: the bias, the low-rank branch, and the result's type.

    Y[m, n] = product[n, m] + bias[n] + sum over r of T[m, r] V[r, n] V_scales[r]

Products are computed transposed: a weight's rows are the rows of the tensor cores' first operand, which may
come from registers, where its codes are unpacked.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda

RANK_TILE: tl.constexpr = tl.constexpr(16)
"""Ranks that one step multiplies, the least that tensor cores take."""


@triton.jit
def finish(
    product, n, m, Y, T, V, V_scales, bias, M, N, rank, parts, has_bias, v_int8,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Add bias and branch, and store.

    Args:
        product: float32 [BN, BM].
        n, m: int32 [BN] and [BM], rows of the weight and tokens; those from N and M on are not stored.
        T: float32 [parts, M, rank], parts of `A·U`, added up in order.
        V: int8 or Y's type [rank, N], as `v_int8` says. T and V are not read where rank is 0.
        PRECISION: of the branch's product: tf32 has the bits of float16 and the range of float32.
        PDL: whether the prologue may still run: what it writes is read behind a wait.
    """
    inside = n < N
    if has_bias:
        product += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[:, None]
    for r0 in range(0, rank, RANK_TILE):
        r = r0 + tl.arange(0, RANK_TILE)
        at = r[None, :] * N + n[:, None]
        known = (r < rank)[None, :] & inside[:, None]
        if v_int8:
            v = tl.load(V.to(tl.pointer_type(tl.int8)) + at, mask=known, other=0).to(tl.float32)
        else:
            v = tl.load(V.to(Y.dtype) + at, mask=known, other=0.0).to(tl.float32)
        scale = tl.load(V_scales + r, mask=r < rank, other=0.0).to(tl.float32)
        if PDL:
            cuda.gdc_wait()
        t = tl.zeros((RANK_TILE, product.shape[1]), tl.float32)
        for split in range(0, parts):
            from_split = T + (split * M + m)[None, :] * rank + r[:, None]
            t += tl.load(from_split, mask=(r < rank)[:, None] & (m < M)[None, :], other=0.0)
        product += tl.dot(v, t * scale[:, None], input_precision=PRECISION)
    at = m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(Y + at, product.to(Y.dtype.element_ty), mask=inside[:, None] & (m < M)[None, :])
