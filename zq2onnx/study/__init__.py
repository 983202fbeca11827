"""The study of ZeroQuant-V2 on a user's own model: every cell converted and evaluated, and what to choose."""

from __future__ import annotations

from zq2onnx.study.progress import Progress, Step
from zq2onnx.study.request import Grid, Request
from zq2onnx.study.results import Cell, CellFailure, CellResult, LayerError, Study
from zq2onnx.study.runner import run_study

__all__ = [
    "Cell",
    "CellFailure",
    "CellResult",
    "Grid",
    "LayerError",
    "Progress",
    "Request",
    "Step",
    "Study",
    "run_study",
]
