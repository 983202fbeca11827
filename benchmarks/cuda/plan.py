"""What `cuda_matmul` runs: nodes of transformers' sizes to time, and ragged ones to check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from zq2onnx.layout import packed_layout
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.launches import plan
from zq2onnx.runtime.kernels.problem import Problem
from zq2onnx.scheme import parse_granularity

NAMES = tuple(name.removeprefix("MatMul") for name, operator in OPERATORS.items() if not operator.lorc)
"""Operators, as `W4A16`; the branch goes by the rank."""

Size = tuple[int, int]
"""K and N of a weight."""

SHAPES: tuple[Size, ...] = (
    (2048, 2048), (2048, 8192), (8192, 2048),  # OPT-1.3b
    (4096, 4096), (4096, 16384), (16384, 4096),  # OPT-6.7b, BLOOM-7b1
    (4096, 12288),  # BLOOM-7b1
    (7168, 7168), (7168, 28672), (28672, 7168),  # OPT-30b
    (8192, 8192), (8192, 28672), (28672, 8192),  # Llama-70B
)  # fmt: skip
LARGE: Size = (8192, 28672)
USUAL: tuple[Size, ...] = ((4096, 4096), (8192, 8192), LARGE)
"""Those that the bars speak of."""

DECODE, PROMPT = (1, 4, 16), 2048
"""Tokens."""

RAGGED: tuple[tuple[int, int, str], ...] = (
    (257, 66, "16"), (1, 40, "row"), (100, 33, "32"), (384, 130, "128"), (1040, 200, "64"),
    (1001, 97, "128"), (2064, 515, "256"), (4112, 130, "512"), (2048, 96, "1024"), (768, 300, "row"),
)  # fmt: skip
RAGGED_TOKENS = (1, 3, 8, 16, 17, 64, 65, 130)
RAGGED_RANKS = (0, 1, 8, 40, 128)
TILED: tuple[tuple[int, str], ...] = ((1136, "32"), (1136, "64"), (1136, "128"), (1136, "256"), (1280, "row"))
TILED_TOKENS = ((5, 165), (5, 6181), (13, 165), (90, 165), (133, 165))
"""K and group, tokens and N: of these there is one for every tuned kernel."""


@dataclass(frozen=True)
class Case:
    """One node at one number of tokens.

    Attributes:
        name: bits and activations, as `W4A16`.
        k, n: of the weight.
        group: weights that share a scale, or "row".
        tokens: rows of A.
        rank: of the branch; 0 without.
        dtype: of A: "fp16", "bf16" or "fp32".
        timed: whether it is timed, beside being checked.
        bias: whether it has one.
        int8_factors: whether the branch's factors are int8; else they are of A's type.
        aligned: whether A and B lie at multiples of 16 bytes.
    """

    name: str
    k: int
    n: int
    group: str
    tokens: int
    rank: int = 8
    dtype: str = "fp16"
    timed: bool = True
    bias: bool = False
    int8_factors: bool = True
    aligned: bool = True

    @cached_property
    def problem(self) -> Problem:
        """What is asked of the kernels."""
        operator = OPERATORS[f"MatMul{self.name}{'LoRC' if self.rank else ''}"]
        layout = packed_layout(
            self.k,
            self.n,
            operator.bits,
            parse_granularity(self.group),
            whole_bytes=operator.whole_bytes,
        )
        int8 = bool(self.rank) and self.int8_factors
        return Problem(operator, layout, self.tokens, self.dtype, self.rank, self.bias, int8, int8)

    @property
    def shape(self) -> str:
        """
        >>> Case("W4A16", 4096, 11008, "128", 1).shape
        '4096x11008'
        """
        return f"{self.k}x{self.n}"

    @property
    def label(self) -> str:
        """
        >>> Case("W4A16", 4096, 11008, "128", 1).label
        'W4A16 4096x11008 g128 M=1 r8 fp16'
        """
        return f"{self.name} {self.shape} g{self.group} M={self.tokens} r{self.rank} {self.dtype}"

    def without_branch(self) -> Case:
        """The same at rank 0."""
        return replace(self, rank=0)


def _decode_bars() -> Iterator[Case]:
    for k, n in (*USUAL, *(shape for shape in SHAPES if shape not in USUAL)):
        for tokens in DECODE:
            yield Case("W4A16", k, n, "128", tokens)


def _prompt_bars() -> Iterator[Case]:
    for name, (k, n) in product(("W4A16", "W4A8", "W8A8"), USUAL):
        yield Case(name, k, n, "128", PROMPT)


def _other_decode() -> Iterator[Case]:
    for k, n in reversed(USUAL):
        for name in ("W8A16", "W3A16", "W2A16", "W4A8", "W8A8"):
            yield Case(name, k, n, "128", 1)
        yield Case("W4A16", k, n, "32", 1)
        yield Case("W4A16", k, n, "128", 1, dtype="bf16")
    for name in ("W4A8Block", "W8A8Block"):
        yield Case(name, *LARGE, "128", 1)
    for tokens in (64, 256):
        yield Case("W4A16", 8192, 8192, "128", tokens)


def _other_prompt() -> Iterator[Case]:
    for k, n in (*USUAL, *(shape for shape in SHAPES if shape not in USUAL)):
        for rank in (0, 8):
            yield Case("W4A16", k, n, "128", PROMPT, rank)
    for (k, n), name, rank in product((*USUAL, (16384, 4096)), ("W4A8", "W8A8"), (0, 8)):
        yield Case(name, k, n, "128", PROMPT, rank)
        yield Case(name, k, n, "row", PROMPT, rank)
    for (k, n), rank in product(USUAL, (0, 8)):
        yield Case("W8A16", k, n, "128", PROMPT, rank)
    for (k, n), name in product(((8192, 8192), LARGE), ("W4A16", "W4A8", "W8A8")):
        yield Case(name, k, n, "128", 2 * PROMPT)
    yield Case("W4A16", *LARGE, "128", PROMPT, dtype="bf16")
    for name in ("W3A16", "W2A16", "W4A8Block", "W8A8Block"):
        yield Case(name, 8192, 8192, "128", PROMPT)


def ragged() -> Iterator[Case]:
    """Cases to check: every operator and type, each with every rank, at sizes that fit no tile."""
    count = 0
    for turn, (name, dtype) in enumerate(product(NAMES, ("fp16", "bf16", "fp32"))):
        for index, (k, n, group) in enumerate(RAGGED):
            rank = RAGGED_RANKS[(index + turn + index // 5) % 5]
            tokens = RAGGED_TOKENS[(3 * index + turn) % 8]
            if dtype != "fp32" or index < 5:  # one kernel takes all of float32
                yield Case(
                    name, k, n, group, tokens, rank, dtype,
                    timed=False, bias=count % 2 == 0, int8_factors=count % 3 > 0, aligned=count % 5 > 0,
                )  # fmt: skip
                count += 1


def launched(case: Case, architecture: str) -> set[Configuration]:
    """The kernels that a case launches; where it is timed also those of its peer without branch."""
    cases = (case, case.without_branch()) if case.timed else (case,)
    plans = (plan(each.problem, architecture, aligned=each.aligned) for each in cases)
    return {launch.configuration for planned in plans for launch in planned.launches}


def remaining(cases: Iterable[Case], architecture: str) -> Iterator[Case]:
    """Cases to check of the kernels that others do not launch."""
    seen = {made for case in cases for made in launched(case, architecture)}
    for dtype, name, (k, group), (tokens, n) in product(("fp16", "bf16"), NAMES, TILED, TILED_TOKENS):
        case = Case(name, k, n, group, tokens, 20, dtype, timed=False, bias=True)
        if not launched(case, architecture) <= seen:
            seen |= launched(case, architecture)
            yield case


def whole_plan(architecture: str) -> list[Case]:
    """What is run unasked; what the bars speak of comes first."""
    bars, others = [*_decode_bars(), *_prompt_bars()], [*_other_decode(), *_other_prompt()]
    checked = list(ragged())
    cases = [*bars, *checked, *remaining([*bars, *checked, *others], architecture), *others]
    return list(dict.fromkeys(cases))


def quick_plan() -> list[Case]:
    """A part of it that still says something of every bar."""
    decode = [case for case in _decode_bars() if (case.k, case.n) in USUAL and case.tokens != 4]
    prompt = [case for case in _prompt_bars() if case.k == case.n == 8192]
    return [*decode, *prompt, *list(ragged())[::4]]


def asked_plan(
    names: Iterable[str],
    shapes: Iterable[Size],
    groups: Iterable[str],
    tokens: Iterable[int],
    ranks: Iterable[int],
    dtypes: Iterable[str],
) -> list[Case]:
    """What options ask for: their values, crossed; without any, those of the bar at one token."""
    every = product(
        tuple(tokens) or (*DECODE, PROMPT),
        tuple(shapes) or SHAPES,
        tuple(names) or ("W4A16",),
        tuple(groups) or ("128",),
        tuple(ranks) or (8,),
        tuple(dtypes) or ("fp16",),
    )
    return [Case(name, k, n, group, count, rank, dtype) for count, (k, n), name, group, rank, dtype in every]
