"""Which kernels run a problem: of those compiled, the first whose conditions hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.configurations import products, prologues
from zq2onnx.runtime.kernels.problem import Problem


def choose(problem: Problem, architecture: str, *, aligned: bool = True) -> Configuration:
    """The product for a problem.

    Args:
        architecture: that kernels are compiled for, as `sm_90`.
        aligned: whether all arrays, scratch too, lie at multiples of 16 bytes.
    """
    return _first(products(architecture), problem, problem.sizes(), aligned)


def prologue_for(problem: Problem, product: Configuration, *, aligned: bool = True) -> Configuration | None:
    """The prologue that a product needs; None where it reads A alone."""
    if problem.granularity is None and not problem.rank:
        return None
    sizes = problem.sizes() | {"codes": int(product.x_dtype == "i8")}
    return _first(prologues(), problem, sizes, aligned)


def may_run(made: Configuration, problem: Problem, *, aligned: bool = True) -> bool:
    """Whether a product is of a problem's type, and its conditions hold."""
    return _fits(made, problem, problem.sizes(), aligned)


def _fits(made: Configuration, problem: Problem, sizes: Mapping[str, int], aligned: bool) -> bool:
    return (
        made.dtype == problem.dtype
        and (aligned or not made.aligned)
        and all(condition.holds(sizes) for condition in made.when)
    )


def _first(
    offered: Iterable[Configuration], problem: Problem, sizes: Mapping[str, int], aligned: bool
) -> Configuration:
    for made in offered:
        if _fits(made, problem, sizes, aligned):
            return made
    raise AssertionError(f"there is a kernel for every problem, but not for {problem}")
