from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.passes.hand_made import graph, proto, rand, structure
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


def test_defaults_of_inputs_become_constants() -> None:
    model = graph("g (float[2] x, float[2] w) => (y) { y = Add(x, w) }", {"w": rand(2)})
    assert NormalizePass()(model).modified
    assert [value.name for value in model.graph.inputs] == ["x"]


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
