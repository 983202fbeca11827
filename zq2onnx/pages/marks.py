"""What a cell of the grid looks like, in every figure alike, so that no figure rests on colour alone.

The scheme is the colour and the shape, the method the filling, and what else differs the line's dashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from zq2onnx.pages.figure import Role, series_colour
from zq2onnx.study.results import Cell, Study
from zq2onnx.study.table import table

SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p")
_FILLINGS = ("full", "none", "left", "bottom")
_DASHES: tuple[Any, ...] = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (2, 3)), (0, (8, 3)))
_SIZE = 6.5
_Name = TypeVar("_Name", str, int)


@dataclass(frozen=True)
class Marks:
    """How the schemes and methods of one study are told apart."""

    schemes: tuple[str, ...]
    methods: tuple[str, ...]
    group_sizes: tuple[str, ...]
    ranks: tuple[int, ...]

    @classmethod
    def of(cls, study: Study) -> Marks:
        """Those of a study's cells, failed ones included, so that a resumed study looks the same."""
        cells = [each.cell for each in study.cells] + [each.cell for each in study.failures]
        return cls(
            table(study).schemes,
            distinct(cell.method for cell in cells),
            distinct(cell.group_size for cell in cells),
            distinct(cell.lorc_rank for cell in cells),
        )

    def style(self, scheme: str, method: str) -> dict[str, Any]:
        """Properties of a `Line2D`'s colour and markers."""
        index = self.schemes.index(scheme)
        return marker(SHAPES[index % len(SHAPES)], series_colour(index), self._filling(method))

    def _filling(self, method: str) -> str:
        # The last method is the full one: round to nearest is hollow wherever it has company.
        return _FILLINGS[(len(self.methods) - 1 - self.methods.index(method)) % len(_FILLINGS)]

    def brief(self, cell: Cell) -> str:
        """A cell beside its point: its scheme, and in what else the study's cells differ.

        >>> Marks(("w4a16",), ("rtn", "gptq"), ("64",), (0, 8)).brief(Cell("gptq", "w4a16", "64", 8))
        'w4a16 gptq r8'
        """
        parts = (
            (self.group_sizes, cell.groups),
            (self.methods, cell.method),
            (self.ranks, f"r{cell.lorc_rank}"),
        )
        return " ".join([cell.scheme, *(word for choices, word in parts if len(choices) > 1)])

    def scheme_entries(self) -> list[Line2D]:
        """Entries of a legend, one a scheme."""
        method = self.methods[-1]
        return [
            Line2D([], [], linestyle="none", label=name, **self.style(name, method)) for name in self.schemes
        ]

    def method_entries(self) -> list[Line2D]:
        """Entries of a legend, one a method; none where there is but one."""
        if len(self.methods) == 1:
            return []
        return [
            Line2D([], [], linestyle="none", label=name, **marker("o", Role.INK.value, self._filling(name)))
            for name in self.methods
        ]


def marker(shape: str, colour: str, filling: str, size: float = _SIZE) -> dict[str, Any]:
    """Properties of a `Line2D` with markers; hollow parts hide what is behind them."""
    hollow = Role.SURFACE.value
    return {
        "color": colour,
        "marker": shape,
        "markersize": size,
        "markeredgecolor": colour,
        "markeredgewidth": 1.4,
        "markerfacecolor": hollow if filling == "none" else colour,
        "markerfacecoloralt": hollow,
        "fillstyle": "full" if filling == "none" else filling,
    }


def dashes(index: int) -> Any:
    """A line style; they repeat after six."""
    return _DASHES[index % len(_DASHES)]


def dash_entries(labels: Sequence[str]) -> list[Line2D]:
    """Entries of a legend for lines told apart by their dashes; none where there is but one."""
    if len(labels) < 2:
        return []
    return [
        Line2D([], [], color=Role.INK.value, linewidth=1.3, linestyle=dashes(index), label=label)
        for index, label in enumerate(labels)
    ]


def draw_legend(figure: Figure, *sections: Sequence[Line2D]) -> None:
    """A legend below the axes: a column for each section, or one section in as many columns as fit."""
    filled = [list(section) for section in sections if section]
    if not filled:
        return
    if len(filled) == 1:
        longest = max(len(str(entry.get_label())) for entry in filled[0])
        columns = max(1, min(len(filled[0]), 56 // (longest + 6)))
    else:
        columns, rows = len(filled), max(map(len, filled))
        for section in filled:
            section += [Line2D([], [], linestyle="none", label=" ") for _ in range(rows - len(section))]
    handles = [entry for section in filled for entry in section]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.6, handletextpad=0.5
    )


def distinct(names: Iterable[_Name]) -> tuple[_Name, ...]:
    """Each once, in the order met."""
    return tuple(dict.fromkeys(names))
