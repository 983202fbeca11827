"""The low-rank branch that is best for the output, in closed form.

With `E = W - Ŵ` and `R = E[x xᵀ]`, the correction `C` of rank r that leaves the least
`tr((E - C) R (E - C)ᵀ)` is `Q Qᵀ E`, `Q` the leading eigenvectors of `E R Eᵀ`: the leading left singular
vectors of `E L`, `R = L Lᵀ`. (QERA-exact, Zhang et al. 2024; EoRA, Liu et al. 2024.) With a second moment `G`
of the gradients at the output the loss is `tr(G (E - C) R (E - C)ᵀ)`, and `C = Q (Qᵀ G Q)⁻¹ Qᵀ G E`, `Q` the
leading eigenvectors of `E R Eᵀ G`.

Neither moment is factored: the eigenvectors are sought in a Krylov space, to which it is enough that
`E R Eᵀ G` can be multiplied by vectors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.feedback import DAMPING, OUTPUT_DAMPING
from zq2onnx.numerics.grid import Float32Array
from zq2onnx.numerics.krylov import LEAST_BLOCK, krylov_steps, orthonormal
from zq2onnx.numerics.lowrank import Factors, balance_factors, store_factor
from zq2onnx.scheme import Scheme

LEAST_LENGTH = OUTPUT_DAMPING / 4
"""In the damped inner product nothing of length one is shorter: only vectors that are rounding errors are."""


def compensate(
    error: Float32Array,
    scheme: Scheme,
    dtype: npt.DTypeLike,
    second: Float32Array,
    gradients: Float32Array | None = None,
    seed: int = 0,
) -> Factors:
    """The factors of the branch with the least output error.

    `V` is stored first; `U` is the best for the `V` that is stored.

    Args:
        error: `W - Ŵ`, float32 `[N, K]`, finite.
        scheme: gives rank (clipped to `min(N, K)`) and how factors are stored.
        dtype: the activations' type: float32, float16 or bfloat16.
        second: `R`, second moment of the input, `[K, K]`, symmetric, finite. It is damped by `DAMPING`.
        gradients: `G`, second moment of the gradient at the output, `[N, N]`, likewise. It is damped by
            `OUTPUT_DAMPING`.
        seed: of the random start; the same seed gives the same bytes.
    """
    problem = _Problem(error, second, gradients)
    directions = problem.directions(min(scheme.lorc_rank, *error.shape), seed)
    left, _ = balance_factors(directions, problem.best_match(directions))
    v, v_scales = store_factor(left, scheme.lorc_dtype, dtype)
    matched = problem.best_match(v.astype(np.float32) * v_scales.astype(np.float32))
    u, u_scales = store_factor(matched, scheme.lorc_dtype, dtype)
    return Factors(u, np.ascontiguousarray(v.T), u_scales, np.ascontiguousarray(v_scales.T))


class _Problem:
    """An error and the moments that weigh it, damped and in units of their mean diagonals."""

    def __init__(self, error: Float32Array, second: Float32Array, gradients: Float32Array | None) -> None:
        self.error = error
        self.unit = np.float32(float(np.abs(error).max(initial=0)) or 1.0)
        self.second = second
        self.second_unit = _mean_diagonal(second)
        self.gradients = gradients
        self.gradients_unit = np.float32(1) if gradients is None else _mean_diagonal(gradients)

    def weigh(self, vectors: Float32Array) -> Float32Array:
        """`G` times vectors `[N, r]`."""
        if self.gradients is None:
            return vectors
        product: Float32Array = self.gradients @ (vectors / self.gradients_unit)
        product += np.float32(OUTPUT_DAMPING) * vectors
        return product

    def spread(self, vectors: Float32Array) -> Float32Array:
        """`E R Eᵀ` times vectors `[N, r]`."""
        inputs: Float32Array = self.error.T @ (vectors / self.unit)
        moved: Float32Array = self.second @ (inputs / self.second_unit)
        moved += np.float32(DAMPING) * inputs
        product: Float32Array = self.error @ (moved / self.unit)
        return product

    def directions(self, rank: int, seed: int) -> Float32Array:
        """What the branch's outputs span: `[N, rank]`, orthonormal, the leading direction first."""
        basis, weighted, images = self._krylov_space(max(LEAST_BLOCK, rank), seed)
        # Rayleigh-Ritz: the best of all that the space holds, in the inner product of G.
        lengths, turn = np.linalg.eigh(_symmetric(basis.T @ weighted))
        kept = lengths > LEAST_LENGTH
        white = turn[:, kept] / np.sqrt(lengths[kept])
        middle = white.T @ _symmetric(weighted.T @ images) @ white
        leading = np.linalg.eigh((middle + middle.T) / 2)[1][:, : -rank - 1 : -1]
        found = basis @ (white @ leading).astype(np.float32)
        return np.linalg.qr(found.astype(np.float64))[0].astype(np.float32)

    def _krylov_space(self, block: int, seed: int) -> tuple[Float32Array, Float32Array, Float32Array]:
        """An orthonormal basis `[N, d]`, `G` times it, and `E R Eᵀ G` times it."""
        n, k = self.error.shape
        steps = krylov_steps(max(n, k), min(n, k))
        if block * steps >= min(n, k):
            whole: Float32Array = np.eye(n, dtype=np.float32) if n <= k else self.error / self.unit
            basis: Float32Array = np.linalg.qr(whole)[0].astype(np.float32, copy=False)
            weighted = self.weigh(basis)
            return basis, weighted, self.spread(weighted)
        start = np.random.default_rng(seed).standard_normal((k, block), dtype=np.float32)
        # Half a step on the way: the columns of E know more of its leading vectors than white noise does.
        vectors = np.linalg.qr(self.error @ (start / self.unit))[0]
        bases, weights, images = [vectors], [self.weigh(vectors)], []
        for _ in range(steps - 1):
            images.append(self.spread(weights[-1]))
            bases.append(orthonormal(np, np.concatenate(bases, axis=1), images[-1]))
            weights.append(self.weigh(bases[-1]))
        images.append(self.spread(weights[-1]))
        basis, weighted, image = (np.concatenate(part, axis=1) for part in (bases, weights, images))
        return basis, weighted, image

    def best_match(self, left: Float32Array) -> Float32Array:
        """`[K, r]`, by which `left [N, r]` comes closest to the error; a direction without length gets zeros.

        What the input's moment is does not matter: each column of the error is matched by itself.
        """
        length = np.linalg.norm(left.astype(np.float64), axis=0)
        length[length == 0] = 1
        unit = (left / length).astype(np.float32)
        weighted = self.weigh(unit)
        wanted = (weighted.T @ self.error).astype(np.float64)
        matched = np.linalg.pinv(_symmetric(weighted.T @ unit), rcond=1e-9, hermitian=True) @ wanted
        scaled: Float32Array = (matched.T / length).astype(np.float32)
        return scaled


def _mean_diagonal(moment: Float32Array) -> np.float32:
    return np.float32(float(np.diagonal(moment).mean(dtype=np.float64)) or 1.0)


def _symmetric(gram: Float32Array) -> npt.NDArray[np.float64]:
    wide = gram.astype(np.float64)
    return (wide + wide.T) / 2
