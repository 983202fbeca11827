"""One weight under several names: its bytes are in the file once, and ONNX Runtime fuses every reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests import zoo
from tests.passes.hand_made import proto, rand, rounded
from tests.passes.test_odd_graphs import SCHEME, convert
from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.passes.measure_sizes import Kind, measure_sizes
from zq2onnx.verify.optimized import optimized_graph

W = rand(40, 12)
ALONE = "g (float[2, 40] x) => (float[2, 12] m) { m = MatMul(x, w) }"
SIDE_BY_SIDE = (
    "g (float[2, 40] x) => (float[2, 12] m, float[2, 12] y) { m = MatMul(x, w) r = Relu(x) y = MatMul(r, w) }"
)
IN_A_BRANCH = (
    "g (float[2, 40] x, bool c) => (float[2, 12] m, float[2, 12] y) { m = MatMul(x, w) y = If (c)"
    " <then_branch = yes () => (float[2, 12] a) { a = MatMul(x, w) },"
    " else_branch = no () => (float[2, 12] d) { r = Relu(x) d = MatMul(r, w) }> }"
)


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


def data_bytes(model: Path) -> int:
    return Path(f"{model}.data").stat().st_size


@pytest.mark.parametrize("target", ["portable", "qdq"])
@pytest.mark.parametrize(("text", "readers"), [(SIDE_BY_SIDE, 2), (IN_A_BRANCH, 3)])
def test_the_data_does_not_grow_and_nothing_is_dequantized_at_run(
    text: str, readers: int, target: str, tmp_path: Path
) -> None:
    alone, _ = convert(proto(ALONE, {"w": W}), tmp_path, target=target, lorc_rank=0)
    size = data_bytes(alone)
    path, report = convert(proto(text, {"w": W}), tmp_path, target=target, lorc_rank=0)
    assert len(report.quantized) == readers and data_bytes(path) == size
    count = Counter(operators(optimized_graph(path, FLOAT_ACTIVATIONS).graph))
    assert (count["MatMulNBits"], count["DequantizeLinear"], count["MatMul"]) == (readers, 0, 0)


@pytest.mark.parametrize("target", ["portable", "qdq"])
@pytest.mark.parametrize("text", [SIDE_BY_SIDE, IN_A_BRANCH])
def test_every_reader_computes_with_the_same_numbers(text: str, target: str, tmp_path: Path) -> None:
    path, report = convert(proto(text, {"w": W}), tmp_path, target=target)
    assert len({node.weight_error for node in report.quantized}) == 1
    x = rand(2, 40, seed=3)
    matrix = rounded(W, SCHEME)
    for condition in (True, False) if text is IN_A_BRANCH else (False,):
        feeds = {"x": x, **({"c": np.array(condition)} if text is IN_A_BRANCH else {})}
        wanted = [x @ matrix, (x if condition else np.maximum(x, 0)) @ matrix]
        for got, expected in zip(zoo.run(path, feeds), wanted, strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("target", ["portable", "qdq"])
def test_sizes_count_the_shared_bytes_once(target: str, tmp_path: Path) -> None:
    path, report = convert(proto(SIDE_BY_SIDE, {"w": W}), tmp_path, target=target, lorc_rank=0)
    (size,) = measure_sizes(ir.load(path))
    assert (size.kind, size.weights) == (Kind.QUANTIZED_LINEAR, 480)
    assert report.effective_bits == pytest.approx(size.bits)
