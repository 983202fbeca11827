"""Finding the operator library, asking it, and registering it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime as ort
import pytest

import zq2onnx.runtime
from tests.runtime.fused import needs_library
from zq2onnx.cli.app import main
from zq2onnx.errors import UserError
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime import library

pytestmark = needs_library

MEASURED = {"avx512": ("A16", "A8", "A8Block"), "avx2": ("A16", "A8")}
"""Kinds of operators that are registered unasked, by sets of kernels: those that were measured."""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ZQ2ONNX_OPS", "ZQ2ONNX_PROVIDER", "ZQ2ONNX_KERNEL"):
        monkeypatch.delenv(variable, raising=False)


def test_public_names() -> None:
    assert zq2onnx.runtime.__all__ == ["InferenceSession", "get_library_path", "register"]
    assert Path(zq2onnx.runtime.get_library_path()).is_file()
    with pytest.raises(AttributeError, match="no attribute 'registre'"):
        _ = zq2onnx.runtime.registre


def test_library_and_table_know_the_same_operators() -> None:
    assert {choice.name for choice in library.describe().operators} == set(OPERATORS)


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm, of the compiler's tools")
def test_library_shows_nothing_but_its_functions() -> None:
    if library.LIBRARY_VARIABLE in os.environ:
        pytest.skip("another build than the installed one")
    nm = ["nm", "--dynamic", "--defined-only", "--format=just-symbols", library.get_library_path()]
    printed = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
    assert set(printed.split()) == {"RegisterCustomOps", "zq2onnx_describe"}


@pytest.mark.parametrize("kernel", library.describe().kernels if library.library_file() else ())
def test_what_is_not_measured_is_not_registered_unasked(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZQ2ONNX_KERNEL", kernel)
    description = library.describe()
    chosen = {choice.name for choice in description.operators if choice.registered}
    slower = {f"MatMulW{bits}A8Block{branch}" for bits in (8, 4, 3) for branch in ("", "LoRC")}
    kinds = MEASURED.get(kernel, ())
    assert chosen == {name for name in OPERATORS if name[8:].removesuffix("LoRC") in kinds} - slower
    assert set(library.register(ort.SessionOptions())) == chosen
    assert description.api_version <= 18


def test_a_second_registration_returns_the_first() -> None:
    options = ort.SessionOptions()
    assert library.registered_operators(options) is None
    assert library.register(options, ["MatMulW4A16"]) == ("MatMulW4A16",)
    assert library.register(options, "all") == ("MatMulW4A16",)
    options.register_custom_ops_library(library.get_library_path())  # as another host would
    assert library.registered_operators(options) == ("MatMulW4A16",)


def test_names_in_any_form() -> None:
    assert library.register(ort.SessionOptions(), "MatMulW2A8") == ("MatMulW2A8",)
    assert library.register(ort.SessionOptions(), ["all"]) == library.register(ort.SessionOptions(), "all")
    assert library.register(ort.SessionOptions(), []) == ()


def test_without_a_driver_a_gpu_session_gets_nothing() -> None:
    assert library.register(ort.SessionOptions(), "all", "cuda") == ()
    why = {choice.why for choice in library.describe("all", "cuda").operators}
    assert why == {"no libcuda.so.1 can be opened: left to its function"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"operator 'MatMulW5A16'; required: all, or of .*MatMulW2A16LoRC"):
        library.register(ort.SessionOptions(), ["MatMulW4A16", "MatMulW5A16"])
    with pytest.raises(UserError, match="provider 'rocm'; required: cpu or cuda"):
        library.register(ort.SessionOptions(), provider="rocm")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "ZQ2ONNX_OPS",
            "MatMulW4A16,MatMulW5A16",
            "ZQ2ONNX_OPS names the operator 'MatMulW5A16'; required: all",
        ),
        ("ZQ2ONNX_PROVIDER", "rocm", "ZQ2ONNX_PROVIDER is 'rocm'; required: cpu or cuda"),
    ],
)
def test_a_wrong_environment_is_refused(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message):
        library.register(ort.SessionOptions())
    with pytest.raises(Exception, match=message):  # of ONNX Runtime's own, where no Python of ours runs
        ort.SessionOptions().register_custom_ops_library(library.get_library_path())


def test_another_build_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(library.LIBRARY_VARIABLE, str(tmp_path / "absent.so"))
    with pytest.raises(UserError, match=r"ZQ2ONNX_LIBRARY is .*absent.so', which is no file"):
        library.get_library_path()


def test_info_lists_every_operator(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZQ2ONNX_OPS", "MatMulW3A16")
    assert main(["runtime", "info"]) == 0
    printed = capsys.readouterr().out
    assert library.get_library_path() in printed
    on_cpu, on_gpu = printed.split("in a session on a GPU:")
    lines = [line.split() for line in on_cpu.splitlines() if line]
    verdicts = {line[0]: line[1] for line in lines if line[0] in OPERATORS}
    assert verdicts == {name: "yes" if name == "MatMulW3A16" else "no" for name in OPERATORS}
    assert "CUDA driver: " in on_gpu


def test_info_without_the_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "library_file", lambda: None)
    assert main(["runtime", "info"]) == 0
    assert "stock kernels" in capsys.readouterr().out
    with pytest.raises(UserError, match="the operator library is not built; required: a C"):
        library.get_library_path()
