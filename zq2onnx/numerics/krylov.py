"""The leading singular vectors of a matrix, by randomized block Krylov iteration.

C. Musco and C. Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate
Singular Value Decomposition", 2015. With `A` of shape `[large, small]` and a random block `X`,
the best rank-r approximation is sought in the span of `X, GX, G²X, ..`, `G = AᵀA`. Quantization
errors are nearly white, so their singular values lie close together: power iteration, which keeps
the last block alone, would find 85% of what the exact decomposition finds, in the same time.

Written in the Python Array API: the same code runs on NumPy arrays and on torch tensors, any device.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

Array = Any
"""An array of any library that follows the Array API."""

LEAST_BLOCK = 16
"""Vectors multiplied at once: fewer take hardly less time, because the matrix is read all the same."""

ROWS_BYTES = 1 << 21
"""Rows of A that are multiplied by A and by its transpose while they are in the cache."""


WELL_CONDITIONED = 1e-3
"""Least part of their mean energy that vectors may lose for a Gram matrix in float32 to hold them apart."""


def array_namespace(array: Array) -> Any:
    """The Array API of an array's library; for torch, whose tensors do not name it, its module."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return importlib.import_module(type(array).__module__.partition(".")[0])


def leading_subspace(matrix: Array, rank: int, seed: int = 0, unit: float = 1.0) -> tuple[Array, Array]:
    """The projection of a matrix on its leading singular vectors.

    Args:
        matrix: float32 `[M, N]`, any strides.
        rank: at most `min(M, N)`.
        seed: of the random start.
        unit: typical size of an entry, above zero: vectors are divided by it, so that no matrix is
            too small or large to square.

    Returns:
        `left [M, rank]` and `right [N, rank]`, float32, largest component first, whose product
        `left @ right.T` approximates the matrix. The columns of the shorter are orthonormal; those of
        the longer have the singular values as norms.
    """
    xp = array_namespace(matrix)
    tall = matrix.shape[0] >= matrix.shape[1]
    a = matrix if tall else matrix.T
    basis, images = _krylov_space(xp, a, max(LEAST_BLOCK, rank), krylov_steps(*a.shape), seed, unit)
    # Rayleigh-Ritz: the best rank-r approximation that the space holds.
    gram = xp.asarray(images.T @ images, dtype=xp.float64)
    _, vectors = xp.linalg.eigh((gram + gram.T) / 2)
    leading = xp.asarray(xp.flip(vectors[:, -rank:], (1,)), dtype=xp.float32)
    long, short = (images @ leading) * unit, basis @ leading
    return (long, short) if tall else (short, long)


def krylov_steps(large: int, small: int) -> int:
    """Blocks that hold over 99% of the energy of white noise's exact rank-8 approximation.

    Measured from 256² to 4096²: a line in the logarithm of the size, as the theory has it.

    >>> krylov_steps(1024, 1024), krylov_steps(4096, 1024), krylov_steps(11008, 4096)
    (7, 8, 10)
    """
    return max(5, math.ceil(0.51 * math.log2(large * small) - 3.23))


def _krylov_space(xp: Any, a: Array, block: int, steps: int, seed: int, unit: float) -> tuple[Array, Array]:
    """An orthonormal basis `[small, d]` of the Krylov space, and `A @ basis / unit`, `[large, d]`."""
    large, small = a.shape
    if block * steps >= small:
        return xp.eye(small, dtype=xp.float32), a / unit
    start = np.random.default_rng(seed).standard_normal((large, block), dtype=np.float32)
    # Half a step on the way: the rows of A know more of its leading vectors than white noise does.
    vectors, _ = xp.linalg.qr(a.T @ (_like(xp, start, a) / unit))
    basis, images = [vectors], []
    for _ in range(steps - 1):
        image, back = _multiply(xp, a, vectors, unit)
        images.append(image)
        vectors = orthonormal(xp, xp.concat(tuple(basis), axis=1), back)
        basis.append(vectors)
    images.append(a @ (vectors / unit))
    return xp.concat(tuple(basis), axis=1), xp.concat(tuple(images), axis=1)


def _multiply(xp: Any, a: Array, vectors: Array, unit: float) -> tuple[Array, Array]:
    """`A @ vectors` and `Aᵀ` times that, in units, reading each row of A once."""
    rows = max(64, ROWS_BYTES // (4 * a.shape[1]))
    scaled = vectors / unit
    images, back = [], None
    for first in range(0, a.shape[0], rows):
        part = a[first : first + rows, :]
        image = part @ scaled
        images.append(image)
        product = part.T @ (image / unit)
        back = product if back is None else back + product
    return xp.concat(tuple(images), axis=0), back


def orthonormal(xp: Any, basis: Array, vectors: Array) -> Array:
    """Orthonormal vectors that span, with the basis, what the basis and the vectors span."""
    before = float(xp.sum(vectors * vectors))
    # Twice, or else rounding errors of the first grow from step to step: of a tall matrix, whose
    # singular values differ little from their mean, almost all of each product is in the basis.
    for _ in range(2):
        vectors = vectors - basis @ (basis.T @ vectors)
    gram = xp.asarray(vectors.T @ vectors, dtype=xp.float64)
    values, rotation = xp.linalg.eigh(gram)
    if float(values[0]) * vectors.shape[1] > WELL_CONDITIONED * before:
        return vectors @ xp.asarray(rotation / xp.sqrt(values), dtype=xp.float32)
    # Little is left beside the basis: what rounding left of the basis is taken away once more.
    vectors, _ = xp.linalg.qr(vectors)
    return vectors - basis @ (basis.T @ vectors)


def _like(xp: Any, start: np.ndarray, a: Array) -> Array:
    """A NumPy array as an array of `a`'s library, on its device."""
    device = getattr(a, "device", None)
    return xp.asarray(start) if xp is np or device is None else xp.asarray(start, device=device)
