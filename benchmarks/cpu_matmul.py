"""Times the operator library's CPU kernels beside stock kernels and our own function bodies.

    python benchmarks/cpu_matmul.py            the whole table, about ten minutes on two cores
    python benchmarks/cpu_matmul.py --quick    a part of it, in half of one
    python benchmarks/cpu_matmul.py --operator W4A16 --shape 4096x11008 --tokens 1

One line for every operator, weight shape, group size, rank and number of tokens (M). In its columns: the
fused operator; its function body on stock kernels, from the same file; `MatMulNBits` of the same width
(3 bits: of 4) at accuracy level 0 and at level 4; and a float32 `MatMul`. Unasked, every operator is
measured without branch at the three shapes, 1, 8 and 128 tokens, in groups of 128, and at 4096x4096 also in
groups of 32; W8A16, W4A16, W3A16, W2A16, W4A8 and W4A8Block at 4096x4096 in groups of 128 also with ranks 8
and 32 (int8 factors). An option that is given replaces those values, and is crossed with all others.

Weights are cold: each form has a chain of products, each with weights of its own, together larger than
four times the last-level cache. Forms take turns of a few products, for a shared machine's memory may be
half as fast a moment later; a ratio is the median of the ratios of turns of one round, and at one token a
plain read of memory by as many threads is timed in every round. Very slow forms sit out two rounds of three.
 Activations are standard normal, codes uniform. The last line tells how much of the processors the
threads had: a figure from turns that others disturbed tells little.

At the end: which operators are never slower than their functions (at worst 0.9 times as fast at 64 tokens
and more), and a table of what the kernels must hold. Exits with 1 where a measured bar is missed at its
worst row, or where a fused operator's result is not its function's.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import onnxruntime

from benchmarks.cpu_forms import Bench, Workshop
from benchmarks.cpu_verdict import ROW_HEAD, Row, payment, row_text, verdict, write_csv
from benchmarks.products import Shape
from zq2onnx.errors import UserError
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime.library import describe

NAMES = tuple(name.removeprefix("MatMul") for name, operator in OPERATORS.items() if not operator.lorc)
RANKED = ("W8A16", "W4A16", "W3A16", "W2A16", "W4A8", "W4A8Block")
SHAPES = ("4096x4096", "4096x11008", "11008x4096")
TOKENS = (1, 8, 128)
GROUPS = (32, 64, 128, 256)
QUICK = RANKED
SMALLEST = 1 << 20


def plan(given: argparse.Namespace) -> Iterator[Bench]:
    """What to time; of one shape and group after the other, for the references are theirs."""
    shapes = given.shape or SHAPES[: 1 if given.quick else None]
    names = given.operator or (QUICK if given.quick else NAMES)
    tokens = given.tokens or ((1, 128) if given.quick else TOKENS)
    for text in shapes:
        first = text == SHAPES[0]
        for group in given.group_size or ((128, 32) if first and not given.quick else (128,)):
            k, n = map(int, text.split("x"))
            for name in names:
                ranked = first and group == 128 and name in RANKED
                ranks = given.rank or ((0, 8, 32) if ranked and not given.quick else (0,))
                yield Bench(name, Shape(k, n, group), tuple(ranks), tuple(tokens))


def last_level_cache() -> int:
    """Bytes of the greatest cache that Linux tells of; 32 MiB where it tells of none."""
    sizes = [
        path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(text[:-1]) * units[text[-1]] for text in sizes if text[-1] in units), default=32 << 20)


def processor() -> str:
    """The processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def shape_option(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; required: KxN, as {SHAPES[1]}")
    if math.prod(map(int, text.split("x"))) < SMALLEST:
        raise argparse.ArgumentTypeError(
            f"{text!r}; required: at least {SMALLEST} weights, or a chain of them is too long"
        )
    return text


def rank_option(text: str) -> int:
    if not text.isdigit() or int(text) > 128:
        raise argparse.ArgumentTypeError(f"{text!r}; required: 0 to 128")
    return int(text)


def count_option(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}; required: a positive integer")
    return int(text)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = "; may be repeated"
    parser.add_argument("--quick", action="store_true", help="4096x4096 in groups of 128, six operators")
    parser.add_argument(
        "--operator", action="append", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}{several}"
    )
    parser.add_argument(
        "--shape", action="append", type=shape_option, metavar="KxN", help=f"of the weight{several}"
    )
    parser.add_argument(
        "--tokens", action="append", type=count_option, metavar="M", help=f"rows of A{several}"
    )
    parser.add_argument("--group-size", action="append", type=int, choices=GROUPS, help=several[2:])
    parser.add_argument("--rank", action="append", type=rank_option, help=f"of the branch; 0: none{several}")
    parser.add_argument("--rounds", type=count_option, default=11, help="turns of every form; default: 11")
    parser.add_argument("--threads", type=count_option, default=2, help="default: 2")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every figure there")
    return parser.parse_args()


def save(path: Path | None, rows: list[Row]) -> None:
    """Write what there is: a run may be cut short.

    Raises:
        UserError: it cannot be written.
    """
    if path is None:
        return
    try:
        write_csv(path, rows)
    except OSError as error:
        raise UserError(f"--csv {path}: {error.strerror}", "a file that can be written") from None


def measure(given: argparse.Namespace, folder: Path) -> list[Row]:
    """Time the plan, and print a line for each row."""
    save(given.csv, [])
    cold_bytes = 4 * last_level_cache()
    workshop = Workshop(folder, given.threads, cold_bytes)
    print(
        f"{processor()}, {given.threads} threads, onnxruntime {onnxruntime.__version__},"
        f" kernels {describe().kernels[0]}, chains of more than {cold_bytes / 1e6:.0f} MB\n\n{ROW_HEAD}"
    )
    rows = []
    for bench in plan(given):
        for one in workshop.rows(bench, given.rounds):
            rows.append(one)
            print(row_text(one), flush=True)
            save(given.csv, rows)
        gc.collect()  # sessions and their bindings refer to each other
    return rows


def main() -> int:
    given = options()
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="zq2onnx-cpu-matmul-") as folder:
            rows = measure(given, Path(folder))
        registered = {choice.name: choice.registered for choice in describe(provider="cpu").operators}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines, holds = verdict(rows, registered)
    print("", *payment(rows, registered), "", *lines, sep="\n")
    had = [row.processors for row in rows]
    print(
        f"\n{len(rows)} rows in {time.monotonic() - started:.0f} s; {given.threads} threads had the time of"
        f" {statistics.median(had):.2f} processors, at worst of {min(had):.2f}: others had the rest"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
