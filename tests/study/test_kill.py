"""A study that is killed goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.study.running import LABELS, Conversions, killed, request
from zq2onnx.study import run_study

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def test_killed_in_a_conversion_it_repeats_that_cell_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(request(tmp_path), conversion=3)
    cells = tmp_path / "out" / "cells"
    assert (cells / "w4a16-g64-gptq-r0").is_dir(), "it died with a model half written"
    assert not (tmp_path / "out" / "study.json").exists()
    conversions = Conversions([])
    conversions.watch(monkeypatch)
    study = run_study(request(tmp_path))
    assert conversions.labels == LABELS[2:]
    assert [result.cell.label for result in study.cells] == LABELS
    assert all(path.suffix == ".json" for path in cells.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("cells", "study.csv", "study.json", "study.md"),
    ]
