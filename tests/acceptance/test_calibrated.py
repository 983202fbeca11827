"""Calibrated methods on trained models: what they leave of round-to-nearest's divergence."""

from __future__ import annotations

from pathlib import Path

import pytest

import zq2onnx
from tests import zoo
from tests.acceptance.calibrated import (
    BARS,
    COLUMNS,
    ROWS,
    convert_cell,
    convert_rtn,
    divergences,
)
from tests.acceptance.perplexity import write_texts
from zq2onnx.evaluation import evaluate

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TINY = Path(__file__).resolve().parents[2] / "models" / "tiny"
COLUMN = "W3 row"
MEASURED = ("GPTQ + exact 8", "GPTQ + exact 8, model")
WINDOWS = 6


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data beside the checkout")
def test_divergence_of_the_trained_opt(tmp_path: Path) -> None:
    """The whole table, on 80 windows of each text, is benchmarks/calibrated.py's."""
    model = zoo.model("opt-17m")
    texts = write_texts(DATA, tmp_path / "texts")
    paths = {"RTN": convert_rtn(model, tmp_path / "rtn.onnx", COLUMN)}
    for number, row in enumerate(MEASURED):
        path = tmp_path / f"{number}.onnx"
        paths[row] = convert_cell(model, DATA / "calibration.txt", path, COLUMN, ROWS[row])
    found = divergences(model, paths.values(), texts, WINDOWS)
    kl = {row: found[path].kl for row, path in paths.items()}
    for row in MEASURED:
        assert kl[row] <= BARS[row][list(COLUMNS).index(COLUMN)] * kl["RTN"], (row, kl)


def test_divergence_of_the_bundled_model(tmp_path: Path) -> None:
    """Calibrated on the first half of the held-out text, measured on the second."""
    text = (TINY / "heldout.txt").read_text(encoding="utf-8")
    halves = [tmp_path / "first.txt", tmp_path / "second.txt"]
    halves[0].write_text(text[: len(text) // 2], encoding="utf-8")
    halves[1].write_text(text[len(text) // 2 :], encoding="utf-8")
    options = {"scheme": "w3a16", "group_size": "row", "check": "none"}
    calibration = {"calib": halves[0], "tokenizer": TINY, "calib_samples": 40, "calib_length": 256}
    rtn = zq2onnx.convert(TINY / "model.onnx", tmp_path / "rtn.onnx", lorc_rank=0, **options)
    gptq = zq2onnx.convert(TINY / "model.onnx", tmp_path / "gptq.onnx", lorc_rank=0, **options, **calibration)
    branch = zq2onnx.convert(TINY / "model.onnx", tmp_path / "branch.onnx", **options, **calibration)
    paths = [rtn.output, gptq.output, branch.output]
    scores = evaluate([TINY / "model.onnx", *paths], halves[1:], TINY, length=256, windows=20).models
    plain, fed, compensated = (score.kl for score in scores[1:])
    assert fed < 0.5 * plain
    assert compensated < 0.95 * fed
