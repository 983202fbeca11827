"""The table of the paper: a row for each method, group size and rank, a column for each scheme."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zq2onnx.study.results import Cell, CellFailure, CellResult, Study


@dataclass(frozen=True)
class Row:
    """One method, group size and rank.

    Attributes:
        method, group_size, lorc_rank: what its cells have in common.
        entries: by scheme, in the order of the columns; None where the grid has no such cell.
    """

    method: str
    group_size: str
    lorc_rank: int
    entries: tuple[CellResult | CellFailure | None, ...]


@dataclass(frozen=True)
class Table:
    """Rows and columns in the order of the grid."""

    schemes: tuple[str, ...]
    rows: tuple[Row, ...]


def table(study: Study) -> Table:
    """Lay a study out as the paper does."""
    entries: dict[Cell, CellResult | CellFailure] = {each.cell: each for each in study.cells}
    entries |= {each.cell: each for each in study.failures}
    schemes = tuple(dict.fromkeys(sorted((cell.scheme for cell in entries), key=_precision)))
    keys = dict.fromkeys((cell.method, cell.group_size, cell.lorc_rank) for cell in entries)
    order = {method: place for place, method in enumerate(dict.fromkeys(key[0] for key in keys))}
    rows = sorted(keys, key=lambda key: (order[key[0]], -width(key[1]), key[2]))
    return Table(
        schemes,
        tuple(
            Row(
                method, size, rank, tuple(entries.get(Cell(method, scheme, size, rank)) for scheme in schemes)
            )
            for method, size, rank in rows
        ),
    )


def text_names(study: Study) -> dict[str, str]:
    """What to call each text: its name without suffix; its path where two have one name."""
    stems = [Path(text).stem for text in study.perplexity]
    distinct = len(set(stems)) == len(stems)
    return {text: stem if distinct else text for text, stem in zip(study.perplexity, stems, strict=True)}


def width(group_size: str) -> float:
    """Weights that share a scale; a row is the coarsest.

    >>> width("64"), width("row")
    (64.0, inf)
    """
    return float("inf") if group_size == "row" else float(group_size)


def _precision(scheme: str) -> tuple[int, int]:
    """Most bits first: `w8a16`, `w4a16`, `w4a8`."""
    weights, _, activations = scheme.removeprefix("w").partition("a")
    return -int(weights), -int(activations)
