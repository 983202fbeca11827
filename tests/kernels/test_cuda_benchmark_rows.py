"""Rows of the CUDA benchmark, made by Triton's interpreter on the CPU, and the oracle they are held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from benchmarks.cuda import oracle as cuda_oracle
from benchmarks.cuda.forms import Bench
from benchmarks.cuda.launch import Jit
from benchmarks.cuda.plan import Case
from benchmarks.cuda.verdict import CUBLAS, FLOOR, FUSED, RANK_0, UNFUSED
from benchmarks.cuda.work import Machine, Times, Work
from zq2onnx.opset import node_attributes
from zq2onnx.runtime import reference

MACHINE = Machine("a GPU", "sm_90", "580.1", "2.11", "3.12", 50 << 20, 3000.0, 700.0)
RIGHT = Jit("interpreter", "cpu")


def test_torch_unpacks_as_the_reference_does(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_oracle.check_unpacking("cpu")
    stored = {(case.problem.bits, case.problem.layout.repeat > 1) for case in cuda_oracle.STORAGES}
    assert stored == {(bits, repeated) for bits in (2, 3, 4, 8, 9) for repeated in (False, True)}
    right = cuda_oracle.nibbles
    monkeypatch.setattr(cuda_oracle, "nibbles", lambda packed: right(packed).flip(-1))
    with pytest.raises(RuntimeError, match="W2A16 300x6 g32 .* unpacked wrongly"):
        cuda_oracle.check_unpacking("cpu")


@pytest.mark.parametrize("name", ["W4A16", "W3A8", "W8A8Block"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_oracle_is_the_reference(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(name, 520, 40, "64", 5, 8, dtype, bias=True, aligned=False)
    inputs = cuda_oracle.random_inputs(case, "cpu")
    assert inputs["A"].data_ptr() % 16 and inputs["B"].data_ptr() % 16
    arrays = {
        key: (value if value.dtype in (torch.int8, torch.uint8) else value.float()).numpy()
        for key, value in inputs.items()
    }
    expected = reference.matmul(case.problem.operator, node_attributes(case.problem.layout), arrays)
    result = torch.from_numpy(expected).to(cuda_oracle.TORCH[dtype])
    for small in (cuda_oracle.SMALL, 0):  # by the reference's weight, and by torch's
        monkeypatch.setattr(cuda_oracle, "SMALL", small)
        monkeypatch.setattr(cuda_oracle, "CHUNK", 520 * 16)
        assert cuda_oracle.worst_error(case, inputs, result) <= 1
        off = result.clone()
        off[3, 39] += 0.05 * expected.std()
        assert cuda_oracle.worst_error(case, inputs, off) > 1
        off[3, 39] = math.nan
        assert cuda_oracle.worst_error(case, inputs, off) == math.inf


class Stopwatch:
    """A clock for the CPU, whose works take as long as is said here."""

    def __init__(self, *, spoil: Callable[[], None] = lambda: None) -> None:
        self.spoil = spoil
        self.takes = {FUSED: 40.0, RANK_0: 36.0, UNFUSED: 60.0, CUBLAS: 100.0}

    def turns(self, works: Mapping[str, Work], rounds: int, before: Work) -> tuple[Times, str]:
        before()
        for work in works.values():
            work()
        self.spoil()
        return {label: [self.takes[label] * (1 + turn) for turn in range(rounds)] for label in works}, ""


def bench(clock: Any = None, launcher: Any = None) -> Bench:
    return Bench(launcher or RIGHT, clock or Stopwatch(), MACHINE, "sm_90", "cpu", rounds=3, chain=2)


def test_a_row_is_checked_and_timed() -> None:
    case = Case("W4A16", 256, 40, "128", 2)
    row = bench().row(case)
    assert row.right and not row.failure
    assert row.kernels == ("prologue_plain_fp16", "few_w4_fp16_u128_m8_p8")
    assert row.us[FUSED] == 40  # the median of three rounds, for one of two products
    assert row.times == {FUSED: 1, RANK_0: 0.9, UNFUSED: 1.5, CUBLAS: 2.5}
    moved = 2 * 2 * 256 + 40 * 128 + 40 * 2 * 2 + 40 + 8 * (256 + 40) + 2 * 2 * 8 + 2 * 2 * 40
    assert row.us[FLOOR] == pytest.approx(moved / 3000e3)
    assert row.of_copy == pytest.approx(moved / 40e-6 / 3000e9)


@pytest.mark.parametrize(
    "case",
    [
        Case("W4A8", 384, 40, "128", 3, 0),
        Case("W8A8Block", 257, 33, "16", 2, 1, timed=False, bias=True, aligned=False),
        Case("W3A16", 100, 33, "32", 17, 8, "fp32", timed=False, int8_factors=False),
    ],
    ids=lambda case: case.label,
)
def test_rows_of_other_kinds_are_right(case: Case) -> None:
    row = bench().row(case)
    assert row.right and set(row.us) == ({FUSED, CUBLAS, FLOOR} if case.timed else set())


def test_wrong_and_changing_results_and_failures_are_told() -> None:
    case = Case("W4A16", 256, 40, "128", 2, 0, timed=False)
    count = 0

    def wrong(launch: Any, arrays: Any) -> None:
        RIGHT(launch, arrays)
        arrays["Y"][1, 7] += 1

    def changing(launch: Any, arrays: Any) -> None:
        nonlocal count
        RIGHT(launch, arrays)
        count += 1
        arrays["Y"][0, 0] *= 1 + 2.0**-10 * (count > 3)

    def silent(launch: Any, arrays: Any) -> None:
        pass

    def broken(launch: Any, arrays: Any) -> None:
        raise RuntimeError("an illegal\nmemory access")

    found = bench(launcher=wrong).row(case)
    assert found.error > 1 and found.identical and not found.right
    found = bench(launcher=changing).row(case)
    assert found.error <= 1 and not found.identical and not found.right
    assert bench(launcher=silent).row(case).error == math.inf
    assert bench(launcher=broken).row(case).failure == "RuntimeError: an illegal memory access"


def test_what_the_last_timed_run_left_is_compared_too() -> None:
    arrays: dict[str, Any] = {}

    def seen(launch: Any, given: Any) -> None:
        RIGHT(launch, given)
        arrays.setdefault("Y", given["Y"])

    case = Case("W4A16", 256, 40, "128", 2, 0)
    spoiled = Stopwatch(spoil=lambda: arrays["Y"][0].zero_())
    assert bench(launcher=seen).row(case).right
    arrays.clear()
    assert not bench(spoiled, seen).row(case).identical
