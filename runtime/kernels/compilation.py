"""Kernels as Triton compiles them, for an architecture that need not be here. Needs Triton, and no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.configurations import DEPENDENT_LAUNCH
from zq2onnx.runtime.kernels.device.any_shape import any_shape
from zq2onnx.runtime.kernels.device.few_tokens import few_tokens
from zq2onnx.runtime.kernels.device.many_tokens import many_tokens
from zq2onnx.runtime.kernels.device.prologue import prologue
from zq2onnx.runtime.kernels.manifest import Argument
from zq2onnx.runtime.kernels.problem import ROUND_TILE

KERNELS: Mapping[str, triton.JITFunction[Any]] = {
    "prologue": prologue,
    "few_tokens": few_tokens,
    "many_tokens": many_tokens,
    "any_shape": any_shape,
}

PTX_VERSIONS = {"sm_80": 80, "sm_90": 80, "sm_100": 86, "sm_120": 87}
"""The oldest that knows the architecture, or CUDA 12.0's: newer ones ask for a newer driver."""

_FLOAT32 = ("T", "sums", "x_scales")
_BYTES = ("B", "zero_points", "U", "V")

ALIGNED = ("A", "X", "B", "K", "x_stride", "row_bytes")
"""Parameters of aligned configurations that are multiples of 16: addresses, and sizes."""


def constants_of(configuration: Configuration, architecture: str) -> dict[str, Any]:
    """Every `tl.constexpr` parameter by name, for an architecture (`"interpreter"`: for none)."""
    wide = configuration.dtype == "fp32"
    return {
        **dict(configuration.constants),
        "PRECISION": "ieee" if wide else "tf32",
        "PDL": architecture in DEPENDENT_LAUNCH,
    }


def capability_of(architecture: str) -> int:
    """
    >>> capability_of("sm_90")
    90
    """
    return int(architecture.removeprefix("sm_"))


def parameters_of(configuration: Configuration) -> tuple[Argument, ...]:
    """A launch's arguments, in order."""
    constants = constants_of(configuration, "interpreter")
    names = [name for name in KERNELS[configuration.kernel].arg_names if name not in constants]
    return tuple(
        Argument(name, _type(name, configuration), _multiple_of(name, configuration)) for name in names
    )


def _multiple_of(name: str, configuration: Configuration) -> int:
    if name == "k_padded" or (name == "x_stride" and configuration.x_dtype == "i8"):
        return ROUND_TILE  # so that half a row of codes is known to be aligned too
    return 16 if configuration.aligned and name in ALIGNED else 1


def _type(name: str, configuration: Configuration) -> str:
    if name == "X":
        return f"*{configuration.x_dtype}"
    if name in _FLOAT32:
        return "*fp32"
    if name in _BYTES:
        return "*u8"
    if name in ("A", "Y", "scales", "bias", "U_scales", "V_scales"):
        return f"*{configuration.dtype}"
    return "i32"


def compile_kernel(configuration: Configuration, architecture: str) -> CompiledKernel:
    """Compile for an architecture that need not be here."""
    kernel = KERNELS[configuration.kernel]
    position = {name: index for index, name in enumerate(kernel.arg_names)}
    parameters, constants = parameters_of(configuration), constants_of(configuration, architecture)
    source = ASTSource(
        kernel,
        {parameter.name: parameter.type for parameter in parameters} | dict.fromkeys(constants, "constexpr"),
        {(position[name],): value for name, value in constants.items()},
        {
            (position[parameter.name],): [["tt.divisibility", parameter.multiple_of]]
            for parameter in parameters
            if parameter.multiple_of > 1
        },
    )
    options = {
        "num_warps": configuration.warps,
        "num_stages": configuration.stages,
        "enable_fp_fusion": True,
        "ptx_version": PTX_VERSIONS[architecture],
        "launch_pdl": constants["PDL"] and configuration.kernel != "prologue",
    }
    target = GPUTarget("cuda", capability_of(architecture), 32)
    return triton.compile(source, target=target, options=options)
