"""A narrowed model computes in half precision what half precision can, and the rest in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from onnx import ModelProto

from tests import zoo
from tests.passes.hand_made import graph, proto, rand, structure
from zq2onnx.errors import UserError
from zq2onnx.passes.narrow import NarrowFloatsPass
from zq2onnx.passes.recast import RecastTensor, recast, recast_array

FP16, BF16, FLOAT = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT
LEAST = float(np.finfo(np.float32).min)


def narrowed(model: ir.Model, dtype: ir.DataType = FP16) -> ModelProto:
    """The model after the pass, which must modify it, and not again; its types must be right."""
    assert NarrowFloatsPass(dtype)(model).modified
    before = structure(model)
    made = ir.to_proto(model)
    assert not NarrowFloatsPass(dtype)(model).modified
    assert structure(model) == before
    onnx.checker.check_model(made, full_check=True)
    onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True)
    return made


def types(model: ir.Model) -> dict[str, ir.DataType | None]:
    """The type of each node's result by the node's name."""
    return {node.name or "": node.outputs[0].dtype for node in model.graph}


def run(model: ModelProto, feeds: dict[str, np.ndarray], tmp_path: Path) -> list[np.ndarray]:
    onnx.save(model, tmp_path / "m.onnx")
    return zoo.run(tmp_path / "m.onnx", feeds)


def test_weights_inputs_and_outputs_under_their_names(tmp_path: Path) -> None:
    text = (
        "g (float[2, 8] x) => (float[2, 4] y, float[2, 4] z)"
        " { m = MatMul(x, w) y = Add(m, b) z = Identity(y) }"
    )
    weights = {"w": rand(8, 4), "b": rand(4)}
    model = graph(text, weights)
    made = narrowed(model)
    assert [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)] == [
        ("x", FP16),
        ("y", FP16),
        ("z", FP16),
    ]
    assert {name: value.dtype for name, value in model.graph.initializers.items()} == {"w": FP16, "b": FP16}
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Identity"]
    x = rand(2, 8, dtype=np.float16)
    y, z = run(made, {"x": x}, tmp_path)
    np.testing.assert_allclose(y, x.astype(np.float32) @ weights["w"] + weights["b"], rtol=0, atol=0.02)
    np.testing.assert_array_equal(y, z)


NORM = (
    "g (float[2, 64] x) => (float[2, 4] y) {"
    " s = Pow(x, two) m = ReduceMean(s, last) e = Add(m, eps) r = Sqrt(e) i = Reciprocal(r)"
    " n = Mul(x, i) o = Mul(n, gamma) y = MatMul(o, w) }"
)
NORM_WEIGHTS = {
    "two": np.float32(2),
    "last": np.array([-1]),
    "eps": np.float32(1e-6),
    "gamma": rand(64),
    "w": rand(64, 4),
}


def test_a_variance_is_float32_from_its_squares_to_where_it_scales(tmp_path: Path) -> None:
    """1000 squared is no number of float16: all in float16, the reference makes zeros of it."""
    model = graph(NORM, {key: np.asarray(value) for key, value in NORM_WEIGHTS.items()})
    made = narrowed(model)
    kinds = types(model)
    assert all(kinds[name] is FLOAT for name in "smerin")
    assert (kinds["o"], kinds["y"]) == (FP16, FP16)
    assert [node.op_type for node in model.graph].count("Cast") == 2  # x up, n down
    x = (1000 * rand(2, 64)).astype(np.float16)
    wide = x.astype(np.float64)
    expected = (wide / np.sqrt((wide**2).mean(-1, keepdims=True)) * NORM_WEIGHTS["gamma"]) @ NORM_WEIGHTS["w"]
    (got,) = onnx.reference.ReferenceEvaluator(made).run(None, {"x": x})
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.01 * np.abs(expected).max())
    np.testing.assert_allclose(run(made, {"x": x}, tmp_path)[0], got, rtol=0, atol=0.05)
    halves = {key: np.asarray(value, np.float16) for key, value in NORM_WEIGHTS.items() if key != "last"}
    naive = proto(NORM.replace("float[", "float16["), halves | {"last": np.array([-1])})
    with np.errstate(over="ignore"):
        (wrong,) = onnx.reference.ReferenceEvaluator(naive).run(None, {"x": x})
    assert not np.allclose(wrong, expected, rtol=0, atol=0.01 * np.abs(expected).max())


def test_positions_and_masks_stay_float32_until_they_meet_activations(tmp_path: Path) -> None:
    text = (
        "g (float[1, 3000] x, int64[3000] ids, bool[1, 3000] seen) => (float[1, 3000] y) {"
        " f = Cast <to = 1> (ids) a = Mul(f, frequency) c = Cos(a) r = Mul(x, c)"
        " mask = Where(seen, zero, least) both = Add(mask, mask) t = Add(r, both) y = Softmax(t) }"
    )
    values = {"frequency": np.float32(0.7), "zero": np.float32(0), "least": np.float32(LEAST)}
    model = graph(text, {key: np.asarray(value) for key, value in values.items()})
    made = narrowed(model)
    kinds = types(model)
    assert all(kinds[name] is FLOAT for name in ("f", "a", "c", "mask", "both"))
    assert all(kinds[name] is FP16 for name in ("r", "t", "y"))
    assert [node.inputs[0].name for node in model.graph if node.op_type == "Clip"] == ["both"]  # type: ignore[union-attr]
    seen = np.zeros((1, 3000), bool)
    feeds = {"x": rand(1, 3000, dtype=np.float16), "ids": np.arange(3000), "seen": seen}
    assert np.isfinite(run(made, feeds, tmp_path)[0]).all()  # two infinities would make a NaN
    seen[0, 2990:] = True
    got = run(made, feeds, tmp_path)[0][0, 2990:].astype(np.float64)
    scores = np.exp(feeds["x"][0, 2990:].astype(np.float64) * np.cos(0.7 * np.arange(2990, 3000)))
    np.testing.assert_allclose(got, scores / scores.sum(), rtol=0, atol=1e-3)


def test_a_constant_that_both_kinds_of_nodes_read_is_there_twice() -> None:
    text = (
        "g (float[2, 8] x, int64[8] ids) => (float[2, 8] y) {"
        " f = Cast <to = 1> (ids) a = Mul(f, c) h = Mul(x, c) y = Add(h, a) }"
    )
    model = graph(text, {"c": np.array(1e-9, np.float32)})
    assert NarrowFloatsPass(FP16)(model).modified
    dtypes = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert dtypes == {"c": FLOAT, "c_fp16": FP16}
    assert float(model.graph.initializers["c_fp16"].const_value.numpy()) > 0  # type: ignore[union-attr]


def test_branches_are_narrow_and_loops_are_not(tmp_path: Path) -> None:
    text = """
      g (float[2, 4] x, bool p, int64 n, bool on) => (float[2, 4] y) {
        h = MatMul (x, w)
        i = If (p) <
          then_branch = a () => (float[2, 4] t) { t = MatMul (h, w) },
          else_branch = b () => (float[2, 4] e)
            { s = Pow (h, two) m = ReduceMean (s, last) e = Expand (m, both) }
        >
        l = Loop (n, on, i) <
          body = c (int64 k, bool go, float[2, 4] v) => (bool going, float[2, 4] u)
            { going = Identity (go) u = Add (v, h) }
        >
        y = Relu (l)
      }
    """
    w = rand(4, 4)
    constants = {"w": w, "two": np.array(2, np.float32), "last": np.array([-1]), "both": np.array([2, 4])}
    model = graph(text, constants)
    made = narrowed(model)
    kinds = types(model)
    assert (kinds["h"], kinds["i"], kinds["l"], kinds["y"]) == (FP16, FP16, FLOAT, FP16)
    x = rand(2, 4, dtype=np.float16)
    h = x.astype(np.float64) @ w
    for p, branch in ((True, h @ w), (False, np.repeat((h**2).mean(-1, keepdims=True), 4, axis=1))):
        feeds = {"x": x, "p": np.array(p), "n": np.array(3), "on": np.array(True)}
        np.testing.assert_allclose(
            run(made, feeds, tmp_path)[0], np.maximum(branch + 3 * h, 0), rtol=0.01, atol=0.05
        )


def test_what_an_exporter_wrote_in_float32_stays_so() -> None:
    text = (
        "g (float16[2, 8] x) => (float16[2, 8] y)"
        " { f = Cast <to = 1> (x) s = Exp(f) a = Mul(s, s) y = Cast <to = 10> (a) }"
    )
    model = graph(text)
    assert not NarrowFloatsPass(FP16)(model).modified
    assert types(model) == {"f": FLOAT, "s": FLOAT, "a": FLOAT, "y": FP16}


def test_a_quantized_weight_stays_behind_its_scales(tmp_path: Path) -> None:
    text = "g (float[2, 8] x) => (float[2, 4] y) { w = DequantizeLinear <axis = 1> (q, s) y = MatMul(x, w) }"
    codes, scales = np.arange(-16, 16, dtype=np.int8).reshape(8, 4), np.array([1, 2, 3, 4], np.float32) / 8
    model = graph(text, {"q": codes, "s": scales})
    made = narrowed(model)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul"]
    x = rand(2, 8, dtype=np.float16)
    (got,) = run(made, {"x": x}, tmp_path)
    np.testing.assert_allclose(got, x.astype(np.float32) @ (codes * scales), rtol=0, atol=0.05)


def test_what_no_schema_allows_stays_float32() -> None:
    text = "g (float[3, 3] x) => (float[3, 3] y) { a = Einsum <equation = 'ij,jk->ik'> (x, x) y = Relu(a) }"
    text = text.replace("'", '"')
    model, other = graph(text), graph(text)
    narrowed(model)
    narrowed(other, BF16)
    assert types(model)["a"] is FP16 and types(other)["a"] is FLOAT and types(other)["y"] is BF16


def test_a_type_that_cannot_be_told_is_an_error() -> None:
    text = "g (float[2, 8] x) => (float[2, 8] y) { a = elsewhere.Op(x) y = Relu(a) }"
    model = graph(text, domains=("elsewhere",))
    with pytest.raises(UserError, match=r"node 'a' \(Op\): the type of its result is not known.*--dtype"):
        NarrowFloatsPass(FP16)(model)


def test_numbers_beyond_the_range_and_next_to_zero() -> None:
    given = np.array([1e5, -1e5, -np.inf, 1e-9, np.nan, 0.5], np.float32)
    np.testing.assert_array_equal(
        recast_array(given, FP16), np.array([32752, -32752, -np.inf, 0, np.nan, 0.5], np.float16)
    )
    (least,) = recast_array(np.array([-1e-12], np.float32), FP16)
    assert least == -np.finfo(np.float16).smallest_subnormal
    greatest = recast_array(np.array([LEAST, 1.0], np.float32), BF16).astype(np.float32)
    np.testing.assert_array_equal(greatest, np.array([-3.3895314e38 / 2, 1.0], np.float32))
    masks = np.array([np.finfo(np.float16).min, -60000], np.float32)
    np.testing.assert_array_equal(recast_array(masks, FP16), np.array([-32752, -60000], np.float16))


def test_weights_are_not_read_and_come_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    text = "g (float[2, 40] x) => (float[2, 12] y) { y = MatMul(x, w) }"
    ir.save(graph(text, {"w": rand(40, 12)}), path, external_data="model.data", size_threshold_bytes=0)
    model = ir.load(path)
    source = model.graph.initializers["w"].const_value
    NarrowFloatsPass(FP16)(model)
    assert isinstance(source, ir.ExternalTensor) and source.raw is None
    weight = model.graph.initializers["w"].const_value
    assert isinstance(weight, RecastTensor) and weight.source is source
    np.testing.assert_array_equal(weight.numpy(), rand(40, 12).astype(np.float16))
    assert source.raw is None
    assert recast(weight, FLOAT) is source
