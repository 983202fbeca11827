"""What a deployment host needs: the operator library, and sessions that use it. No onnx, no torch.

The names below are loaded when first asked for: `reference` needs NumPy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zq2onnx.runtime.library import get_library_path, register
    from zq2onnx.runtime.session import InferenceSession

__all__ = ["InferenceSession", "get_library_path", "register"]

_HOMES = {
    "InferenceSession": "zq2onnx.runtime.session",
    "get_library_path": "zq2onnx.runtime.library",
    "register": "zq2onnx.runtime.library",
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
