"""Whether what ZeroQuant-V2 found of its models holds on this one, in words computed from a study's numbers.

Verdicts go by KL, which few tokens tell more surely than perplexity; where tokens are many, both agree.

The paper: calibrated methods beat rounding to nearest (section 4), finer groups beat rows (section 4.1), and
low-rank compensation helps (section 5).
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zq2onnx.study.results import CellResult, Study
from zq2onnx.study.table import width

_NAMED = 3
"""Exceptions named in a sentence."""


@dataclass(frozen=True)
class Comparison:
    """Pairs of cells that differ in one choice alone.

    Attributes:
        claim: what the paper says of that choice.
        better: the choice that should win, in words.
        worse: the one it is compared with.
        pairs: results with the one and with the other, in the order of the grid.
    """

    claim: str
    better: str
    worse: str
    pairs: tuple[tuple[CellResult, CellResult], ...]

    @property
    def exceptions(self) -> tuple[CellResult, ...]:
        """The cells that should be nearer to the float model, and are not."""
        return tuple(better for better, worse in self.pairs if not better.kl < worse.kl)

    @property
    def kl_ratio(self) -> float | None:
        """The better choice's KL as a share of the other's, median of the pairs; None where all are zero."""
        ratios = [better.kl / worse.kl for better, worse in self.pairs if worse.kl > 0]
        return statistics.median(ratios) if ratios else None

    def sentence(self) -> str:
        """Whether the claim holds, in how many pairs, and where not."""
        count, lost = len(self.pairs), self.exceptions
        lower = sum(better.gap < worse.gap for better, worse in self.pairs)
        ratio = "" if self.kl_ratio is None else f" (in the median, it is {self.kl_ratio:.2f} of the other's)"
        named = ", ".join(each.cell.label for each in lost[:_NAMED])
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        return (
            f"{self.claim}: {_verdict(len(lost), count)}. With {self.better} instead of {self.worse},"
            f" all else equal, KL is lower in {count - len(lost)} of {count} pairs{ratio},"
            f" perplexity in {lower}"
            + (f"; KL is not lower with {named}{more}." if 0 < len(lost) < count else ".")
        )


def comparisons(study: Study) -> tuple[Comparison, ...]:
    """Every comparison for which the study holds a pair."""
    candidates = (*_methods(study), *_branches(study), *_groups(study))
    return tuple(each for each in candidates if each.pairs)


def findings(study: Study) -> list[str]:
    """A sentence for each claim of the paper that the study can judge."""
    return [comparison.sentence() for comparison in comparisons(study)]


def _verdict(lost: int, count: int) -> str:
    if lost == 0:
        return "holds on this model"
    if lost == count:
        return "does not hold on this model"
    return "holds for the most part" if 2 * lost < count else "holds in some cells only"


def _methods(study: Study) -> Iterator[Comparison]:
    """Each calibrated method beside rounding to nearest."""
    for method in dict.fromkeys(result.cell.method for result in study.cells):
        pairs = _pairs(study, "method", method, "rtn")
        if method != "rtn":
            yield Comparison(f"{method} beats rounding to nearest", method, "rtn", pairs)


def _branches(study: Study) -> Iterator[Comparison]:
    """Each rank beside none."""
    for rank in dict.fromkeys(result.cell.lorc_rank for result in study.cells):
        pairs = _pairs(study, "lorc_rank", rank, 0)
        if rank != 0:
            claim = f"Low-rank compensation of rank {rank} helps"
            yield Comparison(claim, f"rank {rank}", "rank 0", pairs)


def _groups(study: Study) -> Iterator[Comparison]:
    """Each size of group beside the next coarser one."""
    sizes = sorted({result.cell.group_size for result in study.cells}, key=width)
    for fine, coarse in itertools.pairwise(sizes):
        pairs = _pairs(study, "group_size", fine, coarse)
        claim = f"Finer groups help ({fine} against {coarse})"
        yield Comparison(claim, _in_words(fine), _in_words(coarse), pairs)


def _in_words(size: str) -> str:
    return "whole rows" if size == "row" else f"groups of {size}"


def _pairs(study: Study, choice: str, better: Any, worse: Any) -> tuple[tuple[CellResult, CellResult], ...]:
    """The cells of the better choice, each with the one that differs in that choice alone."""
    by_cell = {result.cell: result for result in study.cells}
    winners = [result for result in study.cells if getattr(result.cell, choice) == better]
    others = [by_cell.get(dataclasses.replace(result.cell, **{choice: worse})) for result in winners]
    return tuple((winner, other) for winner, other in zip(winners, others, strict=True) if other is not None)
