"""The float model that most conversion tests convert."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.convert import linear_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return linear_model.write(tmp_path / "m.onnx")
