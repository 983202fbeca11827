"""Finds ONNX Runtime, which the base install leaves out: its CPU and GPU packages exclude each other."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from zq2onnx.errors import UserError

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"


def require_onnxruntime() -> ModuleType:
    """Import onnxruntime.

    Raises:
        UserError: it is not installed, or what is left of it cannot be used.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        if _interrupted(error):
            raise KeyboardInterrupt from None
        # The package's own shared library missing something is another fault than no package at all.
        absent = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
        found = "onnxruntime is not installed" if absent else f"onnxruntime does not import ({error})"
        raise _missing(found) from None
    # Uninstalling one of the two packages beside the other leaves an importable, empty folder.
    if not hasattr(onnxruntime, "InferenceSession"):
        raise _missing(
            "onnxruntime is installed in part (onnxruntime and onnxruntime-gpu overwrite each other)"
        )
    return onnxruntime


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: what a C module raises while it is imported comes as an ImportError."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def usable_cores() -> int:
    """The cores this process may use, on which ONNX Runtime's threads run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _missing(found: str) -> UserError:
    return UserError(
        found,
        "exactly one of its two packages",
        'pip install "zq2onnx[cpu]" or, for CUDA, pip install "zq2onnx[gpu]"; never both',
    )
