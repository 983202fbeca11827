"""Times the operators' bodies on stock ONNX Runtime, and weighs what loading them takes.

    python benchmarks/bodies.py [--tokens 64] [--activation a16|a8|a8block]...

One token by default, one 4096 x 4096 weight in groups of 128, asymmetric, no branch: each width's body, of
every kind of activation asked for, beside a float32 `MatMul` and `MatMulNBits` of the same width at
accuracy level 0 (there is none of 3 bits).
All take turns of a few products; each has several weights in rotation, so that none finds its weight
in the cache. Then, each in a process of its own, the peak memory of opening a session on a file of
packed weights: the growth of VmHWM per weight. glibc keeps freed blocks of up to 32 MB for itself once it has
seen such; `MALLOC_MMAP_THRESHOLD_=131072` (its own first value) makes it give them back, and
shows what ONNX Runtime itself needs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime

from benchmarks.products import FloatMatMul, Kind, OurMatMul, Shape, StockNBits, stored_bytes, write_models
from zq2onnx.opset import OPERATORS, Operator
from zq2onnx.scheme import WEIGHT_BITS

SIZE = 4096
SHAPE = Shape(SIZE, SIZE, 128)
STOCK_BITS = (8, 4, 2)
ROTATED_BYTES = 200_000_000
"""Weights of one kind in rotation: more than the caches of most machines."""

PRODUCTS = 8
"""Products at a turn."""

FLOAT = "fp32 MatMul"
ACTIVATIONS = {"a16": "A16", "a8": "A8", "a8block": "A8Block"}


def kind_of(label: str) -> Kind:
    """What a line of the table is a time of."""
    if label == FLOAT:
        return FloatMatMul()
    operator = OPERATORS.get(label)
    return StockNBits(int(label.split()[-2]), 0) if operator is None else OurMatMul(operator)


def time_kinds(folder: Path, kinds: list[str], rounds: int, threads: int, tokens: int) -> dict[str, float]:
    """Median milliseconds of one product of every kind; the kinds take turns."""
    # One pool for all: a session's own threads would spin into the next one's product.
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    turns = {}
    for kind in kinds:
        copies = max(2, ROTATED_BYTES // stored_bytes(kind_of(kind), SHAPE))
        paths = write_models(folder, kind_of(kind), SHAPE, [1] * copies)
        turns[kind] = itertools.cycle([onnxruntime.InferenceSession(str(path), options) for path in paths])
    a = np.random.default_rng(1).standard_normal((tokens, SIZE)).astype(np.float32)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, sessions in turns.items():
            for session in itertools.islice(sessions, PRODUCTS):
                start = time.perf_counter()
                session.run(None, {"A0": a})
                times[kind].append(1e3 * (time.perf_counter() - start))
    return {kind: statistics.median(values) for kind, values in times.items()}


MEASURE = """
import re, sys, onnxruntime
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
session = onnxruntime.InferenceSession(sys.argv[1])
print(peak() - before)
"""


def load_peaks(
    folder: Path, megabytes: int, operators: list[Operator]
) -> Iterator[tuple[Operator, list[float]]]:
    """Each operator without branch, and the bytes per weight at the peak of loading its file.

    The first as malloc comes, the second with glibc's threshold held.
    """
    for operator in operators:
        copies = round(megabytes * 1e6 * 8 / (SIZE * SIZE * operator.bits))
        (path,) = write_models(folder, OurMatMul(operator), SHAPE, [copies], one_activation=True)
        command = [sys.executable, "-c", MEASURE, str(path)]
        environments = (dict(os.environ), os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"})
        answers = [
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            for environment in environments
        ]
        yield operator, [int(answer) / (copies * SIZE * SIZE) for answer in answers]


def show_times(times: dict[str, float]) -> None:
    print(f"{'':24}{'ms':>8}{'x fp32':>8}{'x level 0':>11}")
    for kind, milliseconds in times.items():
        stock_time = times.get(f"MatMulNBits {OPERATORS[kind].bits} bits") if kind in OPERATORS else None
        beside = "" if stock_time is None else f"{stock_time / milliseconds:11.2f}"
        print(f"{kind:24}{milliseconds:8.2f}{times[FLOAT] / milliseconds:8.2f}{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="turns of every kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1, help="rows of the activation")
    parser.add_argument(
        "--megabytes", type=int, default=400, help="packed weights in a file to load; 0: none"
    )
    parser.add_argument(
        "--activation",
        action="append",
        choices=ACTIVATIONS,
        help="kind of the bodies' activations; default: all",
    )
    given = parser.parse_args()
    activations = [ACTIVATIONS[name] for name in given.activation or ACTIVATIONS]
    operators = [OPERATORS[f"MatMulW{bits}{name}"] for name in activations for bits in WEIGHT_BITS]
    kinds = [FLOAT, *(operator.name for operator in operators)]
    kinds += [f"MatMulNBits {bits} bits" for bits in STOCK_BITS]
    print(
        f"onnxruntime {onnxruntime.__version__}, {given.threads} threads, {given.tokens} tokens,"
        f" {SIZE} x {SIZE}, cold"
    )
    with tempfile.TemporaryDirectory(prefix="zq2onnx-bodies-") as folder:
        show_times(time_kinds(Path(folder), kinds, given.rounds, given.threads, given.tokens))
        if not given.megabytes:
            return
        print(f"\npeak of loading {given.megabytes} MB of packed weights, bytes per weight")
        print(f"{'':24}{'malloc as it is':>16}{'threshold held':>16}")
        for operator, peaks in load_peaks(Path(folder), given.megabytes, operators):
            print(f"{operator.name:24}", *(f"{peak:16.2f}" for peak in peaks), sep="", flush=True)


if __name__ == "__main__":
    main()
