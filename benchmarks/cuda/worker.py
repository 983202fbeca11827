"""The process in which kernels run, so that one that breaks or hangs the GPU takes no other row along.

A fault on the device spoils its context for good: the process ends, and the next row gets a new one.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from benchmarks.cuda.plan import Case
from benchmarks.cuda.verdict import Row
from benchmarks.cuda.work import Machine, Setup

if TYPE_CHECKING:
    from benchmarks.cuda.clock import GpuClock
    from benchmarks.cuda.forms import Bench

DEVICE = "cuda"
"""What everything runs on."""

START_SECONDS = 180.0
"""For importing torch and measuring the machine, after which it is taken to hang."""

ROW_SECONDS = 30.0
"""The same for a row; Triton may have to compile its kernels."""

PROBE = Case("W4A16", 100, 96, "32", 3, timed=False)
"""What shows whether kernels can be launched at all: the simplest, one behind the other."""


class WorkerError(Exception):
    """The process could not be started, with what it said."""


class Worker:
    """A process that measures, started anew after it broke.

    Args:
        target: what runs there; `serve`.
    """

    def __init__(self, target: Callable[[Connection], None] | None = None) -> None:
        self.target = target or serve
        self.setup = Setup()
        self.process: BaseProcess | None = None
        self.connection: Connection | None = None

    def configure(self, setup: Setup) -> Machine:
        """Say what is launched, and hear what machine it is on; starts the process where there is none.

        Raises:
            WorkerError: it does not answer, or cannot launch kernels there.
        """
        if self.process is None:
            context = get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=self.target, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        answer = self._ask(setup, START_SECONDS)
        if not isinstance(answer, Machine):
            self.stop()
            raise WorkerError(str(answer))
        self.setup = replace(setup, machine=answer)
        return answer

    def row(self, case: Case) -> Row:
        """Run a case; whatever happens there is told in the row."""
        try:
            if self.process is None:
                self.configure(self.setup)
        except WorkerError as error:
            return Row(case, failure=str(error))
        answer = self._ask(case, ROW_SECONDS)
        if isinstance(answer, tuple):
            row, usable = answer
        else:
            row, usable = Row(case, failure=str(answer)), False
        if not usable:
            self.stop()
        return row

    def _ask(self, message: Setup | Case, seconds: float) -> object:
        """What the process answers, or a text of what became of it."""
        assert self.connection is not None and self.process is not None
        try:
            self.connection.send(message)
            if self.connection.poll(seconds):
                return self.connection.recv()
            return f"no answer in {seconds:.0f} s"
        except (EOFError, OSError):
            self.process.join(10)
            return f"the process that measures ended with status {self.process.exitcode}"

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join(10)
        if self.connection is not None:
            self.connection.close()
        self.process = self.connection = None


def serve(connection: Connection) -> None:
    """In the process: answer a setup with the machine or a text, a case with its row and whether to go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.pop("TRITON_INTERPRET", None)
    bench: Bench | None = None
    while True:
        message = connection.recv()
        if isinstance(message, Setup):
            try:
                machine, bench = prepare(message)
                gc.freeze()  # the modules need not be looked through after every row
                connection.send(machine)
            except Exception as error:
                connection.send(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        elif bench is not None:
            row = bench.row(message)
            gc.collect()
            connection.send((row, not row.failure or _usable()))


@functools.cache
def make_clock() -> GpuClock:
    """The device's clock; from then on all work is on a stream of its own, which can be captured."""
    import torch

    from benchmarks.cuda.clock import GpuClock

    torch.cuda.set_stream(torch.cuda.Stream())
    return GpuClock(DEVICE)


def prepare(setup: Setup) -> tuple[Machine, Bench | None]:
    """The machine, and a bench where there is something to launch.

    Raises:
        RuntimeError: a kernel cannot be launched, or weights are unpacked wrongly.
    """
    from benchmarks.cuda.clock import describe
    from benchmarks.cuda.forms import Bench
    from benchmarks.cuda.launch import Cubins, Driver, Jit, Launcher
    from benchmarks.cuda.oracle import check_unpacking

    clock = make_clock()
    if setup.machine is None or setup.architecture is None:
        check_unpacking(DEVICE)
        return setup.machine or describe(clock), None
    launcher: Launcher = Jit(setup.machine.architecture, DEVICE)
    if setup.compiled is not None:
        launcher = Cubins(Driver(), setup.compiled.kernels, setup.compiled.folder)
    bench = Bench(launcher, clock, setup.machine, setup.architecture, DEVICE, setup.rounds)
    probed = bench.row(PROBE)
    if probed.failure:
        raise RuntimeError(probed.failure)
    return setup.machine, bench


def _usable() -> bool:
    """Whether the device's context still works."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
