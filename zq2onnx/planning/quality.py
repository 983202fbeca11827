"""The smallest plan whose perplexity is of a class: searched for, each trial converted and measured."""

from __future__ import annotations

from collections.abc import Callable

from zq2onnx.errors import UserError
from zq2onnx.planning.budget import Bits, Quality
from zq2onnx.planning.plan import Plan
from zq2onnx.planning.planner import Planner

MOST_TRIALS = 7
FINE = 0.04
"""Bits per weight below which two plans are as good as the same."""

Measure = Callable[[Plan], float]
"""Converts by a plan, and returns the perplexity above the float model's, noise allowed for."""


def least_of_class(planner: Planner, wanted: Quality, measure: Measure) -> Plan:
    """The smallest plan found whose measured gap is within the class's bound.

    Bisects the bits per weight between the smallest plan and the largest. What is returned was measured.

    Raises:
        UserError: even the largest plan is not of the class.
    """
    bound = wanted.limit.bound
    least, most = planner.extremes(str(wanted))
    gap = measure(most)
    if not gap <= bound:
        raise UserError(
            f"--budget {wanted}: with {most.bits:.2f} bits per weight perplexity is {gap:.3f} above the float"
            " model's",
            f"a class that can be reached: at most {bound} above",
            "leave layers float with --exclude, or allow a greater --lorc-rank",
        )
    if measure(least) <= bound:
        return least
    low, high, best = least.bits, most.bits, most
    for _ in range(MOST_TRIALS):
        if high - low <= FINE:
            break
        trial = planner.plan(Bits((low + high) / 2), label=str(wanted))
        if trial.bits >= best.bits:  # no plan lies between
            low = (low + high) / 2
            continue
        if measure(trial) <= bound:
            high, best = trial.bits, trial
        else:
            low = (low + high) / 2
    return best
