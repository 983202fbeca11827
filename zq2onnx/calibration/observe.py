"""Gathers the moments of what linears read while their piece runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zq2onnx.calibration.linears import Linear
from zq2onnx.calibration.memory import give_back_memory
from zq2onnx.calibration.runner import CURRENT, Runner
from zq2onnx.errors import UserError
from zq2onnx.numerics.moments import Moments, MomentSum


def observe_linears(
    runner: Runner, index: int, linears: Sequence[Linear], held_out: Sequence[bool], *, pass_on: bool
) -> dict[str, Moments]:
    """Run a float piece on the current inputs and gather what its linears read.

    Args:
        runner: whose piece it is.
        index: the piece.
        linears: of that piece, at least one.
        held_out: by batch.
        pass_on: keep what later pieces read of the same run.

    Returns:
        By node name. Nodes that read one value share one object.

    Raises:
        ValueError: ONNX Runtime cannot load the piece.
        UserError: it fails, or an activation is NaN or infinite.
    """
    inputs = runner.pieces[index].inputs
    sums = {(linear.activation, linear.across): MomentSum(linear.view.k) for linear in linears}
    outputs = dict.fromkeys(value for value, _ in sums if value not in inputs)
    if pass_on:
        outputs |= dict.fromkeys(runner.passed_on(index))
    session = runner.open(index, list(outputs), {}) if outputs else None
    for batch, is_held_out in enumerate(held_out):
        arrays = runner.inputs(CURRENT, inputs, batch)
        if session is not None:
            made = session.run(runner.where(index), arrays)
            arrays |= made
            if pass_on:
                runner.store(CURRENT, index, batch, made)
        with np.errstate(all="ignore"):  # what is not finite is told below
            for (value, across), total in sums.items():
                array = arrays[value.name or ""]
                total.add(array.T if across else array, is_held_out)
    del session
    give_back_memory()
    results = {key: total.result() for key, total in sums.items()}
    found = {linear.name: results[linear.activation, linear.across] for linear in linears}
    _check_finite(runner, index, found)
    return found


def _check_finite(runner: Runner, index: int, found: dict[str, Moments]) -> None:
    for name, moments in found.items():
        if not moments.finite:
            raise UserError(
                f"{runner.where(index)}: the input of node {name!r} is NaN or infinite on calibration"
                " samples",
                "finite activations",
                "see whether the model or the samples are at fault",
            )
