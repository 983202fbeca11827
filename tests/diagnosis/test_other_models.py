"""Models of other tools, of other types, with caches and with tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import zq2onnx
from tests import zoo
from zq2onnx.diagnosis import Comparison, compare

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def inputs(name: str, folder: Path) -> tuple[Path, Path]:
    """A model of the zoo, and inputs for it."""
    source = zoo.model(name)
    np.savez(folder / "inputs.npz", **zoo.feeds(source, batch=2, length=8))
    return source, folder / "inputs.npz"


def check(comparison: Comparison, operators: set[str], layers: int, most: float = 0.1) -> None:
    """All layers have an own error, of rounding alone; and nothing is found to be wrong with them."""
    quantized = [each for each in comparison.layers if each.quantized]
    assert {each.operator for each in quantized} == operators
    assert len(quantized) == layers
    assert comparison.unmatched == {}
    for each in quantized:
        assert each.own is not None and 0 < each.own < most, each
        assert each.note == ""
    assert (comparison.jump, comparison.findings) == (None, ())


def test_matmulnbits_of_onnxruntime(tmp_path: Path) -> None:
    tool = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    source, npz = inputs("llama", tmp_path)
    quantizer = tool.MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=False)
    quantizer.process()
    quantizer.model.save_model_to_file(str(tmp_path / "q.onnx"), False)
    check(compare(source, tmp_path / "q.onnx", npz=npz), {"MatMulNBits"}, 15)


@pytest.mark.parametrize(
    ("name", "operators", "layers"),
    [
        ("llama", {"MatMulInteger", "QDQ Gather"}, 16),
        ("gpt2", {"MatMulInteger", "QDQ Gather", "QDQ MatMul"}, 11),
    ],
)
def test_dynamic_quantization_of_onnxruntime(
    tmp_path: Path, name: str, operators: set[str], layers: int
) -> None:
    tool = pytest.importorskip("onnxruntime.quantization")
    source, npz = inputs(name, tmp_path)
    tool.quantize_dynamic(source, tmp_path / "q.onnx", weight_type=tool.QuantType.QInt8)
    check(compare(source, tmp_path / "q.onnx", npz=npz), operators, layers)


@pytest.mark.parametrize("name", ["opt-bf16", "opt-fp16", "bert", "bloom"])
@pytest.mark.parametrize("target", ["portable", "qdq"])
def test_types_and_architectures(tmp_path: Path, name: str, target: str) -> None:
    source, npz = inputs(name, tmp_path)
    options = {"scheme": "w4a16", "embedding_bits": 8, "target": target, "check": "none"}
    zq2onnx.convert(source, tmp_path / "q.onnx", **options)
    comparison = compare(source, tmp_path / "q.onnx", npz=npz)
    tables = [each for each in comparison.layers if "Gather" in each.operator]
    assert tables and all(0 < each.own < 0.02 and each.inherited is None for each in tables)
    linears = [each for each in comparison.layers if each.quantized and each not in tables]
    assert len(linears) == {"opt-bf16": 12, "opt-fp16": 12, "bert": 12, "bloom": 8}[name]
    assert all(0 < each.own < 0.12 for each in linears)
    assert {each.block for each in linears} == {0, 1}
    assert (comparison.jump, comparison.unmatched) == (None, {})


def test_a_model_with_a_cache_is_fed_with_an_empty_one(tmp_path: Path) -> None:
    source = zoo.model("opt-cache")
    zq2onnx.convert(source, tmp_path / "q.onnx", scheme="w4a16", check="none")
    comparison = compare(source, tmp_path / "q.onnx", texts=[Path(__file__)], length=16, windows=2)
    assert comparison.tokens == 32
    assert comparison.jump is None
    assert sum(each.quantized for each in comparison.layers) == 12
