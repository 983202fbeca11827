"""Times products of several kinds in turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.products import Kind, Shape, stored_bytes, write_models

TURN = 0.015
"""Seconds that a turn lasts at least, where a chain is that long."""

SLOW = 0.1
"""Seconds: a turn that lasts longer is taken in every third round only."""

SPIN = 0.06
"""Seconds after which the threads of ONNX Runtime have stopped looking for work (measured: 0.047)."""


def one_pool(threads: int) -> Callable[[], onnxruntime.SessionOptions]:
    """What makes options of sessions that share a pool: threads of their own would spin into other turns."""
    onnxruntime.set_global_thread_pool_sizes(threads, 1)

    def options() -> onnxruntime.SessionOptions:
        made = onnxruntime.SessionOptions()
        made.use_per_session_threads = False
        made.log_severity_level = 3
        return made

    return options


def write_chain(folder: Path, kind: Kind, shape: Shape, cold_bytes: int) -> list[Path]:
    """Models of one product of one kind each, together of more than `cold_bytes` of stored weights."""
    return write_models(folder, kind, shape, [1] * (cold_bytes // stored_bytes(kind, shape) + 1))


@dataclass(frozen=True)
class Prepared:
    """What a chain's turns with so many tokens are: `runs` of the bound sessions, in rotation."""

    bindings: list[onnxruntime.IOBinding]
    runs: int
    slow: bool


class Chain:
    """Products that no cache holds together, run one after the other.

    Each is a session of its own: to run one whose input and output are bound takes 3 microseconds beside the
    product.
    """

    def __init__(self, paths: list[Path], shape: Shape, options: onnxruntime.SessionOptions) -> None:
        self.shape = shape
        self.sessions = [
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in paths
        ]
        self._prepared: dict[int, Prepared] = {}
        self._next = itertools.count()

    def prepare(self, a: np.ndarray, rounds: int) -> None:
        """Warm up for activations `[tokens, K]`: as many sessions as so many turns want."""
        if len(a) in self._prepared:
            return
        # All products read one activation and write one result, which stay in the cache as a model's do.
        x = onnxruntime.OrtValue.ortvalue_from_numpy(a)
        y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((len(a), self.shape.n), np.float32))
        bindings = [self._bind(session, x, y) for session in self.sessions]
        trial = min(3, len(bindings))
        for at in range(trial):
            self._run(at, bindings[at])
        each = float(np.median([self._run(at, bindings[at]) for at in range(trial)]))
        runs = min(len(bindings), math.ceil(TURN / each))
        bindings = bindings[: max(trial, runs * rounds)]
        for at in range(trial, len(bindings)):
            self._run(at, bindings[at])
        self._prepared[len(a)] = Prepared(bindings, runs, runs * each > SLOW)

    def _bind(
        self, session: onnxruntime.InferenceSession, a: onnxruntime.OrtValue, y: onnxruntime.OrtValue
    ) -> onnxruntime.IOBinding:
        binding = session.io_binding()
        binding.bind_ortvalue_input("A0", a)
        binding.bind_ortvalue_output("Y0", y)
        return binding

    def _run(self, at: int, binding: onnxruntime.IOBinding) -> float:
        start = time.perf_counter()
        self.sessions[at].run_with_iobinding(binding)
        return time.perf_counter() - start

    def first(self, a: np.ndarray) -> np.ndarray:
        """The first product, `[tokens, N]`."""
        (y,) = self.sessions[0].run(["Y0"], {"A0": a})
        return np.asarray(y)

    def is_slow(self, tokens: int) -> bool:
        """Whether its turns are so long that it takes but a third of them."""
        return self._prepared[tokens].slow

    def wake(self, tokens: int) -> None:
        """Run one product, after which ONNX Runtime's threads are awake."""
        self._run(0, self._prepared[tokens].bindings[0])

    def turn(self, tokens: int) -> float:
        """Milliseconds of one product."""
        prepared = self._prepared[tokens]
        places = [at % len(prepared.bindings) for at in itertools.islice(self._next, prepared.runs)]
        start = time.perf_counter()
        for at in places:
            self.sessions[at].run_with_iobinding(prepared.bindings[at])
        return 1e3 * (time.perf_counter() - start) / len(places)


class MemoryRead:
    """A plain read of memory by several threads: sums of integers, which memory alone holds up."""

    def __init__(self, threads: int, size: int) -> None:
        self.parts = np.array_split(np.ones(size // 8, np.int64), threads)
        self.size = size
        self.pool = ThreadPoolExecutor(threads)
        list(self.pool.map(np.sum, self.parts))

    def __call__(self) -> float:
        """Gigabytes (10^9) a second, once ONNX Runtime's threads rest."""
        time.sleep(SPIN)
        start = time.perf_counter()
        list(self.pool.map(np.sum, self.parts))
        return self.size / (time.perf_counter() - start) / 1e9


PROCESSORS = "processors"


def take_turns(
    chains: Mapping[str, Chain], tokens: int, rounds: int, before: Mapping[str, Callable[[], float]]
) -> dict[str, np.ndarray]:
    """Milliseconds of one product of every chain in every round; NaN where a slow one sat out.

    The order turns by one each round.

    Args:
        before: what else is measured right before a chain's turn, by that chain's name.

    Returns:
        By the chains' names; what `before` measured by `before` and the name; by `PROCESSORS` how many of
        them the turns of a round had. ONNX Runtime's threads never rest in a turn: where there are less
        processors than threads, others had them.
    """
    names = list(chains)
    keys = [*names, *(f"before {name}" for name in before), PROCESSORS]
    taken = {key: np.full(rounds, np.nan) for key in keys}
    for at in range(rounds):
        used = passed = 0.0
        for name in names[at % len(names) :] + names[: at % len(names)]:
            chain = chains[name]
            if at % 3 and chain.is_slow(tokens):
                continue
            if name in before:
                taken[f"before {name}"][at] = before[name]()
                chain.wake(tokens)
            used, passed = used - time.process_time(), passed - time.perf_counter()
            taken[name][at] = chain.turn(tokens)
            used, passed = used + time.process_time(), passed + time.perf_counter()
        taken[PROCESSORS][at] = used / passed
    return taken


def median_ratio(above: np.ndarray, below: np.ndarray) -> float:
    """The median over the rounds that have both."""
    ratios = above / below
    return float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else math.nan
