"""int8 activations of a model whose activations have outlier channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import zq2onnx
from tests import zoo
from tests.acceptance.perplexity import write_texts
from tests.outliers import plant_outliers
from zq2onnx.evaluation import evaluate

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WINDOWS = 5
W8A8: dict[str, Any] = {
    "scheme": "w8a8",
    "group_size": "row",
    "method": "rtn",
    "lorc_rank": 0,
    "check": "none",
}
WAYS: dict[str, dict[str, Any]] = {
    "tensor": {"act_granularity": "tensor", "target": "qdq", "smooth": "off"},
    "token": {"smooth": "off"},
    "token, smoothed": {"smooth": "auto"},
}


def divergence(
    model: Path, folder: Path, texts: list[Path], ways: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Mean KL to the float model of each way."""
    paths = {name: folder / f"{number}.onnx" for number, name in enumerate(ways)}
    folder.mkdir()
    for name, path in paths.items():
        zq2onnx.convert(
            model,
            path,
            calib=DATA / "calibration.txt",
            tokenizer=model.parent,
            calib_samples=16,
            calib_length=256,
            **W8A8,
            **ways[name],
        )
    scores = evaluate([model, *paths.values()], texts, model.parent, length=256, windows=WINDOWS).models
    return {name: score.kl for name, score in zip(paths, scores[1:], strict=True)}


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data beside the checkout")
def test_outliers_are_smoothed_away(tmp_path: Path) -> None:
    texts = write_texts(DATA, tmp_path / "texts")
    untouched = zoo.model("opt-17m")
    planted = tmp_path / "planted" / "model.onnx"
    planted.parent.mkdir()
    assert len(plant_outliers(untouched, planted, channels=6, factor=30)) == 8  # two norms in each layer
    kl = divergence(planted, tmp_path / "q", texts, WAYS)
    plain = divergence(untouched, tmp_path / "p", texts, {"token": WAYS["token"]})["token"]
    print(f"untouched, token: {plain:.6f}; planted: {kl}")
    assert kl["tensor"] > 0.01, "a static scale for all channels breaks the model"
    assert kl["token, smoothed"] <= 0.1 * kl["tensor"]
    assert kl["token, smoothed"] <= 1.3 * plain
    assert kl["token"] > 3 * kl["token, smoothed"]
