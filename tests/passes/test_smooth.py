"""SmoothQuant as a pass: where it may be done, where not and why, and that the float model is unchanged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests import zoo
from tests.outliers import plant_outliers
from tests.passes.hand_made import SCHEME, graph, rand, structure
from zq2onnx.passes.candidates import find_candidates
from zq2onnx.passes.find_smoothable import Site, Smoothable, find_smoothable
from zq2onnx.passes.insert_qdq import InsertQdqPass
from zq2onnx.passes.normalize import NormalizePass
from zq2onnx.passes.planned import WeightView
from zq2onnx.passes.select_nodes import Policy, select_nodes
from zq2onnx.passes.smooth import SmoothPass
from zq2onnx.passes.spec import Stage, violations

K = 8
VECTORS = {"gamma": 1 + 0.1 * rand(K, seed=1), "beta": rand(K, seed=2)}
WEIGHTS = {"w": rand(K, 4, seed=3), "v": rand(K, 4, seed=4)}
NORM = "h = LayerNormalization <axis = -1> (x, gamma, beta)"


def load(path: Path) -> ir.Model:
    """With weights in memory, so that the model can be saved as bytes."""
    model = ir.from_proto(onnx.load(path))
    NormalizePass()(model)
    return model


def linears(model: ir.Model, roles: tuple[str, ...] = ("",)) -> list[str]:
    return [
        found.node.name or ""
        for found in find_candidates(model)
        if isinstance(found.view, WeightView) and found.role in roles
    ]


def some_scales(sites: tuple[Site, ...], spread: float = 1.5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {site.norm: np.exp(spread * rng.standard_normal(site.k)).astype(np.float32) for site in sites}


def fold(model: ir.Model, sites: tuple[Site, ...], scales: Mapping[str, np.ndarray]) -> None:
    """Multiply each linear's weight along K, as the conversion does when it quantizes it."""
    views = {found.node.name: found for found in find_candidates(model)}
    for site in sites:
        for name in site.linears:
            node, view = views[name].node, views[name].view
            assert isinstance(view, WeightView)
            weight = view.tensor.numpy().astype(np.float32)
            factors = scales[site.norm] if view.transposed else scales[site.norm][:, None]
            made = ir.tensor((weight * factors).astype(view.tensor.numpy().dtype), name=f"{name}.folded")
            value = ir.Value(
                name=made.name, type=ir.TensorType(made.dtype), shape=made.shape, const_value=made
            )
            model.graph.register_initializer(value)
            node.replace_input_with(1, value)


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return zoo.run(ir.to_proto(model).SerializeToString(), feeds)  # type: ignore[arg-type]


def assert_close(got: list[np.ndarray], expected: list[np.ndarray], share: float = 1e-5) -> None:
    for one, other in zip(got, expected, strict=True):
        assert np.abs(one.astype(np.float64) - other).max() <= share * np.abs(other).max()


SITES = {
    "opt": [("q_proj", "k_proj", "v_proj"), ("fc1",)] * 2,
    "gpt2": [("c_attn",), ("c_fc",)] * 2,
    "llama": [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")] * 2,
    "bloom": [("query_key_value",), ("dense_h_to_4h",)] * 2,
    "opt-torchscript-13": [("q_proj/MatMul", "k_proj/MatMul", "v_proj/MatMul"), ("fc1/Gemm",)] * 2,
    "opt-torchscript-17": [("q_proj/MatMul", "k_proj/MatMul", "v_proj/MatMul"), ("fc1/Gemm",)] * 2,
}


@pytest.mark.parametrize("name", SITES)
def test_every_norm_of_a_pre_norm_model_is_a_site_and_the_float_model_stays(name: str) -> None:
    path = zoo.model(name)
    model = load(path)
    asked = linears(model)
    found = find_smoothable(model, asked)
    assert [len(site.linears) for site in found.sites] == [len(ends) for ends in SITES[name]]
    for site, ends in zip(found.sites, SITES[name], strict=True):
        assert all(linear.endswith(end) for linear, end in zip(site.linears, ends, strict=True))
    in_sites = [linear for site in found.sites for linear in site.linears]
    assert sorted([*in_sites, *found.refused]) == sorted(asked)

    feeds = zoo.feeds(path)
    expected = zoo.run(path, feeds)
    scales = {site.norm: site.fit(wanted) for site, wanted in _pairs(found)}
    assert SmoothPass(found.sites, scales)(model).modified
    changed = outputs(model, feeds)
    assert np.abs(changed[0] - expected[0]).max() > 1e-2 * np.abs(expected[0]).max()
    fold(model, found.sites, scales)
    assert_close(outputs(model, feeds), expected)


def _pairs(found: Smoothable) -> list[tuple[Site, np.ndarray]]:
    scales = some_scales(found.sites)
    return [(site, scales[site.norm]) for site in found.sites]


def test_the_final_norm_is_a_site_where_lm_head_is_asked_for() -> None:
    model = load(zoo.model("opt"))
    found = find_smoothable(model, linears(model, ("", "lm_head")))
    assert found.sites[-1].linears == ("lm_head",)
    assert len(found.sites) == len(SITES["opt"]) + 1


def test_post_norm_residuals_forbid_it() -> None:
    model = load(zoo.model("bert"))
    found = find_smoothable(model, linears(model))
    assert found.sites == ()
    query = next(reason for name, reason in found.refused.items() if name.endswith("0.attention.self.query"))
    assert "also read by encoder.layer.0.attention.output.Add (Add)" in query
    assert set(found.refused) == set(linears(model))


def test_it_works_by_name_on_a_rewritten_graph_and_once() -> None:
    model = load(zoo.model("opt"))
    found = find_smoothable(model, linears(model))
    scales = {site.norm: wanted for site, wanted in _pairs(found)}
    names = {vector.constant.name: vector for site in found.sites for vector in site.vectors}
    InsertQdqPass(select_nodes(model, Policy(SCHEME)))(model)
    step = SmoothPass(found.sites, scales)
    assert step(model).modified
    assert list(violations(model, Stage.QDQ)) == []
    assert not set(names) & set(model.graph.initializers)
    for site in found.sites:
        for vector in site.vectors:
            made = model.graph.initializers[f"{vector.constant.name}_smoothed"].const_value
            assert made is not None
            np.testing.assert_allclose(made.numpy(), vector.values() / scales[site.norm], rtol=1e-6)
    before = structure(model)
    assert not step(model).modified
    assert structure(model) == before


def test_sites_without_scales_and_scales_of_one_change_nothing() -> None:
    model = load(zoo.model("gpt2"))
    found = find_smoothable(model, linears(model))
    assert not SmoothPass(found.sites, {})(model).modified
    ones = {site.norm: np.ones(site.k, np.float32) for site in found.sites}
    assert not SmoothPass(found.sites, ones)(model).modified


@pytest.mark.parametrize("kind", ["opt-fp16", "opt-bf16"])
def test_fitted_scales_make_up_for_the_rounding_of_gamma(kind: str) -> None:
    model = load(zoo.model(kind))
    found = find_smoothable(model, linears(model))
    for site, wanted in _pairs(found):
        scales = site.fit(wanted)
        gamma = site.vectors[0]
        product = gamma.divided(scales).astype(np.float32) * scales
        np.testing.assert_allclose(product, gamma.values().astype(np.float32), rtol=2e-7)
        np.testing.assert_allclose(scales, wanted, rtol=2**-8)
        assert scales.dtype == np.float32


def test_fitted_scales_are_one_where_nothing_can_be_divided() -> None:
    gamma = np.array([0, 1, 60000, 1, 1e-3, 1, 1, 1], np.float16)
    beta = np.array([0, 0, 0, 40000, 0, 1e-7, 1, 1], np.float16)
    model = norm_graph("y = MatMul(h, w)", gamma=gamma, beta=beta, dtype=np.float16)
    (site,) = find_smoothable(model, ["y"]).sites
    scales = site.fit(np.array([2, 2, 0.5, 0.25, 100, 2, 4, 1 / 3], np.float32))
    np.testing.assert_allclose(scales, [1, 2, 1, 1, 1, 2, 4, 1 / 3], rtol=1e-3)


def norm_graph(
    text: str,
    norm: str = NORM,
    *,
    fed: str = "",
    result: str = "float[2, 3, n] y",
    dtype: type = np.float32,
    opset: int = 21,
    **more: np.ndarray,
) -> ir.Model:
    """`x` through a normalization to `h`, and `text`, with the constants of both that it reads."""
    kind = "float16" if dtype is np.float16 else "float"
    body = f"g ({kind}[2, 3, {K}] x{fed}) => ({result.replace('float', kind)}) {{ {norm} {text} }}"
    given = {**VECTORS, **WEIGHTS, **more}
    used = {name: value for name, value in given.items() if re.search(rf"\b{name}\b", body)}
    cast = {name: value.astype(dtype) if value.dtype == np.float32 else value for name, value in used.items()}
    model = graph(body.replace("float16[", f"{kind}["), cast, opset=opset)
    NormalizePass()(model)
    return model


def check_unchanged(model: ir.Model, found: Smoothable) -> None:
    feeds = {"x": rand(2, 3, K, seed=6)}
    expected = outputs(model, feeds)
    scales = some_scales(found.sites)
    assert SmoothPass(found.sites, scales)(model).modified
    fold(model, found.sites, scales)
    assert_close(outputs(model, feeds), expected)


GOOD = {
    "no beta": ("h = LayerNormalization <axis = -1> (x, gamma)", "y = MatMul(h, w)", ("y",)),
    "rms": ("h = SimplifiedLayerNormalization (x, gamma)", "y = MatMul(h, w)", ("y",)),
    "skip": (
        "h = com.microsoft.SkipLayerNormalization (x, x, gamma, beta)",
        "y = MatMul(h, w)",
        ("y",),
    ),
    "skip rms": (
        "h = com.microsoft.SkipSimplifiedLayerNormalization (x, x, gamma)",
        "y = MatMul(h, w)",
        ("y",),
    ),
    "single operators": ("s = Sigmoid(x) m = Mul(gamma, s) h = Add(m, beta)", "y = MatMul(h, w)", ("y",)),
    "beta behind": (
        "n = LayerNormalization <axis = -1> (x, gamma, beta) h = Add(shift, n)",
        "y = MatMul(h, w)",
        ("y",),
    ),
    "several readers": (NORM, "a = MatMul(h, w) b = MatMul(h, v) y = Add(a, b)", ("a", "b")),
    "reshaped and cast": (
        NORM,
        "r = Reshape(h, flat) c = Cast <to = 1> (r) i = Identity(c) m = Gemm(i, w) y = Reshape(m, back)",
        ("m",),
    ),
    "its shape is read": (
        NORM,
        "m = MatMul(h, w) s = Shape(h) z = Cast <to = 1> (s) q = ReduceSum(z) y = Add(m, q)",
        ("m",),
    ),
    "a unit dimension": (NORM.replace("gamma", "gamma_row"), "y = MatMul(h, w)", ("y",)),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_is_a_site(case: str) -> None:
    norm, text, names = GOOD[case]
    more = {
        "shift": rand(K, seed=7),
        "flat": np.array([-1, K]),
        "back": np.array([2, 3, 4]),
        "gamma_row": rand(1, 1, K, seed=8),
    }
    model = norm_graph(text, norm, **more)
    found = find_smoothable(model, linears(model))
    assert found.refused == {}
    assert [site.linears for site in found.sites] == [names]
    check_unchanged(model, found)


BAD = {
    "a residual": (NORM, "m = MatMul(h, wide) y = Add(m, h)", "also read by y (Add)"),
    "an output": (NORM, "y = MatMul(h, w)", "its input is h, an output of a graph"),
    "a right operand": (
        NORM,
        "m = MatMul(h, w) p = MatMul(m2, h) s = ReduceSum(p) y = Add(m, s)",
        "also read by p (MatMul)",
    ),
    "an integer cast": (
        NORM,
        "i = Cast <to = 7> (h) f = Cast <to = 1> (i) y = MatMul(f, w)",
        "comes from i (Cast)",
    ),
    "other channels": (NORM, "r = Reshape(h, halves) y = MatMul(r, half)", "reshaped from 8 channels to 4"),
    "a transpose": (
        NORM,
        "t = Transpose <perm = [0, 2, 1]> (h) y = MatMul(t, three)",
        "comes from t (Transpose)",
    ),
    "the input": ("", "y = MatMul(x, w)", "its input is x, an input of the model"),
    "a computed scale": (
        "g = Sigmoid(gamma_in) h = LayerNormalization <axis = -1> (x, g)",
        "y = MatMul(h, w)",
        "comes from h (LayerNormalization), whose scale or shift is computed",
    ),
    "one scale for all": (
        "h = Mul(x, one)",
        "y = MatMul(h, w)",
        "comes from h (Mul), which scales no channels",
    ),
    "a scale per token": (
        "h = Mul(x, tokens)",
        "y = MatMul(h, w)",
        "comes from h (Mul), which scales no channels",
    ),
    "a sum": ("h = Add(x, beta)", "y = MatMul(h, w)", "x, an input of the model"),
    "two activations": ("h = Add(x, x)", "y = MatMul(h, w)", "comes from h (Add), which scales no channels"),
    "read before beta": (
        "m = Mul(x, gamma) h = Add(m, beta)",
        "p = MatMul(h, wide) y = Add(p, m)",
        "comes from h (Add), which adds up what others read too",
    ),
    "the mean of a norm": (
        "n, h = LayerNormalization <axis = -1> (x, gamma, beta)",
        "y = MatMul(h, row)",
        "comes from n (LayerNormalization), which scales no channels",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_site_and_why(case: str) -> None:
    norm, text, reason = BAD[case]
    more = {
        "wide": rand(K, K, seed=7),
        "halves": np.array([2, 6, 4]),
        "half": rand(4, 4, seed=8),
        "three": rand(3, 4, seed=9),
        "row": rand(1, 4, seed=10),
        "one": np.array([2], np.float32),
        "tokens": rand(3, 1, seed=11),
    }
    fed = ", float[8] gamma_in" if "gamma_in" in norm else ", float[2, 3, 3] m2" if "m2" in text else ""
    result = "float[2, 3, 4] y" + (f", float[2, 3, {K}] h" if case == "an output" else "")
    model = norm_graph(text, norm, fed=fed, result=result, **more)
    found = find_smoothable(model, linears(model))
    assert found.sites == ()
    assert len(found.refused) == 1
    assert reason in next(iter(found.refused.values()))


def test_a_linear_that_stays_float_forbids_it() -> None:
    model = norm_graph("a = MatMul(h, w) b = MatMul(h, v) y = Add(a, b)")
    found = find_smoothable(model, ["a"])
    assert found.sites == ()
    assert "also read by b (MatMul)" in found.refused["a"]
    assert list(find_smoothable(model, []).refused) == []


def test_a_weight_with_two_inputs_is_not_smoothed_for_one() -> None:
    other = "k = LayerNormalization <axis = -1> (x, beta, gamma)"
    model = norm_graph(f"{other} a = MatMul(h, w) b = MatMul(k, w) y = Add(a, b)")
    found = find_smoothable(model, ["a", "b"])
    assert found.sites == ()
    assert "its weight is also read by b" in found.refused["a"]
    assert [site.linears for site in find_smoothable(model, ["a"]).sites] == [("a",)]


def test_a_transposed_input_is_refused_and_refuses_the_others() -> None:
    flat = (
        "r = Reshape(h, flat) a = Gemm(r, w) b = Gemm <transA = 1> (r, six) t = Transpose(b) y = MatMul(a, t)"
    )
    model = norm_graph(flat, flat=np.array([-1, K]), six=rand(6, 4), result="float[6, 8] y")
    found = find_smoothable(model, ["a", "b"])
    assert found.sites == ()
    assert found.refused["b"] == "its input is transposed"
    assert "also read by b (Gemm)" in found.refused["a"]


def test_constants_that_others_read_stay() -> None:
    model = norm_graph("m = MatMul(h, w) z = Mul(m, m) s = ReduceSum(gamma) y = Add(z, s)")
    before = model.graph.initializers["gamma"].const_value
    found = find_smoothable(model, ["m"])
    check_unchanged(model, found)
    assert model.graph.initializers["gamma"].const_value is before
    assert "gamma_smoothed" in model.graph.initializers
    assert "beta" not in model.graph.initializers


def test_names_that_are_taken_are_left_alone() -> None:
    model = norm_graph("m = MatMul(h, w) gamma_smoothed = Mul(m, m) y = Neg(gamma_smoothed)")
    found = find_smoothable(model, ["m"])
    check_unchanged(model, found)
    assert "gamma_smoothed_" in model.graph.initializers


def test_planted_outliers_leave_the_float_model_as_it_was(tmp_path: Path) -> None:
    source, path = zoo.model("opt"), tmp_path / "planted.onnx"
    planted = plant_outliers(source, path)
    assert [name.rpartition(".")[2] for name in planted] == ["self_attn_layer_norm", "final_layer_norm"] * 2
    assert (tmp_path / "tokenizer.json").exists()
    feeds = zoo.feeds(source)
    assert_close(zoo.run(path, feeds), zoo.run(source, feeds))
    sites = zip(_sites(load(source)), _sites(load(path)), strict=True)
    for (one, other), channels in zip(sites, planted.values(), strict=True):
        for vector, grown in zip(one.vectors, other.vectors, strict=True):
            ratio = grown.values() / vector.values()
            assert len(channels) == 6
            np.testing.assert_allclose(ratio[channels], 30, rtol=1e-6)
            assert (np.delete(ratio, channels) == 1).all()


def test_outliers_are_planted_in_front_of_linears_alone(tmp_path: Path) -> None:
    planted = plant_outliers(zoo.model("bloom"), tmp_path / "planted.onnx", channels=2, factor=100)
    ends = ["input_layernorm", "post_attention_layernorm"] * 2
    assert [name.rpartition(".")[2] for name in planted] == ends
    with pytest.raises(ValueError, match="no LayerNormalization"):
        plant_outliers(zoo.model("bert"), tmp_path / "bert.onnx")


def _sites(model: ir.Model) -> tuple[Site, ...]:
    return find_smoothable(model, linears(model)).sites
