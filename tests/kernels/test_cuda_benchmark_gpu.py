"""What the CUDA benchmark does with a GPU: launches, clock and process, by stand-ins for the device."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.cuda import worker as cuda_worker
from benchmarks.cuda.plan import Case, launched
from benchmarks.cuda.verdict import Row
from benchmarks.cuda.work import Machine, Setup, Work

MACHINE = Machine("a GPU", "sm_90", "580.1", "2.11", "3.12", 50 << 20, 3000.0, 700.0)
DECODED = Case("W4A16", 8192, 28672, "128", 1)


class FakeCuda:
    """libcuda as far as `Driver` calls it; keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.launches: list[dict[str, Any]] = []
        self.code = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuLaunchKernelEx":
                self._launch(*arguments)
            elif name == "cuGetErrorString":
                ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_char_p))[0] = b"out of luck"
            elif name in ("cuModuleLoadData", "cuModuleGetFunction"):
                ctypes.cast(arguments[0], ctypes.POINTER(ctypes.c_void_p))[0] = 0x7F00_0000_0040
            return self.code if name != "cuGetErrorString" else 0

        return call

    def _launch(self, config: Any, function: Any, values: Any, extra: None) -> None:
        seen = config._obj
        attributes = [
            (seen.attributes[i].id, seen.attributes[i].value[0]) for i in range(seen.attribute_count)
        ]
        self.launches.append(
            {
                "function": function.value, "grid": list(seen.grid), "block": list(seen.block),
                "shared": seen.shared, "stream": seen.stream, "attributes": attributes,
                "values": [ctypes.cast(at, ctypes.POINTER(ctypes.c_uint64))[0] for at in values],
            }
        )  # fmt: skip


def test_the_structures_are_cudas() -> None:
    from benchmarks.cuda.launch import LaunchAttribute, LaunchConfig

    assert (ctypes.sizeof(LaunchConfig), ctypes.sizeof(LaunchAttribute)) == (56, 72)
    names = ("shared", "stream", "attributes", "attribute_count")
    assert [getattr(LaunchConfig, name).offset for name in names] == [24, 32, 40, 48]
    assert LaunchAttribute.value.offset == 8


def test_compiled_files_are_launched_by_their_manifest(tmp_path: Path) -> None:
    import torch

    from benchmarks.cuda.compile import compile_all
    from benchmarks.cuda.forms import Node
    from benchmarks.cuda.launch import Cubins, Driver
    from benchmarks.cuda.oracle import random_inputs

    case = cuda_worker.PROBE
    compiled = compile_all(launched(case, "sm_90"), "sm_90", tmp_path)
    assert not compiled.failures
    fake = FakeCuda()
    launcher = Cubins(Driver(fake), compiled.kernels, tmp_path, lambda: 0x5500)
    node = Node.of(launcher, case, random_inputs(case, "cpu"), "sm_90")
    node.run()
    first, second = fake.launches
    assert (first["attributes"], second["attributes"]) == ([], [(6, 1)])
    assert second["grid"] == list(node.planned.launches[1].grid) and second["stream"] == 0x5500
    kernel = compiled.kernels[node.planned.launches[1].configuration.name]
    assert second["block"] == [kernel.threads, 1, 1] and second["shared"] == kernel.shared
    assert len(second["values"]) == len(kernel.arguments) + 2
    passed = dict(zip((argument.name for argument in kernel.arguments), second["values"], strict=False))
    assert passed["X"] == node.arrays["A"].data_ptr() and passed["Y"] == node.arrays["Y"].data_ptr()
    assert passed["bias"] == 0 and passed["K"] & 0xFFFFFFFF == 100 and passed["rank"] & 0xFFFFFFFF == 8
    assert second["values"][-2:] == [0, 0]
    loads = fake.calls.count("cuModuleLoadData")
    node.run()
    assert fake.calls.count("cuModuleLoadData") == loads == 2
    fake.code = 700
    with pytest.raises(RuntimeError, match=r"cuLaunchKernelEx: out of luck \(700\)"):
        node.run()
    with pytest.raises(RuntimeError, match="prologue_plain_fp16_any is not compiled"):
        dataclasses.replace(node, launcher=Cubins(Driver(fake), {}, tmp_path, lambda: 0)).run()
    aligned = dataclasses.replace(
        kernel, arguments=tuple(dataclasses.replace(each, multiple_of=16) for each in kernel.arguments[:1])
    )
    arrays = node.arrays | {"A": torch.empty(301, dtype=torch.float16)[1:]}
    kernels = compiled.kernels | {kernel.configuration.name: aligned}
    with pytest.raises(RuntimeError, match="X is .*, no multiple of 16"):
        Cubins(Driver(FakeCuda()), kernels, tmp_path, lambda: 0)(node.planned.launches[1], arrays)


class FakeGpu:
    """Events that read a time which works move on."""

    def __init__(self, patch: pytest.MonkeyPatch, *, captures: bool = True, tick: float = 0) -> None:
        import torch

        self.now, self.captures, self.order, self.slept = 0.0, captures, list[str](), 0
        self.tick = tick  # that an event takes
        cuda = torch.cuda
        patch.setattr(cuda, "current_device", lambda: 0)
        patch.setattr(
            cuda, "get_device_properties", lambda _: SimpleNamespace(name="a GPU", L2_cache_size=64)
        )
        patch.setattr(cuda, "get_device_capability", lambda _: (9, 0))
        patch.setattr(cuda, "Stream", lambda: "a stream")
        patch.setattr(cuda, "set_stream", self.order.append)
        patch.setattr(cuda, "synchronize", lambda: None)
        patch.setattr(cuda, "_sleep", self.sleep)
        patch.setattr(cuda, "Event", lambda enable_timing: FakeEvent(self))
        patch.setattr(cuda, "CUDAGraph", lambda: FakeGraph(self))
        self.capturing: list[Work] | None = None

    def sleep(self, cycles: int) -> None:
        self.slept += 1

    def work(self, label: str, milliseconds: float) -> Work:
        def work() -> None:
            if self.capturing is not None:
                self.capturing.append(work)
            else:
                self.now += milliseconds
                self.order.append(label)

        return work


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.gpu.now += self.gpu.tick
        self.at = self.gpu.now

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


class FakeGraph:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.works = gpu, list[Work]()

    def capture_begin(self) -> None:
        self.gpu.capturing = self.works

    def capture_end(self) -> None:
        self.gpu.capturing = None
        if not self.gpu.captures:
            raise RuntimeError("operation not permitted")

    def replay(self) -> None:
        for work in self.works:
            work()


def test_the_clock_takes_turns_behind_a_cold_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.cuda.clock import WARMING, GpuClock

    gpu = FakeGpu(monkeypatch)
    clock = GpuClock("cpu")
    assert clock.written.nbytes == clock.read.nbytes == 128
    flushed = 0

    def flush() -> None:
        nonlocal flushed
        flushed += 1
        gpu.now += 50

    monkeypatch.setattr(clock, "flush", flush)
    works = {"a": gpu.work("a", 2.0), "b": gpu.work("b", 3.0)}
    taken, note = clock.turns(works, 4, lambda: gpu.order.append("|"))
    assert taken == {"a": [2000.0] * 4, "b": [3000.0] * 4} and note == ""
    assert flushed == 2 * (4 + WARMING) and not gpu.slept
    assert "".join(gpu.order).endswith("|ab|ba|ab|ba")


def test_what_cannot_be_captured_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.cuda.clock import GpuClock

    gpu = FakeGpu(monkeypatch, captures=False)
    taken, note = GpuClock("cpu").turns({"a": gpu.work("a", 2.0)}, 3)
    assert taken == {"a": [2000.0] * 3} and gpu.slept
    assert note == "plain launches: operation not permitted"


def serve_some(connection: Connection) -> None:
    """Answers like `serve`, but breaks as the cases' ranks say."""
    while True:
        message = connection.recv()
        if isinstance(message, Setup):
            connection.send(message.machine or MACHINE)
        elif message.rank == 1:
            os._exit(9)
        elif message.rank == 2:
            time.sleep(600)
        else:
            failure = "device fault" if message.rank == 3 else ""
            connection.send((Row(message, (str(os.getpid()),), 0.5, True, failure=failure), not failure))


def refuse(connection: Connection) -> None:
    connection.recv()
    connection.send("RuntimeError: no kernel image")


def test_a_row_that_breaks_takes_no_other_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_worker, "ROW_SECONDS", 3.0)
    worker = cuda_worker.Worker(serve_some)
    try:
        assert worker.configure(Setup()) == MACHINE
        rows = [worker.row(dataclasses.replace(DECODED, rank=rank)) for rank in (8, 1, 8, 3, 8, 8, 2)]
    finally:
        worker.stop()
    ended = "the process that measures ended with status 9"
    assert [row.failure for row in rows] == ["", ended, "", "device fault", "", "", "no answer in 3 s"]
    assert len({rows[index].kernels for index in (0, 2, 4)}) == 3 and rows[4].kernels == rows[5].kernels


def test_a_process_makes_itself_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.cuda import clock as cuda_clock

    gpu = FakeGpu(monkeypatch, captures=False, tick=0.5)
    monkeypatch.setattr(cuda_worker, "DEVICE", "cpu")
    monkeypatch.setattr(cuda_clock, "COPIED", 1 << 20)
    monkeypatch.setattr(cuda_clock, "SQUARE", 64)
    monkeypatch.setattr(cuda_clock, "driver_version", lambda: "580.1")
    cuda_worker.make_clock.cache_clear()
    try:
        machine, bench = cuda_worker.prepare(Setup())
        assert bench is None and gpu.order == ["a stream"]
        assert (machine.gpu, machine.architecture, machine.driver) == ("a GPU", "sm_90", "580.1")
        assert machine.copy_gb_s == pytest.approx(2 * (1 << 20) / 500e-6 / 1e9)
        assert machine.tflops == pytest.approx(2 * 64**3 / 500e-6 / 1e12)
        setup = Setup(dataclasses.replace(machine, architecture="interpreter"), "sm_90", None, 1)
        _, bench = cuda_worker.prepare(setup)
        assert bench is not None
        row = bench.row(Case("W4A16", 128, 32, "128", 1, 0))
    finally:
        cuda_worker.make_clock.cache_clear()
    assert row.right and row.us["fused"] == 500 / 8
    assert row.note == "plain launches: operation not permitted"


def test_a_process_without_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.cuda.compile import Compiled

    FakeGpu(monkeypatch)
    monkeypatch.setattr(cuda_worker, "DEVICE", "cpu")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCuda())
    cuda_worker.make_clock.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="prologue_plain_fp16_any is not compiled"):
            cuda_worker.prepare(Setup(MACHINE, "sm_90", Compiled(Path(), {}, {}), 1))
    finally:
        cuda_worker.make_clock.cache_clear()


def test_a_process_that_refuses_is_told() -> None:
    with pytest.raises(cuda_worker.WorkerError, match="no kernel image"):
        cuda_worker.Worker(refuse).configure(Setup())
