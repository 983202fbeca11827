"""`zq2onnx eval` on the command line: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from tests.evaluation.language import write_bigram, write_text, write_tokenizer
from zq2onnx.cli.eval import eval_
from zq2onnx.errors import CheckFailed, UserError

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

application = typer.Typer()
application.command("eval")(eval_)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    following = np.roll(np.eye(10, dtype=np.float32), 1, axis=1)
    table = np.random.default_rng(0).standard_normal((10, 10)).astype(np.float32) + 5 * following
    write_bigram(tmp_path / "float.onnx", table)
    write_bigram(tmp_path / "quant.onnx", table + np.eye(10, dtype=np.float32))
    write_tokenizer(tmp_path / "tokenizer.json", 10)
    write_text(tmp_path / "news.txt", np.arange(40) % 10)
    write_text(tmp_path / "web.txt", np.arange(40) % 7)
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(application, [str(argument) for argument in arguments])


def test_a_table_has_a_row_per_model_and_a_column_per_text(folder: Path) -> None:
    result = invoke(
        *(folder / "float.onnx", folder / "quant.onnx", "--text", folder / "news.txt"),
        *("--text", folder / "web.txt", "--tokenizer", folder, "--length", 8, "--windows", 3),
    )
    assert result.exit_code == 0, result.output
    for heading in ("model", "MB", "bits/weight", "news", "web", "mean", "gap", "top-1 %", "KL"):
        assert heading in result.stdout
    rows = [line.split("│")[1:-1] for line in result.stdout.splitlines() if ".onnx" in line]
    first, second = ([cell.strip() for cell in row] for row in rows)
    assert [Path(row[0]).name for row in (first, second)] == ["float.onnx", "quant.onnx"]
    assert first[-4:] == ["+0.000", "-", "100.00", "0.00000"]
    assert second[-3].startswith("Class-")
    assert float(second[-1]) > 0
    assert f"{second[-3]}: " in result.stdout
    assert "8 tokens a window, 42 predicted" in result.stdout
    assert result.stderr == ""


def test_json_goes_to_a_file_in_a_folder_made_for_it(folder: Path) -> None:
    file = folder / "results" / "out.json"
    result = invoke(
        *(folder / "float.onnx", "--text", folder / "news.txt", "--length", 8, "--json", file, "--quiet")
    )
    assert result.exit_code == 0, result.output
    assert result.output == ""
    (model,) = json.loads(file.read_text())["models"]
    assert (model["gap"], model["top1"], model["kl"]) == (0, 1, 0)


def test_output_that_cannot_be_written_is_refused_before_any_work(folder: Path) -> None:
    common = (folder / "absent.onnx", "--text", folder / "news.txt", "--json")
    for file, message in (
        (folder / "a" / "b" / "out.json", "a folder that exists; mkdir -p"),
        (folder, "a file in a folder"),
    ):
        error = invoke(*common, file).exception
        assert isinstance(error, UserError)
        assert message in str(error)


@pytest.mark.parametrize(
    "name", ["news.txt", "float.onnx", "quant.onnx", "quant.onnx.data", "tokenizer.json", "config.json"]
)
def test_what_was_read_is_not_written_over(folder: Path, name: str) -> None:
    model = onnx.load(folder / "quant.onnx")
    onnx.save(
        *(model, folder / "quant.onnx"),
        save_as_external_data=True,
        location="quant.onnx.data",
        size_threshold=0,
    )
    (folder / "config.json").write_text("{}")
    before = (folder / name).read_bytes()
    models = (folder / "float.onnx", folder / "quant.onnx")
    error = invoke(
        *(*models, "--text", folder / "news.txt", "--length", 8, "--json", folder / "." / name)
    ).exception
    assert isinstance(error, UserError)
    assert str(error) == f"--json {folder / name}: it is one of the inputs; required: another file"
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to run the models on; required: --text FILE, or --npz FILE"),
        (("--text", "a.txt", "--npz", "a.npz"), "--text and --npz together"),
        (("--npz", "a.npz", "--tokenizer", "t"), "--tokenizer with --npz, which has no use for it"),
        (("--npz", "a.npz", "--task", "embedding", "--length", 4), "--length, --task embedding with --npz"),
        (("--text", "a.txt", "--task", "embedding", "--stride", 4), "--stride with --task embedding"),
    ],
)
def test_options_that_do_not_go_together(folder: Path, options: tuple[object, ...], message: str) -> None:
    error = invoke(folder / "float.onnx", *options).exception
    assert isinstance(error, UserError)
    assert message in str(error)


def test_windows_that_overlap_are_said(folder: Path) -> None:
    common = (folder / "float.onnx", "--text", folder / "news.txt", "--length", 8, "--stride", 3)
    result = invoke(*common, "--windows", 4)
    assert result.exit_code == 0, result.output
    assert "8 tokens a window every 3 tokens, 16 predicted" in result.stdout


def test_texts_of_one_name_are_told_apart(folder: Path) -> None:
    (folder / "more").mkdir()
    other = write_text(folder / "more" / "news.txt", np.arange(40) % 3)
    texts = ("--text", folder / "news.txt", "--text", other)
    result = invoke(folder / "float.onnx", *texts, "--length", 8)
    assert result.exit_code == 0, result.output
    assert str(other) in result.stdout


def test_a_tokenizer_other_than_the_one_beside_the_model_is_refused(folder: Path) -> None:
    (folder / "other").mkdir()
    other = write_tokenizer(folder / "other" / "tokenizer.json", 9)
    common = (folder / "float.onnx", "--text", folder / "news.txt", "--length", 8, "--tokenizer")
    error = invoke(*common, other).exception
    assert isinstance(error, UserError)
    assert str(error).startswith(f"{other}: its 9 tokens are not the 10 of {folder}/tokenizer.json")
    assert error.remedy == f"--tokenizer {folder}/tokenizer.json"


def test_the_same_tokenizer_elsewhere_is_taken_with_tokens_added(folder: Path) -> None:
    same = Tokenizer.from_file(str(folder / "tokenizer.json"))
    same.add_special_tokens(["<chat>"])
    (folder / "other").mkdir()
    same.save(str(folder / "other" / "tokenizer.json"))
    common = (folder / "float.onnx", "--text", folder / "news.txt", "--length", 8, "--tokenizer")
    assert invoke(*common, folder / "other").exit_code == 0


def test_a_float_model_worse_than_guessing_is_refused(folder: Path) -> None:
    """Ids within the vocabulary, but not those that the model was trained on."""
    text = write_text(folder / "backwards.txt", -np.arange(40) % 10)
    result = invoke(folder / "float.onnx", "--text", text, "--length", 8, "--json", folder / "out.json")
    assert isinstance(result.exception, UserError)
    for part in (f"float.onnx: its perplexity on {text} is", "among its 10 tokens", "do not match"):
        assert part in str(result.exception)
    assert not (folder / "out.json").exists()


def test_a_quantized_model_worse_than_guessing_is_a_result(folder: Path) -> None:
    broken = write_bigram(folder / "broken.onnx", -9 * np.roll(np.eye(10, dtype=np.float32), 1, axis=1))
    result = invoke(folder / "float.onnx", broken, "--text", folder / "news.txt", "--length", 8)
    assert result.exit_code == 0, result.output


def test_a_model_whose_logits_are_not_finite_fails_after_the_table(folder: Path) -> None:
    broken = write_bigram(folder / "broken.onnx", np.full((10, 10), np.nan, np.float32))
    result = invoke(folder / "float.onnx", broken, "--text", folder / "news.txt", "--length", 8)
    assert isinstance(result.exception, CheckFailed)
    assert "broken.onnx: its perplexity is nan" in str(result.exception)
    assert "broken.onnx" in result.output
