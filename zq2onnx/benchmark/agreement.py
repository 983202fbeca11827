"""Compares what the two routes of a model compute, so that no wrong kernel is called fast."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from zq2onnx.benchmark.process import ModelProcess
from zq2onnx.benchmark.results import Agreement
from zq2onnx.benchmark.shapes import Shape
from zq2onnx.benchmark.subject import Subject
from zq2onnx.errors import CheckFailed

_AT_ONCE = 1 << 20
"""Numbers that are compared at once: outputs may be larger than memory."""


def compare_routes(
    subject: Subject, stock: ModelProcess, fused: ModelProcess, shape: Shape, inputs: Path, folder: Path
) -> Agreement | None:
    """Run both routes once.

    Args:
        subject: the model.
        stock, fused: its two processes.
        shape: what is run.
        inputs: the `.npz`.
        folder: for the outputs; they are removed.

    Returns:
        The output that differs most; None where none is of a float type.

    Raises:
        CheckFailed: an output has another shape on the fused route.
    """
    files = [process.save_outputs(inputs, folder) for process in (stock, fused)]
    differences = {}
    for name, file in files[0].items():
        expected, found = np.load(file, mmap_mode="r"), np.load(files[1][name], mmap_mode="r")
        if expected.shape != found.shape:
            raise CheckFailed(
                f"{subject.path}: output {name} is of shape {list(expected.shape)} on stock kernels, and of"
                f" {list(found.shape)} by the operator library"
            )
        differences[name] = largest_difference(expected, found)
    for file in (*files[0].values(), *files[1].values()):
        file.unlink()
    if not differences:
        return None
    worst = max(differences, key=differences.__getitem__)
    return Agreement(str(subject.path), shape, worst, differences[worst], subject.tolerance)


def largest_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference of two numbers, as a part of the largest finite one expected.

    Args:
        expected, found: floats, of one shape.

    Returns:
        0 where nothing differs; infinite where one has a number and the other has none, or all expected
        are 0. What is the same infinity, or no number, in both does not differ.
    """
    difference = largest = 0.0
    flat = expected.reshape(-1), found.reshape(-1)
    for start in range(0, expected.size, _AT_ONCE):
        one, other = (array[start : start + _AT_ONCE].astype(np.float64) for array in flat)
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        with np.errstate(invalid="ignore"):
            apart = np.where(same, 0.0, np.abs(one - other))
        if not np.isfinite(apart).all():
            return math.inf
        difference = max(difference, float(apart.max(initial=0.0)))
        largest = max(largest, float(np.abs(one[np.isfinite(one)]).max(initial=0.0)))
    if difference == 0:
        return 0.0
    return difference / largest if largest else math.inf
