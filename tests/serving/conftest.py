"""Models that packages are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

import zq2onnx
from tests import zoo


@pytest.fixture(scope="module")
def float_model() -> Path:
    return zoo.model("tiny-cache")


@pytest.fixture(scope="module")
def quantized(float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "tiny.w4.onnx"
    zq2onnx.convert(float_model, path, check="none")
    return path
