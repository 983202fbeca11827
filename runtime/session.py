"""ONNX Runtime's session, with the operator library where that is faster."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zq2onnx.runtime.library import library_file, register
from zq2onnx.runtime.providers import require_onnxruntime

if TYPE_CHECKING:
    import onnxruntime

_ORT = require_onnxruntime()

_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


class InferenceSession(_ORT.InferenceSession):  # type: ignore[name-defined]
    """`onnxruntime.InferenceSession`, its arguments and methods.

    Registers the operator library with `sess_options`, by the rule of `zq2onnx.runtime.register`, unless they
    have it already; where the library is not built, the model runs on stock kernels. Gives back the memory
    that ONNX Runtime's constant folding left behind.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: onnxruntime.SessionOptions | None = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        options = _ORT.SessionOptions() if sess_options is None else sess_options
        if library_file() is not None:
            register(options, provider=session_provider(providers))
        super().__init__(path_or_bytes, options, providers, provider_options, **kwargs)
        trim_memory()


def session_provider(providers: Sequence[Any] | None) -> str | None:
    """What a session of these providers runs on; None where ONNX Runtime chooses."""
    if providers is None:
        return None
    names = [item if isinstance(item, str) else item[0] for item in providers]
    return "cuda" if any(name in _CUDA for name in names) else "cpu"


def trim_memory() -> None:
    """Hand freed memory back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
