from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests import zoo
from tests.passes.hand_made import graph, proto, rand, rounded, structure
from tests.passes.test_odd_graphs import convert
from zq2onnx.errors import UserError
from zq2onnx.passes.insert_qdq import InsertQdqPass
from zq2onnx.passes.normalize import NormalizePass
from zq2onnx.passes.raise_opset import RaiseOpsetPass
from zq2onnx.passes.select_nodes import Policy, select_nodes
from zq2onnx.passes.spec import Stage, violations
from zq2onnx.passes.trace_weights import all_nodes
from zq2onnx.scheme import PerBlock, Scheme

X = rand(2, 3, 8)

OLD = (
    "g (float[2, 3, 8] x) => (float[2, 3, 12] y)"
    " { m = MatMul(x, w) s = Softmax <axis = 1> (m) u = Unsqueeze <axes = [0]> (s) c = Clip(u, low, high)"
    " q = Squeeze <axes = [0]> (c) y = Relu(q) }"
)
MIDDLE = (
    "g (float[2, 3, 8] x) => (float[2, 3, 12] y)"
    " { m = MatMul(x, w) s = Softmax <axis = -1> (m) u = Unsqueeze(s, zero) q = Squeeze(u, zero)"
    " r = ReduceMax <axes = [-1]> (q) y = Sub(q, r) }"
)
LATE = (
    "g (float[2, 3, 8] x) => (float[2, 3, 12] y)"
    " { m = MatMul(x, w) s = Softmax <axis = -1> (m) r = ReduceMax(s, last) y = Sub(s, r) }"
)


def example(opset: int) -> ir.Model:
    """Operators whose meaning or signature changed on the way to 21."""
    if opset < 13:
        text, more = OLD, {"low": np.float32(0).reshape(()), "high": np.float32(0.5).reshape(())}
    elif opset < 18:
        text, more = MIDDLE, {"zero": np.array([0])}
    else:
        text, more = LATE, {"last": np.array([-1])}
    return graph(text, {"w": rand(8, 12), **more}, opset=opset)


def run(model: ir.Model, feeds: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    ir.save(model, folder / "model.onnx")
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    return zoo.run(folder / "model.onnx", feeds)


@pytest.mark.parametrize("target", [21, 25])
@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
def test_the_numbers_and_the_names_stay(opset: int, target: int, tmp_path: Path) -> None:
    model = example(opset)
    NormalizePass()(model)
    before = run(model, {"x": X}, tmp_path)
    named = {node.name for node in model.graph}
    assert RaiseOpsetPass(target)(model).modified
    assert model.opset_imports[""] == target
    assert not RaiseOpsetPass(target)(model).modified
    for one, other in zip(before, run(model, {"x": X}, tmp_path), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    assert {"m", "y"} <= named & {node.name for node in model.graph}
    assert all(node.name for node in all_nodes(model))
    assert len({node.name for node in all_nodes(model)}) == len(list(all_nodes(model)))


@pytest.mark.parametrize("name", ["opt-torchscript-13", "opt-torchscript-17"])
@pytest.mark.parametrize("target", [21, 25])
def test_torchscript_models(name: str, target: int, tmp_path: Path) -> None:
    path = zoo.model(name)
    feeds = zoo.feeds(path)
    model = ir.load(path)
    NormalizePass()(model)
    products = [node.name for node in model.graph if node.op_type in ("MatMul", "Gemm", "Gather")]
    RaiseOpsetPass(target)(model)
    after = run(model, feeds, tmp_path)[0]
    before = zoo.run(path, feeds)[0]
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    assert [node.name for node in model.graph if node.op_type in ("MatMul", "Gemm", "Gather")] == products


@pytest.mark.parametrize("opset", [9, 10, 26])
def test_an_unknown_opset_is_an_error(opset: int) -> None:
    model = graph("g (float[2] x) => (y) { y = Relu(x) }", opset=opset)
    with pytest.raises(UserError, match=f"the model's opset is {opset}; .*11 to 25"):
        RaiseOpsetPass(21)(model)


def test_a_model_without_an_opset_is_an_error() -> None:
    model = graph("g (float[2] x) => (y) { y = Relu(x) }")
    del model.opset_imports[""]
    with pytest.raises(UserError, match="imports no ONNX opset"):
        RaiseOpsetPass(21)(model)


def test_a_newer_opset_stays() -> None:
    model = graph("g (float[2] x) => (y) { y = Relu(x) }", opset=23)
    step = RaiseOpsetPass(21)
    assert not step(model).modified and model.opset_imports[""] == 23 and step.warnings == []


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_metadata_of_nodes_stays_in_subgraphs_too(opset: int) -> None:
    model = graph(
        "g (float[2] x, bool c) => (float[2] y) { s = Softmax <axis = 0> (x) y = If (c)"
        " <then_branch = yes () => (float[2] a) { a = Relu(s) },"
        " else_branch = no () => (float[2] d) { d = Softmax <axis = 0> (s) }> }",
        opset=opset,
    )
    for node in all_nodes(model):
        node.metadata_props["origin"] = str(node.name)
    assert RaiseOpsetPass(21)(model).modified
    found = {node.name: node.metadata_props.get("origin") for node in all_nodes(model)}
    assert found == {name: name for name in "sayd"}


def test_weights_of_subgraphs_stay(tmp_path: Path) -> None:
    model = graph(
        "g (float[2, 40] x, bool c) => (float[2, 40] y) { y = If (c)"
        " <then_branch = yes () => (float[2, 40] a) { v = Constant <value_int = 0> () a = MatMul(x, v) },"
        " else_branch = no () => (float[2, 40] d) { d = MatMul(x, w) }> }",
        {"w": rand(40, 40), "v": rand(40, 40, seed=1)},
        opset=13,
    )
    x = rand(2, 40)
    RaiseOpsetPass(21)(model)
    for condition, weight in ((True, rand(40, 40, seed=1)), (False, rand(40, 40))):
        got = run(model, {"x": x, "c": np.array(condition)}, tmp_path)[0]
        np.testing.assert_allclose(got, x @ weight, rtol=0, atol=1e-4)


MICROSOFT = [
    "y = com.microsoft.SkipLayerNormalization(x, x, b)",
    "y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (x, x, x, , , n, n)",
    "y = com.microsoft.MatMulNBits <K = 8, N = 8, bits = 4, block_size = 16> (x, codes, b)",
    "y = com.microsoft.RotaryEmbedding(x, i, b, b)",
]


@pytest.mark.parametrize("node", MICROSOFT)
@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_microsofts_nodes_pass_through(node: str, opset: int) -> None:
    text = f"g (float[2, 3, 8] x, int32[1] n, int64[1] i) => (z) {{ {node} z = Softmax(y) }}"
    model = graph(text, {"b": rand(8), "codes": np.ones((8, 1, 8), np.uint8)}, opset=opset)
    before = structure(model)
    assert RaiseOpsetPass(21)(model).modified
    assert structure(model) == before and model.opset_imports == {"": 21, "com.microsoft": 1}


def blocked(opset: int) -> ir.Model:
    """GroupNormalization's adapter needs a shape that is not there."""
    text = "g (float[2, 4] x) => (y) { a = Relu(x) y = GroupNormalization <num_groups = 2> (a, b, b) }"
    return graph(text, {"b": rand(2)}, opset=opset)


def test_where_the_conversion_fails_the_opset_is_kept_if_it_will_do() -> None:
    model = blocked(18)
    before = structure(model)
    step = RaiseOpsetPass(21, least=18)
    assert not step(model).modified
    assert model.opset_imports[""] == 18 and structure(model) == before
    (warning,) = step.warnings
    assert warning.startswith("opset 18 was kept: raising it to 21 failed: ") and "\n" not in warning


def test_and_is_an_error_if_not() -> None:
    with pytest.raises(UserError, match="opset 18 cannot be raised to 21: .*opset_version=21"):
        RaiseOpsetPass(21)(blocked(18))


class Failing:
    """A version converter that reaches no opset of `fails`, as the real one tells it."""

    def __init__(self, *fails: int) -> None:
        self.fails = fails
        self.tried: list[int] = []

    def __call__(self, model: ir.Model, target_version: int, fallback: bool) -> None:
        self.tried.append(target_version)
        if target_version in self.fails:
            try:
                try:
                    raise RuntimeError(
                        "/project/onnx/convert.cc:101: f: Assertion `a` failed: no adapter for Foo"
                    )
                except RuntimeError:
                    raise ValueError(f"could not convert {object()}") from None
            except ValueError as error:
                raise ir.passes.PassError(f"An error occurred when running {object()}") from error
        model.opset_imports[""] = target_version


@pytest.mark.parametrize(
    ("version", "fails", "tried", "reached", "warning"),
    [
        (18, (), [25], 25, ""),
        (18, (25,), [25, 21], 21, "opset 18 was raised to 21 only: raising it to 25 failed: "),
        (22, (25,), [25], 22, "opset 22 was kept: raising it to 25 failed: "),
    ],
)
def test_the_least_opset_is_tried_next(
    version: int,
    fails: tuple[int, ...],
    tried: list[int],
    reached: int,
    warning: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """qdq in 2 bits would like 25 and can do with 21."""
    converter = Failing(*fails)
    monkeypatch.setattr("onnxscript.version_converter.convert_version", converter)
    model = graph("g (float[2] x) => (y) { y = Relu(x) }", opset=version)
    step = RaiseOpsetPass(25, least=21)
    assert step(model).modified is (reached > version)
    assert converter.tried == tried and model.opset_imports[""] == reached
    assert step.warnings == ([f"{warning}no adapter for Foo"] if warning else [])


def test_where_both_fail_the_root_cause_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxscript.version_converter.convert_version", Failing(21, 25))
    model = graph("g (float[2] x) => (y) { y = Relu(x) }", opset=18)
    with pytest.raises(UserError, match="^opset 18 cannot be raised to 21: no adapter for Foo; "):
        RaiseOpsetPass(25, least=21)(model)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_nodes_can_be_selected_before_the_opset_is_raised_and_after(opset: int) -> None:
    model = example(opset)
    NormalizePass()(model)
    first = select_nodes(model, Policy())
    assert RaiseOpsetPass(21)(model).modified
    second = select_nodes(model, Policy())
    assert [report.name for report in first.reports] == [report.name for report in second.reports]
    assert InsertQdqPass(second)(model).modified
    assert list(violations(model, Stage.QDQ)) == []


def test_a_portable_file_of_opset_18_runs(tmp_path: Path) -> None:
    text = (
        "g (float[2, 40] x) => (float[2, 12] y) { m = MatMul(x, w) a = Relu(m)"
        " n = GroupNormalization <num_groups = 2> (a, b, b) y = Add(n, m) }"
    )
    x, weight, ones = rand(2, 40), rand(40, 12), np.ones(2, np.float32)
    path, report = convert(proto(text, {"w": weight, "b": ones}, opset=18), tmp_path)
    assert report.requires.opset[""] == 18
    assert any(line.startswith("opset 18 was kept") for line in report.warnings)
    product = x @ rounded(weight, Scheme(granularity=PerBlock(16), lorc_rank=2))
    halves = np.maximum(product, 0).reshape(2, 2, 6)
    mean, deviation = halves.mean(-1, keepdims=True), np.sqrt(halves.var(-1, keepdims=True) + 1e-5)
    expected = ((halves - mean) / deviation + 1).reshape(2, 12) + product
    np.testing.assert_allclose(zoo.run(path, {"x": x})[0], expected, rtol=0, atol=1e-4)


def test_our_operators_are_not_inlined() -> None:
    body = '<domain: "ai.zq2onnx", opset_import: ["" : 20]> MatMulW4A16 (x) => (y) { y = Relu(x) }'
    text = "g (float[2] x) => (y) { y = ai.zq2onnx.MatMulW4A16(x) }"
    model = graph(text, opset=20, domains=("ai.zq2onnx",), functions=body)
    step = RaiseOpsetPass(21, least=18)
    assert not step(model).modified
    assert structure(model) == ["y = ai.zq2onnx.MatMulW4A16 (x)"]
    assert step.warnings and "ai.zq2onnx" in step.warnings[0]
    with pytest.raises(UserError, match="opset 20 cannot be raised to 21"):
        RaiseOpsetPass(21)(model)
