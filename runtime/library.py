"""The operator library: where it is, what it would do, and how a session gets it.

Other hosts load it by its path: C++ by `RegisterCustomOpsLibrary_V2`, onnxruntime-genai by
`custom_ops_library`, Triton Inference Server by `op_library_filename`. There the environment says what
to register:

    ZQ2ONNX_OPS       names, comma-separated; `all`; `none`; unset: those that are measured to pay
    ZQ2ONNX_PROVIDER  `cpu` or `cuda`: what the session runs on; names without a kernel for it are left
                      out, so that their functions run there on stock kernels; unset: `cuda` where ONNX
                      Runtime has the CUDA provider and there is a GPU
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zq2onnx.errors import UserError
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime.providers import CUDA_PROVIDER, require_onnxruntime

if TYPE_CHECKING:
    import onnxruntime

LIBRARY_VARIABLE = "ZQ2ONNX_LIBRARY"
"""Environment variable: the path of another build of the library."""

PROVIDER_VARIABLE = "ZQ2ONNX_PROVIDER"
"""Environment variable: what sessions run on."""

PROVIDERS = ("cpu", "cuda")

_OPS = "ai.zq2onnx.ops"
_PROVIDER = "ai.zq2onnx.provider"
_REGISTERED = "ai.zq2onnx.registered"
"""Session options: the first two tell the library what to register, by the last it says what it did."""


def library_folder() -> Path:
    """Where the library is, or would be."""
    named = os.environ.get(LIBRARY_VARIABLE)
    return Path(named).parent if named else Path(__file__).resolve().parent / "lib"


def library_file() -> Path | None:
    """The library's file; None where it was not built."""
    named = os.environ.get(LIBRARY_VARIABLE)
    path = Path(named) if named else library_folder() / "libzq2onnx_ops.so"
    if named and not path.is_file():
        raise UserError(f"{LIBRARY_VARIABLE} is {named!r}, which is no file", "the operator library's path")
    return path if path.is_file() else None


def get_library_path() -> str:
    """The operator library's path.

    Raises:
        UserError: it was not built, for there was no compiler.
    """
    path = library_file()
    if path is None:
        raise UserError(
            "the operator library is not built",
            "a C++17 compiler when zq2onnx is installed",
            "install g++ or clang++, then zq2onnx again (pip install -v shows why the build failed)",
        )
    return str(path)


@dataclass(frozen=True)
class OperatorChoice:
    """Whether the library would register an operator, and why."""

    name: str
    registered: bool
    why: str


@dataclass(frozen=True)
class CudaDescription:
    """What the library finds of CUDA.

    Attributes:
        driver: the CUDA version that the driver is of, as `12.4`; empty where it is not known.
        why_no_gpu: what keeps it from any GPU; empty where there is one.
        gpus: name and architecture of each, as `("NVIDIA H200", "sm_90")`.
        bundle: folder of the compiled kernels.
        why_no_kernels: what is wrong with that; empty where nothing is.
    """

    driver: str
    why_no_gpu: str
    gpus: tuple[tuple[str, str], ...]
    bundle: str
    why_no_kernels: str


@dataclass(frozen=True)
class LibraryDescription:
    """What the library says of itself.

    Attributes:
        path: its file.
        api_version: of ONNX Runtime's C API that it needs.
        cpu_features: instruction sets found that kernels may be made for.
        kernels: sets of kernels that this processor can run, best first.
        provider: `cpu` or `cuda`: what a session is taken to run on.
        cuda: None where that is the CPU: nothing is looked for then.
        operators: each of them.
    """

    path: str
    api_version: int
    cpu_features: tuple[str, ...]
    kernels: tuple[str, ...]
    provider: str
    cuda: CudaDescription | None
    operators: tuple[OperatorChoice, ...]


def describe(ops: str | None = None, provider: str | None = None) -> LibraryDescription:
    """Ask the library what it would register for such arguments; None: what the environment says.

    Raises:
        UserError: it is not built, or the environment names what it does not know.
    """
    path = get_library_path()
    library = ctypes.CDLL(path)
    library.zq2onnx_describe.restype = ctypes.c_size_t
    wishes = [None if wish is None else wish.encode() for wish in (ops, provider or _only_provider())]
    needed = library.zq2onnx_describe(*wishes, None, ctypes.c_size_t(0))
    buffer = ctypes.create_string_buffer(needed)
    library.zq2onnx_describe(*wishes, buffer, ctypes.c_size_t(needed))
    lines = [line.split("\t") for line in buffer.value.decode(errors="replace").splitlines()]
    facts = {key: rest for key, *rest in lines}
    if "error" in facts:
        raise UserError(facts["error"][0])
    choices = tuple(
        OperatorChoice(name, registered == "yes", why)
        for _, name, registered, why in (line for line in lines if line[0] == "operator")
    )
    features, kernels = (tuple(facts[key][0].split()) for key in ("cpu", "kernels"))
    provider = facts["provider"][0]
    gpus = tuple((line[1], line[2]) for line in lines if line[0] == "gpu")
    cuda = None
    if "driver" in facts:
        (driver, why_no_gpu), (bundle, why_no_kernels) = facts["driver"], facts["bundle"]
        cuda = CudaDescription(driver, why_no_gpu, gpus, bundle, why_no_kernels)
    return LibraryDescription(path, int(facts["api"][0]), features, kernels, provider, cuda, choices)


def _only_provider() -> str | None:
    """`cpu` where nobody says what sessions run on, and ONNX Runtime has no CUDA provider."""
    if os.environ.get(PROVIDER_VARIABLE):
        return None
    try:
        providers = require_onnxruntime().get_available_providers()
    except UserError:
        return None
    return None if CUDA_PROVIDER in providers else "cpu"


def registered_operators(session_options: onnxruntime.SessionOptions) -> tuple[str, ...] | None:
    """Names that the library registered with these options; None if it was never asked."""
    try:
        names = session_options.get_session_config_entry(_REGISTERED)
    except RuntimeError:  # there is no such entry
        return None
    return tuple(name for name in names.split(",") if name)


def register(
    session_options: onnxruntime.SessionOptions,
    ops: Sequence[str] | str | None = None,
    provider: str | None = None,
) -> tuple[str, ...]:
    """Have sessions of these options run our nodes by the library's kernels.

    A name stands for all nodes of that operator in a session; the others run by their functions. Options
    can be registered with once: a second call returns what the first one did.

    Args:
        session_options: what the sessions will be made with; any number of them, in any thread.
        ops: names of operators; `"all"`; None: what `ZQ2ONNX_OPS` says, or those that are measured to pay. On
            a GPU none is measured yet.
        provider: `"cpu"` or `"cuda"`, what the sessions run on; None: what `ZQ2ONNX_PROVIDER` says, or
            `"cuda"` where ONNX Runtime has that provider and there is a GPU.

    Returns:
        The names that are registered.

    Raises:
        UserError: the library is not built, or an argument is not known.
    """
    known = registered_operators(session_options)
    if known is not None:
        return known
    if provider not in (None, *PROVIDERS):
        raise UserError(f"provider {provider!r}", " or ".join(PROVIDERS))
    # It refuses what the environment says wrong, as an error of ours.
    description = describe(None if ops is None else _joined(ops), provider)
    add_wishes(session_options, ops, provider)
    session_options.register_custom_ops_library(description.path)
    return registered_operators(session_options) or ()


def add_wishes(
    session_options: onnxruntime.SessionOptions,
    ops: Sequence[str] | str | None = None,
    provider: str | None = None,
) -> None:
    """Let options say what a build of the library is to register with them: arguments as of `register`."""
    for entry, wish in ((_OPS, None if ops is None else _joined(ops)), (_PROVIDER, provider)):
        if wish is not None:
            session_options.add_session_config_entry(entry, wish)


def _joined(ops: Sequence[str] | str) -> str:
    names = [ops] if isinstance(ops, str) else list(ops)
    if names == ["all"]:
        return "all"
    unknown = [name for name in names if name not in OPERATORS]
    if unknown:
        raise UserError(f"operator {unknown[0]!r}", f"all, or of {', '.join(OPERATORS)}")
    return ",".join(names) or "none"
