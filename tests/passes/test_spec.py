"""That the rules see what breaks them, and that a dump shows a graph whose weights do not exist yet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx.parser
import onnx_ir as ir
import pytest

from tests.passes.hand_made import SCHEME, graph, rand
from zq2onnx.opset import GROUP_KEY
from zq2onnx.passes.add_low_rank import AddLowRankPass
from zq2onnx.passes.dump import dump, graph_proto
from zq2onnx.passes.insert_qdq import InsertQdqPass
from zq2onnx.passes.lower_portable import LowerToPortablePass
from zq2onnx.passes.select_nodes import Policy, select_nodes
from zq2onnx.passes.spec import Stage, violations
from zq2onnx.passes.trace_weights import all_nodes

TEXT = "g (float[2, 40] x) => (float[2, 12] y) { m = MatMul(x, w) y = Add(m, b) }"


def middle() -> ir.Model:
    model = graph(TEXT, {"w": rand(40, 12), "b": rand(12)})
    scheme = dataclasses.replace(SCHEME, lorc_rank=2)
    InsertQdqPass(select_nodes(model, Policy(scheme)))(model)
    AddLowRankPass()(model)
    return model


def portable() -> ir.Model:
    model = middle()
    LowerToPortablePass()(model)
    return model


def test_legal_models_are_legal() -> None:
    assert list(violations(graph(TEXT, {"w": rand(40, 12), "b": rand(12)}), Stage.NORMAL)) == []
    assert list(violations(middle(), Stage.QDQ)) == []
    assert list(violations(portable(), Stage.PORTABLE)) == []


def test_the_stage_matters() -> None:
    assert "m/weight: a planned DequantizeLinear at stage portable" in violations(middle(), Stage.PORTABLE)
    assert "w_Q4_DQ_codes: planned too early" in violations(middle(), Stage.NORMAL)
    assert "m: too early" in violations(portable(), Stage.QDQ)


def test_each_rule_is_seen_to_be_broken() -> None:
    model = middle()
    nodes = {node.name: node for node in model.graph}
    nodes["m"].name = None
    nodes["m/lorc_up"].outputs[0].name = None
    del nodes["m/weight"].metadata_props[GROUP_KEY]
    model.graph.append(ir.node("Relu", [nodes["m/weight"].outputs[0]], name="second reader"))
    found = list(violations(model, Stage.QDQ))
    assert "a MatMul has no name" in found
    assert "m/lorc_up: an output has no name" in found
    assert "m/weight: not marked with its group" in found
    assert any(line.startswith("m/weight: read by ") and "Relu" in line for line in found)


def test_order_is_seen() -> None:
    model = middle()
    (first, *_) = model.graph
    model.graph.remove(first)
    model.graph.append(first)
    assert "m reads m/weight/output before it is made" in violations(model, Stage.QDQ)


def test_operators_are_seen() -> None:
    model = portable()
    (node,) = model.graph
    model.functions.clear()
    del node.attributes["N"]
    node.replace_input_with(2, None)
    found = list(violations(model, Stage.PORTABLE))
    assert "m: its function is missing" in found
    assert any(line.startswith("m: attributes ['K', 'block_size'") for line in found)
    assert "m: no scales" in found


def test_a_dump_has_no_large_constants_of_nodes(tmp_path: Path) -> None:
    steps = "v = Constant <value_int = 0> () s = Constant <value_int = 0> () m = MatMul(x, v) y = Add(m, s)"
    branches = (
        "then_branch = yes () => (a) { u = Constant <value_int = 0> () a = MatMul(x, u) },"
        " else_branch = no () => (d) { d = Relu(x) }"
    )
    text = f"g (float[2, 40] x, bool c) => (y, z) {{ {steps} z = If (c) <{branches}> }}"
    model = graph(text, {"v": rand(40, 12), "u": rand(40, 12), "s": rand(12)})
    nodes = {node.name: node for node in all_nodes(model)}
    attributes = [nodes[name].attributes["value"] for name in "vus"]
    text = dump(model, tmp_path, 0, "SomePass").read_text(encoding="utf-8")
    assert len(text) < 4000 and text.count("Constant <") == 3 and text.count("weights-are-not-in-dumps") == 2
    shown = graph_proto(model)
    values = {node.name: node.attribute[0].t for node in shown.graph.node if node.op_type == "Constant"}
    assert values["v"].data_location == onnx.TensorProto.EXTERNAL and not values["v"].raw_data
    assert list(values["v"].dims) == [40, 12] and len(values["s"].raw_data) == 48
    assert [nodes[name].attributes["value"] for name in "vus"] == attributes


@pytest.mark.parametrize("make", [middle, portable])
def test_a_dump_can_be_read_and_leaves_the_model_alone(make: object, tmp_path: Path) -> None:
    model = make()  # type: ignore[operator]
    tensors = [value.const_value for value in model.graph.initializers.values()]
    path = dump(model, tmp_path, 3, "SomePass")
    assert path.name == "03-SomePass.onnxtxt"
    text = path.read_text(encoding="utf-8")
    assert "w_Q4_" in text and "float[12] b =" in text.replace("\n", " ")
    onnx.parser.parse_model(text)
    assert [value.const_value for value in model.graph.initializers.values()] == tensors
