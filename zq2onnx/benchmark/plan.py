"""Benchmarks models: each on each of its routes, in a process of its own, in turns."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zq2onnx.benchmark.agreement import compare_routes
from zq2onnx.benchmark.operators import Ops
from zq2onnx.benchmark.process import ModelProcess
from zq2onnx.benchmark.results import Agreement, Benchmark, Route, Row
from zq2onnx.benchmark.shapes import Shape, Wishes
from zq2onnx.benchmark.subject import Subject, read_fed_models, read_text_models
from zq2onnx.benchmark.timing import Effort, Progress, Turns, summarize, take_turns
from zq2onnx.errors import UserError
from zq2onnx.evaluation import float32_copy, model_files
from zq2onnx.runtime.library import PROVIDERS, describe, library_file
from zq2onnx.runtime.providers import CUDA_PROVIDER, require_onnxruntime

_PIECE = 1 << 24


@dataclass(frozen=True)
class BenchmarkPlan:
    """Models that were read and found to take the same inputs.

    Attributes:
        subjects: the first one is what the others are compared with.
        shapes: what they are run on.
        threads: of ONNX Runtime; None: as many as it chooses.
        effort: how long to measure.
        provider: what sessions run on, `cpu` or `cuda`.
    """

    subjects: tuple[Subject, ...]
    shapes: tuple[Shape, ...]
    threads: int | None = None
    effort: Effort = field(default_factory=Effort)
    provider: str = "cpu"

    @property
    def rows(self) -> tuple[tuple[Subject, Route], ...]:
        """What is loaded and timed: each model on stock kernels, then fused where it has what can be."""
        return tuple(
            (subject, route)
            for subject in self.subjects
            for route in ((Route.STOCK, Route.FUSED) if subject.fused else (Route.STOCK,))
        )

    @property
    def work(self) -> float:
        """How much work `run` reports in all: runs if these are counted, else seconds."""
        runs = self.effort.runs
        return self.effort.seconds if runs is None else float(runs * len(self.rows) * len(self.shapes))

    def run(self, progress: Progress | None = None) -> Benchmark:
        """Load all models, then time them in turns. All are loaded at once; one runs at a time.

        Raises:
            UserError: ONNX Runtime cannot load or run a model.
            CheckFailed: the operator library cannot where stock kernels can, or a process dies.
        """
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zq2onnx-bench-")))
            processes = self._load(stack, folder)
            inputs = [self._write_inputs(shape, folder) for shape in self.shapes]
            turns = [
                take_turns(processes, files, self.effort, self._seconds, progress or (lambda amount: None))
                for files in inputs
            ]
            rows = self._rows(processes, turns)
            fuses = any(subject.fused for subject in self.subjects)
            return Benchmark(
                rows=rows,
                operators={str(subject.path): subject.operators for subject in self.subjects},
                agreements=tuple(self._agreements(processes, inputs, folder)),
                threads=self.threads,
                device=self._device(),
                kernels=describe("none", "cpu").kernels if fuses and self.provider == "cpu" else (),
                onnxruntime=require_onnxruntime().__version__,
            )

    def _device(self) -> str:
        """The processor, or the first GPU's name where that can be told."""
        if self.provider == "cpu" or library_file() is None:
            return self.provider
        found = describe("none", self.provider).cuda
        return found.gpus[0][0] if found is not None and found.gpus else self.provider

    @property
    def _seconds(self) -> float:
        return self.effort.seconds / len(self.shapes)

    def _load(self, stack: contextlib.ExitStack, folder: Path) -> list[ModelProcess]:
        processes = []
        copies = {subject.path: stack.enter_context(float32_copy(subject.path)) for subject in self.subjects}
        for index, (subject, route) in enumerate(self.rows):
            file = copies[subject.path]
            if self.provider == "cuda" and file != subject.path:
                raise UserError(
                    f"{file}: bfloat16 with --provider cuda", "float16 or float32: NumPy has no other"
                )
            _read_through(file)
            process = stack.enter_context(ModelProcess(subject.path, route, folder / f"{index}.log"))
            ops = subject.fused if route is Route.FUSED else ()
            process.load(file, ops, self.threads, self.provider)
            processes.append(process)
        return processes

    def _write_inputs(self, shape: Shape, folder: Path) -> list[Path]:
        """The inputs of each row; those of one model are one file."""
        files = {}
        for index, subject in enumerate(self.subjects):
            files[subject.path] = folder / f"inputs-{self.shapes.index(shape)}-{index}.npz"
            np.savez(files[subject.path], **subject.inputs(shape))  # type: ignore[arg-type]
        return [files[subject.path] for subject, _ in self.rows]

    def _rows(self, processes: Sequence[ModelProcess], turns: Sequence[Sequence[Turns]]) -> tuple[Row, ...]:
        """`turns` by shape and row."""
        return tuple(
            Row(
                model=str(subject.path),
                route=route,
                bytes=subject.bytes,
                load_seconds=processes[index].load_seconds,
                load_peak_bytes=processes[index].load_peak_bytes,
                peak_bytes=processes[index].peak_bytes(),
                timings=tuple(
                    summarize(shape, found[index], found[0])
                    for shape, found in zip(self.shapes, turns, strict=True)
                ),
            )
            for index, (subject, route) in enumerate(self.rows)
        )

    def _agreements(
        self, processes: Sequence[ModelProcess], inputs: Sequence[Sequence[Path]], folder: Path
    ) -> list[Agreement]:
        found = [
            compare_routes(subject, processes[index - 1], processes[index], shape, files[index], folder)
            for index, (subject, route) in enumerate(self.rows)
            if route is Route.FUSED  # which follows the stock one
            for shape, files in zip(self.shapes, inputs, strict=True)
        ]
        return [agreement for agreement in found if agreement is not None]


def plan_benchmark(
    model: str | Path,
    *,
    against: str | Path | None = None,
    npz: str | Path | None = None,
    prompts: Sequence[int] = (),
    batch: int | None = None,
    past: int | None = None,
    ops: Ops = None,
    threads: int | None = None,
    runs: int | None = None,
    seconds: float = Effort.seconds,
    provider: str = "cpu",
) -> BenchmarkPlan:
    """Read models, and choose what they are run on.

    Args:
        model: an ONNX file.
        against: another one with the same inputs, which it is compared with: the first row.
        npz: its inputs, whose first axis counts samples; None: they are made from random tokens.
        prompts: tokens of the prompts; (): 128, or what the models take.
        batch: sequences, or samples of the archive; None: 1, or what the graphs take.
        past: tokens before the single one of a model with a KV cache; None: 512, or what the context admits.
        ops: as of `zq2onnx.runtime.register`, or `"none"`.
        threads: of ONNX Runtime; None: as many as it chooses.
        runs: timed runs of each row and shape; None: what fits in the seconds.
        seconds: for measuring all rows and shapes, loading not counted.
        provider: what sessions run on, `cpu` or `cuda`.

    Raises:
        UserError: a file is missing or no model, its inputs cannot be made or differ, an argument is out of
            range, or onnxruntime is not installed or has no such provider.
    """
    wishes, effort = Wishes(tuple(prompts), batch, past), Effort(runs, seconds)
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads}", "at least 1")
    _check_provider(provider)
    paths = [Path(path) for path in (against, model) if path is not None]
    if npz is not None:
        subjects, shapes = read_fed_models(paths, Path(npz), wishes, ops, provider)
    else:
        subjects, shapes = read_text_models(paths, wishes, ops, provider)
    return BenchmarkPlan(subjects, shapes, threads, effort, provider)


def _check_provider(provider: str) -> None:
    if provider not in PROVIDERS:
        raise UserError(f"--provider {provider}", " or ".join(PROVIDERS))
    onnxruntime = require_onnxruntime()
    if provider == "cuda" and CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise UserError(
            f"--provider cuda: onnxruntime {onnxruntime.__version__} has no CUDA provider",
            "onnxruntime-gpu",
            'uninstall onnxruntime, then pip install "zq2onnx[gpu]"',
        )


def _read_through(file: Path) -> None:
    """Read a model's files once, so that every process finds them in the system's cache."""
    for path in model_files(file):
        with path.open("rb", buffering=0) as stream:
            while stream.read(_PIECE):
                pass
