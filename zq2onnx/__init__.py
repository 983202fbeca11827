"""zq2onnx: quantizes transformer ONNX models to 8, 4, 3 or 2 bits with low-rank compensation.

The names below are loaded when first asked for, so that a host which only runs models
(`zq2onnx.runtime`) needs neither onnx nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zq2onnx.diagnosis import compare
    from zq2onnx.errors import CheckFailed, UserError
    from zq2onnx.evaluation import evaluate
    from zq2onnx.pipeline import convert
    from zq2onnx.planning.sensitivity import measure_sensitivity
    from zq2onnx.planning.spend import convert_within
    from zq2onnx.report import Report
    from zq2onnx.scheme import Scheme
    from zq2onnx.study import run_study

__version__ = "0.1.0"

__all__ = [
    "CheckFailed",
    "Report",
    "Scheme",
    "UserError",
    "__version__",
    "compare",
    "convert",
    "convert_within",
    "evaluate",
    "measure_sensitivity",
    "run_study",
]

_HOMES = {
    "CheckFailed": "zq2onnx.errors",
    "Report": "zq2onnx.report",
    "Scheme": "zq2onnx.scheme",
    "UserError": "zq2onnx.errors",
    "compare": "zq2onnx.diagnosis",
    "convert": "zq2onnx.pipeline",
    "convert_within": "zq2onnx.planning.spend",
    "evaluate": "zq2onnx.evaluation",
    "measure_sensitivity": "zq2onnx.planning.sensitivity",
    "run_study": "zq2onnx.study",
}
"""Where each public name lives (PEP 562)."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
