"""The tables of `inspect`."""

from __future__ import annotations

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
    assert cells(lines, "layers.1") == ["layers.1", "MatMul", "64 x 64", "32.00", "quantize"]
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
    assert cells(lines, "layers.2") == ["layers.2", "MatMul", "64 x 64", "32.00", "quantize"]
    assert cells(lines, "quantized linear")[1:3] == ["2", "0.01"]


def test_bundled_model(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = inspect(capsys, tiny_model / "model.onnx")
    assert cells(lines, "model.decoder.layers.3.fc2")[1:] == ["Gemm", "1024 x 256", "16.00", "quantize"]
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


def test_an_old_opset_can_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = linear_model.write(tmp_path / "m.onnx", opset=9)
    assert cells(inspect(capsys, model), "layers.0")[4] == "quantize"
