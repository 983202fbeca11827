"""The low-rank branch that is best for the output, in closed form.

With `E = W - Ŵ` and `R = E[x xᵀ]`, the correction `C` of rank r that leaves the least
`tr((E - C) R (E - C)ᵀ)` is `Q Qᵀ E`, `Q` the leading eigenvectors of `E R Eᵀ`: the leading left singular
vectors of `E L`, `R = L Lᵀ`. (QERA-exact, Zhang et al. 2024; EoRA, Liu et al. 2024.) With a second moment `G`
of the gradients at the output the loss is `tr(G (E - C) R (E - C)ᵀ)`, and the same holds of `Lgᵀ E L`,
`G = Lg Lgᵀ`.
"""

from __future__ import annotations

import math

import numpy as np

from zq2onnx.numerics.energy import frobenius_energy
from zq2onnx.numerics.feedback import Feedback
from zq2onnx.numerics.grid import Float32Array
from zq2onnx.numerics.krylov import leading_subspace
from zq2onnx.numerics.lowrank import UNITS, Factors, balance_factors, store_factor
from zq2onnx.scheme import Scheme


def compensate(
    error: Float32Array,
    scheme: Scheme,
    dtype: np.typing.DTypeLike,
    inputs: Feedback,
    outputs: Feedback | None = None,
    seed: int = 0,
) -> Factors:
    """The factors of the branch with the least output error.

    `V` is stored first; `U` is the best for the `V` that is stored.

    Args:
        error: `W - Ŵ`, float32 `[N, K]`, finite.
        scheme: gives rank (clipped to `min(N, K)`) and how factors are stored.
        dtype: the activations' type: float32, float16 or bfloat16.
        inputs: factored second moment of the input.
        outputs: factored second moment of the gradient at the output.
        seed: of the random start; the same seed gives the same bytes.
    """
    rank = min(scheme.lorc_rank, *error.shape)
    directions = _directions(error, rank, inputs, outputs, seed)
    weighted = directions if outputs is None else _apply(outputs, directions)
    left, _ = balance_factors(directions, _best_match(error, directions, weighted))
    v, v_scales = store_factor(left, scheme.lorc_dtype, dtype)
    stored = v.astype(np.float32) * v_scales.astype(np.float32)
    weighted = stored if outputs is None else _apply(outputs, stored)
    u, u_scales = store_factor(_best_match(error, stored, weighted), scheme.lorc_dtype, dtype)
    return Factors(u, np.ascontiguousarray(v.T), u_scales, np.ascontiguousarray(v_scales.T))


def _directions(
    error: Float32Array, rank: int, inputs: Feedback, outputs: Feedback | None, seed: int
) -> Float32Array:
    """What the branch's outputs span, `[N, rank]`, columns of unit length."""
    if outputs is not None:
        error = error[outputs.order]
    seen = error[:, inputs.order] @ (inputs.factor * np.sqrt(inputs.variance))
    if outputs is not None:
        root = outputs.factor * np.sqrt(outputs.variance)
        seen = root.T @ seen
    unit = min(max(math.sqrt(frobenius_energy(seen) / seen.size), UNITS[0]), UNITS[1])
    left = np.linalg.qr(np.asarray(leading_subspace(seen, rank, seed, unit)[0], np.float64))[0]
    if outputs is not None:
        ordered, left = left, np.empty_like(left)
        left[outputs.order] = np.linalg.solve(root.T.astype(np.float64), ordered)
    return (left / np.linalg.norm(left, axis=0)).astype(np.float32)


def _apply(moment: Feedback, vectors: Float32Array) -> Float32Array:
    """The factored moment times vectors `[N, r]`."""
    product = np.empty_like(vectors)
    inner = moment.variance[:, None] * (moment.factor.T @ vectors[moment.order])
    product[moment.order] = moment.factor @ inner
    return product


def _best_match(error: Float32Array, left: Float32Array, weighted: Float32Array) -> Float32Array:
    """`[K, r]`, by which `left [N, r]` comes closest to the error; a direction without length gets zeros."""
    gram = weighted.T.astype(np.float64) @ left
    wanted = (weighted.T @ error).astype(np.float64)
    matched: Float32Array = (np.linalg.pinv(gram, rcond=1e-9, hermitian=True) @ wanted).T.astype(np.float32)
    return matched
