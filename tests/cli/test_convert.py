"""What `convert` prints, and its help."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import zoo
from tests.convert import linear_model
from zq2onnx.cli.app import main
from zq2onnx.cli.outcome import print_report, requirements
from zq2onnx.conversion.choices import DEFAULTS
from zq2onnx.report import NodeReport, Report, Requirements, Status


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return linear_model.write(tmp_path / "m.onnx")


def test_summary(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(model), "--exclude", "layers.2"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert lines[0].startswith(f"{model.with_name('m.w4a16.onnx')}: 0.05 MB -> 0.03 MB (")
    assert "quantized 2 nodes: weight error 0.0" in lines[1]
    assert lines[1].endswith("left float: 1 (excluded by 'layers.2')")
    assert "needs onnxruntime >= 1.20" in lines[3]
    assert "checked 1 nodes in ONNX Runtime against the oracle" in lines[4]


def test_quiet_prints_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(model), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_requirements_are_told() -> None:
    needs = Requirements("1.27", {"": 25}, 12, ["CUDAExecutionProvider"], {"session.key": "0"})
    assert requirements(Report({}, needs)) == (
        "needs onnxruntime >= 1.27, a GPU (CUDAExecutionProvider); the session option session.key=0 keeps"
        " float activations float (without it ONNX Runtime rounds them to int8: faster, less exact)"
    )


@pytest.mark.parametrize(("load_bytes", "told"), [(None, False), (99_000_000, False), (7_100_000_000, True)])
def test_memory_for_loading_is_told_where_it_is_much(
    load_bytes: int | None, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report({}, Requirements("1.20", {"": 21}, 10, []), load_bytes=load_bytes, effective_bits=4.0)
    report.bytes_before = report.bytes_after = 1
    report.nodes = [NodeReport("a", "MatMul", [1, 1], Status.QUANTIZED)]
    print_report(report)
    line = "stock ONNX Runtime needs about 7100 MB to load the rewritten weights\n"
    assert (line in capsys.readouterr().out) == told


def test_one_bar_after_the_other(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, float | None, float]] = []

    @contextlib.contextmanager
    def progress(
        description: str, total: float | None, quiet: bool, unit: str
    ) -> Iterator[Callable[[float], None]]:
        amounts: list[float] = []
        assert not open_bars
        open_bars.append(description)
        yield amounts.append
        open_bars.pop()
        shown.append((description, total, sum(amounts)))

    open_bars: list[str] = []
    monkeypatch.setattr("zq2onnx.cli.console.progress", progress)
    assert main(["convert", str(model), "--check", "full"]) == 0
    parameters = 3 * 64**2 + 64
    assert shown == [("quantizing", parameters, parameters), ("checking", 3, 3)]


def test_negations_override_a_recipe(model: Path) -> None:
    recipe = model.with_name("r.toml")
    recipe.write_text("symmetric = true\nsingle-file = true\n")
    arguments = ["convert", str(model), "--recipe", str(recipe), "--check", "none", "--quiet"]
    assert main([*arguments, "-o", str(model.with_name("a.onnx"))]) == 0
    assert not model.with_name("a.onnx.data").exists()
    assert main([*arguments, "-o", str(model.with_name("b.onnx")), "--external-data", "--asymmetric"]) == 0
    assert model.with_name("b.onnx.data").exists()


def test_options_that_take_several_values_are_repeated(model: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--only", "layers.0", "--only", "layers.1", "--exclude", "1.weight", "--check", "none"]
    assert main(["convert", str(model), *arguments]) == 0
    out = capsys.readouterr().out
    assert "quantized 1 nodes" in out and "1 (excluded by '1.weight'); 1 (not among --only)" in out


def test_help_names_every_option_and_each_default_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.partition("Options:")[2].split())
    for name in (*vars(DEFAULTS), "recipe", "jobs", "resume", "check", "report", "dump_passes", "force"):
        assert f"--{name.replace('_', '-')} " in text
    for name, default in vars(DEFAULTS).items():
        if isinstance(default, str | int) and not isinstance(default, bool):
            entry = text.partition(f"--{name.replace('_', '-')} ")[2].partition(" --")[0]
            assert entry.count(f"[default: {default}]") == 1, name
    assert text.count("[default: sample]") == 1


def test_bf16_says_that_it_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = zoo.model("opt-bf16")
    assert main(["convert", str(path), "-o", str(tmp_path / "q.onnx"), "--check", "none"]) == 0
    assert "a GPU (CUDAExecutionProvider)" in capsys.readouterr().out
