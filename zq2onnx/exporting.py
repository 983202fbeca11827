"""`export`: capture a transformers model, and compare what was written with torch."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import numpy as np

from zq2onnx.errors import CheckFailed
from zq2onnx.evaluation.trial import largest_difference, shown
from zq2onnx.models import capture
from zq2onnx.models.capture import Capture, Progress
from zq2onnx.runtime.providers import require_onnxruntime

TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""The largest difference that rounding explains, as a part of the largest number that torch gives.

In fp16 and bf16 torch rounds every intermediate, where ONNX Runtime's CPU provider computes in float32."""


def export(
    source: str | Path,
    output: Path,
    *,
    cache: bool | None = None,
    dtype: str = "fp32",
    check: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Capture:
    """`capture.export`, then the check: the model's first output beside torch's, on two prompts.

    One prompt is padded on the left; with a cache, a token after each is compared too.

    Args:
        source, output, cache, dtype, force, progress: as `capture.export` takes them.
        check: whether ONNX Runtime is asked what torch was asked.

    Returns:
        What was written, with the largest difference.

    Raises:
        UserError: as `capture.export`, or there is no ONNX Runtime to check with.
        CheckFailed: the model does not run, or the difference is not one of rounding. The files stay.
    """
    if check:
        require_onnxruntime()
    made = capture.export(source, output, cache=cache, dtype=dtype, force=force, progress=progress)
    if not check:
        return made
    if progress is not None:
        progress("checking")
    gc.collect()  # torch's weights go before ONNX Runtime's come
    made = dataclasses.replace(made, difference=largest_difference(made.path, made.turns))
    _judge(made, dtype)
    return made


def _judge(made: Capture, dtype: str) -> None:
    largest = float(np.max([np.abs(turn.expected[shown(turn)]).max() for turn in made.turns]))
    if not np.isfinite(largest):
        raise CheckFailed(f"{made.path}: torch itself gives numbers that are not finite in {dtype}")
    assert made.difference is not None
    if not made.difference <= TOLERANCE[dtype] * largest:
        raise CheckFailed(
            f"{made.path}: ONNX Runtime's answers differ from torch's by up to {made.difference:.2g}, where"
            f" the largest is {largest:.3g} and {TOLERANCE[dtype] * largest:.2g} would be rounding in {dtype}"
        )
