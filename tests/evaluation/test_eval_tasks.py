"""`zq2onnx eval` of encoders, of models that read no text, and as a web page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from tests.evaluation.language import write_bigram, write_tokenizer
from tests.evaluation.test_embedding import write_encoder
from tests.evaluation.test_outputs import IN, OUT, write_model
from zq2onnx.cli import eval as command
from zq2onnx.cli.app import run
from zq2onnx.cli.eval import eval_
from zq2onnx.errors import CheckFailed, UserError

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

application = typer.Typer()
application.command("eval")(eval_)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((10, 5)).astype(np.float32)
    write_encoder(tmp_path / "float.onnx", table)
    write_encoder(tmp_path / "quant.onnx", table + rng.standard_normal(table.shape).astype(np.float32))
    write_tokenizer(tmp_path / "tokenizer.json", 10)
    (tmp_path / "lines.txt").write_text("w1 w2 w3\n\nw4\nw5 w6\n")
    return tmp_path


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((IN, OUT)).astype(np.float32)
    write_model(tmp_path / "float.onnx", weight)
    write_model(tmp_path / "quant.onnx", weight + 0.1 * rng.standard_normal(weight.shape).astype(np.float32))
    x = rng.standard_normal((5, IN)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, scale=np.ones((5, 1), np.float32))
    return tmp_path


def invoke(folder: Path, *arguments: object) -> Result:
    models = [str(folder / "float.onnx"), str(folder / "quant.onnx")]
    return CliRunner().invoke(application, [*models, *map(str, arguments)])


def rows(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_encoders_have_a_table_and_names_of_their_own(folder: Path) -> None:
    file = folder / "out.json"
    options = ("--task", "embedding", "--length", 8, "--windows", 2, "--json", file)
    result = invoke(folder, "--text", folder / "lines.txt", *options)
    first, second = rows(result)
    assert first[3:] == ["1.00000"] * 4
    assert 0 < float(second[-1]) < 1
    assert "2 sentences of at most 8 tokens, last_hidden_state" in result.stdout
    model = json.loads(file.read_text())["models"][1]
    assert f"{model['mean_cosine']:.5f}" == second[4]
    assert f"{model['least_cosine']:.5f}" == second[6]


def test_models_of_any_inputs_have_a_row_an_output(linear: Path) -> None:
    result = invoke(linear, "--npz", linear / "a.npz", "--windows", 4, "--json", linear / "out.json")
    found = rows(result)
    assert [row[3] for row in found] == ["y", "positive"] * 2
    assert found[0][4:] == ["0", "0"]
    assert found[1][:3] == ["", "", ""]
    assert "4 samples" in result.stdout
    model = json.loads((linear / "out.json").read_text())["models"][1]
    assert f"{model['relative_error']['y']:.3g}" == found[2][4]
    assert float(found[2][4]) > 0


def test_outputs_that_are_not_finite_fail_after_the_table(linear: Path) -> None:
    write_model(linear / "quant.onnx", np.full((IN, OUT), np.nan, np.float32))
    result = invoke(linear, "--npz", linear / "a.npz")
    assert isinstance(result.exception, CheckFailed)
    assert "quant.onnx: output y is not finite" in str(result.exception)
    assert "relative error" in result.output


def test_embeddings_that_are_not_finite_fail_after_the_table(folder: Path) -> None:
    write_encoder(folder / "quant.onnx", np.full((10, 5), np.inf, np.float32))
    result = invoke(folder, "--text", folder / "lines.txt", "--task", "embedding", "--length", 8)
    assert isinstance(result.exception, CheckFailed)
    assert "quant.onnx: its embeddings" in str(result.exception)


@pytest.mark.parametrize("task", ["embedding", "npz", "perplexity"])
def test_every_evaluation_has_a_page(folder: Path, task: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("jinja2", reason="needs the report extra")
    pytest.importorskip("matplotlib", reason="needs the report extra")
    page = folder / "card" / "page.html"
    options: tuple[object, ...] = ("--text", folder / "lines.txt", "--length", 2, "--html", page)
    if task == "embedding":
        options = (*options, "--task", task)
    elif task == "npz":
        request.getfixturevalue("linear")
        options = ("--npz", folder / "a.npz", "--html", page)
    else:
        for name in ("float", "quant"):
            write_bigram(folder / f"{name}.onnx", np.roll(np.eye(10, dtype=np.float32), 1, axis=1))
    result = invoke(folder, *options, "--quiet")
    assert result.exit_code == 0, result.output
    assert "quant.onnx" in page.read_text(encoding="utf-8")
    assert [file.name for file in page.parent.iterdir()] == ["page.html"]


def test_a_page_without_its_libraries_is_refused_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr(command, "_plan", lambda *arguments: pytest.fail("work was done"))
    monkeypatch.chdir(folder)
    arguments = ["float.onnx", "quant.onnx", "--text", "lines.txt", "--html", "page.html"]
    assert run(application, arguments) == 2
    captured = capsys.readouterr()
    assert "jinja2" in captured.err
    assert "zq2onnx[report]" in captured.err
    assert captured.err.count("\n") == 1
    assert not (folder / "page.html").exists()


def test_results_appear_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "out" / "out.json"
    file.parent.mkdir()
    file.write_text("old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    options = ("--text", folder / "lines.txt", "--task", "embedding", "--length", 8, "--json", file)
    assert isinstance(invoke(folder, *options).exception, OSError)
    assert {path.name: path.read_text() for path in file.parent.iterdir()} == {"out.json": "old"}


def test_a_page_over_an_input_is_refused(folder: Path) -> None:
    options = ("--text", folder / "lines.txt", "--task", "embedding", "--length", 8)
    error = invoke(folder, *options, "--html", folder / "lines.txt").exception
    assert isinstance(error, UserError)
    assert "--html" in str(error)
    assert "it is one of the inputs" in str(error)


def test_two_results_do_not_go_to_one_file(folder: Path) -> None:
    page = folder / "out"
    error = invoke(folder, "--text", folder / "lines.txt", "--html", page, "--json", page).exception
    assert isinstance(error, UserError)
    assert "a file for each" in str(error)
