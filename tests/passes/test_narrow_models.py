"""Exported models in half precision are near those in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.reference
import pytest
from onnx import ModelProto

from tests import zoo
from tests.passes.test_narrow import narrowed, run
from zq2onnx.conversion.loading import load
from zq2onnx.passes.normalize import NormalizePass


@pytest.mark.parametrize("name", ["opt", "llama", "opt-torchscript-13", "opt-cache", "llama-cache"])
def test_exported_models_are_near_the_float_model(name: str, tmp_path: Path) -> None:
    path = zoo.model(name)
    made, feeds, halves = _made(path)
    for got, expected in zip(run(made, halves, tmp_path), zoo.run(path, feeds), strict=True):
        assert got.dtype == np.float16
        if not name.endswith("-cache"):  # what a padded token attends to, all masked, means nothing
            got, expected = got[feeds["attention_mask"] == 1], expected[feeds["attention_mask"] == 1]
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["opt", "llama", "bloom", "opt-torchscript-13", "llama-cache"])
def test_every_node_may_round_its_result(name: str) -> None:
    """As on a GPU: onnx.reference computes each node in its own type, ONNX Runtime's CPU most in float32."""
    path = zoo.model(name)
    made, feeds, halves = _made(path)
    got = onnx.reference.ReferenceEvaluator(made).run(None, halves)[0]
    expected = zoo.run(path, feeds)[0]
    real = feeds["attention_mask"][:, -7:] == 1
    assert got.dtype == np.float16 and np.isfinite(got).all()
    np.testing.assert_allclose(got[real], expected[real], rtol=0, atol=0.01 * np.abs(expected).max())
    assert np.abs(got[real] - expected[real]).max() > 1e-4 * np.abs(expected).max()  # not float32


def _made(path: Path) -> tuple[ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The narrowed model; in both types two sequences of seven tokens, one padded, behind a past of three."""
    model = load(path).model
    NormalizePass()(model)
    feeds = zoo.feeds(path, past=3 if "-cache" in path.parent.name else 0)
    feeds["attention_mask"][0, :2] = 0
    halves = {
        key: value.astype(np.float16) if value.dtype == np.float32 else value for key, value in feeds.items()
    }
    return narrowed(model), feeds, halves
