from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from tests.passes.hand_made import (
    LORC,
    PRODUCT,
    SCHEME,
    graph,
    groups,
    initializers,
    rand,
    rewritten,
    structure,
)
from zq2onnx.conversion.placement import Compute, plan_output
from zq2onnx.passes.add_low_rank import AddLowRankPass
from zq2onnx.passes.drop_low_rank import DropLowRankPass
from zq2onnx.passes.insert_qdq import InsertQdqPass
from zq2onnx.passes.lower_portable import LowerToPortablePass
from zq2onnx.passes.narrow_codes import NarrowCodesPass
from zq2onnx.passes.select_nodes import NodeRule, Policy, Selection, select_nodes
from zq2onnx.passes.spec import Stage, violations
from zq2onnx.passes.trace_weights import all_nodes
from zq2onnx.scheme import PerChannel

W, B = rand(40, 12), rand(12)


def test_insert_qdq() -> None:
    model, selection = rewritten(PRODUCT, {"w": W})
    assert structure(model) == [
        "y/weight/output = DequantizeLinear <axis=0, block_size=16>"
        " (w_Q4_DQ_codes, w_Q4_DQ_scales, w_Q4_DQ_zero_points)",
        "y = MatMul (x, y/weight/output)",
    ]
    assert initializers(model) == {
        "w_Q4_DQ_codes": "UINT4[40,12]",
        "w_Q4_DQ_scales": "FLOAT[3,12]",
        "w_Q4_DQ_zero_points": "UINT4[3,12]",
    }
    assert groups(model) == {"y"} and set(selection.weights) == {"y"}
    assert [node.name for node in model.graph] == ["y/weight", "y"]


def test_insert_qdq_splits_a_gemm() -> None:
    model, _ = rewritten(
        "g (float[40, 2] x) => (float[2, 12] y)"
        " { y = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 2.0> (x, w, b) }",
        {"w": rand(12, 40), "b": B},
        dataclasses.replace(SCHEME, bits=8, symmetric=True, granularity=PerChannel()),
    )
    assert structure(model) == [
        "y/transA/output = Transpose <perm=(1, 0)> (x)",
        "y/weight/output = DequantizeLinear <axis=1> (w_Q8_DQ_codes, w_Q8_DQ_scales)",
        "y/output = MatMul (y/transA/output, y/weight/output)",
        "y/beta/output = Mul (b, y/beta)",
        "y = Add (y/output, y/beta/output)",
    ]
    assert initializers(model) == {
        "b": "FLOAT[12]",
        "w_Q8_DQ_codes": "INT8[40,12]",
        "w_Q8_DQ_scales": "FLOAT[12]",
        "y/beta": "FLOAT[]",
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_beta_is_of_the_models_type(dtype: str) -> None:
    kind = ir.DataType[dtype.upper()]
    text = f"g ({dtype}[2, 40] x) => ({dtype}[2, 12] y) {{ y = Gemm <beta = 0.5> (x, w, b) }}"
    model = graph(text)
    for name, array in (("w", W), ("b", B)):
        tensor = ir.tensor(array.astype(kind.numpy()), name=name)
        value = next(
            value for value in model.graph.node(0).inputs if value is not None and value.name == name
        )
        value.const_value = tensor
        model.graph.register_initializer(value)
    InsertQdqPass(select_nodes(model, Policy(SCHEME)))(model)
    beta = model.graph.initializers["y/beta"]
    assert beta.dtype is kind and float(beta.const_value.numpy()) == 0.5  # type: ignore[union-attr]


SHARED = "g (float[2, 40] x, float[2, 40] z) => (a, b) { a = MatMul(x, w) b = MatMul(z, w) }"
PARTS = ("codes", "scales", "zero_points")


def test_every_reader_of_a_shared_weight_dequantizes_initializers_of_its_own() -> None:
    model, selection = rewritten(SHARED, {"w": W}, LORC, [AddLowRankPass])
    assert selection.weights["a"] == selection.weights["b"]
    read = [
        [value.name for value in node.inputs if value is not None]
        for node in all_nodes(model)
        if node.op_type == "DequantizeLinear"
    ]
    assert read == [[f"{name}_DQ_{part}" for part in PARTS] for name in ("w_Q4", "w_Q4_2")]
    factors = {name for name in initializers(model) if "lorc" in name}
    assert factors == {"w_Q4_lorc_U", "w_Q4_lorc_U_scales", "w_Q4_lorc_V", "w_Q4_lorc_V_scales"}
    assert list(violations(model, Stage.QDQ)) == []


def test_twins_are_narrowed_both() -> None:
    model, _ = rewritten(SHARED, {"w": W}, dataclasses.replace(SCHEME, bits=2), [NarrowCodesPass])
    found = initializers(model)
    assert found["w_Q2_DQ_codes"] == found["w_Q2_2_DQ_codes"] == "UINT2[40,12]"


@pytest.mark.parametrize("portable", [False, True])
def test_twins_lose_their_branches_both(portable: bool) -> None:
    lower = [LowerToPortablePass] if portable else []
    model, selection = rewritten(SHARED, {"w": W}, LORC, [AddLowRankPass, *lower])
    assert DropLowRankPass({selection.weights["b"]})(model).modified
    plain, _ = rewritten(SHARED, {"w": W}, SCHEME, lower)
    assert [node.op_type for node in all_nodes(model)] == [node.op_type for node in all_nodes(plain)]
    assert initializers(model) == initializers(plain)


def test_a_shared_weight_is_one_again_in_portable_form() -> None:
    model, _ = rewritten(SHARED, {"w": W}, LORC, [AddLowRankPass, LowerToPortablePass])
    assert [node.op_type for node in all_nodes(model)] == ["MatMulW4A16LoRC"] * 2
    assert sum(name.endswith("codes") for name in initializers(model)) == 1
    assert list(violations(model, Stage.PORTABLE)) == []


def test_the_plan_places_twins_once_those_of_subgraphs_too() -> None:
    text = (
        "g (float[2, 40] x, bool c) => (float[2, 12] m, float[2, 12] y) { m = MatMul(x, w) y = If (c)"
        " <then_branch = yes () => (a) { a = MatMul(x, w) }, else_branch = no () => (d)"
        " { r = Relu(x) d = MatMul(r, w) }> }"
    )
    for passes in ([], [LowerToPortablePass]):
        model, selection = rewritten(text, {"w": W}, SCHEME, passes)
        plan = plan_output(model)
        (task,) = plan.tasks
        assert isinstance(task, Compute) and task.weight == selection.weights["d"] and task.node == "m"
        assert [part.part.value for part in task.parts] == list(PARTS)
        assert len(plan.data.regions) == 3 and len(plan.places) == 9
        names = [value.name for value, _ in plan.places]
        assert len(set(names)) == 9
        assert {region for _, region in plan.places} == {part.name for part in task.parts}


def test_a_shared_weight_in_two_schemes_is_two_weights() -> None:
    text = "g (float[2, 40] x, float[2, 40] z) => (a, b) { a = MatMul(x, w) b = MatMul(z, w) }"
    rules = (NodeRule("^b$", {"symmetric": True}), NodeRule("^a$", {"symmetric": False}))
    model, selection = rewritten(text, {"w": W}, rules=rules)
    assert selection.weights["a"] is not selection.weights["b"]
    assert {name for name in initializers(model) if name.endswith("codes")} == {
        "w_Q4_DQ_codes",
        "w_Q4_2_DQ_codes",
    }


def test_a_weight_read_both_ways_is_two_weights() -> None:
    text = "g (float[2, 12] x) => (a, b) { t = Transpose(w) a = MatMul(x, w) b = MatMul(x, t) }"
    model, selection = rewritten(text, {"w": rand(12, 12)})
    assert selection.weights["a"].view.transposed is not selection.weights["b"].view.transposed
    assert "w" not in initializers(model)


TAKEN = ["codes", "DQ_codes", "DQ_scales", "zero_points", "lorc_U", "lorc_V_scales", "packed_codes"]


@pytest.mark.parametrize("taken", TAKEN)
def test_names_that_the_model_has_are_not_taken(taken: str) -> None:
    model = graph(PRODUCT, {"w": W})
    tensor = ir.tensor(np.zeros(3, np.uint8), name=f"w_Q4_{taken}")
    left = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([3]), const_value=tensor
    )
    model.graph.register_initializer(left)
    model.graph.outputs.append(left)
    InsertQdqPass(select_nodes(model, Policy(SCHEME)))(model)
    assert "w_Q4_2_DQ_codes" in initializers(model)


def test_nor_are_those_of_a_subgraphs_tensors() -> None:
    text = (
        "g (float[2, 40] x, bool c) => (m, y) { m = MatMul(x, w) y = If (c)"
        " <then_branch = yes () => (a) { a = Add(x, v) }, else_branch = no () => (d) { d = Relu(x) }> }"
    )
    model = graph(text, {"w": W, "v": rand(40)})
    (branch, _) = list(model.graphs())[1:]
    value = ir.Value(name="w_Q4_lorc_U", const_value=ir.tensor(rand(40), name="w_Q4_lorc_U"))
    branch.register_initializer(value)
    InsertQdqPass(select_nodes(model, Policy(SCHEME)))(model)
    assert "w_Q4_2_DQ_codes" in initializers(model)


def test_constants_of_a_group_do_not_mistake_the_models_for_their_own() -> None:
    text = "g (float[2, 40] x) => (float[2, 12] y) { y = Gemm <beta = 2.0> (x, w, b) }"
    model = graph(text.replace("b)", "bias)"), {"w": W, "bias": B})
    model.graph.initializers["bias"].name = "y/beta"
    InsertQdqPass(select_nodes(model, Policy(SCHEME)))(model)
    assert "y/beta/output = Mul (y/beta, y/beta_)" in structure(model)
    assert initializers(model)["y/beta_"] == "FLOAT[]"


def test_in_a_subgraph_planned_tensors_are_its_own_and_the_float_ones_go() -> None:
    text = (
        "g (float[2, 40] x, bool c) => (float[2, 12] y) { y = If (c) <then_branch = yes () => (a)"
        " { a = MatMul(x, w) }, else_branch = no () => (d)"
        " { v = Constant <value_int = 0> () d = MatMul(x, v) }> }"
    )
    model, _ = rewritten(text, {"w": W, "v": W[::-1].copy()})
    assert initializers(model) == {}
    assert [sorted(graph.initializers) for graph in model.graphs()][1:] == [
        ["w_Q4_DQ_codes", "w_Q4_DQ_scales", "w_Q4_DQ_zero_points"],
        ["v_Q4_DQ_codes", "v_Q4_DQ_scales", "v_Q4_DQ_zero_points"],
    ]
    assert [node.op_type for node in all_nodes(model)] == ["If", *["DequantizeLinear", "MatMul"] * 2]


def test_a_model_without_products_is_left_alone() -> None:
    model = graph("g (float[2] x) => (y) { y = Relu(x) }")
    for step in (InsertQdqPass(Selection()), AddLowRankPass(), LowerToPortablePass(), NarrowCodesPass()):
        assert not step(model).modified
    assert structure(model) == ["y = Relu (x)"]
