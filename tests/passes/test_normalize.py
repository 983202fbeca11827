from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests import zoo
from tests.passes.hand_made import graph, proto, rand, structure
from tests.passes.test_odd_graphs import convert
from zq2onnx.passes.normalize import NormalizePass, name_nodes
from zq2onnx.passes.trace_weights import all_nodes


def named(names: list[str]) -> ir.Model:
    steps = "a = Relu(x) b = Relu(a) c = Relu(b) d = Relu(c)"
    model = graph(f"g (float[2] x) => (d) {{ {steps} }}")
    for node, name in zip(model.graph, names, strict=True):
        node.name = name
    return model


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["p", "q", "r", "s"], ["p", "q", "r", "s"]),
        (["", "", "r", ""], ["Relu_0", "Relu_1", "r", "Relu_3"]),
        (["p", "p", "p", "q"], ["p", "p_1", "p_2", "q"]),
        (["", "Relu_0", "p", "p_3"], ["Relu_1", "Relu_0", "p", "p_3"]),
        (["p", "p", "p_1", ""], ["p", "p_2", "p_1", "Relu_3"]),
    ],
)
def test_every_node_gets_a_name_of_its_own(before: list[str], after: list[str]) -> None:
    model = named(before)
    assert name_nodes(model) is (before != after)
    assert [node.name for node in model.graph] == after
    assert not name_nodes(model)


def test_names_are_unique_across_subgraphs() -> None:
    model = graph(
        "g (float[2] x, bool c) => (y) { y = If (c) <then_branch = yes () => (a) { a = Relu(x) },"
        " else_branch = no () => (b) { b = Abs(x) }> }"
    )
    for node in all_nodes(model):
        node.name = "same"
    NormalizePass()(model)
    assert len({node.name for node in all_nodes(model)}) == 3


def test_a_second_run_changes_nothing() -> None:
    model = named(["", "q", "q", ""])
    assert NormalizePass()(model).modified
    assert not NormalizePass()(model).modified


def test_the_long_name_of_the_standard_domain_is_shortened() -> None:
    made = proto("g (float[2] x) => (y) { y = Relu(x) }")
    made.opset_import[0].domain = "ai.onnx"
    made.graph.node[0].domain = "ai.onnx"
    model = ir.from_proto(made)
    assert NormalizePass()(model).modified
    assert model.opset_imports[""] == 21 and "ai.onnx" not in model.opset_imports
    assert structure(model) == ["y = Relu (x)"]


def test_dead_nodes_go() -> None:
    """A dead product would be reported as rewritten and be nowhere in the file."""
    model = graph("g (float[2, 4] x) => (y) { y = Relu(x) z = MatMul(x, w) }", {"w": rand(4, 4)})
    NormalizePass()(model)
    assert structure(model) == ["y = Relu (x)"] and not model.graph.initializers


DEFAULTS = (
    "g (float[2, 8] x, float[8] b, int64[2] ids, float[8, 8] w, float[9, 8] t) => (y, e)"
    " { m = MatMul(x, w) y = Add(m, b) e = Gather(t, ids) }"
)


@pytest.mark.parametrize(
    ("version", "inputs", "warned"),
    [(3, ["x", "ids"], []), (4, ["x", "b", "ids"], ["w", "t"]), (10, ["x", "b", "ids"], ["w", "t"])],
)
def test_of_inputs_with_a_default_weights_alone_become_constants(
    version: int, inputs: list[str], warned: list[str]
) -> None:
    """Until IR version 3 every initializer had to be listed as an input."""
    model = graph(DEFAULTS, {"w": rand(8, 8), "b": rand(8), "t": rand(9, 8)})
    model.ir_version = version
    step = NormalizePass()
    assert step(model).modified
    assert [value.name for value in model.graph.inputs] == inputs
    assert sorted(model.graph.initializers) == ["b", "t", "w"]
    assert [line.split()[2] for line in step.warnings] == warned
    again = NormalizePass()
    assert not again(model).modified and again.warnings == []


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("scheme", ["w4a16", "w8a16"])
@pytest.mark.parametrize("target", ["portable", "qdq"])
def test_an_input_keeps_its_default_and_can_be_overridden(
    target: str, scheme: str, opset: int, tmp_path: Path
) -> None:
    text = "g (float[2, 40] x, float[12] b) => (float[2, 12] y) { m = MatMul(x, w) y = Add(m, b) }"
    x, bias, other = rand(2, 40), rand(12, seed=1), rand(12, seed=2)
    model = proto(text, {"w": rand(40, 12), "b": bias}, opset=opset)
    path, _ = convert(model, tmp_path, target=target, scheme=scheme)
    assert [value.name for value in onnx.load(path).graph.input] == ["x", "b"]
    (default,), (overridden,) = zoo.run(path, {"x": x}), zoo.run(path, {"x": x, "b": other})
    np.testing.assert_allclose(overridden - default, np.tile(other - bias, (2, 1)), rtol=0, atol=1e-4)


def test_our_operators_are_not_inlined() -> None:
    body = '<domain: "ai.zq2onnx", opset_import: ["" : 21]> MatMulW4A16 (x) => (y) { y = Relu(x) }'
    text = "g (float[2] x) => (y) { y = ai.zq2onnx.MatMulW4A16(x) }"
    model = graph(text, domains=("ai.zq2onnx",), functions=body)
    assert not NormalizePass()(model).modified
    assert structure(model) == ["y = ai.zq2onnx.MatMulW4A16 (x)"] and len(model.functions) == 1


def test_functions_in_functions_and_with_attributes_are_inlined() -> None:
    functions = """
    <domain: "local", opset_import: ["" : 21, "local" : 1]>
    Outer <slope> (x) => (y) { a = local.Inner <slope: float = @slope> (x) y = Abs(a) }
    <domain: "local", opset_import: ["" : 21]>
    Inner <slope> (x) => (y) { y = LeakyRelu <alpha: float = @slope> (x) }
    """
    calls = "h = local.Outer <slope = 0.5> (x) y = local.Outer <slope = 0.25> (h)"
    text = f"g (float[2] x) => (float[2] y) {{ {calls} }}"
    model = graph(text, domains=("local",), functions=functions)
    NormalizePass()(model)
    assert [node.op_type for node in model.graph] == ["LeakyRelu", "Abs", "LeakyRelu", "Abs"]
    assert len({node.name for node in model.graph}) == 4
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_a_function_of_another_opset_stays() -> None:
    functions = '<domain: "local", opset_import: ["" : 17]> F (x) => (y) { y = Relu(x) }'
    model = graph("g (float[2] x) => (y) { y = local.F(x) }", {}, domains=("local",), functions=functions)
    NormalizePass()(model)
    assert structure(model) == ["y = local.F (x)"]
    assert np.array_equal(list(model.functions), [("local", "F", "")])
