"""Compute a planned model's weights and write each at its place, in any order."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import threadpoolctl

from zq2onnx.conversion.compute import Facts, compute_weight
from zq2onnx.conversion.placement import Compute, Copy, Plan
from zq2onnx.passes.planned import FACTORS, PlannedTensor, QuantizedWeight
from zq2onnx.storage import mapped
from zq2onnx.storage.journal import Entry, Journal
from zq2onnx.storage.output import OutputFiles, write_region
from zq2onnx.storage.plan import Region

Progress = Callable[[int, int], None]
"""Called with the number of parameters done since the last call, and the number of all."""


@dataclass(frozen=True)
class Written:
    """What the stream did.

    Attributes:
        facts: by weight.
        sources: digest of every float tensor read, by task name.
        reused: weights taken over from an interrupted run.
    """

    facts: dict[QuantizedWeight, Facts]
    sources: dict[str, str]
    reused: int


class Writer:
    """Fills the planned regions with `jobs` threads; the bytes do not depend on their number."""

    def __init__(self, plan: Plan, files: OutputFiles, journal: Journal, progress: Progress) -> None:
        self.plan = plan
        self.files = files
        self.journal = journal
        self.progress = progress
        self.total = plan.parameters
        self.reused = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self, jobs: int) -> Written:
        """Do every task that the journal does not hold; stops at the first error or Ctrl-C."""
        data = os.open(self.files.partial_data, os.O_RDWR)
        factors = os.open(self.files.partial_factors, os.O_RDWR)
        try:
            with threadpoolctl.threadpool_limits(1), _workers(jobs) as pool:
                futures = [pool.submit(self._do, task, data, factors) for task in self.plan.tasks]
                try:
                    _result(futures)
                finally:
                    self._stop.set()
                    pool.shutdown(cancel_futures=True)
        finally:
            os.close(data)
            os.close(factors)
        entries = self.journal.entries
        facts = {
            task.weight: Facts(**entries[task.name].facts)
            for task in self.plan.tasks
            if isinstance(task, Compute)
        }
        return Written(facts, {task.name: entries[task.name].source for task in self.plan.tasks}, self.reused)

    def _do(self, task: Copy | Compute, data: int, factors: int) -> None:
        if self._stop.is_set():
            return
        if not self._done_before(task, data, factors):
            entry = self._copy(task, data) if isinstance(task, Copy) else self._compute(task, data, factors)
            self.journal.record(entry)
        with self._lock:
            self.progress(task.parameters, self.total)

    def _copy(self, task: Copy, descriptor: int) -> Entry:
        region = self.plan.data.regions[task.name]
        content = hashlib.sha256()
        offset = region.offset
        end = region.offset + region.length
        for chunk in mapped.tensor_chunks(task.tensor):
            if offset + chunk.nbytes > end:
                raise ValueError(f"{task.name!r}: more bytes than its region of {region.length}")
            content.update(chunk)
            write_region(descriptor, Region(offset, chunk.nbytes), chunk)
            offset += chunk.nbytes
        if offset != end:
            raise ValueError(f"{task.name!r}: {offset - region.offset} bytes for a region of {region.length}")
        return Entry(task.name, content.hexdigest(), content.hexdigest(), {})

    def _compute(self, task: Compute, data: int, factors: int) -> Entry:
        source = mapped.tensor_digest(task.source)
        contents, facts = compute_weight(task.weight, task.parts, task.node)
        output = hashlib.sha256()
        for part, content in zip(task.parts, contents, strict=True):
            if facts.dropped and part.part in FACTORS:
                continue
            descriptor, region = self._place(part, data, factors)
            write_region(descriptor, region, content)
            output.update(content)
        return Entry(task.name, source, output.hexdigest(), dataclasses.asdict(facts))

    def _place(self, part: PlannedTensor, data: int, factors: int) -> tuple[int, Region]:
        assert part.name is not None
        if part.part in FACTORS:
            return factors, self.plan.factors.regions[part.name]
        return data, self.plan.data.regions[part.name]

    def _done_before(self, task: Copy | Compute, data: int, factors: int) -> bool:
        """Whether an interrupted run left this task's bytes, whole, and computed from today's input."""
        entry = self.journal.entries.get(task.name)
        if entry is None or entry.source != mapped.tensor_digest(task.source):
            return False
        output = hashlib.sha256()
        if isinstance(task, Copy):
            _hash_region(output, data, self.plan.data.regions[task.name])
        else:
            dropped = bool(entry.facts.get("dropped"))
            for part in task.parts:
                if not (dropped and part.part in FACTORS):
                    _hash_region(output, *self._place(part, data, factors))
        if output.hexdigest() != entry.output:
            return False
        with self._lock:
            self.reused += isinstance(task, Compute)
        return True


def _workers(jobs: int) -> ThreadPoolExecutor:
    """Threads with one BLAS thread each: sums would otherwise depend on how many there are.

    Some libraries keep the number by thread, so that a limit of the whole process is not theirs.
    """
    return ThreadPoolExecutor(jobs, initializer=threadpoolctl.threadpool_limits, initargs=(1,))


def _result(futures: list[Future[None]]) -> None:
    """Wait for all; raise the first failure at once."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future in done and not future.cancelled():
            future.result()


def _hash_region(output: Any, descriptor: int, region: Region) -> None:
    for start in range(0, region.length, mapped.CHUNK):
        size = min(mapped.CHUNK, region.length - start)
        output.update(os.pread(descriptor, size, region.offset + start))
