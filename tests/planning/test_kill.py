"""A conversion within a budget that is killed, and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import zoo
from tests.convert.calibrating import LENGTH, ROOT, SAMPLES, TEXT
from zq2onnx.cli.app import main
from zq2onnx.planning.planner import Planner

KILLED = """
import os, signal, sys
from zq2onnx.cli.app import main
from zq2onnx.storage.journal import Journal

record, done = Journal.record, []

def record_or_die(self, entry):
    record(self, entry)
    done.append(entry)
    if len([each for each in done if each.name.startswith("quantized")]) == 5:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.record = record_or_die
main(sys.argv[1:])
"""


def arguments(model: Path, output: Path, *more: object) -> list[str]:
    given = ["convert", model, "-o", output, "--budget", "4.5bits", "--method", "rtn", "--check", "none"]
    data = [
        "--calib",
        TEXT,
        "--calib-samples",
        SAMPLES,
        "--calib-length",
        LENGTH,
        "--tokenizer",
        model.parent,
    ]
    return [str(each) for each in (*given, *data, "--quiet", *more)]


def test_a_killed_conversion_is_resumed_with_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out, report = zoo.model("opt"), tmp_path / "out.onnx", tmp_path / "report.json"

    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments(model, out)], cwd=ROOT, capture_output=True, check=False
    )

    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    plan = (tmp_path / "out.plan.toml").read_bytes()
    assert main(arguments(model, out)) == 2  # the plan would be overwritten

    with monkeypatch.context() as patch:
        patch.setattr(Planner, "size_up", None)  # is not called
        assert main(arguments(model, out, "--resume", "--report", report)) == 0
    assert json.loads(report.read_text())["reused_weights"] >= 5
    assert (tmp_path / "out.plan.toml").read_bytes() == plan

    (tmp_path / "whole").mkdir()
    assert main(arguments(model, tmp_path / "whole" / "out.onnx")) == 0
    for name in ("out.onnx", "out.onnx.data", "out.plan.toml"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".partial", ".journal", ".lock")]
