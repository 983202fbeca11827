"""Two ways to launch a kernel: compiled files through the CUDA driver, and Triton itself.

`Cubins` launches what the bundle ships, as a host without Triton does: by the manifest, through libcuda.
`Jit` lets Triton compile for the device at hand, with the same constants; its kernels are made anew for
integers of 1 and multiples of 16, and so are not quite those that ship. On the CPU it is the interpreter.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from zq2onnx.runtime.kernels.launches import Launch
from zq2onnx.runtime.kernels.manifest import Kernel

DYNAMIC_SHARED = 8
"""`CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`."""

PREFER_SHARED = 1
"""`CU_FUNC_CACHE_PREFER_SHARED`."""

STREAM_SERIALIZATION = 6
"""`CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`."""

UNASKED_SHARED = 48 << 10
"""Bytes of shared memory that a block may have without the attribute."""


class LaunchAttribute(ctypes.Structure):
    """`CUlaunchAttribute`: an identifier padded to 8 bytes, and a union of 64."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_ulonglong * 8))


class LaunchConfig(ctypes.Structure):
    """`CUlaunchConfig`."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("attribute_count", ctypes.c_uint),
    )


class Launcher(Protocol):
    """Launches one kernel on torch's current stream."""

    def __call__(self, launch: Launch, arrays: Mapping[str, Tensor]) -> None:
        """Launch with the arrays that it names; those it names in vain are not read by the kernel."""


class Driver:
    """The calls of libcuda that load and launch; torch has made the context.

    Raises:
        OSError: there is no libcuda.
        RuntimeError: a call failed; the message has the driver's words.
    """

    def __init__(self, library: Any = None) -> None:
        self.library = ctypes.CDLL("libcuda.so.1") if library is None else library

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            said = ctypes.c_char_p()
            self.library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(said))
            raise RuntimeError(f"{name}: {(said.value or b'unknown error').decode()} ({code})")

    def load(self, cubin: bytes, symbol: str, shared: int) -> ctypes.c_void_p:
        """A kernel's handle; its module is never unloaded."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(cubin))
        self.call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(symbol.encode()))
        if shared > UNASKED_SHARED:
            self.call("cuFuncSetCacheConfig", function, ctypes.c_int(PREFER_SHARED))
            self.call("cuFuncSetAttribute", function, ctypes.c_int(DYNAMIC_SHARED), ctypes.c_int(shared))
        return function

    def launch(
        self,
        function: ctypes.c_void_p,
        kernel: Kernel,
        grid: Sequence[int],
        values: Sequence[Any],
        stream: int,
        *,
        dependent: bool,
    ) -> None:
        """Launch a kernel on a stream.

        Args:
            values: ctypes values of all arguments, the hidden ones too.
            dependent: whether it may begin before the launch before it has ended.
        """
        attribute = LaunchAttribute(STREAM_SERIALIZATION)
        attribute.value[0] = 1
        config = LaunchConfig(
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(kernel.threads, 1, 1),
            kernel.shared,
            stream,
            ctypes.pointer(attribute),
            int(dependent),
        )
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self.call("cuLaunchKernelEx", ctypes.byref(config), function, addresses, None)


class Cubins:
    """Launches compiled files by what their manifest says.

    Args:
        kernels: of the device's architecture, by name.
        folder: where the files are.
        stream: tells the current stream.
    """

    def __init__(
        self,
        driver: Driver,
        kernels: Mapping[str, Kernel],
        folder: Path,
        stream: Callable[[], int] = lambda: torch.cuda.current_stream().cuda_stream,
    ) -> None:
        self.driver, self.kernels, self.folder, self.stream = driver, kernels, folder, stream
        self.loaded: dict[str, ctypes.c_void_p] = {}

    def __call__(self, launch: Launch, arrays: Mapping[str, Tensor]) -> None:
        name = launch.configuration.name
        if name not in self.kernels:
            raise RuntimeError(f"{name} is not compiled")
        kernel = self.kernels[name]
        if name not in self.loaded:
            content = (self.folder / kernel.file).read_bytes()
            self.loaded[name] = self.driver.load(content, kernel.symbol, kernel.shared)
        self.driver.launch(
            self.loaded[name],
            kernel,
            launch.grid,
            argument_values(kernel, launch, arrays),
            self.stream(),
            dependent=launch.dependent and kernel.dependent,
        )


def argument_values(kernel: Kernel, launch: Launch, arrays: Mapping[str, Tensor]) -> list[Any]:
    """What a launch passes, by the manifest's names; null for arrays that there are not.

    Raises:
        RuntimeError: the kernel wants scratch memory, which none of ours does, or an array is not where its
            code takes it to be.
    """
    if any(hidden.bytes for hidden in kernel.hidden):
        raise RuntimeError(f"{kernel.configuration.name} wants scratch memory for each block")
    values: list[Any] = []
    for argument in kernel.arguments:
        if argument.type.startswith("*"):
            array = arrays.get(launch.pointers[argument.name])
            value = 0 if array is None else array.data_ptr()
            values.append(ctypes.c_void_p(value))
        else:
            value = launch.integers[argument.name]
            values.append(ctypes.c_int(value))
        if value % argument.multiple_of:
            raise RuntimeError(f"{argument.name} is {value}, no multiple of {argument.multiple_of}")
    return [*values, *(ctypes.c_void_p(0) for _ in kernel.hidden)]


class Jit:
    """Lets Triton compile and launch.

    Args:
        architecture: the device's, as `sm_103`; "interpreter" for none.
    """

    def __init__(self, architecture: str, device: torch.device | str) -> None:
        self.architecture = architecture
        self.absent = torch.zeros(16, dtype=torch.uint8, device=device)

    def __call__(self, launch: Launch, arrays: Mapping[str, Tensor]) -> None:
        from zq2onnx.runtime.kernels.compilation import KERNELS, constants_of

        made = launch.configuration
        constants = constants_of(made, self.architecture)
        pointers = {name: arrays.get(source, self.absent) for name, source in launch.pointers.items()}
        KERNELS[made.kernel][launch.grid](
            **pointers,
            **launch.integers,
            **constants,
            num_warps=made.warps,
            num_stages=made.stages,
            launch_pdl=launch.dependent and constants["PDL"],
        )
