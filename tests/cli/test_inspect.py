"""The tables of `inspect`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zq2onnx
from tests.convert import linear_model
from zq2onnx.cli.app import main

ROOT = Path(__file__).resolve().parents[2]


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[str]:
    assert main(["inspect", *map(str, arguments)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out.splitlines()


def cells(lines: list[str], name: str) -> list[str]:
    return next(re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith(f"{name} "))


def test_float_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    lines = inspect(capsys, model)
    assert cells(lines, "node") == ["node", "op", "K x N", "bits now", "convert would"]
    assert cells(lines, "layers.1") == ["layers.1", "MatMul", "64 x 64", "32.00", "quantize to 4 bits"]
    assert cells(lines, "float linear") == ["float linear", "3", "0.01", "0.05", "32.00"]
    size = sum(len(content) for content in linear_model.files(tmp_path).values())
    assert cells(lines, "all files") == ["all files", f"{size / 1e6:.2f}"]


@pytest.mark.parametrize(("target", "op"), [("portable", "MatMulW4A16LoRC"), ("qdq", "MatMul")])
def test_converted_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, op: str) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    report = zq2onnx.convert(model, tmp_path / "q.onnx", target=target, exclude=["layers.2"], check="none")
    lines = inspect(capsys, tmp_path / "q.onnx")
    bits = f"{report.effective_bits:.2f}"
    assert cells(lines, "layers.0") == [
        "layers.0",
        op,
        "64 x 64",
        bits,
        f"leave it: already quantized ({op})",
    ]
    assert cells(lines, "layers.2") == ["layers.2", "MatMul", "64 x 64", "32.00", "quantize to 4 bits"]
    assert cells(lines, "quantized linear")[1:3] == ["2", "0.01"]


def test_bundled_model(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = inspect(capsys, tiny_model / "model.onnx")
    assert cells(lines, "model.decoder.layers.3.fc2")[1:] == [
        "Gemm",
        "1024 x 256",
        "16.00",
        "quantize to 4 bits",
    ]
    assert "leave it: lm_head is left float by default" in " ".join(cells(lines, "lm_head"))
    assert "leave it: embeddings are left float" in " ".join(cells(lines, "model.decoder.embed_tokens"))
    hidden = next(line for line in lines if "not listed" in line)
    assert hidden.startswith("(8 products of two activations")
    listed = inspect(capsys, tiny_model / "model.onnx", "--all")
    assert sum("both operands are activations" in line for line in listed) == 8


def test_no_line_is_broken_or_cut_in_a_pipe(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "zq2onnx", "inspect", str(tiny_model / "model.onnx")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={"COLUMNS": "20", "PATH": ""}
    )
    assert done.returncode == 0 and "…" not in done.stdout and "\x1b" not in done.stdout
    assert "model.decoder.layers.0.self_attn.out_proj  MatMul  256 x 256" in done.stdout


@pytest.mark.parametrize("content", [None, b"", b"text, and no model"])
def test_file_that_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    assert main(["inspect", str(path)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith(f"error: {path}") and output.err.count("\n") == 1


def test_an_opset_that_cannot_be_converted_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = linear_model.write(tmp_path / "m.onnx", opset=9)
    lines = inspect(capsys, model, "--json", tmp_path / "i.json")
    assert cells(lines, "layers.0")[4] == "quantize to 4 bits"
    assert lines[-1].startswith("convert would refuse this model: the model's opset is 9; ")
    said = json.loads((tmp_path / "i.json").read_text())
    assert said["opset"] == 9 and said["obstacle"].startswith("the model's opset is 9")
    assert {node["would"] for node in said["nodes"]} == {"skip"}


def test_options_of_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[node]]\nmatch = "layers.1"\nscheme = "w8a16"\n')
    options = ["--scheme", "w3a16", "--exclude", "layers.2", "--recipe", str(recipe)]
    path = tmp_path / "i.json"
    lines = inspect(capsys, model, *options, "--json", path)
    verdicts = [cells(lines, f"layers.{i}")[4] for i in range(3)]
    assert verdicts == ["quantize to 3 bits", "quantize to 8 bits", "leave it: excluded by 'layers.2'"]
    assert main(["convert", str(model), *options, "--report", str(tmp_path / "r.json"), "--quiet"]) == 0
    written = json.loads((tmp_path / "r.json").read_text())["nodes"]
    said = json.loads(path.read_text())["nodes"]
    same = ("name", "op", "shape", "bits", "group_size", "rank")
    assert [[node[key] for key in same] for node in said] == [[node[key] for key in same] for node in written]
    assert [node["would"] for node in said] == ["quantize", "quantize", "skip"]
    only = inspect(capsys, model, "--only", "layers.0")
    assert cells(only, "layers.1")[4] == "leave it: not among --only"


def test_embeddings_and_heads(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = inspect(capsys, tiny_model / "model.onnx", "--embedding-bits", "8", "--include", "lm_head")
    assert cells(lines, "model.decoder.embed_tokens")[4] == "quantize to 8 bits"
    assert "quantize to 4 bits" in " ".join(cells(lines, "lm_head"))


def test_quiet_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    assert inspect(capsys, model, "--quiet", "--json", tmp_path / "i.json") == []
    said = json.loads((tmp_path / "i.json").read_text())
    assert said["kinds"]["float linear"] == {"tensors": 3, "weights": 3 * 64**2, "bytes": 3 * 4 * 64**2}
    assert said["obstacle"] == "" and [node["bits_now"] for node in said["nodes"]] == [32.0] * 3


def test_pattern_that_matches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    assert main(["inspect", str(model), "--exclude", "nowhere"]) == 2
    assert "'nowhere' matches no node" in capsys.readouterr().err
    assert main(["inspect", str(model), "--json", str(tmp_path / "a" / "b" / "i.json")]) == 2
    assert main(["inspect", str(model), "--json", str(model)]) == 2
    assert "is a file of the model" in capsys.readouterr().err.splitlines()[-1]
