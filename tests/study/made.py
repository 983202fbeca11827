"""Studies made by hand."""

from __future__ import annotations

from zq2onnx.planning.costs import LayerCost, Sensitivity
from zq2onnx.study.results import Cell, CellFailure, CellResult, LayerError, Study


def result(
    method: str = "rtn",
    scheme: str = "w4a16",
    group_size: str = "64",
    rank: int = 0,
    *,
    megabytes: float = 4.0,
    gap: float = 0.0,
    kl: float = 0.01,
) -> CellResult:
    """A cell of a float model whose perplexities are 20 and 30."""
    return CellResult(
        Cell(method, scheme, group_size, rank),
        bytes=round(1e6 * megabytes),
        bits_per_weight=4.5,
        perplexity={"data/news.txt": 20 + gap, "data/web.txt": 30 + gap},
        mean=25 + gap,
        gap=gap,
        kl=kl,
        top1=0.875,
        seconds=1.5,
        layers=(LayerError("q_proj", 0.125, 0.25), LayerError("fc1", 0.0625, 0.5)),
    )


def study(*cells: CellResult, failures: tuple[CellFailure, ...] = (), **given: object) -> Study:
    """A study of these cells on enough tokens to be sure of its gaps."""
    fields: dict[str, object] = {"positions": 10**8, "calibration": ""} | given
    return Study(
        model="model.onnx",
        bytes=12_500_000,
        perplexity={"data/news.txt": 20.0, "data/web.txt": 30.0},
        mean=25.0,
        length=256,
        cells=cells,
        failures=failures,
        **fields,  # type: ignore[arg-type]
    )


SENSITIVITY = Sensitivity(
    "w3a16 g64 gptq",
    (
        LayerCost("q_proj", "attention in", 0, 0.004, 0.0035, 1.5),
        LayerCost("fc1", "MLP up", 0, None, None, 0.25),
    ),
    0.97,
    None,
)
