"""What a study found, as data: every cell of the grid, the float model, and the sensitivity of layers."""

from __future__ import annotations

from dataclasses import dataclass

from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.planning.costs import Sensitivity
from zq2onnx.scheme import Method


@dataclass(frozen=True)
class Cell:
    """One point of the grid, in the words of `zq2onnx convert`."""

    method: str
    scheme: str
    group_size: str
    lorc_rank: int

    @property
    def calibrated(self) -> bool:
        """Whether it is converted with calibration data; rounding to nearest needs none and gets none."""
        return self.method != Method.RTN.value

    @property
    def groups(self) -> str:
        """How many weights share a scale, in short.

        >>> Cell("rtn", "w4a16", "64", 8).groups, Cell("rtn", "w4a16", "row", 8).groups
        ('g64', 'row')
        """
        return self.group_size if self.group_size == "row" else f"g{self.group_size}"

    @property
    def label(self) -> str:
        """The cell in words.

        >>> Cell("gptq", "w3a16", "64", 8).label
        'w3a16 g64 gptq rank 8'
        """
        return f"{self.scheme} {self.groups} {self.method} rank {self.lorc_rank}"

    @property
    def name(self) -> str:
        """The cell as part of a file's name.

        >>> Cell("zq-local", "w3a16", "row", 0).name
        'w3a16-row-zq-local-r0'
        """
        return f"{self.scheme}-{self.groups}-{self.method}-r{self.lorc_rank}"


@dataclass(frozen=True)
class LayerError:
    """A layer's relative error: of its output where the cell is calibrated, else of its weight."""

    node: str
    error: float
    error_without_lorc: float


@dataclass(frozen=True)
class CellResult:
    """What a cell gave; every number is finite.

    Attributes:
        cell: what was asked.
        bytes: of the converted model, external data included.
        bits_per_weight: effective bits of its quantized weights.
        perplexity: by text.
        mean: of the texts' perplexities.
        gap: that mean above the float model's.
        kl: mean divergence from the float model, in nats.
        top1: how often the most probable token is the float model's, 0 to 1.
        seconds: of the conversion.
        layers: in graph order.
    """

    cell: Cell
    bytes: int
    bits_per_weight: float
    perplexity: dict[str, float]
    mean: float
    gap: float
    kl: float
    top1: float
    seconds: float
    layers: tuple[LayerError, ...]

    @property
    def paper_class(self) -> PaperClass:
        """The paper's class of its gap."""
        return PaperClass.of(self.gap)


@dataclass(frozen=True)
class CellFailure:
    """A cell that gave no result, and why."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        model: the float model's file, as it was named.
        bytes: of it.
        perplexity: of it, by text.
        mean: of the texts' perplexities.
        length: tokens in a window.
        positions: tokens predicted, over all texts.
        calibration: what the calibrated cells were calibrated on, as it was named; "" for none.
        cells: in the order of the grid.
        sensitivity: of its layers, one for each scheme measured.
        failures: the cells that gave no result, in the order of the grid.
        tokenizer: the model's, as it was named.
        windows: of each text, at most; None for all.
        calib_samples: samples of the calibration data, at most; None for the default.
        calib_length: tokens in such a sample; None for the default.
        warnings: what the user should know, a line each.
    """

    model: str
    bytes: int
    perplexity: dict[str, float]
    mean: float
    length: int
    positions: int
    calibration: str
    cells: tuple[CellResult, ...]
    sensitivity: tuple[Sensitivity, ...] = ()
    failures: tuple[CellFailure, ...] = ()
    tokenizer: str = ""
    windows: int | None = None
    calib_samples: int | None = None
    calib_length: int | None = None
    warnings: tuple[str, ...] = ()
