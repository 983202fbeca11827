"""What a budget cannot be spent on is told before any layer is sized up."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests import zoo
from tests.convert.calibrating import LENGTH, SAMPLES, TEXT
from zq2onnx.cli.app import main
from zq2onnx.errors import UserError
from zq2onnx.planning import judge as judging
from zq2onnx.planning.judge import Judge
from zq2onnx.planning.planner import Planner


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy, which may be written over."""
    folder = tmp_path / "model"
    shutil.copytree(zoo.model("opt").parent, folder)
    return folder / "model.onnx"


@pytest.fixture(autouse=True)
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    def size_up(*arguments: object) -> None:
        raise AssertionError("layers are sized up")

    monkeypatch.setattr(Planner, "size_up", size_up)


def convert(model: Path, *more: object, budget: str = "4.5bits") -> int:
    given = ["convert", model, "--budget", budget, "--method", "rtn", "--tokenizer", model.parent]
    data = ["--calib", TEXT, "--calib-samples", SAMPLES, "--calib-length", LENGTH]
    return main([str(each) for each in (*given, *data, *more)])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "1bits"], "bytes short, the smallest schemes come to"),
        (["--budget", "1kB"], "bytes short, the smallest schemes come to"),
        (["-o", "{root}/absent/deeper/out.onnx"], "there is no folder"),
        (["-o", "{root}/model/model.onnx", "--force"], "is the input, or its data"),
        (["--plan", "{root}/model/model.onnx", "--force"], "is another file of this run"),
        (["--plan", "{root}/model/model.onnx.data", "--force"], "is another file of this run"),
        (["--plan", "{root}/out.onnx.data", "--force"], "is another file of this run"),
        (["--plan", "{root}/report.json", "--report", "{root}/report.json"], "is another file of this run"),
        (["--plan", "{root}/model"], "is a folder"),
        (["--plan", "{root}/absent/deeper/plan.toml"], "there is no folder"),
        (["--report", "{root}/absent/deeper/report.json"], "there is no folder"),
        (["--report", "{root}/model"], "is a folder"),
        (["--check", "some"], "unknown check 'some'"),
        (["--dump-passes", "{root}/absent/deeper/dumps"], "there is no folder"),
        (["--budget", "class-1", "--budget-text", "{root}/absent.txt"], "absent.txt"),
        (["--budget", "class-1", "--budget-text", "{root}/short.txt"], "short.txt"),
    ],
)
def test_what_convert_would_refuse_is_refused_at_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    (tmp_path / "short.txt").write_text("too short")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert convert(model, "-o", tmp_path / "out.onnx", *(each.format(root=tmp_path) for each in more)) == 2

    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_encoder_has_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert = zoo.model("bert")

    assert convert(bert, "-o", tmp_path / "out.onnx", "--budget-text", TEXT, budget="class-1") == 2
    assert "logits" in capsys.readouterr().err


def test_resume_overwrites_no_plan_of_another_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.plan.toml").write_text("# made of: another budget")

    assert convert(model, "-o", tmp_path / "out.onnx", "--resume") == 2
    assert "out.plan.toml exists; required: a new path for the plan" in capsys.readouterr().err


def test_resume_overwrites_no_output_of_another_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.onnx").write_text("mine")

    assert convert(model, "-o", tmp_path / "out.onnx", "--resume") == 2
    assert "out.onnx exists" in capsys.readouterr().err


def test_data_beside_a_single_file_is_of_no_concern(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.onnx.data").write_text("another's")

    assert convert(model, "-o", tmp_path / "out.onnx", "--single-file") == 1  # goes on to sizing up


def test_plans_of_outputs_with_other_endings_have_names_of_their_own(tmp_path: Path) -> None:
    from zq2onnx.planning.spend import _default_plan

    names = [_default_plan(tmp_path / name).name for name in ("a.onnx", "a.v1", "a.v2")]
    assert names == ["a.plan.toml", "a.v1.plan.toml", "a.v2.plan.toml"]


@pytest.mark.parametrize("perplexity", [float("inf"), float("nan")])
def test_a_float_model_without_a_perplexity_cannot_be_judged(
    model: Path, monkeypatch: pytest.MonkeyPatch, perplexity: float
) -> None:
    evaluate = judging.evaluate

    def without(*arguments: object, **options: object) -> object:
        found = evaluate(*arguments, **options)  # type: ignore[arg-type]
        return dataclasses.replace(
            found, models=(dataclasses.replace(found.models[0], mean=perplexity, perplexity={}),)
        )

    monkeypatch.setattr(judging, "evaluate", without)
    judge = Judge(model, model.with_name("out.onnx"), TEXT, None, (TEXT,))

    with pytest.raises(UserError, match=f"its perplexity is {perplexity}: its logits are not all finite"):
        _ = judge.reference
