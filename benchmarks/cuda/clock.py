"""The GPU: what it is, what it can do, and how long work takes on it with a cold cache."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.cuda.work import Machine, Times, Work

UNKNOWN_CACHE = 64 << 20
"""Bytes of the second-level cache where torch does not tell."""

COPIED = 1 << 30
"""Bytes of the copy by which the bandwidth is measured."""

SQUARE = 8192
"""Rows and columns of the product by which the rate is measured."""

WARMING = 3
"""Rounds that are not counted: an idle GPU's clocks are low."""

QUEUED_CYCLES = 3_000_000
"""For which the GPU waits while launches that are not captured queue up: between one and two milliseconds."""


@dataclass(frozen=True)
class Captured:
    """Work that runs as one replay of a graph, or as plain launches where it could not be captured."""

    run: Work
    note: str = ""


class GpuClock:
    """Times work by events. Everything runs on torch's current stream, which must not be the default one."""

    def __init__(self, device: torch.device | str = "cuda") -> None:
        self.device = device
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        cache = getattr(properties, "L2_cache_size", 0) or UNKNOWN_CACHE
        self.written = torch.empty(2 * cache, dtype=torch.uint8, device=device)
        self.read = torch.ones(2 * cache // 4, device=device)
        self.total = torch.zeros((), device=device)

    def flush(self) -> None:
        """Empty the second-level cache: what was written must have left it too, before reads are timed."""
        self.written.fill_(1)
        torch.sum(self.read, dim=0, out=self.total)

    def capture(self, work: Work) -> Captured:
        """Work as a graph."""
        work()  # loads modules, and lets libraries choose: neither may happen during a capture
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            graph.capture_begin()
            try:
                work()
            finally:
                graph.capture_end()
            graph.replay()
            torch.cuda.synchronize()
        except RuntimeError as error:
            torch.cuda.synchronize()
            return Captured(work, f"plain launches: {' '.join(str(error).split())[:80]}")
        return Captured(graph.replay)

    def turns(self, works: Mapping[str, Work], rounds: int, before: Work = lambda: None) -> tuple[Times, str]:
        """Microseconds of each work in each round, and a note; works take turns, another first each time.

        Args:
            before: what is run before each round, untimed.
        """
        captured = {label: self.capture(work) for label, work in works.items()}
        labels = list(captured)
        plain = any(work.note for work in captured.values())
        events = {
            label: (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for label in labels
        }
        taken: dict[str, list[float]] = {label: [] for label in labels}
        for turn in range(-WARMING, rounds):
            before()
            for label in labels[turn % len(labels) :] + labels[: turn % len(labels)]:
                begin, end = events[label]
                self.flush()
                if plain:
                    torch.cuda._sleep(QUEUED_CYCLES)
                begin.record()
                captured[label].run()
                end.record()
            torch.cuda.synchronize()
            for label, (begin, end) in events.items() if turn >= 0 else ():
                taken[label].append(1000 * begin.elapsed_time(end))
        return taken, next((work.note for work in captured.values() if work.note), "")

    def median(self, work: Work, rounds: int = 21) -> float:
        """Microseconds of one work."""
        taken, _ = self.turns({"": work}, rounds)
        return sorted(taken[""])[rounds // 2]


def copy_rate(clock: GpuClock) -> float:
    """Gigabytes a second that a copy reads and writes, together."""
    source = torch.ones(COPIED // 4, device=clock.device)
    target = torch.empty_like(source)

    def work() -> None:
        target.copy_(source)

    return 2 * COPIED / clock.median(work) / 1e3


def product_rate(clock: GpuClock) -> float:
    """Tera-operations a second of a large float16 product by cuBLAS, on random data."""
    a, b = (torch.randn(SQUARE, SQUARE, dtype=torch.float16, device=clock.device) for _ in range(2))
    y = torch.empty_like(a)
    return 2 * SQUARE**3 / clock.median(multiplication(a, b, y)) / 1e6


def multiplication(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> Work:
    """`y = a b`."""

    def work() -> None:
        torch.mm(a, b, out=y)

    return work


def describe(clock: GpuClock) -> Machine:
    """The device, with its rates as measured."""
    device = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(device)
    major, minor = torch.cuda.get_device_capability(device)
    tflops = product_rate(clock)
    return Machine(
        gpu=properties.name,
        architecture=f"sm_{major}{minor}",
        driver=driver_version(),
        torch=str(torch.__version__),
        python=platform.python_version(),
        cache_bytes=clock.written.numel() // 2,
        copy_gb_s=copy_rate(clock),
        tflops=tflops,
    )


def driver_version() -> str:
    """The driver's release, as Linux or nvidia-smi tell it."""
    told = Path("/proc/driver/nvidia/version")
    if told.exists() and (found := re.search(r"\b(\d{3}(?:\.\d+)+)\b", told.read_text())):
        return found.group(1)
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    return said.stdout.strip().split("\n")[0] or "unknown"
