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
from zq2onnx.passes.add_low_rank import AddLowRankPass
from zq2onnx.passes.insert_qdq import InsertQdqPass
from zq2onnx.passes.lower_portable import LowerToPortablePass
from zq2onnx.passes.narrow_codes import NarrowCodesPass
from zq2onnx.passes.select_nodes import NodeRule, Policy, Selection, select_nodes
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


def test_a_shared_weight_stays_shared_and_every_reader_dequantizes_for_itself() -> None:
    text = "g (float[2, 40] x, float[2, 40] z) => (a, b) { a = MatMul(x, w) b = MatMul(z, w) }"
    model, selection = rewritten(text, {"w": W}, LORC, [AddLowRankPass])
    assert selection.weights["a"] is selection.weights["b"]
    assert sum(name.endswith("codes") for name in initializers(model)) == 1
    assert [node.op_type for node in all_nodes(model)].count("DequantizeLinear") == 2
    model, _ = rewritten(text, {"w": W}, LORC, [AddLowRankPass, LowerToPortablePass])
    assert [node.op_type for node in all_nodes(model)] == ["MatMulW4A16LoRC"] * 2
    assert sum(name.endswith("codes") for name in initializers(model)) == 1


def test_a_shared_weight_in_two_schemes_is_two_weights() -> None:
    text = "g (float[2, 40] x, float[2, 40] z) => (a, b) { a = MatMul(x, w) b = MatMul(z, w) }"
    rules = (NodeRule("^b$", {"symmetric": True}), NodeRule("^a$", {"symmetric": False}))
    model, selection = rewritten(text, {"w": W}, rules=rules)
    assert selection.weights["a"] is not selection.weights["b"]
    assert {name for name in initializers(model) if name.endswith("codes")} == {
        "w_Q4_DQ_codes",
        "w_Q4__DQ_codes",
    }


def test_a_weight_read_both_ways_is_two_weights() -> None:
    text = "g (float[2, 12] x) => (a, b) { t = Transpose(w) a = MatMul(x, w) b = MatMul(x, t) }"
    model, selection = rewritten(text, {"w": rand(12, 12)})
    assert selection.weights["a"].view.transposed is not selection.weights["b"].view.transposed
    assert "w" not in initializers(model)


def test_names_of_an_earlier_conversion_are_not_taken() -> None:
    model = graph(PRODUCT, {"w": W})
    tensor = ir.tensor(np.zeros(3, np.uint8), name="w_Q4_codes")
    left = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([3]), const_value=tensor
    )
    model.graph.register_initializer(left)
    model.graph.outputs.append(left)
    InsertQdqPass(select_nodes(model, Policy(SCHEME)))(model)
    assert "w_Q4__DQ_codes" in initializers(model)


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
