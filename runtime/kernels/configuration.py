"""One compiled kernel: its constants, when it may be used, and the rule of its grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zq2onnx.runtime.kernels.problem import NO_BOUND


@dataclass(frozen=True)
class Condition:
    """What one of `Problem.sizes` must be."""

    size: str
    at_least: int = 0
    at_most: int = NO_BOUND
    multiple_of: int = 1

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is."""
        value = sizes[self.size]
        return self.at_least <= value <= self.at_most and value % self.multiple_of == 0


def exactly(size: str, value: int) -> Condition:
    """The size is this value."""
    return Condition(size, at_least=value, at_most=value)


Extent = tuple[tuple[str, int], ...]
"""A grid's axis: the product of `ceil(size / tile)` over pairs of a size's name and a tile."""


@dataclass(frozen=True)
class Configuration:
    """One compiled kernel.

    Attributes:
        kernel: name of the function and of its module.
        name: unique; says what distinguishes it.
        dtype: of activations, scales and results.
        x_dtype: of what a product multiplies or a prologue writes: dtype, or "i8".
        constants: values of the kernel's `tl.constexpr` parameters but PRECISION and PDL, by name.
        warps, stages: of the compilation.
        when: conditions, all of which must hold.
        grid: its three axes.
        aligned: whether pointers and rows of activations lie at multiples of 16 bytes.
    """

    kernel: str
    name: str
    dtype: str
    x_dtype: str
    constants: tuple[tuple[str, int | bool], ...]
    warps: int
    stages: int
    when: tuple[Condition, ...]
    grid: tuple[Extent, Extent, Extent]
    aligned: bool

    def extents(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        """The grid of a launch."""
        x, y, z = (_extent(axis, sizes) for axis in self.grid)
        return x, y, z


def _extent(axis: Extent, sizes: Mapping[str, int]) -> int:
    extent = 1
    for size, tile in axis:
        extent *= -(-sizes[size] // tile)
    return extent


@dataclass(frozen=True)
class Tile:
    """Tiling of a product: tokens, rows and codes of a block, its warps and stages."""

    tokens: int
    rows: int
    codes: int
    warps: int
    stages: int
