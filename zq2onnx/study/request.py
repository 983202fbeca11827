"""What a study is asked for: a model, its texts, and a grid of choices."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.study.results import Cell

LONGEST_DEFAULT = 512
"""No default length, of measuring or of calibration, exceeds this: a laptop is to finish a study."""

DEFAULT_WINDOWS = 40
DEFAULT_SAMPLES = 128


@dataclass(frozen=True)
class Grid:
    """The choices whose every combination is a cell, in the words of `zq2onnx convert`.

    Attributes:
        methods: None for rtn, and with calibration data gptq too.
    """

    schemes: tuple[str, ...] = ("w4a16", "w3a16")
    methods: tuple[str, ...] | None = None
    group_sizes: tuple[str, ...] = ("64", "row")
    lorc_ranks: tuple[int, ...] = (0, 8)

    def cells(self, calibrated: bool) -> tuple[Cell, ...]:
        """Every cell once: method, then group size, then rank, then scheme.

        Raises:
            UserError: a list is empty.
        """
        methods = self.methods if self.methods is not None else (("rtn", "gptq") if calibrated else ("rtn",))
        lists = {
            "methods": methods,
            "group-sizes": self.group_sizes,
            "lorc-ranks": self.lorc_ranks,
            "schemes": self.schemes,
        }
        for option, values in lists.items():
            if not values:
                raise UserError(f"--{option} names nothing", "at least one")
        grid = itertools.product(methods, self.group_sizes, self.lorc_ranks, self.schemes)
        return tuple(dict.fromkeys(_cell(*choices) for choices in grid))


@dataclass(frozen=True)
class Request:
    """What a study is of.

    Attributes:
        model: the float model.
        texts: that it is measured on.
        tokenizer: its `tokenizer.json`, or the folder that holds one; None for the model's folder.
        folder: where everything goes.
        grid: which cells.
        calib: calibration data; None for none.
        calib_samples, calib_length: how much of it; None for the defaults.
        length: tokens in a window; None for the model's context, at most `LONGEST_DEFAULT`.
        windows: of each text, the first ones.
        sensitivity: whether each layer is measured alone too; None where there is calibration data.
        keep_models: leave the converted models.
        force: take over a folder that holds another study.
    """

    model: Path
    texts: tuple[Path, ...]
    tokenizer: Path | None
    folder: Path
    grid: Grid = Grid()
    calib: Path | None = None
    calib_samples: int | None = None
    calib_length: int | None = None
    length: int | None = None
    windows: int = DEFAULT_WINDOWS
    sensitivity: bool | None = None
    keep_models: bool = False
    force: bool = False


def _cell(method: str, group_size: str, rank: int, scheme: str) -> Cell:
    return Cell(method.lower(), scheme.lower(), str(group_size).lower(), rank)
