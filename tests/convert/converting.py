"""Short forms for the conversion tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

import zq2onnx
from tests import zoo
from tests.convert import linear_model

TARGETS = ("portable", "qdq")


def convert(model: Path, output: Path | None = None, **options: Any) -> zq2onnx.Report:
    return zq2onnx.convert(model, output, **{"check": "none", **options})


def contents(output: Path) -> list[bytes]:
    data = Path(f"{output}.data")
    return [path.read_bytes() for path in (output, data) if path.exists()]


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def run(path: Path) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((5, linear_model.WIDTH)).astype(np.float32)
    return zoo.run(path, {"x": x})[0]
