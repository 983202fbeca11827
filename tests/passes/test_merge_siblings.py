"""Products of one input become one, and compute what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests import zoo
from tests.passes.hand_made import SCHEME, candidates, graph, rand, structure
from zq2onnx.conversion.loading import load
from zq2onnx.passes.joined import JoinedTensor
from zq2onnx.passes.merge_siblings import MergeSiblingsPass
from zq2onnx.passes.normalize import NormalizePass
from zq2onnx.passes.select_nodes import NodeRule, Policy, select_nodes

THREE = (
    "g (float[2, 3, 40] x) => (float[2, 3, 12] a, float[2, 3, 8] c, float[2, 3, 20] f) {"
    " a = MatMul(x, u) b = MatMul(x, v) c = Add(bias, b) t = Transpose(w) d = MatMul(x, t) e = Relu(d)"
    " f = Add(e, e) }"
)
WEIGHTS = {"u": rand(40, 12), "v": rand(40, 8, seed=1), "w": rand(20, 40, seed=2), "bias": rand(8, seed=3)}


def merged(model: ir.Model, **said: Any) -> dict[str, str]:
    """What the pass refused. It runs again with its old selection and with a new one, in vain."""
    policy = Policy(SCHEME, **said)
    step = MergeSiblingsPass(select_nodes(model, policy))
    before = structure(model)
    modified, refused = step(model).modified, dict(step.refused)
    after = structure(model)
    assert modified == (before != after)
    for again in (step, MergeSiblingsPass(select_nodes(model, policy))):
        assert not again(model).modified and structure(model) == after
    return refused


def run(model: ir.Model, feeds: dict[str, np.ndarray], tmp_path: Path) -> list[np.ndarray]:
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    return zoo.run(tmp_path / "m.onnx", feeds)


def test_three_orders_of_storage_and_a_bias_of_one(tmp_path: Path) -> None:
    feeds = {"x": rand(2, 3, 40, seed=4)}
    expected = run(graph(THREE, WEIGHTS), feeds, tmp_path)
    model = graph(THREE, WEIGHTS)
    assert merged(model) == {}
    assert structure(model) == [
        "a+b+d/output = MatMul (x, u+v+w)",
        "a+b+d/bias/output = Add (a+b+d/output, u+v+w/bias)",
        "a, c, d = Split <axis=-1> (a+b+d/bias/output, u+v+w/sizes)",
        "e = Relu (d)",
        "f = Add (e, e)",
    ]
    assert set(model.graph.initializers) == {"u+v+w", "u+v+w/bias", "u+v+w/sizes"}
    for got, wanted in zip(run(model, feeds, tmp_path), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_gemms_become_a_product(tmp_path: Path) -> None:
    text = (
        "g (float[5, 40] x) => (float[5, 20] y, float[5, 8] z)"
        " { y = Gemm <transB = 1> (x, w, c) z = Gemm(x, v) }"
    )
    weights, feeds = {"w": WEIGHTS["w"], "v": WEIGHTS["v"], "c": rand(20)}, {"x": rand(5, 40)}
    expected = run(graph(text, weights), feeds, tmp_path)
    model = graph(text, weights)
    merged(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Split"]
    for got, wanted in zip(run(model, feeds, tmp_path), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_the_merged_node_is_found_by_the_names_of_each() -> None:
    model = graph(THREE, WEIGHTS)
    merged(model)
    (found,) = (each for each in candidates(model).values() if each.merged)
    assert found.merged == ["a", "b", "d"]
    for pattern in (r"^a\+b\+d$", "^a$", "^b$", r"^w$", r"^u\+v\+w$"):
        assert found.matches(pattern)
    assert not found.matches("^c$")


PAIR = "g (float[2, 40] x) => (float[2, 12] y, float[2, 8] z) { y = MatMul(x, u) z = MatMul(x, v) }"


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ({"exclude": ("^z$",)}, {"y": "z reads the same input, and stays float"}),
        ({"only": ("^z$",)}, {"z": "y reads the same input, and stays float"}),
        (
            {"rules": (NodeRule("^y$", {"bits": 8}),)},
            {
                "y": "z reads the same input, and is quantized in another way",
                "z": "y reads the same input, and is quantized in another way",
            },
        ),
    ],
)
def test_what_is_treated_differently_is_left_alone(said: dict[str, Any], refused: dict[str, str]) -> None:
    model = graph(PAIR, WEIGHTS | {})
    before = structure(model)
    assert merged(model, **said) == refused
    assert structure(model) == before


def test_those_that_are_alike_merge_without_the_others() -> None:
    model = graph(THREE, WEIGHTS)
    refused = merged(model, rules=(NodeRule("^b$", {"lorc_rank": 4}),))
    assert refused == {"b": "a reads the same input, and is quantized in another way"}
    assert [node.name for node in model.graph if node.op_type == "MatMul"] == ["a+d", "b"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PAIR.replace("MatMul(x, v)", "Gemm <alpha = 2.0> (x, v)"), "its alpha or beta is not 1"),
        (PAIR.replace("MatMul(x, v)", "Gemm <beta = 0.5> (x, v, b8)"), "its alpha or beta is not 1"),
        (
            PAIR.replace("x)", "x, float[8] q)", 1).replace("MatMul(x, v)", "Gemm(x, v, q)"),
            "what it adds is no constant vector",
        ),
        (
            "g (float[40, 40] x) => (float[40, 12] y, float[40, 8] z)"
            " { y = MatMul(x, u) z = Gemm <transA = 1> (x, v) }",
            "its input is transposed",
        ),
        (
            "g (float[2, 40] x) => (float[2, 12] y, float[1, 2, 8] z) { y = MatMul(x, u) z = MatMul(x, v3) }",
            "its weight has leading dimensions",
        ),
        (
            "g (float[2, 40] x) => (float[2, 12] y, float[2, 8] z)"
            " { y = MatMul(x, u) z = MatMul(x, v) s = Relu(x) o = MatMul(s, v) }",
            "its weight is read by other nodes too",
        ),
    ],
)
def test_products_that_are_no_plain_ones_are_left_alone(text: str, reason: str) -> None:
    more = {"b8": rand(8), "v3": rand(1, 40, 8)}
    model = graph(text, {name: array for name, array in {**WEIGHTS, **more}.items() if name in text})
    before = structure(model)
    refused = merged(model)
    assert refused["z"] == reason
    assert refused["y"] == "z reads the same input, and cannot be merged"
    assert structure(model) == before


def test_the_lm_head_stays_alone() -> None:
    text = PAIR.replace(" z)", " logits)").replace("z =", "logits =")
    model = graph(text, WEIGHTS)
    assert merged(model, include=("lm_head",))["logits"] == "it is the lm_head"
    assert merged(graph(text, WEIGHTS)) == {"y": "logits reads the same input, and stays float"}


def decoder(layers: int) -> tuple[str, dict[str, np.ndarray]]:
    """Keys and values of all layers read one encoder; behind them each has a product of its own."""
    steps = [
        f"q{i} = MatMul(x{i}, wq{i}) k{i} = MatMul(e, wk{i}) v{i} = MatMul(e, wv{i})"
        f" s{i} = Add(q{i}, k{i}) t{i} = Add(s{i}, v{i}) x{i + 1} = MatMul(t{i}, wo{i})"
        for i in range(layers)
    ]
    text = f"g (float[2, 40] x, float[2, 40] e) => (float[2, 40] y) {{ x0 = Identity(x) {' '.join(steps)}"
    weights = {f"w{role}{i}": rand(40, 40, seed=i) / 6 for i in range(layers) for role in "qkvo"}
    return f"{text} y = Relu(x{layers}) }}", weights


def test_what_all_layers_read_is_merged_in_each_by_itself(tmp_path: Path) -> None:
    text, weights = decoder(3)
    feeds = {"x": rand(2, 40), "e": rand(2, 40, seed=1)}
    expected = run(graph(text, weights), feeds, tmp_path)
    model = graph(text, weights)
    assert merged(model) == {}
    names = [node.name for node in model.graph if node.op_type == "MatMul"]
    assert names == ["q0", "k0+v0", "x1", "q1", "k1+v1", "x2", "q2", "k2+v2", "x3"]
    np.testing.assert_allclose(run(model, feeds, tmp_path)[0], expected[0], rtol=0, atol=1e-4)


def test_what_is_alone_in_its_layer_is_told() -> None:
    text, weights = decoder(2)
    model = graph(text.replace("v0 = MatMul(e, wv0)", "v0 = Relu(e)"), {**weights})
    refused = merged(model)
    assert refused == {"k0": "k1 reads the same input, but products of others are between them"}


@pytest.mark.parametrize(("count", "parts"), [(4, [4]), (5, [2, 3]), (13, [3, 3, 3, 4])])
def test_no_more_than_four_become_one(count: int, parts: list[int]) -> None:
    products = " ".join(f"y{i} = MatMul(x, w{i})" for i in range(count))
    outputs = ", ".join(f"float[2, 8] y{i}" for i in range(count))
    model = graph(
        f"g (float[2, 40] x) => ({outputs}) {{ {products} }}", {f"w{i}": rand(40, 8) for i in range(count)}
    )
    assert merged(model) == {}
    assert [len(node.outputs) for node in model.graph if node.op_type == "Split"] == parts


def test_names_that_the_model_has_are_not_given_again(tmp_path: Path) -> None:
    """Neither a node's, nor an initializer's, nor that of any other value."""
    text = (
        "g (float[2, 40] x) => (float[2, 12] y) {"
        " r = MatMul(x, q) a = MatMul(r, u) b = MatMul(r, v) c = Mul(a, b)"
        " d = Add(c, z) e = Neg(d) f = Abs(e) y = Relu(f) }"
    )
    weights = {"q": rand(40, 40), "u": rand(40, 12), "v": rand(40, 12, seed=1), "z": rand(12)}
    feeds = {"x": rand(2, 40)}
    expected = run(graph(text, weights), feeds, tmp_path)
    model = graph(text, weights)
    values = {value.name: value for node in model.graph for value in (*node.inputs, *node.outputs) if value}
    for old, new in {"r": "u+v", "c": "u+v/sizes", "e": "a+b/output"}.items():
        values[old].name = new
    for old, new in {"d": "a+b", "f": "a+b/split"}.items():
        model.graph.node(old).name = new
    merged(model)
    names = [node.name for node in model.graph]
    everything = [*model.graph.initializers, *(value.name for node in model.graph for value in node.outputs)]
    assert len({*names}) == len(names) and len({*everything}) == len(everything)
    np.testing.assert_allclose(run(model, feeds, tmp_path)[0], expected[0], rtol=0, atol=1e-4)


def test_weights_are_not_read_before_they_are_asked_for(tmp_path: Path) -> None:
    weights = {name: WEIGHTS[name] for name in ("u", "v")}
    ir.save(graph(PAIR, weights), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    model = ir.load(tmp_path / "m.onnx")
    sources = [model.graph.initializers[name].const_value for name in weights]
    assert MergeSiblingsPass(select_nodes(model, Policy(SCHEME)))(model).modified
    joined = model.graph.initializers["u+v"].const_value
    assert isinstance(joined, JoinedTensor) and [view.tensor for view in joined.views] == sources
    np.testing.assert_array_equal(joined.numpy(), np.concatenate([*weights.values()], axis=1))
    assert all(isinstance(each, ir.ExternalTensor) and each.raw is None for each in sources)


@pytest.mark.parametrize(
    ("name", "products"),
    [("opt", 2), ("llama", 4), ("llama-cache", 4), ("opt-torchscript-17", 2), ("gpt2", 0)],
)
def test_exported_models_compute_the_same(name: str, products: int, tmp_path: Path) -> None:
    path = zoo.model(name)
    model = load(path).model
    NormalizePass()(model)
    assert merged(model) == {}
    assert sum(node.op_type == "Split" and "+" in (node.name or "") for node in model.graph) == products
    feeds = zoo.feeds(path, past=3 if name.endswith("-cache") else 0)
    for got, expected in zip(run(model, feeds, tmp_path), zoo.run(path, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
