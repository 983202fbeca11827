"""Kernels compiled side by side, into the files that the bundle ships."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.configurations import FAMILIES, configurations
from zq2onnx.runtime.kernels.manifest import Kernel, read_manifest


@dataclass(frozen=True)
class Compiled:
    """What there is to launch.

    Attributes:
        folder: of the files.
        kernels: by name.
        failures: why others did not compile, by name.
    """

    folder: Path
    kernels: dict[str, Kernel]
    failures: dict[str, str]


def compile_all(wanted: Iterable[Configuration], architecture: str, folder: Path) -> Compiled:
    """Compile, each configuration by itself: one that fails leaves the others."""
    made = configurations(FAMILIES[architecture])
    indices = sorted(made.index(configuration) for configuration in wanted)
    kernels, failures = {}, {}
    with tempfile.TemporaryDirectory(prefix="zq2onnx-triton-") as cache:
        pool = ProcessPoolExecutor(_processors(), get_context("spawn"), _prepare, (cache,))
        try:
            futures = {
                made[index].name: pool.submit(_compile, index, architecture, folder) for index in indices
            }
            for name, future in futures.items():
                try:
                    (kernels[name],) = future.result()
                except Exception as error:
                    failures[name] = " ".join(str(error).split())[:300]
        finally:
            pool.shutdown(cancel_futures=True)
    return Compiled(folder, kernels, failures)


def read_bundle(folder: Path, architecture: str) -> Compiled:
    """Kernels of a bundle.

    Raises:
        UserError: there is none, or it has none for the architecture.
    """
    kernels = {
        kernel.configuration.name: kernel
        for kernel in read_manifest(folder).kernels
        if (kernel.architecture, kernel.form) == (architecture, "cubin")
    }
    if not kernels:
        raise UserError(
            f"{folder} has no kernels for {architecture}",
            "a bundle for this GPU",
            f"make one with zq2onnx kernels build --arch {architecture} -o {folder}",
        )
    return Compiled(folder, kernels, {})


def _processors() -> int:
    return min(len(os.sched_getaffinity(0)), 32)


def _prepare(cache: str) -> None:
    """In a process of the pool, before it loads Triton."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = cache
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    from triton import knobs

    os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = knobs.nvidia.ptxas.path


def _compile(index: int, architecture: str, folder: Path) -> list[Kernel]:
    from zq2onnx.runtime.kernels.assembly import Work, make

    return make(Work(FAMILIES[architecture], index, ((architecture, "cubin"),)), folder)
