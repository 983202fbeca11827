"""Linears of every form are observed and replaced; what cannot be is left out and told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.calibration.walking import from_text, made_up, second_moment
from tests.evaluation.language import write_text, write_tokenizer
from zq2onnx.calibration import Step, Walk, load_samples
from zq2onnx.calibration.piece_graph import LARGE_BYTES
from zq2onnx.calibration.runner import CURRENT

RNG = np.random.default_rng(7)
X = RNG.standard_normal((2, 5, 6)).astype(np.float32)
HEAD = "<ir_version: 10, opset_import: ['' : 20]>".replace("'", '"')


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def walk(model: ir.Model, **feeds: np.ndarray) -> Walk:
    return Walk(model, Path("odd.onnx"), made_up([feeds or {"x": X}]), threads=1)


def make_outputs(step: Step, value: str, weights: dict[str, np.ndarray]) -> np.ndarray:
    """A value of a step's piece, run with other weights."""
    runner = step._walk._runner
    made = {output.name: output for node in step.piece.nodes for output in node.outputs}
    session = runner.open(step.index, [made[value]], weights)
    arrays = runner.inputs(CURRENT, step.piece.inputs, 0)
    return session.run("here", arrays)[value]


LINEARS = {
    "matmul": ("y = MatMul(x, w)", (6, 3), lambda x, w: x @ w.T),
    "unit dimensions": ("y = MatMul(x, w)", (1, 6, 3), lambda x, w: x @ w.T),
    "behind a transpose": (
        "t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t)",
        (3, 6),
        lambda x, w: x @ w.T,
    ),
    "gemm": ("f = Flatten <axis = 2> (x) y = Gemm(f, w)", (6, 3), lambda x, w: x.reshape(-1, 6) @ w.T),
    "gemm transB alpha": (
        "f = Flatten <axis = 2> (x) y = Gemm <alpha = 0.25, transB = 1> (f, w)",
        (3, 6),
        lambda x, w: x.reshape(-1, 6) @ w.T,
    ),
    "gemm transA alpha": (
        "f = Flatten <axis = 2> (x) t = Transpose (f) y = Gemm <alpha = 4.0, transA = 1> (t, w)",
        (6, 3),
        lambda x, w: x.reshape(-1, 6) @ w.T,
    ),
}


@pytest.mark.parametrize("form", LINEARS)
def test_a_linear_of_any_form_is_observed_and_replaced(form: str) -> None:
    body, shape, product = LINEARS[form]
    text = f"{HEAD} g (float[b, s, 6] x) => (float[m] y) <float[{', '.join(map(str, shape))}] w> {{ {body} }}"
    step = next(walk(from_text(text, w=normal(*shape))).steps())
    (name,) = step.linears()
    moments = step.observe([name])[name]
    np.testing.assert_allclose(moments.fitted, second_moment(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(moments.peak, np.abs(X).max(axis=(0, 1)))
    assert moments.held_out is None
    weight = normal(3, 6)
    found = make_outputs(step, "y", {name: weight})
    np.testing.assert_allclose(found, product(X, weight), rtol=1e-5, atol=1e-5)
    assert not np.allclose(make_outputs(step, "y", {}), found)


def test_an_activation_behind_expand_and_reshape_is_observed() -> None:
    text = f"""{HEAD} g (float[b, s, 6] x) => (float[m, n] y)
        <float[6, 3] w, int64[2] flat = {{-1, 6}}, int64[3] wide = {{4, 1, 1}}> {{
            e = Expand(x, wide) f = Reshape(e, flat) y = MatMul(f, w) }}"""
    x = X[:1]
    step = next(walk(from_text(text, w=normal(6, 3)), x=x).steps())
    (name,) = step.linears()
    moments = step.observe([name])[name]
    assert moments.tokens == (20, 0)
    np.testing.assert_allclose(moments.fitted, second_moment(x), rtol=1e-5, atol=1e-6)


def test_a_weight_that_an_embedding_shares_changes_in_the_linear_alone() -> None:
    text = f"""{HEAD} g (int64[b, s] ids) => (float[b, s, n] y) <float[8, 6] w, int64[2] p = {{0, 1}}> {{
        e = Gather(w, ids) t = Transpose <perm = [1, 0]> (w) y = MatMul(e, t) }}"""
    table, ids = normal(8, 6), np.array([[1, 7, 3]])
    step = next(walk(from_text(text, w=table), ids=ids).steps())
    (name,) = step.linears()
    weight = normal(8, 6)
    found = make_outputs(step, "y", {name: weight})
    np.testing.assert_allclose(found, table[ids] @ weight.T, rtol=1e-5, atol=1e-5)


def test_large_constants_are_fed_and_small_ones_are_inside() -> None:
    text = f"""{HEAD} g (int64[b, s] ids) => (float[b, s, 3] y)
        <float[3000, 100] table, float[100] scale, float[100, 3] w> {{
            e = Gather(table, ids) h = Mul(e, scale) y = MatMul(h, w) }}"""
    table, scale, ids = normal(3000, 100), normal(100), np.array([[1, 2999]])
    assert table.nbytes > LARGE_BYTES
    step = next(walk(from_text(text, table=table, scale=scale, w=normal(100, 3)), ids=ids).steps())
    (name,) = step.linears()
    moments = step.observe([name])[name]
    np.testing.assert_allclose(moments.fitted, second_moment(table[ids] * scale), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_observed_is_left_out() -> None:
    text = f"""{HEAD} g (float[b, s, 6] x, bool c) => (float[b, s, 6] y)
        <float[6, 6] w, float[6, 6] v, float[2, 6] k> {{
            a = MatMul(x, w)
            z = MatMul(k, w)
            m = ReduceSum <keepdims = 0> (z)
            i = If (c) <
                then_branch = yes () => (float[b, s, 6] t) {{ t = MatMul(a, v) }},
                else_branch = no () => (float[b, s, 6] e) {{ e = Identity(a) }}
            >
            y = Add(i, m) }}"""
    model = from_text(text, w=normal(6, 6), v=normal(6, 6), k=normal(2, 6))
    names = {node.outputs[0].name: node.name for node in model.graph}
    feeds = {"x": X, "c": np.array(True)}
    with Walk(model, Path("odd.onnx"), made_up([feeds]), threads=1) as walked:
        found = [name for step in walked.steps() for name in step.linears()]
    assert found == [names["a"]]


def layers(second: str) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 20, "other" : 1]>
        g (float[b, s, 6] x) => (float[b, s, 6] y) <float[6, 6] v, float[6, 6] w, float[6, 6] u> {{
            a = MatMul(x, v) p = Relu(a)
            {second}
            d = MatMul(q, u) y = Relu(d) }}"""
    return from_text(text, v=normal(6, 6), w=normal(6, 6), u=normal(6, 6))


def test_nothing_is_observed_from_a_piece_on_that_onnxruntime_cannot_load() -> None:
    model = layers("b = MatMul(p, w) q = other.Unknown(b)")
    with walk(model) as walked:
        found = [step.observe(step.linears()) for step in walked.steps()]
    assert len(found) == 3
    assert len(found[0]) == 1
    assert found[1:] == [{}, {}]
    assert walked.obstacle.startswith("onnxruntime cannot load block 1 of 3 (from node ")
    assert "Unknown" in walked.obstacle


def test_observing_tells_of_it_without_being_asked_for_linears() -> None:
    model = layers("b = MatMul(p, w) q = other.Unknown(b)")
    last = next(node.name or "" for node in model.graph if node.outputs[0].name == "d")
    with walk(model) as walked:
        *_, step = walked.steps()
        assert step.observe([last]) == {}
        assert "Unknown" in walked.obstacle


def test_values_without_a_type_are_run_to_learn_it() -> None:
    model = layers("b = MatMul(p, w) k = Greater(b, b) n = Not(k) i = Where(n, b, b) q = Relu(i)")
    for node in model.graph:
        for value in node.outputs:
            value.type = value.shape = None
    with walk(model) as walked:
        found = [len(step.observe(step.linears())) for step in walked.steps()]
    assert found == [1, 1, 1]
    assert walked.obstacle == ""


def test_a_side_value_of_an_unknown_type_reaches_later_pieces() -> None:
    text = f"""{HEAD} g (float[b, s, 6] x, int64[b, s, 1] mask) => (float[b, s, 6] y)
        <float[6, 6] v, float[6, 6] w, float zero = {{0}}, int64 one = {{1}}> {{
            c = Equal(mask, one)
            a = MatMul(x, v) p = Where(c, a, zero)
            b = MatMul(p, w) y = Where(c, b, zero) }}"""
    v, mask = normal(6, 6), np.array([[[1]] * 5, [[0]] * 5])
    model = from_text(text, v=v, w=normal(6, 6))
    for node in model.graph:
        for value in node.outputs:
            value.type = value.shape = None
    with walk(model, x=X, mask=mask) as walked:
        found = [moments for step in walked.steps() for moments in step.observe(step.linears()).values()]
    assert len(walked.pieces) == len(found) == 2
    np.testing.assert_allclose(found[1].fitted, second_moment(X @ v * mask), rtol=1e-4, atol=1e-5)


def test_an_input_with_a_default_need_not_be_fed() -> None:
    text = f"""{HEAD} g (float[b, s, 6] x, float[6] scale) => (float[b, s, 3] y) <float[6, 3] w> {{
        h = Mul(x, scale) y = MatMul(h, w) }}"""
    scale = normal(6)
    model = from_text(text, w=normal(6, 3))
    value = model.graph.inputs[1]
    value.const_value = ir.tensor(scale, name="scale")
    model.graph.register_initializer(value)
    for feeds, factor in (({"x": X}, scale), ({"x": X, "scale": 2 * scale}, 2 * scale)):
        step = next(walk(model, **feeds).steps())
        (name,) = step.linears()
        moments = step.observe([name])[name]
        np.testing.assert_allclose(moments.fitted, second_moment(X * factor), rtol=1e-4, atol=1e-6)


def test_an_empty_cache_is_fed(tmp_path: Path) -> None:
    text = f"""{HEAD} g (int64[b, s] input_ids, float[b, 2, p, 3] past_0) => (float[b, t, 5] y)
        <float[9, 6] table, float[6, 6] v, float[6, 5] w, int64[4] split = {{0, 0, 2, 3}},
         int64[3] merge = {{0, -1, 6}}> {{
            e = Gather(table, input_ids) a = MatMul(e, v)
            h = Reshape(a, split) k = Transpose <perm = [0, 2, 1, 3]> (h)
            c = Concat <axis = 2> (past_0, k)
            r = Transpose <perm = [0, 2, 1, 3]> (c) m = Reshape(r, merge) y = MatMul(m, w) }}"""
    table, v = normal(9, 6), normal(6, 6)
    model = from_text(text, table=table, v=v, w=normal(6, 5))
    words = write_text(tmp_path / "a.txt", list(range(9)))
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json", 9)
    samples = load_samples(model, tmp_path / "model.onnx", words, tokenizer, 1, 8)
    with Walk(model, tmp_path / "model.onnx", samples, threads=1, budget=0) as walked:
        found = [moments for step in walked.steps() for moments in step.observe(step.linears()).values()]
    assert len(found) == 2
    np.testing.assert_allclose(found[0].fitted, second_moment(table[:8]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1].fitted, second_moment(table[:8] @ v), rtol=1e-4, atol=1e-5)


def test_a_graph_without_nodes_has_no_steps() -> None:
    model = from_text(f"{HEAD} g (float[b] x) => (float[b] x) {{ }}")
    assert list(walk(model, x=X[0, 0]).steps()) == []
