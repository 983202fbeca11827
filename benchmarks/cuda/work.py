"""Words that the processes of `cuda_matmul` share. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cuda.compile import Compiled
from zq2onnx.runtime.kernels.configurations import ARCHITECTURES, FAMILIES

Work = Callable[[], None]
"""Something to run on the device."""

Times = Mapping[str, Sequence[float]]
"""Microseconds of each round, by form."""


@dataclass(frozen=True)
class Machine:
    """A GPU and what runs it.

    Attributes:
        gpu: its name.
        architecture: as `sm_90`.
        driver, torch, python: versions.
        cache_bytes: of the second-level cache.
        copy_gb_s: gigabytes a second that a large copy reads and writes.
        tflops: tera-operations a second of a large float16 product by cuBLAS.
    """

    gpu: str
    architecture: str
    driver: str
    torch: str
    python: str
    cache_bytes: int
    copy_gb_s: float
    tflops: float

    def floor_us(self, moved: int, operations: int, *, int8: bool) -> float:
        """The least microseconds for bytes moved and operations done; those of int8 run twice as fast.

        >>> Machine("", "sm_90", "", "", "", 0, 2000.0, 500.0).floor_us(10**9, 10**9, int8=False)
        500.0
        """
        arithmetic = operations / (self.tflops * (2 if int8 else 1)) / 1e6
        return max(moved / self.copy_gb_s / 1e3, arithmetic)


@dataclass(frozen=True)
class Setup:
    """What a process that measures is told.

    Attributes:
        machine: the GPU; None: to be found out.
        architecture: whose configurations are used; None: none yet.
        compiled: what is launched; None: Triton compiles and launches.
        rounds: turns of every form.
    """

    machine: Machine | None = None
    architecture: str | None = None
    compiled: Compiled | None = None
    rounds: int = 25


def capability_of(architecture: str) -> int:
    """
    >>> capability_of("sm_90")
    90
    """
    return int(architecture.removeprefix("sm_"))


def nearest(architecture: str) -> str | None:
    """The newest of those we compile for that is not newer than this one; None below them all.

    >>> nearest("sm_90"), nearest("sm_87"), nearest("sm_121"), nearest("sm_75")
    ('sm_90', 'sm_86', 'sm_120', None)
    """
    own = capability_of(architecture)
    older = [name for name in ARCHITECTURES if capability_of(name) <= own]
    return max(older, key=capability_of, default=None)


def runs_on(compiled_for: str, architecture: str) -> bool:
    """Whether a cubin runs: of capability 8 on every later one of 8, from 9.0 on only where it was made for.

    >>> runs_on("sm_86", "sm_87"), runs_on("sm_90", "sm_90"), runs_on("sm_100", "sm_103")
    (True, True, False)
    """
    same = FAMILIES[compiled_for] == "sm_80" and capability_of(architecture) < 90
    return same or compiled_for == architecture
