"""What `cuda_matmul` measured, as lines and as CSV, and the bars it is held to."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.cuda.plan import LARGE, PROMPT, Case

FUSED, RANK_0, UNFUSED, CUBLAS, FLOOR = "fused", "rank 0", "unfused", "cublas", "floor"
PEERS = (RANK_0, UNFUSED, CUBLAS)
"""Forms that are timed beside the fused one."""


@dataclass(frozen=True)
class Row:
    """One case as it ran.

    Attributes:
        kernels: names of what was launched.
        error: the worst result's error, as a part of what is allowed; NaN where nothing ran.
        identical: whether runs on the same inputs gave the same bits.
        us: median microseconds of one product, by form; `FLOOR` is computed.
        times: median, over the turns, of a form's time divided by the fused one's, by form.
        of_copy: bytes read and written, over the fused time, as a part of a copy's rate.
        note: how it was measured, if not as usual.
        failure: why there is no result; "" where there is one.
    """

    case: Case
    kernels: tuple[str, ...] = ()
    error: float = math.nan
    identical: bool = False
    us: Mapping[str, float] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    of_copy: float = math.nan
    note: str = ""
    failure: str = ""

    @property
    def right(self) -> bool:
        """Whether it ran, agrees with the oracle, and does so again."""
        return not self.failure and self.error <= 1 and self.identical


def _cell(value: float | None, digits: int, width: int) -> str:
    return f"{'-':>{width}}" if value is None or math.isnan(value) else f"{value:{width}.{digits}f}"


ROW_HEAD = (
    f"{'':59}  microseconds of one product{'':18}  times as fast as\n"
    f"{'operator':9}{'K x N':>12}{'group':>6}{'M':>6}{'rank':>5} {'type':5}{'error':>7} {'same':7}"
    + "".join(f"{form:>9}" for form in (FUSED, *PEERS, FLOOR))
    + "  "
    + "".join(f"{form:>8}" for form in PEERS)
    + f"{'of copy':>9}"
)


def row_text(row: Row) -> str:
    """One line under `ROW_HEAD`: `error` is a part of what is allowed, `of copy` one of a copy's rate."""
    case = row.case
    start = f"{case.name:9}{case.shape:>12}{case.group:>6}{case.tokens:>6}{case.rank:>5} {case.dtype:5}"
    if row.failure:
        return f"{start}  FAILED: {row.failure}"
    checked = f"{_cell(row.error, 2, 7)} {'yes' if row.identical else 'NO':7}"
    wrong = "" if row.right else "  WRONG"
    if not row.us:
        return f"{start}{checked}{wrong}".rstrip()
    return (
        f"{start}{checked}"
        + "".join(_cell(row.us.get(form), 1, 9) for form in (FUSED, *PEERS, FLOOR))
        + "  "
        + "".join(_cell(row.times.get(form), 2, 8) for form in PEERS)
        + f"{_cell(100 * row.of_copy, 0, 8)}%{wrong}"
        + (f"  {row.note}" if row.note else "")
    )


HEAD = (
    "operator", "K", "N", "group", "M", "rank", "type", "bias", "factors", "aligned", "kernels", "error",
    "identical", *(f"us {form}" for form in (FUSED, *PEERS, FLOOR)), *(f"{form} / fused" for form in PEERS),
    "part of copy", "note", "failure",
)  # fmt: skip


class CsvFile:
    """Rows as they come, each written at once: a run may be cut short."""

    def __init__(self, path: Path) -> None:
        self.file: IO[str] = path.open("w", newline="")
        self._write(HEAD)

    def _write(self, cells: Sequence[object]) -> None:
        csv.writer(self.file).writerow(cells)
        self.file.flush()

    def add(self, row: Row) -> None:
        case = row.case
        operator, factors = case.problem.operator.name, "int8" if case.int8_factors else case.dtype
        place = [operator, case.k, case.n, case.group, case.tokens, case.rank, case.dtype]
        kind = [int(case.bias), factors if case.rank else "", int(case.aligned), " ".join(row.kernels)]
        figures = [row.us.get(form) for form in (FUSED, *PEERS, FLOOR)]
        figures += [*(row.times.get(form) for form in PEERS), row.of_copy]
        numbers = ["" if x is None or math.isnan(x) else f"{x:.5g}" for x in (row.error, *figures)]
        same = "" if row.failure else int(row.identical)
        self._write([*place, *kind, numbers[0], same, *numbers[1:], row.note, row.failure])


@dataclass(frozen=True)
class Bar:
    """A bound that every row must keep.

    Attributes:
        item: its number in the list of what must hold.
        words: what is measured, of what.
        bound: the least or the greatest value.
        figure: the value of a row; NaN where the bar is not about it.
        greatest: whether `bound` is the greatest rather than the least.
    """

    item: int
    words: str
    bound: float
    figure: Callable[[Row], float]
    greatest: bool = False

    def holds(self, value: float) -> bool:
        return value <= self.bound if self.greatest else value >= self.bound


def _error(row: Row) -> float:
    return math.inf if row.failure or math.isnan(row.error) else row.error


def _identical(row: Row) -> float:
    return float(row.identical)


def _of(row: Row, tokens: Sequence[int], shape: tuple[int, int] | None = None) -> bool:
    """Whether a row is the decode bars': W4A16 in groups of 128 with rank 8."""
    case = row.case
    usual = (case.name, case.group, case.rank, case.dtype) == ("W4A16", "128", 8, "fp16")
    return usual and case.tokens in tokens and shape in (None, (case.k, case.n))


def _copy_part(shape: tuple[int, int]) -> Callable[[Row], float]:
    return lambda row: row.of_copy if _of(row, (1,), shape) else math.nan


def _large_of_cublas(row: Row) -> float:
    fits = _of(row, range(1, 17), LARGE)
    return row.times.get(CUBLAS, math.nan) if fits else math.nan


def _branch_part(row: Row) -> float:
    """What the branch costs at one token, as a part of what it may: 7% or 1.5 microseconds."""
    if not _of(row, (1,)) or RANK_0 not in row.times:
        return math.nan
    fused, without = row.us[FUSED], row.us[FUSED] * row.times[RANK_0]
    return (fused - without) / max(0.07 * without, 1.5)


def _of_unfused(at: bool) -> Callable[[Row], float]:
    """Times the unfused branch, at 4096x4096 or elsewhere."""

    def figure(row: Row) -> float:
        there = (row.case.k, row.case.n) == (4096, 4096)
        return row.times.get(UNFUSED, math.nan) if _of(row, (1,)) and there == at else math.nan

    return figure


def _prompt_of_cublas(name: str) -> Callable[[Row], float]:
    def figure(row: Row) -> float:
        fits = row.case.name == name and row.case.tokens >= PROMPT and row.case.dtype == "fp16"
        return row.times.get(CUBLAS, math.nan) if fits else math.nan

    return figure


def _prompt_branch(row: Row) -> float:
    return 1 / row.times[RANK_0] if row.case.tokens >= PROMPT and RANK_0 in row.times else math.nan


BARS = (
    Bar(1, "error beside the oracle, of what is allowed", 1, _error, greatest=True),
    Bar(1, "bits are the same from run to run", 1, _identical),
    Bar(2, "W4A16 M=1 8192x28672: part of a copy's rate", 0.75, _copy_part(LARGE)),
    Bar(2, "W4A16 M=1..16 8192x28672: times cuBLAS fp16", 3, _large_of_cublas),
    Bar(2, "W4A16 M=1 8192x8192: part of a copy's rate", 0.6, _copy_part((8192, 8192))),
    Bar(2, "W4A16 M=1: branch, of max(7%, 1.5 us)", 1, _branch_part, greatest=True),
    Bar(2, "W4A16 M=1 4096x4096: times the unfused branch", 1.3, _of_unfused(True)),
    Bar(2, "W4A16 M=1 elsewhere: times the unfused branch", 1, _of_unfused(False)),
    Bar(3, "W4A16 M>=2048: times cuBLAS fp16", 0.7, _prompt_of_cublas("W4A16")),
    Bar(3, "W8A8 M>=2048: times cuBLAS fp16", 1.2, _prompt_of_cublas("W8A8")),
    Bar(3, "W4A8 M>=2048: times cuBLAS fp16", 1.2, _prompt_of_cublas("W4A8")),
    Bar(3, "M>=2048: time with the branch, of rank 0's", 1.05, _prompt_branch, greatest=True),
)


@dataclass(frozen=True)
class Judgement:
    """A bar beside what was measured.

    Attributes:
        state: "held", "missed" or "not measured".
        rows: how many it is about.
        worst: the value nearest to missing it, or farthest beyond; NaN where there is none.
        where: the row of the worst.
    """

    bar: Bar
    state: str
    rows: int = 0
    worst: float = math.nan
    where: str = ""


def judge(rows: Sequence[Row]) -> list[Judgement]:
    """Every bar, at its worst row."""
    found = []
    for bar in BARS:
        measured = [(row, bar.figure(row)) for row in rows if not math.isnan(bar.figure(row))]
        if not measured:
            found.append(Judgement(bar, "not measured"))
            continue
        row, worst = (max if bar.greatest else min)(measured, key=lambda item: item[1])
        state = "held" if bar.holds(worst) else "missed"
        found.append(Judgement(bar, state, len(measured), worst, row.case.label))
    return found


def verdict_lines(judgements: Sequence[Judgement]) -> list[str]:
    """A table of them."""
    lines = [f"{'':3}{'must hold':46}{'bar':>8}{'worst':>9}{'rows':>6}  {'':14}worst at"]
    for judgement in judgements:
        bar = judgement.bar
        bound = f"{'<=' if bar.greatest else '>='} {bar.bound:g}"
        lines.append(
            f"{bar.item:<3}{bar.words:46}{bound:>8}{_cell(judgement.worst, 3, 9)}{judgement.rows:>6}"
            f"  {judgement.state:14}{judgement.where}".rstrip()
        )
    return lines
