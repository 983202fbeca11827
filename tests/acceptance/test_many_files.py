"""Weights in one external file or in many convert to the same bytes; models over 2 GB are a benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zq2onnx
from benchmarks.synthetic import write_model
from tests import zoo
from tests.acceptance.matrix import TARGETS
from zq2onnx.errors import UserError

LAYERS, WIDTH = 3, 48


def test_a_file_for_every_layer_converts_to_the_same_bytes(tmp_path: Path) -> None:
    outputs = {}
    rows = {"x": np.random.default_rng(0).standard_normal((4, WIDTH)).astype(np.float32)}
    for target in TARGETS:
        for split in (False, True):
            folder = tmp_path / f"{target}-{split}"
            folder.mkdir()
            write_model(folder / "model.onnx", LAYERS, WIDTH, split=split)
            assert len(list(folder.glob("*.data"))) == (LAYERS if split else 1)
            output = folder / "out" / "model.onnx"
            report = zq2onnx.convert(folder / "model.onnx", output, target=target, check="full")
            assert len(report.quantized) == 6 * LAYERS
            assert sorted(path.name for path in output.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
            outputs[target, split] = (
                output.with_name("model.onnx.data").read_bytes(),
                zoo.run(output, rows)[0],
            )
        assert outputs[target, False][0] == outputs[target, True][0]
        np.testing.assert_array_equal(outputs[target, False][1], outputs[target, True][1])


@pytest.mark.parametrize("damage", ["truncate", "unlink"])
def test_one_bad_file_of_many_is_named(tmp_path: Path, damage: str) -> None:
    write_model(tmp_path / "model.onnx", LAYERS, WIDTH, split=True)
    bad = tmp_path / "model.onnx.1.data"
    whole = bad.read_bytes()
    bad.unlink()
    if damage == "truncate":
        bad.write_bytes(whole[:-4])
    with pytest.raises(UserError, match=r"model\.onnx\.1\.data"):
        zq2onnx.convert(tmp_path / "model.onnx", tmp_path / "out" / "model.onnx")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_weight_of_every_file_is_what_it_was(tmp_path: Path) -> None:
    """The branch and 8 bits leave so little error that a weight of another file would show."""
    write_model(tmp_path / "model.onnx", LAYERS, WIDTH, split=True)
    report = zq2onnx.convert(tmp_path / "model.onnx", tmp_path / "out" / "model.onnx", scheme="w8a16")
    errors = [node.weight_error for node in report.quantized]
    assert max(error for error in errors if error is not None) < 0.01
    rows = {"x": np.random.default_rng(0).standard_normal((4, WIDTH)).astype(np.float32)}
    found, expected = (
        zoo.run(path, rows)[0] for path in (tmp_path / "out" / "model.onnx", tmp_path / "model.onnx")
    )
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
