"""Which kernels run a problem: of those compiled, the first whose conditions hold."""

from __future__ import annotations

from collections.abc import Iterable

from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.configurations import products, prologue, prologues
from zq2onnx.runtime.kernels.problem import WHOLE_BYTES, Problem


def choose(problem: Problem, architecture: str, *, aligned: bool = True) -> Configuration:
    """The product for a problem.

    Args:
        aligned: whether all pointers lie at multiples of 16 bytes.
    """
    rounds = problem.granularity is not None
    return _first(
        (
            made
            for made in products(architecture)
            if ("BITS", problem.bits) in made.constants and (rounds or made.x_dtype != "i8")
        ),
        problem,
        aligned,
    )


def prologue_for(problem: Problem, product: Configuration, *, aligned: bool = True) -> Configuration | None:
    """The prologue that a product needs; None where it reads A alone."""
    if problem.granularity is None and not problem.rank:
        return None
    codes = product.x_dtype == "i8"
    wanted = prologue(
        problem.dtype, problem.granularity, codes=codes, split=codes and problem.bits != WHOLE_BYTES
    )
    same = (made for made in prologues() if made.constants == wanted.constants)
    return _first(same, problem, aligned)


def may_run(made: Configuration, problem: Problem, *, aligned: bool = True) -> bool:
    """Whether a configuration is of a problem's type, and its conditions hold."""
    sizes = problem.sizes()
    return (
        made.dtype == problem.dtype
        and (aligned or not made.aligned)
        and all(condition.holds(sizes) for condition in made.when)
    )


def _first(offered: Iterable[Configuration], problem: Problem, aligned: bool) -> Configuration:
    for made in offered:
        if may_run(made, problem, aligned=aligned):
            return made
    raise AssertionError(f"there is a kernel for every problem, but not for {problem}")
