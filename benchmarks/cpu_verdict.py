"""What `cpu_matmul` measured, as tables, and the bars it is held to."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.products import OurMatMul, Shape, stored_bytes
from zq2onnx.opset import OPERATORS

FUSED, FUNCTION, LEVEL_0, LEVEL_4, FLOAT32 = "fused", "function", "level 0", "level 4", "fp32"
FORMS = (FUSED, FUNCTION, LEVEL_0, LEVEL_4, FLOAT32)
RANK_0, W4A16 = "rank 0", "W4A16"
"""Fused operators that another is compared with: itself without branch; 4 bits, for 3."""


@dataclass(frozen=True)
class Row:
    """One operator at one shape.

    Attributes:
        name: bits and activations, as `W4A16`.
        ms: median milliseconds of one product, by form.
        times: median, over the turns, of a form's time divided by the fused operator's, by form.
        rate: gigabytes of stored weights a second, fused; NaN but for one token.
        of_read: the median part of a plain read's rate beside it.
        processors: how many of them the turns had; less than threads where others had them.
    """

    name: str
    shape: Shape
    tokens: int
    rank: int
    ms: Mapping[str, float]
    times: Mapping[str, float]
    rate: float = math.nan
    of_read: float = math.nan
    processors: float = math.nan

    @property
    def operator(self) -> str:
        return f"MatMul{self.name}{'LoRC' if self.rank else ''}"

    @property
    def label(self) -> str:
        branch = f" r{self.rank}" if self.rank else ""
        return f"{self.name} {self.shape.k}x{self.shape.n} g{self.shape.group} M={self.tokens}{branch}"


def _cell(value: float | None, digits: int, width: int) -> str:
    return f"{'-':>{width}}" if value is None or math.isnan(value) else f"{value:{width}.{digits}f}"


ROW_HEAD = (
    f"{'operator':9}{'K x N':>12}{'group':>6}{'M':>5}{'rank':>5}  milliseconds of one product"
    f"{'':20}  times as fast as{'':22}part of\n"
    f"{'':37}" + "".join(f"{form:>10}" for form in FORMS) + "  "
    "" + "".join(f"{form:>9}" for form in FORMS[1:]) + f"{'GB/s':>7}{'a read':>8}"
)


def row_text(row: Row) -> str:
    """One line under `ROW_HEAD`."""
    shape = f"{row.shape.k}x{row.shape.n}"
    beside = [
        f"  {1 / row.times[name]:.3f} of {name}'s time" for name in (RANK_0, W4A16) if name in row.times
    ]
    return (
        f"{row.name:9}{shape:>12}{row.shape.group:>6}{row.tokens:>5}{row.rank:>5}"
        + "".join(_cell(row.ms.get(form), 3, 10) for form in FORMS)
        + "  "
        + "".join(_cell(row.times.get(form), 2, 9) for form in FORMS[1:])
        + f"{_cell(row.rate, 1, 7)}{_cell(100 * row.of_read, 0, 7)}{' ' if math.isnan(row.of_read) else '%'}"
        + "".join(beside)
    )


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every row with all of its figures."""
    forms = [*FORMS, RANK_0, W4A16]
    head = ["operator", "K", "N", "group", "M", "rank", *(f"ms {form}" for form in forms)]
    head += [*(f"{form} / fused" for form in forms[1:]), "GB/s", "part of a read", "processors"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for row in rows:
            place = [row.operator, row.shape.k, row.shape.n, row.shape.group, row.tokens, row.rank]
            figures = [*(row.ms.get(form) for form in forms), *(row.times.get(form) for form in forms[1:])]
            figures += [row.rate, row.of_read, row.processors]
            numbers = ["" if x is None or math.isnan(x) else f"{x:.5g}" for x in figures]
            writer.writerow([*place, *numbers])


@dataclass(frozen=True)
class Bar:
    """A bound that every row must keep.

    Attributes:
        item: its number in the list of what must hold.
        words: what is measured, of what.
        bound: the least or the greatest value.
        figure: the value of a row; NaN where the bar is not about it.
        greatest: whether `bound` is the greatest rather than the least.
        or_left_out: whether an operator may miss it that is not registered unasked.
    """

    item: int
    words: str
    bound: float
    figure: Callable[[Row], float]
    greatest: bool = False
    or_left_out: bool = False

    def holds(self, value: float) -> bool:
        return value <= self.bound if self.greatest else value >= self.bound


def _times(name: str, form: str, tokens: int | None) -> Callable[[Row], float]:
    """How many times faster than a form an operator is."""

    def figure(row: Row) -> float:
        fits = row.name == name and tokens in (None, row.tokens)
        return row.times.get(form, math.nan) if fits else math.nan

    return figure


def _cost(name: str | None, form: str, tokens: int | None, rank: int | None = None) -> Callable[[Row], float]:
    """The fused operator's time as a part of a form's; None stands for all."""

    def figure(row: Row) -> float:
        fits = name in (None, row.name) and tokens in (None, row.tokens) and rank in (None, row.rank)
        return 1 / row.times.get(form, math.nan) if fits else math.nan

    return figure


def _part_of_read(bits: int, floats: bool) -> Callable[[Row], float]:
    def figure(row: Row) -> float:
        fits = row.name.startswith(f"W{bits}") and row.name.endswith("A16") == floats
        return row.of_read if fits else math.nan

    return figure


def _file(row: Row) -> float:
    """W3's bytes as a part of W4's."""
    if row.name != "W3A16":
        return math.nan
    three, four = (stored_bytes(OurMatMul(OPERATORS[f"MatMul{x}"]), row.shape) for x in ("W3A16", "W4A16"))
    return three / four


BARS = (
    *(
        Bar(1, f"{name} M={tokens}: times {form}", bound, _times(name, form, tokens))
        for name, tokens, form, bound in (
            ("W8A16", 1, LEVEL_0, 25),
            ("W2A16", 1, LEVEL_0, 25),
            ("W8A16", 1, FLOAT32, 2),
            ("W2A16", 1, FLOAT32, 5),
            ("W8A16", 128, LEVEL_0, 2.3),
            ("W2A16", 128, LEVEL_0, 2.3),
        )
    ),
    *(
        Bar(2, f"W4A16 M={tokens}: times level 0", bound, _times("W4A16", LEVEL_0, tokens))
        for tokens, bound in ((1, 1.5), (8, 1.3), (128, 0.9))
    ),
    Bar(3, "W3A16 M=1: time of W4A16's", 1.1, _cost("W3A16", W4A16, 1), greatest=True),
    # 3/4 of the codes; scales and zero points are as large for both: 0.77 in groups of 128, 0.80 of 32.
    Bar(3, "W3A16: bytes of W4A16's", 0.81, _file, greatest=True),
    *(
        Bar(
            4, f"W{bits}A8Block: times level 4", 1, _times(f"W{bits}A8Block", LEVEL_4, None), or_left_out=True
        )
        for bits in (8, 4, 3, 2)
    ),
    *(
        Bar(4, f"W{bits}A8: time of level 4's", 1.15, _cost(f"W{bits}A8", LEVEL_4, None), greatest=True)
        for bits in (8, 4, 3, 2)
    ),
    *(
        Bar(5, f"rank 8 M={tokens}: time of rank 0's", bound, _cost(None, RANK_0, tokens, 8), greatest=True)
        for tokens, bound in ((1, 1.04), (128, 1.03))
    ),
    *(
        Bar(6, f"W{bits}{words} M=1: part of a read", bound, _part_of_read(bits, floats))
        for floats, words in ((True, "A16"), (False, "A8, A8Block"))
        for bits, bound in ((8, 0.7), (4, 0.7), (3, 0.5), (2, 0.3))
    ),
)


def verdict(rows: Sequence[Row], registered: Mapping[str, bool]) -> tuple[list[str], bool]:
    """Lines of a table of the bars, and whether every bar that was measured holds at its worst."""
    lines = [f"{'':3}{'must hold':34}{'bar':>8}{'worst':>9}{'median':>9}  {'held':18} worst at"]
    all_hold, left = True, 0
    for bar in BARS:
        measured = [(row, bar.figure(row)) for row in rows if not math.isnan(bar.figure(row))]
        bound = f"{'<=' if bar.greatest else '>='} {bar.bound:g}"
        start = f"{bar.item:<3}{bar.words:34}{bound:>8}"
        if not measured:
            left += 1
            continue
        row, worst = (max if bar.greatest else min)(measured, key=lambda item: item[1])
        median = statistics.median(value for _, value in measured)
        left_out = bar.or_left_out and not any(registered[row.operator] for row, _ in measured)
        held = "yes" if bar.holds(worst) else "no, not registered" if left_out else "no"
        if held == "no" and bar.holds(median):
            held = "median only"
        all_hold &= held in ("yes", "no, not registered")
        lines.append(f"{start}{worst:9.3f}{median:9.3f}  {held:18} {row.label}")
    return [*lines, *([f"{left} bars were not measured"] if left else [])], all_hold


def payment(rows: Sequence[Row], registered: Mapping[str, bool]) -> list[str]:
    """Lines of a table of the operators beside their functions, than which they may not be slower."""
    batches = sorted({row.tokens for row in rows})
    lines = [
        f"{'worst times of the function':30}"
        + "".join(f"{f'M={tokens}':>9}" for tokens in batches)
        + "  pays  registered unasked"
    ]
    for name in OPERATORS:
        of = [row for row in rows if row.operator == name]
        if not of:
            continue
        worst = {
            tokens: min((row.times[FUNCTION] for row in of if row.tokens == tokens), default=math.nan)
            for tokens in batches
        }
        bars = {tokens: 0.9 if tokens >= 64 else 1.0 for tokens in worst}
        pays = "yes" if all(worst[tokens] >= bar for tokens, bar in bars.items()) else "no"
        if not {1.0, 0.9} <= set(bars.values()):
            pays = "-"  # one of the two was not measured
        lines.append(
            f"{name:30}"
            + "".join(_cell(value, 2, 9) for value in worst.values())
            + f"  {pays:5} {'yes' if registered[name] else 'no'}"
        )
    return lines
