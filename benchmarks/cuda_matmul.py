"""Checks and times the CUDA kernels on a GPU. Needs torch and Triton; neither onnx nor ONNX Runtime.

    python benchmarks/cuda_matmul.py                whole: some 450 rows, 140 of them timed
    python benchmarks/cuda_matmul.py --quick        part of it, in half of the time or less
    python benchmarks/cuda_matmul.py --operator W4A16 --shape 8192x28672 --tokens 1 --tokens 16
    python benchmarks/cuda_matmul.py --check-only   nothing is timed

The kernels are compiled first, side by side, into the files that the bundle ships, and launched from those
by what the bundle's manifest says, without Triton. Where that does not work, or the GPU is of an architecture
for which none are compiled, Triton launches them, and the first lines say so.

Every row has inputs of its own, drawn on the device. Y and scratch are poisoned (NaN; int8: 77), the node's
launches are run, and Y is compared with float64 products of the unpacked weight: `error` is that of the worst
result, as a part of what rounding inside may amount to, and more than 1 is wrong. Activations next to the
middle between two int8 steps may be rounded either way. Five runs, and the last of those timed, must give the
same bits (`same`). Weights of up to a million are unpacked by the NumPy oracle, larger ones by torch, which
is compared with it at the start.

Timed are, in microseconds for one product:

    fused     the node as it ships: a prologue where it needs one, and the product
    rank 0    the same without its branch
    unfused   three launches: the product without branch, T = A U, Y += T V by cuBLAS, factors of A's type
    cublas    torch.mm of A and a float weight of A's type
    floor     computed: bytes read and written over a large copy's rate (both counted), or operations over
              cuBLAS' rate at 8192x8192x8192 (int8 activations: twice that), whichever is longer

Forms take turns, each a CUDA graph. A small product is repeated in its graph, each time with weights of its
own, up to eight times: starting a graph takes microseconds, and a model goes on after one product too. Before
each turn the second-level cache is flushed: a buffer of twice its size is written and another one read.
`times as fast as` are medians of the ratios of a round; `of copy` is the bytes over the fused time, as a part
of a copy's rate.

Unasked, W4A16 in groups of 128 with rank 8 is timed at 1, 4 and 16 tokens at the weights of OPT-1.3b, 6.7b
and 30b, BLOOM-7b1 and Llama-70B, other operators, groups and bfloat16 at some of them, and prompts of 2048
and 4096 tokens with and without branch; every operator, type and kernel is checked at ragged sizes. An option
that is given replaces those values, and is crossed with all others.

At the end: a table of what the kernels must hold. Exits with 1 where a measured bar is missed at its worst
row or a result is wrong, and with 2 where there is no GPU to run on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cuda.compile import compile_all, read_bundle
from benchmarks.cuda.options import cases_of, options
from benchmarks.cuda.plan import Case, launched
from benchmarks.cuda.verdict import ROW_HEAD, CsvFile, Row, judge, row_text, verdict_lines
from benchmarks.cuda.work import Machine, Setup, nearest, runs_on
from benchmarks.cuda.worker import PROBE, Worker, WorkerError
from zq2onnx.errors import UserError

RESERVE = 5.0
"""Seconds of the time limit that are kept for the row in hand."""


def say(*words: object, sep: str = " ") -> None:
    """Print at once: a run may be cut short."""
    print(*words, sep=sep, flush=True)


def require_gpu() -> None:
    """
    Raises:
        UserError: torch or a GPU is not there.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("torch is not installed", "torch with CUDA, and Triton", "pip install torch")
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"torch {torch.__version__} sees no GPU", "an NVIDIA GPU of compute capability 8.0 or later"
        )


def kernels_for(given: argparse.Namespace, machine: Machine, cases: list[Case], folder: Path) -> Setup:
    """Compile what the cases launch, or find it; says what is launched and how.

    Raises:
        UserError: the GPU is too old, or the bundle has nothing for it.
    """
    used = nearest(machine.architecture)
    if used is None:
        raise UserError(f"{machine.gpu} is {machine.architecture}", "sm_80 or later")
    setup = Setup(machine, used, rounds=given.rounds)
    if given.kernels is not None:
        return replace(setup, compiled=read_bundle(given.kernels, used))
    if importlib.util.find_spec("triton") is None:
        raise UserError("Triton is not installed", "Triton, or --kernels DIR", "pip install triton")
    if not runs_on(used, machine.architecture):
        say(f"{machine.architecture}: configurations of {used}, compiled and launched by Triton")
        return setup
    started = time.monotonic()
    wanted = {made for case in (PROBE, *cases) for made in launched(case, used)}
    compiled = compile_all(wanted, used, folder)
    say(f"{len(compiled.kernels)} kernels compiled for {used} in {time.monotonic() - started:.0f} s")
    for name, reason in compiled.failures.items():
        say(f"NOT COMPILED: {name}: {reason}")
    return replace(setup, compiled=compiled)


def configure(worker: Worker, setup: Setup) -> None:
    """Have the worker launch compiled files, or else let Triton launch.

    Raises:
        UserError: neither works.
    """
    try:
        worker.configure(setup)
    except WorkerError as error:
        if setup.compiled is None or importlib.util.find_spec("triton") is None:
            raise UserError(f"kernels cannot be launched: {error}", "a working CUDA driver") from None
        say(f"compiled files cannot be launched ({error}): Triton launches")
        configure(worker, replace(setup, compiled=None))


def describe(machine: Machine) -> str:
    """The machine, in a line."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return (
        f"{machine.gpu} ({machine.architecture}), driver {machine.driver}, torch {machine.torch},"
        f" triton {triton}, python {machine.python}\n"
        f"second-level cache {machine.cache_bytes / 1e6:.0f} MB, copy {machine.copy_gb_s:.0f} GB/s read and"
        f" written, cuBLAS fp16 {machine.tflops:.0f} TFLOP/s"
    )


def left_out(cases: Sequence[Case]) -> str:
    """
    >>> left_out([Case("W4A8", 64, 64, "32", 1), Case("W4A8", 64, 96, "32", 1)])
    'left out for lack of time, 2 rows: W4A8 M=1 (2)'
    """
    kinds = Counter(f"{case.name} M={case.tokens}" if case.timed else "checks" for case in cases)
    return f"left out for lack of time, {len(cases)} rows: " + ", ".join(
        f"{kind} ({count})" for kind, count in kinds.items()
    )


def measure(given: argparse.Namespace, started: float, worker: Worker, folder: Path) -> tuple[list[Row], str]:
    """Run the cases, and print a line for each: the rows, and the machine."""
    table = open_csv(given.csv)
    try:
        machine = worker.configure(Setup())
    except WorkerError as error:
        raise UserError(f"the GPU cannot be measured: {error}", "a working CUDA driver") from None
    say(describe(machine))
    cases = cases_of(given, nearest(machine.architecture) or "")
    configure(worker, kernels_for(given, machine, cases, folder))
    say(f"\n{ROW_HEAD}")
    rows: list[Row] = []
    for index, case in enumerate(cases):
        if time.monotonic() - started > given.time_limit - RESERVE:
            say(left_out(cases[index:]))
            break
        rows.append(worker.row(case))
        say(row_text(rows[-1]))
        if table is not None:
            table.add(rows[-1])
    return rows, describe(machine)


def open_csv(path: Path | None) -> CsvFile | None:
    """
    Raises:
        UserError: it cannot be written.
    """
    try:
        return None if path is None else CsvFile(path)
    except OSError as error:
        raise UserError(f"--csv {path}: {error.strerror}", "a file that can be written") from None


def main(arguments: Sequence[str] | None = None) -> int:
    given = options(__doc__, arguments)
    started = time.monotonic()
    worker = Worker()
    try:
        require_gpu()
        with tempfile.TemporaryDirectory(prefix="zq2onnx-cuda-") as folder:
            rows, machine = measure(given, started, worker, Path(folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        worker.stop()
    judgements = judge(rows)
    holds = all(judgement.state != "missed" for judgement in judgements)
    wrong = [row for row in rows if not row.right]
    say("", *(f"{row.case.label}: {row.failure or 'wrong'}" for row in wrong[:20]), sep="\n")
    say(machine, *verdict_lines(judgements), sep="\n")
    say(f"\n{len(rows)} rows, {len(wrong)} of them wrong, in {time.monotonic() - started:.0f} s")
    return 0 if holds and not wrong else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
