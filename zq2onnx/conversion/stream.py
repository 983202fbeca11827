"""Compute a planned model's weights and write each at its place, in any order."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import threadpoolctl

from zq2onnx.conversion.compute import Computed, Facts, compute_weight
from zq2onnx.conversion.placement import Compute, Copy, Plan
from zq2onnx.conversion.stored import stored_digest, written_chunks
from zq2onnx.numerics.calibrated import Evidence
from zq2onnx.numerics.grid import Float32Array
from zq2onnx.passes.planned import FACTORS, PlannedTensor, QuantizedWeight
from zq2onnx.passes.recast import RecastTensor
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
        smoothing: what the inputs of linears were divided by, by the normalization before them.
        warnings: one line each.
    """

    facts: dict[QuantizedWeight, Facts]
    sources: dict[str, str]
    reused: int
    smoothing: dict[str, Float32Array] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


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
        self._data = self._factors = -1

    def run(self, jobs: int) -> Written:
        """Do every task that the journal does not hold; stops at the first error or Ctrl-C."""
        self._data = os.open(self.files.partial_data, os.O_RDWR)
        self._factors = os.open(self.files.partial_factors, os.O_RDWR)
        try:
            with _workers(jobs) as pool:
                try:
                    self._work(pool)
                finally:
                    self._stop.set()
                    pool.shutdown(cancel_futures=True)
        finally:
            os.close(self._data)
            os.close(self._factors)
        entries = self.journal.entries
        facts = {
            task.weight: Facts(**entries[task.name].facts)
            for task in self.plan.tasks
            if isinstance(task, Compute)
        }
        return Written(facts, {task.name: entries[task.name].source for task in self.plan.tasks}, self.reused)

    def _work(self, pool: ThreadPoolExecutor) -> None:
        self._do_all(pool, self.plan.tasks)

    def _do_all(self, pool: ThreadPoolExecutor, tasks: Sequence[Copy | Compute]) -> None:
        """Do tasks that need nothing but their weight."""
        with threadpoolctl.threadpool_limits(1):
            finished([pool.submit(self._do, task) for task in tasks])

    def _do(self, task: Copy | Compute) -> None:
        if self._stop.is_set():
            return
        if self._done_before(task):
            self._tell(task)
        elif isinstance(task, Copy):
            self.journal.record(self._copy(task))
            self._tell(task)
        else:
            self._compute(task)

    def _tell(self, task: Copy | Compute) -> None:
        with self._lock:
            self.progress(task.parameters, self.total)

    def _copy(self, task: Copy) -> Entry:
        region = self.plan.data.regions[task.name]
        content = hashlib.sha256()
        offset = region.offset
        end = region.offset + region.length
        for chunk in written_chunks(task.tensor):
            if offset + chunk.nbytes > end:
                raise ValueError(f"{task.name!r}: more bytes than its region of {region.length}")
            content.update(chunk)
            write_region(self._data, Region(offset, chunk.nbytes), chunk)
            offset += chunk.nbytes
        if offset != end:
            raise ValueError(f"{task.name!r}: {offset - region.offset} bytes for a region of {region.length}")
        written = content.hexdigest()
        as_stored = not isinstance(task.tensor, RecastTensor)
        return Entry(task.name, written if as_stored else stored_digest(task.tensor), written, {})

    def _compute(self, task: Compute, evidence: Evidence | None = None, note: str = "") -> Computed:
        """Quantize a weight, write its parts and record it."""
        source = stored_digest(task.source)
        computed = compute_weight(task.weight, task.parts, task.node, evidence)
        facts = dataclasses.replace(computed.facts, note=computed.facts.note or note)
        output = hashlib.sha256()
        for part, content in zip(task.parts, computed.contents, strict=True):
            if facts.dropped and part.part in FACTORS:
                continue
            descriptor, region = self._place(part)
            write_region(descriptor, region, content)
            output.update(content)
        self.journal.record(Entry(task.name, source, output.hexdigest(), dataclasses.asdict(facts)))
        self._tell(task)
        return computed

    def _place(self, part: PlannedTensor) -> tuple[int, Region]:
        assert part.name is not None
        if part.part in FACTORS:
            return self._factors, self.plan.factors.regions[part.name]
        return self._data, self.plan.data.regions[part.name]

    def _read(self, part: PlannedTensor) -> bytes:
        """The bytes that were written of a part."""
        descriptor, region = self._place(part)
        return os.pread(descriptor, region.length, region.offset)

    def _done_before(self, task: Copy | Compute) -> bool:
        """Whether an interrupted run left this task's bytes, whole, and computed from today's input."""
        entry = self.journal.entries.get(task.name)
        if entry is None or entry.source != stored_digest(task.source):
            return False
        output = hashlib.sha256()
        if isinstance(task, Copy):
            _hash_region(output, self._data, self.plan.data.regions[task.name])
        else:
            dropped = bool(entry.facts.get("dropped"))
            for part in task.parts:
                if not (dropped and part.part in FACTORS):
                    _hash_region(output, *self._place(part))
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


def finished(futures: list[Future[Any]]) -> None:
    """Wait for all; raise the first failure at once."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future in done and not future.cancelled():
            future.result()


def _hash_region(output: Any, descriptor: int, region: Region) -> None:
    for start in range(0, region.length, mapped.CHUNK):
        size = min(mapped.CHUNK, region.length - start)
        output.update(os.pread(descriptor, size, region.offset + start))
