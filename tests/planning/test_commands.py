"""`convert --budget` and `sensitivity` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import zoo
from tests.convert.calibrating import LENGTH, ROOT, SAMPLES, TEXT
from zq2onnx.cli.app import main
from zq2onnx.evaluation import evaluate
from zq2onnx.planning import judge, quality

CALIBRATION = ["--calib", str(TEXT), "--calib-samples", str(SAMPLES), "--calib-length", str(LENGTH)]


@pytest.fixture(scope="module")
def opt() -> Path:
    return zoo.model("opt")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def budget(opt: Path, folder: Path, *more: object, limit: str = "4.5bits") -> int:
    given = [
        "convert",
        opt,
        "-o",
        folder / "out.onnx",
        "--budget",
        limit,
        "--method",
        "rtn",
        "--check",
        "none",
    ]
    return run(*given, "--tokenizer", opt.parent, *CALIBRATION, *more)


def test_convert_within_a_budget_prints_and_saves_the_plan(
    opt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert budget(opt, tmp_path, "--report", tmp_path / "report.json") == 0

    told = capsys.readouterr().out
    assert "plan for --budget 4.5bits" in told
    assert "attention in" in told
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["effective_bits"] <= 4.5
    assert "[[node]]" in (tmp_path / "out.plan.toml").read_text()
    again = ["convert", opt, "-o", tmp_path / "again.onnx", "--recipe", tmp_path / "out.plan.toml"]
    assert run(*again, "--calib", TEXT, "--tokenizer", opt.parent, "--check", "none", "--quiet") == 0
    data = "out.onnx.data", "again.onnx.data"
    assert len({(tmp_path / name).read_bytes() for name in data}) == 1


def test_a_class_is_measured_on_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "JUDGED_WINDOWS", 2)
    monkeypatch.setattr(quality, "MOST_TRIALS", 1)
    text = tmp_path / "held out.txt"
    text.write_text(TEXT.read_text(encoding="utf-8")[:20000], encoding="utf-8")
    left = tmp_path / ".out.onnx.trial"  # by a run that was killed
    left.mkdir()
    (left / "trial.onnx.data.partial").write_text("much")

    tiny = ROOT / "models" / "tiny" / "model.onnx"
    rest = ["--lorc-rank", 0, "--group-size", 64, "--quiet"]
    assert budget(tiny, tmp_path, "--budget-text", text, *rest, limit="class-2") == 0

    assert (tmp_path / "out.plan.toml").read_text().startswith("# zq2onnx plan for --budget class-2")
    found = evaluate([tiny, tmp_path / "out.onnx"], [text], tiny.parent, windows=2)
    assert found.models[1].gap <= 0.5
    assert not left.exists()
    text.write_text(TEXT.read_text(encoding="utf-8")[9000:30000], encoding="utf-8")
    again = budget(tiny, tmp_path, "--budget-text", text, *rest, "--resume", limit="class-2")
    assert again == 2  # another text, another plan


def test_an_existing_plan_is_not_overwritten(
    opt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.plan.toml").write_text("mine")

    assert budget(opt, tmp_path) == 2
    assert "out.plan.toml exists; required: a new path for the plan" in capsys.readouterr().err
    assert (tmp_path / "out.plan.toml").read_text() == "mine"
    assert budget(opt, tmp_path, "--force", "--quiet") == 0
    assert (tmp_path / "out.plan.toml").read_text() != "mine"


def test_resume_takes_the_plan_that_is_there(
    opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zq2onnx.planning import spend

    def fail(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(spend, "convert", fail)
        assert budget(opt, tmp_path, "--quiet") == 130
    plan = (tmp_path / "out.plan.toml").read_text()
    monkeypatch.setattr(spend.Planner, "size_up", fail)

    assert budget(opt, tmp_path, "--resume", "--quiet") == 0
    assert (tmp_path / "out.plan.toml").read_text() == plan
    assert (
        budget(opt, tmp_path, "--resume", "--force", "--quiet", limit="5bits") == 130
    )  # another plan is due


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "lots"], "--budget lots; required: bits per weight, a size, or a class"),
        (["--budget", "1bits"], "bytes short, the smallest schemes come to"),
        (["--budget", "40bits"], "has 32 bits per weight; required: less than that"),
        (["--budget", "900MB"], "required: less than that"),
        (["--budget", "class-1"], "--budget by class, without a text; required: a held-out text"),
        (["--exclude", "."], "no linear layer to quantize"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    opt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert budget(opt, tmp_path, *more) == 2

    told = capsys.readouterr()
    assert message in told.err
    assert len(told.err.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


def test_budget_needs_calibration_and_its_options_a_budget(
    opt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["convert", opt, "-o", tmp_path / "out.onnx"]

    assert run(*out, "--budget", "3bits") == 2
    assert "--budget without calibration data; required: --calib FILE" in capsys.readouterr().err
    assert run(*out, "--plan", "plan.toml") == 2
    assert "--plan without a budget" in capsys.readouterr().err
    assert run(*out, "--budget-text", TEXT) == 2
    assert "--budget-text without a budget" in capsys.readouterr().err


def sensitivity(opt: Path, *more: object) -> int:
    given = ["sensitivity", opt, "--method", "rtn", "--length", 16, "--windows", 3]
    return run(*given, "--tokenizer", opt.parent, *CALIBRATION, *more)


def test_sensitivity_tells_every_layer(opt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"

    assert sensitivity(opt, "--text", TEXT, "--schemes", "w2a16,w4a16", "--json", file) == 0

    told = capsys.readouterr().out
    assert "each layer alone, w2a16 g128 rtn" in told
    assert "rank correlation with KL: estimate" in told
    coarse, fine = json.loads(file.read_text())["sensitivity"]
    assert len(coarse["layers"]) == len(fine["layers"]) == 12
    for one, other in zip(coarse["layers"], fine["layers"], strict=True):
        assert one["node"] == other["node"]
        assert one["kl"] > other["kl"] > 0
        assert one["estimate"] > other["estimate"] > 0
        assert one["layer_error"] > other["layer_error"] > 0


def test_sensitivity_without_text_estimates_alone(opt: Path, tmp_path: Path) -> None:
    assert sensitivity(opt, "--json", tmp_path / "found.json", "--only", "fc1", "--quiet") == 0

    (found,) = json.loads((tmp_path / "found.json").read_text())["sensitivity"]
    assert {layer["kind"] for layer in found["layers"]} == {"MLP up"}
    assert all(layer["kl"] is None and layer["estimate"] > 0 for layer in found["layers"])
    assert found["spearman"] is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--schemes", "w5a16"], "unknown scheme 'w5a16'"),
        (["--text", "absent.txt"], "absent.txt"),
        (["--only", "absent"], "'absent' matches no node"),
        (
            ["--json", "absent/found.json"],
            "--json absent/found.json; required: a file in a folder that exists",
        ),
        (["--text", str(TEXT), "--json", str(TEXT)], "it is one of the inputs"),
        (["--text", str(TEXT), "--windows", "0"], "--windows 0; required: at least 1"),
        (["--text", str(TEXT), "--length", "1"], "--length 1; required: at least 2"),
    ],
)
def test_sensitivity_refuses_in_one_line(
    opt: Path, capsys: pytest.CaptureFixture[str], more: list[Any], message: str
) -> None:
    assert sensitivity(opt, *more) == 2

    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
