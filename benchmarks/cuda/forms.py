"""The forms of a product that `cuda_matmul` compares: made, checked beside the oracle, and timed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.cuda.clock import multiplication
from benchmarks.cuda.launch import Launcher
from benchmarks.cuda.oracle import TORCH, random_inputs, worst_error
from benchmarks.cuda.plan import Case
from benchmarks.cuda.verdict import CUBLAS, FLOOR, FUSED, RANK_0, UNFUSED, Row
from benchmarks.cuda.work import Machine, Times, Work
from zq2onnx.runtime.kernels.launches import Plan, plan
from zq2onnx.scheme import Activation

CONSTANTS = ("B", "scales", "zero_points", "bias", "U", "U_scales", "V", "V_scales")
REPETITIONS = 5
"""Runs that must give the same bits."""

CHAIN_US = 200.0
"""Products follow each other in a chain, each with weights of its own, until it is about so long: starting a
graph takes some microseconds, and a model does not stop after one product either."""

CHAIN = 8
"""The most products of a chain."""

CHAIN_BYTES = 1 << 31
"""The most that a chain's float16 weights may take."""

POISON = 77
"""What int8 scratch holds before a run; floats are NaN."""


class Clock(Protocol):
    """Times works in turns: microseconds by label, and a note on how; runs `before` before each round."""

    def turns(self, works: Mapping[str, Work], rounds: int, before: Work) -> tuple[Times, str]: ...


@dataclass
class Node:
    """A node's plan and arrays: inputs, scratch and Y."""

    launcher: Launcher
    planned: Plan
    arrays: dict[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, launcher: Launcher, case: Case, inputs: Mapping[str, Tensor], architecture: str) -> Node:
        planned = plan(case.problem, architecture, aligned=case.aligned)
        device = inputs["A"].device
        arrays = dict(inputs)
        for name, (kind, shape) in planned.scratch.items():
            arrays[name] = torch.empty(shape, dtype=TORCH[kind], device=device)
        arrays["Y"] = torch.empty((case.tokens, case.n), dtype=TORCH[case.dtype], device=device)
        return cls(launcher, planned, arrays)

    def poison(self) -> None:
        """Make results and scratch what nothing right can come of."""
        for name in ("Y", *self.planned.scratch):
            array = self.arrays[name]
            array.fill_(math.nan if array.is_floating_point() else POISON)

    def run(self) -> None:
        for launch in self.planned.launches:
            self.launcher(launch, self.arrays)

    def with_own_weights(self) -> Node:
        """The same with copies of its constants, and the same scratch."""
        copies = {name: self.arrays[name].clone() for name in CONSTANTS if name in self.arrays}
        return Node(self.launcher, self.planned, self.arrays | copies)

    @property
    def result_bits(self) -> Tensor:
        """A copy of Y as integers: NaN is equal to itself."""
        y = self.arrays["Y"]
        return y.view(torch.int32 if y.dtype == torch.float32 else torch.int16).clone()


@dataclass(frozen=True)
class Bench:
    """Runs cases.

    Attributes:
        architecture: whose configurations are used.
        rounds: turns of every form.
        chain: the most products of a chain.
    """

    launcher: Launcher
    clock: Clock
    machine: Machine
    architecture: str
    device: torch.device | str
    rounds: int
    chain: int = CHAIN

    def row(self, case: Case) -> Row:
        """Check a case, and time it if it says so; a failure is told in the row."""
        try:
            return self._row(case)
        except Exception as error:
            words = " ".join(str(error).split())[:300]
            return Row(case, failure=f"{type(error).__name__}: {words}")

    def _row(self, case: Case) -> Row:
        inputs = random_inputs(case, self.device)
        node = Node.of(self.launcher, case, inputs, self.architecture)
        kernels = tuple(launch.configuration.name for launch in node.planned.launches)
        node.poison()
        node.run()
        error, bits = worst_error(case, inputs, node.arrays["Y"]), node.result_bits
        identical = all(self._again(node, bits) for _ in range(REPETITIONS - 1))
        if not case.timed:
            return Row(case, kernels, error, identical)
        moved = sum(array.nbytes for array in (*inputs.values(), node.arrays["Y"]))
        operations = 2 * case.tokens * (case.n * case.k + case.rank * (case.n + case.k))
        int8 = case.problem.operator.activation is Activation.A8
        floor = self.machine.floor_us(moved, operations, int8=int8)
        length = chain_length(case, floor, self.chain)
        taken, note = self.clock.turns(self.works(case, node, length), self.rounds, node.poison)
        identical &= bool(torch.equal(node.result_bits, bits))
        us = {form: statistics.median(each) / length for form, each in taken.items()}
        times = {
            form: statistics.median(a / b for a, b in zip(each, taken[FUSED], strict=True))
            for form, each in taken.items()
        }
        of_copy = moved / us[FUSED] / 1e3 / self.machine.copy_gb_s
        return Row(case, kernels, error, identical, us | {FLOOR: floor}, times, of_copy, note)

    def _again(self, node: Node, bits: Tensor) -> bool:
        node.poison()
        node.run()
        return bool(torch.equal(node.result_bits, bits))

    def works(self, case: Case, node: Node, length: int) -> dict[str, Work]:
        """Chains of each form, by its name; only the fused one writes the node's own Y."""
        nodes = [node, *(node.with_own_weights() for _ in range(length - 1))]
        dtype = torch.float16 if case.dtype == "fp32" else TORCH[case.dtype]
        a = node.arrays["A"].to(dtype)
        weights = [torch.randn((case.n, case.k), dtype=dtype, device=self.device).T for _ in range(length)]
        y = torch.empty((case.tokens, case.n), dtype=dtype, device=self.device)
        made = {CUBLAS: chained([multiplication(a, weight, y) for weight in weights])}
        if case.rank:
            plain = case.without_branch()
            inputs = {name: node.arrays[name] for name in ("A", *CONSTANTS) if name in node.arrays}
            without = Node.of(self.launcher, plain, inputs, self.architecture)
            bare = [
                Node(self.launcher, without.planned, without.arrays | constants_of(each)) for each in nodes
            ]
            made[RANK_0] = chained([each.run for each in bare])
            made[UNFUSED] = chained([unfused(each) for each in bare])
        return made | {FUSED: chained([each.run for each in nodes])}


def constants_of(node: Node) -> dict[str, Tensor]:
    return {name: node.arrays[name] for name in CONSTANTS if name in node.arrays}


def chain_length(case: Case, floor_us: float, at_most: int = CHAIN) -> int:
    """How many products a chain has.

    >>> chain_length(Case("W4A16", 4096, 4096, "128", 1), 3.0)
    8
    >>> chain_length(Case("W4A16", 8192, 28672, "128", 1), 45.0)
    4
    >>> chain_length(Case("W4A16", 8192, 28672, "128", 2048), 1500.0)
    1
    """
    fits = CHAIN_BYTES // (2 * case.k * case.n)
    return max(1, min(at_most, fits, math.ceil(CHAIN_US / floor_us)))


def chained(works: list[Work]) -> Work:
    """One after the other."""

    def work() -> None:
        for each in works:
            each()

    return work


def unfused(node: Node) -> Work:
    """A product without branch, and the branch by torch: `T = A U`, `Y += T V`, with factors of A's type."""
    a, y = node.arrays["A"], node.arrays["Y"]
    u, v = (
        (node.arrays[name].to(a.dtype) * node.arrays[f"{name}_scales"]).contiguous() for name in ("U", "V")
    )
    t = torch.empty((len(a), u.shape[1]), dtype=a.dtype, device=a.device)

    def work() -> None:
        node.run()
        torch.mm(a, u, out=t)
        y.addmm_(t, v)

    return work
