"""Times processes in turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zq2onnx.benchmark.process import ModelProcess
from zq2onnx.benchmark.results import Timing
from zq2onnx.benchmark.shapes import Shape
from zq2onnx.errors import UserError

Progress = Callable[[float], None]
Turns = list[list[float]]
"""Seconds of each run, by turn."""

_TURN_SECONDS = 0.2
_LEAST_TURNS, _MOST_RUNS_A_TURN = 3, 200


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        runs: timed runs of each row and shape; None: what fits in the seconds.
        seconds: for all rows and shapes together; at least three turns are taken of each.
    """

    runs: int | None = None
    seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.runs is not None and self.runs < 1:
            raise UserError(f"--runs {self.runs}", "at least 1")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"--seconds {self.seconds}", "more than 0")


def take_turns(
    processes: Sequence[ModelProcess],
    inputs: Sequence[Path],
    effort: Effort,
    seconds: float,
    progress: Progress,
) -> list[Turns]:
    """Time processes on one shape: one runs at a time, each several times in a turn.

    Args:
        processes: their models loaded.
        inputs: the `.npz` of each.
        effort: how many runs.
        seconds: for this shape, where the effort counts no runs.
        progress: told of runs, or of seconds.

    Returns:
        The turns of each process.
    """
    pairs = list(zip(processes, inputs, strict=True))
    single = [process.time(file, 1)[0] for process, file in pairs]
    turns: list[Turns] = [[] for _ in pairs]
    counts = _counts(single, effort)
    start = last = time.perf_counter()
    while _more(len(turns[0]), counts, start, seconds, effort):
        first = len(turns[0]) % len(pairs)  # another one begins each turn
        for index in (*range(first, len(pairs)), *range(first)):
            process, file = pairs[index]
            runs = counts[index][len(turns[index]) % len(counts[index])]
            # A run that takes long wakes the threads within itself, and its weights exceed the caches.
            turns[index].append(process.time(file, runs, warm_up=single[index] < _TURN_SECONDS))
            now = time.perf_counter()
            progress(runs if effort.runs else now - last)
            last = now
    return turns


def _counts(single: Sequence[float], effort: Effort) -> list[list[int]]:
    """Runs of each turn, by process; the turns repeat where they are not counted."""
    if effort.runs is None:
        return [[max(1, min(_MOST_RUNS_A_TURN, round(_TURN_SECONDS / each)))] for each in single]
    return [split_runs(effort.runs) for _ in single]


def split_runs(runs: int) -> list[int]:
    """Runs of each turn where they are counted.

    >>> split_runs(2), split_runs(25)
    ([1, 1], [3, 3, 3, 3, 3, 2, 2, 2, 2, 2])
    """
    turns = min(runs, 10)
    return [runs // turns + (turn < runs % turns) for turn in range(turns)]


def _more(done: int, counts: Sequence[Sequence[int]], start: float, seconds: float, effort: Effort) -> bool:
    if effort.runs is not None:
        return done < len(counts[0])
    return done < _LEAST_TURNS or time.perf_counter() - start < seconds


def summarize(shape: Shape, turns: Turns, first: Turns) -> Timing:
    """Turn seconds into a timing.

    Args:
        shape: what was run.
        turns: of this row.
        first: of the first row, as many.
    """
    seconds = np.concatenate([np.asarray(turn) for turn in turns])
    low, middle, high = (float(value) for value in np.percentile(seconds, (10, 50, 90)))
    pairs = zip(first, turns, strict=True)
    return Timing(
        shape=shape,
        runs=len(seconds),
        median_ms=1e3 * middle,
        p10_ms=1e3 * low,
        p90_ms=1e3 * high,
        rate=shape.amount / middle,
        speedup=statistics.median(statistics.median(one) / statistics.median(other) for one, other in pairs),
    )
