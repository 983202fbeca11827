"""Odd graphs through the whole conversion: what runs is the float graph with rounded weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import zq2onnx
from tests import zoo
from tests.passes.hand_made import proto, rand, rounded
from zq2onnx.report import Report
from zq2onnx.scheme import PerBlock, Scheme

TARGETS = ("portable", "qdq")
SCHEME = Scheme(bits=4, granularity=PerBlock(16), lorc_rank=2)
Same = Callable[[np.ndarray], np.ndarray]


def same(matrix: np.ndarray) -> np.ndarray:
    return matrix


@dataclass(frozen=True)
class Odd:
    """A graph whose weights are `[K, N]` matrices, stored as `store` says.

    `scale` is what the node multiplies its weight by before it rounds (Gemm's alpha).
    """

    text: str
    weights: dict[str, np.ndarray]
    store: Same = same
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    scale: float = 1.0
    quantized: int = 1
    tolerance: float = 2e-5
    opset: int = 21

    def model(self, of: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
        stored = {name: self.store(of(weight)) for name, weight in self.weights.items()}
        return proto(self.text, {**stored, **self.constants}, opset=self.opset)

    def rounded(self, weight: np.ndarray) -> np.ndarray:
        scaled = (weight.astype(np.float32) * np.float32(self.scale)) if self.scale != 1.0 else weight
        return (rounded(scaled, SCHEME) / self.scale).astype(weight.dtype)


W = rand(40, 12)
B = rand(12, seed=1)
X = "(float[2, 3, 40] x)"
ONE = "g (float[2, 3, 40] x) => (float[2, 3, 12] y) { y = MatMul(x, w) }"
GEMM = "<transA = 1, transB = 1, alpha = 0.5, beta = 2.0>"

ODD = {
    "output of the graph": Odd(ONE, {"w": W}),
    "bias": Odd(
        f"g {X} => (float[2, 3, 12] y) {{ m = MatMul(x, w) y = Add(b, m) }}", {"w": W}, same, {"b": B}
    ),
    "two readers": Odd(
        f"g {X} => (float[2, 3, 12] y, float[2, 3, 12] z) {{ m = MatMul(x, w) y = Add(m, b) z = Relu(m) }}",
        {"w": W},
        same,
        {"b": B},
    ),
    "product and sum are outputs": Odd(
        f"g {X} => (float[2, 3, 12] m, float[2, 3, 12] y) {{ m = MatMul(x, w) y = Add(m, b) }}",
        {"w": W},
        same,
        {"b": B},
    ),
    "late Constant bias": Odd(
        f"g {X} => (float[2, 3, 12] y) {{ m = MatMul(x, w) b = Constant <value_int = 0> () y = Add(m, b) }}",
        {"w": W},
        same,
        {"b": B},
    ),
    "bias of a row": Odd(
        f"g {X} => (float[2, 3, 12] y) {{ m = MatMul(x, w) y = Add(m, b) }}", {"w": W}, same, {"b": B[None]}
    ),
    "scalar bias": Odd(
        f"g {X} => (float[2, 3, 12] y) {{ m = MatMul(x, w) y = Add(m, b) }}",
        {"w": W},
        same,
        {"b": np.float32(3).reshape(())},
    ),
    "everything in a Gemm": Odd(
        f"g (float[40, 3] x) => (float[3, 12] y) {{ y = Gemm {GEMM} (x, w, b) }}",
        {"w": W},
        lambda matrix: np.ascontiguousarray(matrix.T),
        {"b": rand(3, 12, seed=2)},
        scale=0.5,
    ),
    "Gemm without bias": Odd("g (float[3, 40] x) => (float[3, 12] y) { y = Gemm(x, w) }", {"w": W}),
    "Gemm whose beta is 0": Odd(
        "g (float[3, 40] x) => (float[3, 12] y) { y = Gemm <beta = 0.0> (x, w, b) }", {"w": W}, same, {"b": B}
    ),
    "Gemm with a column of biases": Odd(
        "g (float[3, 40] x) => (float[3, 12] y) { y = Gemm(x, w, b) }", {"w": W}, same, {"b": rand(3, 1)}
    ),
    "leading dimensions of 1": Odd(ONE, {"w": W}, lambda matrix: matrix[None]),
    "more leading dimensions than the activation": Odd(
        "g (float[3, 40] x) => (float[1, 1, 3, 12] y) { y = MatMul(x, w) }",
        {"w": W},
        lambda matrix: matrix[None, None],
    ),
    "activation of unknown rank": Odd(
        f"g {X} => (float[1, 2, 3, 12] y) {{ h = Relu(x) y = MatMul(h, w) }}",
        {"w": W},
        lambda matrix: matrix[None, None],
    ),
    "Constant node": Odd(
        f"g {X} => (float[2, 3, 12] y) {{ w = Constant <value_int = 0> () y = MatMul(x, w) }}", {"w": W}
    ),
    "Cast, Transpose, Unsqueeze": Odd(
        f"g {X} => (float[2, 3, 12] y) "
        "{ a = Constant <value_ints = [0]> () c = Cast <to = 1> (w) t = Transpose <perm = [1, 0]> (c)"
        " u = Unsqueeze(t, axes) y = MatMul(x, u) }",
        {"w": W.astype(np.float16).astype(np.float32)},
        lambda matrix: np.ascontiguousarray(matrix.T),
        {"axes": np.array([0])},
    ),
    "one column": Odd("g (float[3, 40] x) => (float[3, 1] y) { y = MatMul(x, w) }", {"w": W[:, :1]}),
    "one row": Odd("g (float[3, 1] x) => (float[3, 12] y) { y = MatMul(x, w) }", {"w": W[:1]}),
    "one number": Odd("g (float[3, 1] x) => (float[3, 1] y) { y = MatMul(x, w) }", {"w": W[:1, :1]}),
    "all zero": Odd(ONE, {"w": np.zeros_like(W)}),
    "constant rows": Odd(ONE, {"w": np.tile(B, (40, 1))}),
    "shared": Odd(
        f"g {X} => (float[2, 3, 12] y, float[2, 3, 12] z) "
        "{ y = MatMul(x, w) h = Relu(x) z = MatMul(h, w) }",
        {"w": W},
        quantized=2,
    ),
    "weight is an output too": Odd(
        f"g {X} => (float[2, 3, 12] y, float[12, 40] t) "
        "{ t = Transpose(w) u = Transpose(t) y = MatMul(x, u) }",
        {"w": W},
    ),
    "branches of an If": Odd(
        f"g {X} => (float[2, 3, 12] y) {{ s = ReduceSum <keepdims = 0> (x) c = Greater(s, zero) "
        "y = If (c) <then_branch = yes () => (float[2, 3, 12] a) { a = MatMul(x, w) }, "
        "else_branch = no () => (float[2, 3, 12] d) { v = Constant <value_int = 0> () "
        "e = MatMul(x, v) d = Add(e, b) }> }",
        {"w": W, "v": rand(40, 12, seed=5)},
        same,
        {"zero": np.float32(0).reshape(()), "b": B},
        quantized=2,
    ),
    "body of a Loop": Odd(
        "g (float[3, 12] x) => (float[3, 12] y) { y = Loop (trips, more, x) "
        "<body = step (int64 i, bool c, float[3, 12] h) => (bool d, float[3, 12] out) "
        "{ d = Identity(c) out = MatMul(h, w) }> }",
        {"w": rand(12, 12) / 4},
        same,
        {"trips": np.array(3), "more": np.array(True)},
    ),
    "half precision": Odd(
        "g (float16[3, 40] x) => (float16[3, 12] y) { y = Gemm <alpha = 0.5> (x, w, b) }",
        {"w": W.astype(np.float16)},
        same,
        {"b": B.astype(np.float16)},
        scale=0.5,
        tolerance=1e-2,
    ),
    "single to half": Odd(
        "g (float16[3, 40] x) => (float16[3, 12] y) { h = Cast <to = 10> (w) y = MatMul(x, h) }",
        {"w": W.astype(np.float16).astype(np.float32)},
        tolerance=1e-2,
    ),
    "old opset": Odd(
        f"g {X} => (float[2, 3, 12] y) {{ m = MatMul(x, w) y = Softmax <axis = 1> (m) }}", {"w": W}, opset=11
    ),
    "body of a Scan": Odd(
        "g (float[2, 3, 12] x, float[3, 12] s) => (float[3, 12] last, float[2, 3, 12] y) "
        "{ last, y = Scan <num_scan_inputs = 1, body = step (float[3, 12] h, float[3, 12] e) => "
        "(float[3, 12] next, float[3, 12] out) { next = MatMul(h, w) out = Add(next, e) }> (s, x) }",
        {"w": rand(12, 12) / 4},
    ),
}


def convert(model: onnx.ModelProto, folder: Path, **options: Any) -> tuple[Path, Report]:
    onnx.save(model, folder / "odd.onnx")
    said = {"scheme": "w4a16", "group_size": 16, "lorc_rank": 2, "check": "full", **options}
    output = folder / "out.onnx"
    return output, zq2onnx.convert(folder / "odd.onnx", output, force=True, **said)


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    made = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        array = rand(*shape, seed=9) if kind.kind == "f" else np.arange(np.prod(shape)).reshape(shape) % 7
        made[value.name] = array.astype(kind)
    return made


def run(model: onnx.ModelProto, given: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    onnx.save(model, folder / "plain.onnx")
    return zoo.run(folder / "plain.onnx", given)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ODD)
def test_runs_as_the_float_graph_with_rounded_weights(name: str, target: str, tmp_path: Path) -> None:
    odd = ODD[name]
    original = odd.model(same)
    output, report = convert(original, tmp_path, target=target)
    assert len(report.quantized) == odd.quantized, [node.reason for node in report.nodes]
    given = feeds(original)
    expected = run(odd.model(odd.rounded), given, tmp_path)
    if name == "weight is an output too":
        expected[1] = run(original, given, tmp_path)[1]
    for got, wanted in zip(zoo.run(output, given), expected, strict=True):
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        greatest = max(float(np.abs(wanted).max()), 1e-3)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=odd.tolerance * greatest)
    onnx.checker.check_model(str(output), full_check=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("names", [("", ""), ("same", "same")])
def test_nodes_without_a_name_of_their_own(names: tuple[str, str], target: str, tmp_path: Path) -> None:
    """Each gets one, and a group and an entry in the report under it."""
    weights = {"w": W, "v": rand(12, 12, seed=3)}
    model = proto(f"g {X} => (float[2, 3, 12] y) {{ m = MatMul(x, w) y = MatMul(m, v) }}", weights)
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    output, report = convert(model, tmp_path, target=target)
    reported = [node.name for node in report.quantized]
    assert len(set(reported)) == 2 and "" not in reported and reported[0].startswith(names[0])
    assert report.check is not None and report.check.nodes_checked == 2
    given = feeds(model)
    expected = given["x"] @ rounded(weights["w"], SCHEME) @ rounded(weights["v"], SCHEME)
    np.testing.assert_allclose(
        zoo.run(output, given)[0], expected, rtol=0, atol=2e-5 * np.abs(expected).max()
    )
