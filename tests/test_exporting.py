"""`exporting.export`: what was written is compared with torch."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests import zoo
from zq2onnx import exporting
from zq2onnx.cli.app import app, run
from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.evaluation.trial import largest_difference, shown
from zq2onnx.models.capture import Capture


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("exporting") / "model.onnx"
    return exporting.export(zoo.checkpoint("opt"), path, dtype="bf16")


def test_a_prompt_and_a_step_are_compared(written: Capture) -> None:
    prompt, step = written.turns
    assert prompt.feeds["input_ids"].shape == (2, 6) and step.feeds["input_ids"].shape == (2, 1)
    assert step.feeds["attention_mask"].tolist() == [[1] * 7, [0] * 2 + [1] * 5]
    assert written.difference is not None
    assert 0 < written.difference < exporting.TOLERANCE["bf16"] * np.abs(step.expected).max()


def test_float32_differs_less(written: Capture) -> None:
    """The same questions to another file: those of bfloat16's weights differ by their rounding alone."""
    difference = largest_difference(zoo.model("opt-cache"), written.turns)
    assert 0 < difference < 0.1 * np.abs(written.turns[0].expected).max()


def test_what_padding_gives_is_not_judged(written: Capture) -> None:
    prompt, step = written.turns
    assert written.difference is not None
    wide = dataclasses.replace(written, difference=1.01 * largest(written) * exporting.TOLERANCE["bf16"])
    prompt = dataclasses.replace(prompt, expected=prompt.expected.copy())
    prompt.expected[1, 0] = np.inf  # a token that is padding
    with pytest.raises(CheckFailed, match="answers differ"):
        exporting._judge(dataclasses.replace(wide, turns=(prompt, step)), "bf16")
    exporting._judge(dataclasses.replace(written, turns=(prompt, step)), "bf16")


def largest(made: Capture) -> float:
    """Of the numbers that torch gave for tokens that are shown."""
    return float(max(np.abs(turn.expected[shown(turn)]).max() for turn in made.turns))


class Overflowing:
    """A session of a model whose numbers are too large for their type."""

    def run(self, names: list[str], feeds: dict[str, np.ndarray], asked: str) -> list[np.ndarray]:
        shape = (*feeds["input_ids"].shape, zoo.VOCABULARY)
        return [np.full(shape, np.inf, np.float16), *(np.zeros(1, np.float16) for _ in names[1:])]


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_not_finite_are_one_error(written: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [
        dataclasses.replace(turn, expected=np.full_like(turn.expected, np.inf)) for turn in written.turns
    ]
    overflowing = contextlib.nullcontext(Overflowing())
    monkeypatch.setattr("zq2onnx.evaluation.trial.opened", lambda path, lean: overflowing)
    made = dataclasses.replace(written, turns=turns, difference=largest_difference(written.path, turns))
    assert np.isnan(made.difference)
    with pytest.raises(CheckFailed, match="torch itself gives numbers that are not finite in fp16"):
        exporting._judge(made, "fp16")


def test_a_model_that_computes_something_else_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Capture
) -> None:
    def damaged(source: Any, output: Path, **options: Any) -> Capture:
        data = bytearray(written.data.read_bytes())
        data[1::2] = bytes(byte ^ 0x80 for byte in data[1::2])  # every sign
        (tmp_path / "model.onnx.data").write_bytes(data)
        output.write_bytes(written.path.read_bytes())
        (tmp_path / "config.json").write_bytes((written.path.parent / "config.json").read_bytes())
        return dataclasses.replace(written, path=output)

    monkeypatch.setattr("zq2onnx.models.capture.export", damaged)
    arguments = ["export", "anything", "-o", str(tmp_path / "model.onnx"), "--dtype", "bf16"]
    with pytest.raises(
        CheckFailed, match=r"answers differ from torch's by up to .* would be rounding in bf16"
    ):
        exporting.export("anything", tmp_path / "model.onnx", dtype="bf16")
    assert run(app, arguments) == CheckFailed.exit_code
    assert run(app, [*arguments, "--no-check"]) == 0
    assert (tmp_path / "model.onnx").exists()


def test_no_onnx_runtime_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"zq2onnx\[cpu\]"):
        exporting.export(zoo.checkpoint("opt"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_says_the_difference(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(zoo.checkpoint("bert")), "-o", str(tmp_path / "m.onnx")])
    assert result.exit_code == 0, result.output
    assert "check    differs from torch by at most " in result.output


def test_an_encoder_is_refused_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(zoo.checkpoint("bert")), "-o", str(tmp_path / "m.onnx"), "--cache"]
    assert run(app, arguments) == UserError.exit_code
    printed = capsys.readouterr().err
    assert printed.startswith("error: --cache: BertModel is no causal language model")
    assert printed.count("\n") == 1
