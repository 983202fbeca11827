"""zq2onnx: quantizes transformer ONNX models to 8, 4, 3 or 2 bits with low-rank compensation.

The names below are loaded when first asked for, so that a host which only runs models
(`zq2onnx.runtime`) needs neither onnx nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zq2onnx.errors import CheckFailed, UserError
    from zq2onnx.evaluation import evaluate
    from zq2onnx.pipeline import convert
    from zq2onnx.report import Report
    from zq2onnx.scheme import Scheme

__version__ = "0.1.0"

__all__ = ["CheckFailed", "Report", "Scheme", "UserError", "__version__", "convert", "evaluate"]

_HOMES = {
    "CheckFailed": "zq2onnx.errors",
    "Report": "zq2onnx.report",
    "Scheme": "zq2onnx.scheme",
    "UserError": "zq2onnx.errors",
    "convert": "zq2onnx.pipeline",
    "evaluate": "zq2onnx.evaluation",
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
