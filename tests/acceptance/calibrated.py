"""What calibrated methods leave of round-to-nearest's divergence on the trained OPT, beside their bars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zq2onnx
from tests.acceptance.perplexity import LENGTH
from zq2onnx.evaluation import evaluate

SAMPLES = 128
"""Windows of `LENGTH` tokens of calibration.txt."""

COLUMNS = {
    "W4 row": ("w4a16", "row"),
    "W4 g32": ("w4a16", "32"),
    "W3 row": ("w3a16", "row"),
    "W3 g64": ("w3a16", "64"),
    "W2 g64": ("w2a16", "64"),
}
"""Scheme and group size."""

ROWS: dict[str, dict[str, Any]] = {
    "RTN + exact 8": {"method": "rtn", "lorc_rank": 8},
    "GPTQ": {"method": "gptq", "lorc_rank": 0},
    "GPTQ + exact 8": {"method": "gptq", "lorc_rank": 8},
    "GPTQ + exact 32": {"method": "gptq", "lorc_rank": 32},
    "GPTQ, model": {"method": "gptq", "lorc_rank": 0, "objective": "model"},
    "GPTQ + exact 8, model": {"method": "gptq", "lorc_rank": 8, "objective": "model"},
    "GPTQ + exact 32, model": {"method": "gptq", "lorc_rank": 32, "objective": "model"},
}
"""Options beside those of the column."""

BARS = {
    "RTN + exact 8": (0.62, 0.62, 0.63, 0.62, 0.52),
    "GPTQ": (0.20, 0.25, 0.18, 0.25, 0.22),
    "GPTQ + exact 8": (0.175, 0.23, 0.155, 0.225, 0.19),
    "GPTQ + exact 32": (0.14, 0.185, 0.12, 0.175, 0.135),
    "GPTQ + exact 8, model": (0.10, 0.10, 0.10, 0.10, 0.10),
}
"""Most that may be left of round-to-nearest's KL, by column."""

BRANCH_BARS = {"GPTQ + exact 8": 0.925, "GPTQ + exact 32": 0.80}
"""Most that may be left of GPTQ's KL."""


@dataclass(frozen=True)
class Divergence:
    """Mean KL to the float model in nats, and mean perplexity above it."""

    kl: float
    gap: float


def convert_cell(model: Path, calibration: Path, path: Path, column: str, options: Mapping[str, Any]) -> Path:
    """Convert with a column's scheme and a row's options, calibrated; what is there is taken as it is."""
    if not path.exists():
        scheme, group = COLUMNS[column]
        zq2onnx.convert(
            model,
            path,
            scheme=scheme,
            group_size=group,
            check="none",
            calib=calibration,
            tokenizer=model.parent,
            calib_samples=SAMPLES,
            calib_length=LENGTH,
            **options,
        )
    return path


def convert_rtn(model: Path, path: Path, column: str) -> Path:
    """Round to nearest, without branch or calibration; what is there is taken as it is."""
    if not path.exists():
        scheme, group = COLUMNS[column]
        zq2onnx.convert(model, path, scheme=scheme, group_size=group, lorc_rank=0, check="none")
    return path


def divergences(
    model: Path, paths: Iterable[Path], texts: Iterable[Path], windows: int
) -> dict[Path, Divergence]:
    """Measure converted models beside the float one."""
    paths = list(paths)
    result = evaluate([model, *paths], list(texts), model.parent, length=LENGTH, windows=windows)
    return {path: Divergence(of.kl, of.gap) for path, of in zip(paths, result.models[1:], strict=True)}
