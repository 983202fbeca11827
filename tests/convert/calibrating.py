"""Short forms for conversions with calibration data: eight samples of sixteen tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import zq2onnx
from tests import zoo
from zq2onnx.calibration import Samples, load_samples
from zq2onnx.conversion.loading import load

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "models" / "tiny" / "heldout.txt"
SAMPLES, LENGTH = 8, 16

Array = np.ndarray


def calibrate(model: Path, output: Path, **options: Any) -> zq2onnx.Report:
    """Convert with calibration on `TEXT`, without a check."""
    given = {
        "calib": TEXT,
        "tokenizer": model.parent,
        "calib_samples": SAMPLES,
        "calib_length": LENGTH,
        "group_size": 32,
        "check": "none",
    }
    return zq2onnx.convert(model, output, **{**given, **options})


def samples_of(model: Path, calib: Path = TEXT) -> Samples:
    """What `calibrate` calibrates on."""
    return load_samples(load(model).model, model, calib, model.parent, SAMPLES, LENGTH)


def all_feeds(model: Path) -> dict[str, Array]:
    """What `calibrate` calibrates on, held-out samples too, as one batch."""
    batches = samples_of(model).batches
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def relative_output_error(weight: Array, written: Array, x: Array) -> float:
    """`(E|(W - W') x|² / E|W x|²)^½` for weights `[N, K]` and inputs `[.., K]`."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    lost, whole = (rows @ part.T for part in (weight.astype(np.float64) - written, weight.astype(np.float64)))
    return float(np.linalg.norm(lost) / np.linalg.norm(whole))


def written_weights(path: Path) -> dict[str, Array]:
    """By node, the weight `[N, K]`, branch included, that a qdq file stands for; oracle of the bytes."""
    model = onnx.load(path)
    made = {output: node for node in model.graph.node for output in node.output}
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        source = made.get(node.input[1]) if node.op_type == "MatMul" else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        codes, scales = (tensors[name] for name in source.input[:2])
        zeros = tensors[source.input[2]] if len(source.input) > 2 else np.zeros_like(scales)
        size = next((item.i for item in source.attribute if item.name == "block_size"), 0)
        spread = [
            each.astype(np.float64).repeat(size, 0)[: len(codes)] if size else each.astype(np.float64)
            for each in (scales, zeros)
        ]
        weight = (codes.astype(np.float64) - spread[1]) * spread[0]
        prefix = re.sub("DQ_codes$", "lorc_", source.input[0])
        if prefix + "U" in tensors:
            u, v = (
                tensors[prefix + side].astype(np.float64) * tensors.get(f"{prefix}{side}_scales", 1)
                for side in ("U", "V")
            )
            weight += u @ v
        found[node.name] = weight.T
    return found


def means(report: zq2onnx.Report) -> float:
    """The mean output error."""
    errors = [node.output_error for node in report.quantized]
    assert all(error is not None for error in errors)
    return float(np.mean([error for error in errors if error is not None]))


def divergence(model: Path, other: Path, feeds: Mapping[str, Array]) -> float:
    """Relative distance of the first outputs."""
    expected, found = (zoo.run(path, dict(feeds))[0].astype(np.float64) for path in (model, other))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
