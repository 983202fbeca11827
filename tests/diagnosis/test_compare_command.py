"""`zq2onnx compare` on the command line: what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import zq2onnx
from tests.convert import linear_model
from tests.diagnosis.faults import BLOCK, change_constant, times
from tests.evaluation.language import write_bigram, write_text, write_tokenizer
from zq2onnx.cli.app import main

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

FC1 = f"{BLOCK}.1.fc1"


@pytest.fixture(scope="module")
def quantized(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with wrong scales in one layer."""
    folder = tmp_path_factory.mktemp("compare")
    zq2onnx.convert(tiny_model / "model.onnx", folder / "w4.onnx", scheme="w4a16", lorc_rank=0, check="none")
    return change_constant(folder / "w4.onnx", folder / "q.onnx", FC1, 2, times(3, slice(None)))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    linear_model.write(tmp_path / "float.onnx")
    zq2onnx.convert(tmp_path / "float.onnx", tmp_path / "quant.onnx", scheme="w4a16", check="none")
    x = np.random.default_rng(0).standard_normal((4, linear_model.WIDTH)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path


def run(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def test_a_table_the_jump_and_its_cause(
    tiny_model: Path, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results" / "errors.json"
    text = ("--text", tiny_model / "heldout.txt", "--length", 64, "--windows", 2)
    assert run(tiny_model / "model.onnx", quantized, *text, "--json", file) == 0
    printed = capsys.readouterr()
    rows = [line for line in printed.out.splitlines() if line.startswith("│")]
    assert len(rows) == 25
    (jump,) = (row for row in rows if "<- jump" in row)
    assert FC1 in jump and "<- worst" in jump and "MatMulW4A16" in jump
    assert f"the error jumps at node {FC1} (block 1): 0.0" in printed.out
    assert "likely cause: the quantized weights are 3 times the float ones: wrong scales" in printed.out
    assert printed.err == ""
    said = json.loads(file.read_text())
    assert (said["jump"]["layer"], said["findings"][0]["cause"]) == (FC1, "wrong scale")
    assert len(said["layers"]) == 25


def test_top_lists_the_worst_in_graph_order(
    tiny_model: Path, quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ("--text", tiny_model / "heldout.txt", "--length", 32, "--windows", 1)
    assert run(tiny_model / "model.onnx", quantized, *text, "--top", 3) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    assert len(rows) == 3
    assert any(FC1 in row for row in rows)
    names = [row.split("│")[1].strip() for row in rows]
    assert names == sorted(names)
    assert "22 layers not shown" in printed


def test_quiet_prints_nothing(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(chain / "float.onnx", chain / "quant.onnx", "--npz", chain / "x.npz", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_the_same_model_twice(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(chain / "float.onnx", chain / "float.onnx", "--npz", chain / "x.npz") == 0
    assert capsys.readouterr().out == "nothing differs: 3 layers are the same in both models\n"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a refusal consists of."""
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


def test_what_cannot_be_done_is_refused(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair, npz = (chain / "float.onnx", chain / "quant.onnx"), ("--npz", chain / "x.npz")
    write_text(chain / "a.txt", [1, 2, 3])
    (chain / "no.onnx").write_bytes(b"no model")
    for arguments, message in (
        (pair, "neither --text nor --npz"),
        ((*pair, *npz, "--text", chain / "a.txt"), "both --text and --npz"),
        ((*pair, *npz, "--windows", 0), "--windows 0; required: at least 1"),
        ((*pair, *npz, "--top", 0), "--top 0; required: at least 1"),
        ((*pair, *npz, "--json", chain / "x.npz"), "it is one of the inputs"),
        ((*pair, *npz, "--json", chain / "a" / "b" / "c.json"), "an existing one"),
        ((*pair, "--text", chain / "a.txt"), "no input named input_ids"),
        ((*pair, "--npz", chain / "absent.npz"), "absent.npz: no such file"),
        ((chain / "absent.onnx", chain / "quant.onnx", *npz), "absent.onnx: no such file"),
        ((chain / "float.onnx", chain / "no.onnx", *npz), "no.onnx: not an ONNX model"),
        ((*pair, *npz, "--wrong"), "No such option"),
    ):
        assert message in refused(capsys, *arguments)


def test_external_data_that_is_missing_is_named(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (chain / "alone").mkdir()
    shutil.copy(chain / "quant.onnx", chain / "alone")
    message = refused(capsys, chain / "float.onnx", chain / "alone" / "quant.onnx", "--npz", chain / "x.npz")
    assert "quant.onnx.data is missing" in message


def test_models_that_are_not_of_one_origin_are_refused(
    tmp_path: Path, chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bigram(tmp_path / "ten.onnx", np.eye(10, dtype=np.float32), width=10)
    write_bigram(tmp_path / "nine.onnx", np.eye(9, dtype=np.float32), width=9)
    write_tokenizer(tmp_path / "tokenizer.json", 9)
    text = ("--text", write_text(tmp_path / "a.txt", [1] * 20))
    npz = ("--npz", chain / "x.npz")
    assert "has the inputs" in refused(capsys, chain / "float.onnx", tmp_path / "ten.onnx", *npz)
    message = refused(capsys, tmp_path / "ten.onnx", tmp_path / "nine.onnx", *text)
    assert "knows 10 tokens" in message and "nine.onnx 9" in message
    names = {f"other.{i}.weight": array for i, array in enumerate(linear_model.weights().values())}
    other = linear_model.write(chain / "other.onnx", names)
    message = refused(capsys, chain / "float.onnx", other, *npz)
    assert "no layer in common" in message


def test_a_text_shorter_than_a_window_is_refused(
    tiny_model: Path, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("A few words.", encoding="utf-8")
    message = refused(capsys, tiny_model / "model.onnx", quantized, "--text", tmp_path / "short.txt")
    assert "at least one window of 256 tokens" in message
