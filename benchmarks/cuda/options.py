"""The command line of `cuda_matmul`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.cuda.plan import NAMES, SHAPES, USUAL, Case, asked_plan, quick_plan, whole_plan
from zq2onnx.runtime.kernels.problem import DTYPES
from zq2onnx.scheme import GROUP_SIZES, MAX_LORC_RANK


def shape_option(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; required: KxN, as 4096x11008")
    k, n = map(int, text.split("x"))
    return k, n


def rank_option(text: str) -> int:
    if not text.isdigit() or int(text) > MAX_LORC_RANK:
        raise argparse.ArgumentTypeError(f"{text!r}; required: 0 to {MAX_LORC_RANK}")
    return int(text)


def count_option(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}; required: a positive integer")
    return int(text)


def options(manual: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with 2 where it is not understood."""
    parser = argparse.ArgumentParser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = "; may be repeated"
    groups = (*map(str, GROUP_SIZES), "row")
    add = parser.add_argument
    add("--quick", action="store_true", help="the three shapes that the bars speak of, fewer checks")
    add("--check-only", action="store_true", help="time nothing")
    add("--shape", action="append", type=shape_option, metavar="KxN", help=f"of the weight{several}")
    add("--tokens", action="append", type=count_option, metavar="M", help=f"rows of A{several}")
    add("--operator", action="append", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}{several}")
    add("--group-size", action="append", choices=groups, metavar="SIZE", help=f"{', '.join(groups)}{several}")
    add("--rank", action="append", type=rank_option, help=f"of the branch; 0: none{several}")
    add("--dtype", action="append", choices=DTYPES, help=f"of A{several}")
    add("--rounds", type=count_option, default=25, help="turns of every form; default: 25")
    add("--csv", type=Path, metavar="FILE", help="write every row there, as it comes")
    add("--kernels", type=Path, metavar="DIR", help="launch this bundle; by default kernels are compiled")
    add(
        "--time-limit", type=count_option, default=450, metavar="SECONDS",
        help="after which no other row is begun; default: 450",
    )  # fmt: skip
    return parser.parse_args(arguments)


def cases_of(given: argparse.Namespace, architecture: str) -> list[Case]:
    """What to run.

    Args:
        architecture: whose kernels are to be launched, each in one case at least.
    """
    shapes = given.shape or (USUAL if given.quick else SHAPES)
    asked = [given.operator, given.shape, given.group_size, given.tokens, given.rank, given.dtype]
    if any(asked):
        asked[1] = shapes
        cases = asked_plan(*(values or () for values in asked))
    else:
        cases = quick_plan() if given.quick else whole_plan(architecture)
    return [replace(case, timed=False) for case in cases] if given.check_only else cases
