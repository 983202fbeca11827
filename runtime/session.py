"""ONNX Runtime's session, with the operator library where that is faster."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zq2onnx.runtime.library import PROVIDER_VARIABLE, library_file, register
from zq2onnx.runtime.providers import CPU_PROVIDER, CUDA_PROVIDER, require_onnxruntime

if TYPE_CHECKING:
    import onnxruntime

_ORT = require_onnxruntime()

_CPU = {CPU_PROVIDER, "AzureExecutionProvider"}
"""Those of the plain package; the second takes none of a model's own nodes."""


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
            register(options, **wishes_for(providers, options))
        super().__init__(path_or_bytes, options, providers, provider_options, **kwargs)
        trim_memory()


def wishes_for(providers: Sequence[Any] | None, options: onnxruntime.SessionOptions) -> dict[str, Any]:
    """Arguments of `register` for a session of these providers.

    Nothing is registered where nodes may go to an accelerator that we have no kernels for: with the library
    they would come to the CPU.
    """
    names = {item if isinstance(item, str) else item[0] for item in providers or ()}
    if CUDA_PROVIDER in names:
        return {"provider": "cuda"}
    if names:
        return {"provider": "cpu"} if names <= _CPU else {"ops": []}
    chosen = getattr(options, "has_providers", lambda: False)  # since ONNX Runtime 1.23
    if chosen() or os.environ.get(PROVIDER_VARIABLE):
        return {}
    return {"provider": "cpu"}  # which is what it takes unasked, with its CUDA package too


def trim_memory() -> None:
    """Hand freed memory back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
