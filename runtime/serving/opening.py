"""Opens a session on a deployed model: on stock kernels, or by the operator library's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zq2onnx.errors import UserError
from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.runtime.library import add_wishes, get_library_path, library_file, register
from zq2onnx.runtime.providers import CUDA_PROVIDER, require_onnxruntime
from zq2onnx.runtime.serving.folder import Deployed

_FATAL_ONLY = 4  # what ONNX Runtime logs of an error, it also raises: that becomes one line


def open_session(
    deployed: Deployed, *, fused: bool | None, providers: Sequence[Any], threads: int | None
) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        deployed: what to run.
        fused: by the library in its folder, or the installed one; False: by none. None: as the folder says;
            where it says nothing, by the installed library if there is one.
        providers: ONNX Runtime's execution providers.
        threads: None for as many as ONNX Runtime chooses.

    Raises:
        UserError: the model cannot be loaded, or there is no library to run it `fused`.
    """
    ort = require_onnxruntime()
    from zq2onnx.runtime.session import (  # which needs onnxruntime to be imported
        trim_memory,
        wishes_for,
    )

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads or 0
    for key, value in FLOAT_ACTIVATIONS.items():
        options.add_session_config_entry(key, value)
    library, wishes = deployed.library, wishes_for(providers, options)
    try:
        if fused is not False and library is not None:
            add_wishes(options, **wishes)
            options.register_custom_ops_library(str(library))
        elif fused or (fused is None and not deployed.settled and library_file() is not None):
            get_library_path()  # refuses what was not built
            register(options, **wishes)
        session = ort.InferenceSession(str(deployed.model), options, providers=list(providers))
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        raise UserError(
            f"{deployed.model}: onnxruntime {ort.__version__} cannot load it ({first_line(error)})"
        ) from error
    trim_memory()
    return session


def cache_device(session: Any) -> tuple[str, int]:
    """Where a session computes keys and values, as IO binding names it: the GPU, and which, or the CPU."""
    if session.get_providers()[0] != CUDA_PROVIDER:
        return "cpu", 0
    return "cuda", int(session.get_provider_options()[CUDA_PROVIDER].get("device_id", 0))


def first_line(error: Exception) -> str:
    """What ONNX Runtime says of an error, without what follows."""
    return next(iter(str(error).splitlines()), type(error).__name__)
