"""The benchmark of the CUDA kernels: its plan, its verdict and its command line. Needs no GPU."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import cuda_matmul
from benchmarks.cuda import worker as cuda_worker
from benchmarks.cuda.compile import Compiled, read_bundle
from benchmarks.cuda.options import cases_of, options
from benchmarks.cuda.plan import (
    DECODE,
    LARGE,
    NAMES,
    RAGGED_RANKS,
    SHAPES,
    Case,
    launched,
    quick_plan,
    ragged,
    whole_plan,
)
from benchmarks.cuda.verdict import (
    BARS,
    CUBLAS,
    FLOOR,
    FUSED,
    HEAD,
    PEERS,
    RANK_0,
    UNFUSED,
    Row,
    judge,
    verdict_lines,
)
from benchmarks.cuda.work import Machine, Setup
from zq2onnx.errors import UserError
from zq2onnx.runtime.kernels.configurations import configurations
from zq2onnx.runtime.kernels.manifest import Manifest, write_manifest

MACHINE = Machine("a GPU", "sm_90", "580.1", "2.11", "3.12", 50 << 20, 3000.0, 700.0)
DECODED = Case("W4A16", *LARGE, "128", 1)
LLAMA = Case("W4A16", 8192, 8192, "128", 1)
SQUARE = Case("W4A16", 4096, 4096, "128", 1)


def test_the_plan_has_every_row_that_a_bar_needs() -> None:
    for cases in (whole_plan("sm_90"), quick_plan()):
        rows = [fast(case) for case in cases]
        assert all(any(not math.isnan(bar.figure(row)) for row in rows) for bar in BARS)


def test_the_plan_times_decoding_everywhere() -> None:
    timed = {
        (case.k, case.n, case.tokens)
        for case in whole_plan("sm_90")
        if case.timed and (case.name, case.group, case.rank) == ("W4A16", "128", 8)
    }
    assert timed >= {(k, n, tokens) for k, n in SHAPES for tokens in (*DECODE, 2048)}
    assert len(SHAPES) == 13


def test_every_operator_and_type_is_checked_with_every_rank() -> None:
    cases = list(ragged())
    assert not any(case.timed for case in cases)
    for name in NAMES:
        for dtype in ("fp16", "bf16", "fp32"):
            mine = [case for case in cases if (case.name, case.dtype) == (name, dtype)]
            assert {case.rank for case in mine} == set(RAGGED_RANKS)
            assert any(case.k % 2 for case in mine)
    assert {case.bias for case in cases} == {case.aligned for case in cases} == {True, False}


@pytest.mark.parametrize("architecture", ["sm_86", "sm_90"])
def test_the_plan_launches_every_kernel(architecture: str) -> None:
    used = {made.name for case in whole_plan(architecture) for made in launched(case, architecture)}
    assert used == {made.name for made in configurations(architecture)}


def test_what_is_asked_for_is_crossed() -> None:
    given = options("", ["--tokens", "3", "--shape", "64x32", "--shape", "96x32", "--rank", "0"])
    assert [case.label for case in cases_of(given, "sm_90")] == [
        "W4A16 64x32 g128 M=3 r0 fp16",
        "W4A16 96x32 g128 M=3 r0 fp16",
    ]
    checked = options("", ["--tokens", "3", "--check-only"])
    assert not any(case.timed for case in cases_of(checked, "sm_90"))


@pytest.mark.parametrize("wrong", [["--shape", "64"], ["--rank", "129"], ["--tokens", "0"], ["--dtype", "x"]])
def test_wrong_options_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        options("", wrong)
    assert refused.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def fast(case: Case, **changes: Any) -> Row:
    """A row that holds every bar."""
    us = {FUSED: 50.0, RANK_0: 49.0, UNFUSED: 70.0, CUBLAS: 200.0, FLOOR: 40.0} if case.timed else {}
    times = {form: us[form] / us[FUSED] for form in (FUSED, *PEERS) if us}
    row = Row(case, ("few",), 0.5, True, us, times, 0.8 if us else math.nan)
    return dataclasses.replace(row, **changes)


def held(rows: list[Row]) -> dict[str, str]:
    """How each bar is, by its words."""
    return {judgement.bar.words: judgement.state for judgement in judge(rows)}


def test_bars_are_held() -> None:
    rows = [fast(case) for case in quick_plan()]
    assert set(held(rows).values()) == {"held"}
    table = verdict_lines(judge(rows))
    assert len(table) == 1 + len(BARS) and all(" held " in line for line in table[1:])


def test_what_was_not_measured_is_no_failure() -> None:
    found = held([fast(dataclasses.replace(DECODED, timed=False))])
    assert list(found.values()) == ["held"] * 2 + ["not measured"] * (len(BARS) - 2)
    assert set(held([]).values()) == {"not measured"}
    assert verdict_lines(judge([]))[1].endswith("not measured")


@pytest.mark.parametrize(
    ("case", "changes", "missed"),
    [
        (DECODED, {"error": 1.01}, "error beside the oracle, of what is allowed"),
        (DECODED, {"identical": False}, "bits are the same from run to run"),
        (DECODED, {"of_copy": 0.74}, "W4A16 M=1 8192x28672: part of a copy's rate"),
        (Case("W4A16", *LARGE, "128", 16), {CUBLAS: 2.9}, "W4A16 M=1..16 8192x28672: times cuBLAS fp16"),
        (LLAMA, {"of_copy": 0.59}, "W4A16 M=1 8192x8192: part of a copy's rate"),
        (DECODED, {RANK_0: 0.92}, "W4A16 M=1: branch, of max(7%, 1.5 us)"),
        (SQUARE, {UNFUSED: 1.29}, "W4A16 M=1 4096x4096: times the unfused branch"),
        (DECODED, {UNFUSED: 0.99}, "W4A16 M=1 elsewhere: times the unfused branch"),
        (Case("W4A16", 64, 64, "32", 2048, 0), {CUBLAS: 0.69}, "W4A16 M>=2048: times cuBLAS fp16"),
        (Case("W8A8", 64, 64, "row", 4096), {CUBLAS: 1.19}, "W8A8 M>=2048: times cuBLAS fp16"),
        (Case("W4A8", 64, 64, "128", 2048), {CUBLAS: 1.19}, "W4A8 M>=2048: times cuBLAS fp16"),
        (Case("W8A16", 64, 64, "128", 2048), {RANK_0: 0.95}, "M>=2048: time with the branch, of rank 0's"),
    ],
)  # fmt: skip
def test_a_bar_is_missed_by_its_worst_row(case: Case, changes: dict[str, Any], missed: str) -> None:
    good = fast(case)
    times = {form: value for form, value in changes.items() if form in PEERS}
    rest = {name: value for name, value in changes.items() if name not in PEERS}
    rows = [good, dataclasses.replace(good, times={**good.times, **times}, **rest), good]
    assert "missed" not in held([good]).values()
    assert [words for words, state in held(rows).items() if state == "missed"] == [missed]
    (judged,) = (judgement for judgement in judge(rows) if judgement.bar.words == missed)
    assert judged.rows == 3 and judged.where == case.label
    assert judged.worst == (judged.bar.figure(rows[1]))


def test_a_short_branch_may_cost_one_and_a_half_microseconds() -> None:
    short = fast(SQUARE)
    us = {**short.us, FUSED: 7.0}
    for rank_0, state in ((5.6 / 7, "held"), (5.4 / 7, "missed")):
        row = dataclasses.replace(short, us=us, times={**short.times, RANK_0: rank_0})
        assert held([row])["W4A16 M=1: branch, of max(7%, 1.5 us)"] == state


def test_a_row_that_failed_misses_both_bars_of_rightness() -> None:
    found = held([Row(DECODED, failure="illegal memory access")])
    assert list(found.values())[:2] == ["missed", "missed"]
    assert set(list(found.values())[2:]) == {"not measured"}


class FakeWorker:
    """Answers at once; a row takes a second of the script's clock."""

    rows: Callable[[Case], Row] = staticmethod(fast)

    def __init__(self) -> None:
        self.setups: list[Setup] = []

    def configure(self, setup: Setup) -> Machine:
        self.setups.append(setup)
        return MACHINE

    def row(self, case: Case) -> Row:
        FakeWorker.now += 1
        return self.rows(case)

    def stop(self) -> None:
        pass

    now = 0.0


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The script with a GPU that is made up, and nothing compiled for it."""
    monkeypatch.setattr(cuda_matmul, "Worker", FakeWorker)
    monkeypatch.setattr(cuda_matmul, "require_gpu", lambda: None)
    monkeypatch.setattr(cuda_matmul, "kernels_for", lambda *_: Setup(MACHINE, "sm_90"))
    monkeypatch.setattr(cuda_matmul, "time", SimpleNamespace(monotonic=lambda: FakeWorker.now))
    FakeWorker.now = 0.0
    return monkeypatch


def test_a_run_prints_and_writes_every_row(
    script: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    assert cuda_matmul.main(["--quick", "--csv", str(path)]) == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == len(quick_plan()) and tuple(rows[0]) == HEAD
    assert rows[0]["operator"] == "MatMulW4A16LoRC" and float(rows[0]["us cublas"]) == 200
    assert "a GPU (sm_90), driver 580.1, torch 2.11" in said
    assert said.count("4096x4096") >= 2 and f"{len(rows)} rows, 0 of them wrong" in said


def test_a_wrong_row_is_told_and_exits_with_1(
    script: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script.setattr(FakeWorker, "rows", staticmethod(lambda case: Row(case, failure="it broke")))
    path = tmp_path / "rows.csv"
    assert cuda_matmul.main(["--shape", "64x64", "--tokens", "1", "--csv", str(path)]) == 1
    assert "W4A16 64x64 g128 M=1 r8 fp16: it broke" in capsys.readouterr().out
    assert next(csv.DictReader(path.open()))["failure"] == "it broke"


def test_a_run_ends_in_time(script: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cuda_matmul.main(["--tokens", "1", "--time-limit", "10"])
    said = capsys.readouterr().out
    assert "left out for lack of time, 7 rows: W4A16 M=1 (7)" in said and "6 rows, 0 of them wrong" in said


def test_without_a_gpu_it_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda_matmul.main(["--quick"]) == 2
    caught = capsys.readouterr()
    assert caught.out == "" and caught.err.count("\n") == 1
    assert caught.err.startswith("error: torch") and "sees no GPU; required: an NVIDIA GPU" in caught.err


def test_a_file_that_cannot_be_written_is_told(
    script: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cuda_matmul.main(["--quick", "--csv", str(tmp_path / "no" / "rows.csv")]) == 2
    assert (
        "rows.csv: No such file or directory; required: a file that can be written" in capsys.readouterr().err
    )


def test_triton_launches_where_compiled_files_do_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Choosy(FakeWorker):
        def configure(self, setup: Setup) -> Machine:
            if setup.compiled is not None:
                raise cuda_worker.WorkerError("no kernel image")
            return super().configure(setup)

    worker: Any = Choosy()
    cuda_matmul.configure(worker, Setup(MACHINE, "sm_90", Compiled(Path(), {}, {})))
    assert [setup.compiled for setup in worker.setups] == [None]
    assert "compiled files cannot be launched (no kernel image): Triton launches" in capsys.readouterr().out


def test_a_bundle_must_be_there_and_for_the_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        read_bundle(tmp_path, "sm_90")
    write_manifest(tmp_path, Manifest("3.9.0", "12.9", ()))
    with pytest.raises(UserError, match="has no kernels for sm_90; .* --arch sm_90"):
        read_bundle(tmp_path, "sm_90")
