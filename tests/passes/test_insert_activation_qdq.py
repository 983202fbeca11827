"""int8 activations in standard ONNX: the nodes, what ONNX Runtime makes of them, and what they compute."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.passes.hand_made import (
    PRODUCT,
    graph,
    groups,
    initializers,
    materialized,
    rand,
    rewritten,
    rounded,
    structure,
)
from zq2onnx.errors import UserError
from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.passes.add_low_rank import AddLowRankPass
from zq2onnx.passes.drop_low_rank import DropLowRankPass
from zq2onnx.passes.insert_activation_qdq import InsertActivationQdqPass
from zq2onnx.passes.insert_qdq import InsertQdqPass
from zq2onnx.passes.lower_portable import LowerToPortablePass
from zq2onnx.passes.select_nodes import NodeRule, Policy, select_nodes
from zq2onnx.passes.spec import Stage, violations
from zq2onnx.runtime import reference
from zq2onnx.scheme import ActGranularity, Activation, PerBlock, PerChannel, Scheme
from zq2onnx.verify import check
from zq2onnx.verify.groups import find_groups
from zq2onnx.verify.optimized import Violation, findings, optimizing_session

W, B = rand(40, 12), rand(12)
TOKEN, BLOCK, TENSOR = ActGranularity
STATIC_SCALE = 0.03
DQ = (
    "y/weight/output = DequantizeLinear <axis=0, block_size=16>"
    " (w_Q4_DQ_codes, w_Q4_DQ_scales, w_Q4_DQ_zero_points)"
)


def scheme(
    granularity: ActGranularity, *, bits: int = 4, group: int | None = 16, rank: int = 0, **more: Any
) -> Scheme:
    stored = PerChannel() if group is None else PerBlock(group)
    return Scheme(bits, Activation.A8, stored, lorc_rank=rank, act_granularity=granularity, **more)


def expected_activation(x: np.ndarray, chosen: Scheme) -> np.ndarray:
    """What meets the weight, in float64."""
    if chosen.act_granularity is TENSOR:
        return np.clip(np.rint(x.astype(np.float64) / STATIC_SCALE), -128, 127) * STATIC_SCALE
    block = chosen.granularity.size if isinstance(chosen.granularity, PerBlock) else 16
    size = x.shape[-1] if chosen.act_granularity is TOKEN else block
    return reference.round_activations(x, size)[0]


def test_a_token_has_a_scale() -> None:
    model, _ = rewritten(PRODUCT, {"w": W}, scheme(TOKEN), [InsertActivationQdqPass])
    assert structure(model) == [
        DQ,
        "y/A_abs/output = Abs (x)",
        "y/A_max/output = ReduceMax <keepdims=1> (y/A_abs/output, zq2onnx/last_axis)",
        "y/A_step/output = Div (y/A_max/output, zq2onnx/int8_steps)",
        "y/A_scale/output = Max (y/A_step/output, zq2onnx/least_scale)",
        "y/A_codes/output = QuantizeLinear <output_dtype=3, axis=-1, block_size=40> (x, y/A_scale/output)",
        "y/A_dequantized/output = DequantizeLinear <axis=-1, block_size=40>"
        " (y/A_codes/output, y/A_scale/output)",
        "y/A_apart/output = Max (y/A_dequantized/output)",
        "y = MatMul (y/A_apart/output, y/weight/output)",
    ]
    assert groups(model) == {"y"}
    assert list(violations(model, Stage.QDQ)) == []


def test_a_block_has_a_scale_and_the_last_is_filled_up() -> None:
    model, _ = rewritten(PRODUCT, {"w": W}, scheme(BLOCK), [InsertActivationQdqPass])
    assert structure(model)[1:7] == [
        "y/A_padded/output = Pad (x, zq2onnx/pad_8, -, zq2onnx/last_axis)",
        "y/A_leading/output = Shape <start=0, end=-1> (y/A_padded/output)",
        "y/A_shape/output = Concat <axis=0> (y/A_leading/output, zq2onnx/blocks_3_16)",
        "y/A_blocks/output = Reshape (y/A_padded/output, y/A_shape/output)",
        "y/A_abs/output = Abs (y/A_blocks/output)",
        "y/A_max/output = ReduceMax <keepdims=0> (y/A_abs/output, zq2onnx/last_axis)",
    ]
    assert list(violations(model, Stage.QDQ)) == []


def test_one_planned_scale_for_all() -> None:
    model, selection = rewritten(PRODUCT, {"w": W}, scheme(TENSOR), [InsertActivationQdqPass])
    assert structure(model)[1:] == [
        "y/A_codes/output = QuantizeLinear (x, w_Q4_DQ_act_scale, y/A_zero_point)",
        "y/A_dequantized/output = DequantizeLinear (y/A_codes/output, w_Q4_DQ_act_scale, y/A_zero_point)",
        "y/A_apart/output = Max (y/A_dequantized/output)",
        "y = MatMul (y/A_apart/output, y/weight/output)",
    ]
    assert initializers(model)["w_Q4_DQ_act_scale"] == "FLOAT[]"
    assert model.graph.initializers["w_Q4_DQ_act_scale"].const_value.weight == selection.weights["y"]  # type: ignore[union-attr]
    assert list(violations(model, Stage.QDQ)) == []
    assert "w_Q4_DQ_act_scale: an activation's scale at stage portable" in violations(model, Stage.PORTABLE)


def test_eight_bit_rows_stand_beside_what_is_dequantized() -> None:
    """So that ONNX Runtime, TensorRT and OpenVINO find their integer product."""
    chosen = scheme(TENSOR, bits=8, group=None)
    model, _ = rewritten(PRODUCT, {"w": W}, chosen, [InsertActivationQdqPass])
    assert structure(model)[-2:] == [
        "y/integer_product = MatMul (y/A_dequantized/output, y/weight/output)",
        "y = Max (y/integer_product)",
    ]
    branched = dataclasses.replace(chosen, lorc_rank=2)
    passes = [AddLowRankPass, InsertActivationQdqPass]
    model, selection = rewritten(PRODUCT, {"w": W}, branched, passes)
    assert DropLowRankPass({selection.weights["y"]})(model).modified
    assert structure(model)[-1] == "y = Max (y/integer_product)"
    assert not any("lorc" in line for line in structure(model))


def test_the_branch_reads_activations_as_they_are() -> None:
    model, _ = rewritten(PRODUCT, {"w": W}, scheme(TOKEN, rank=2), [AddLowRankPass, InsertActivationQdqPass])
    assert "y/lorc_down/output = MatMul (x, y/lorc_U/output)" in structure(model)
    assert "y/product = MatMul (y/A_apart/output, y/weight/output)" in structure(model)
    weight = next(iter(DropLowRankPass({select_weight(model)}).dropped))
    assert DropLowRankPass({weight})(model).modified
    assert structure(model)[-1] == "y = MatMul (y/A_apart/output, y/weight/output)"


def select_weight(model: ir.Model) -> Any:
    return model.graph.initializers["w_Q4_DQ_codes"].const_value.weight  # type: ignore[union-attr]


def test_float_activations_are_left_alone() -> None:
    model = graph(PRODUCT, {"w": W})
    InsertQdqPass(select_nodes(model, Policy(Scheme(granularity=PerBlock(16), lorc_rank=0))))(model)
    assert not InsertActivationQdqPass()(model).modified
    assert not InsertActivationQdqPass()(graph(PRODUCT, {"w": W})).modified


def test_a_scale_that_two_groups_share_is_seen() -> None:
    model, _ = rewritten(PRODUCT, {"w": W}, scheme(TENSOR), [InsertActivationQdqPass])
    scale = model.graph.initializers["w_Q4_DQ_act_scale"]
    model.graph.append(ir.node("QuantizeLinear", [model.graph.inputs[0], scale], name="another"))
    found = list(violations(model, Stage.QDQ))
    expected = "['DequantizeLinear', 'QuantizeLinear', 'QuantizeLinear']"
    assert f"w_Q4_DQ_act_scale: read by {expected}" in found


def test_portable_has_no_scale_for_good() -> None:
    model = graph(PRODUCT, {"w": W})
    InsertQdqPass(select_nodes(model, Policy(scheme(TENSOR))))(model)
    with pytest.raises(UserError, match="--target qdq"):
        LowerToPortablePass()(model)


@pytest.mark.parametrize(("granularity", "name"), [(TOKEN, "MatMulW4A8"), (BLOCK, "MatMulW4A8Block")])
def test_portable_rounds_inside_the_operator(granularity: ActGranularity, name: str) -> None:
    chosen = scheme(granularity, rank=2)
    model, selection = rewritten(PRODUCT, {"w": W}, chosen, [AddLowRankPass, LowerToPortablePass])
    assert [node.op_type for node in model.graph] == [f"{name}LoRC"]
    assert list(violations(model, Stage.PORTABLE)) == []
    assert DropLowRankPass({selection.weights["y"]})(model).modified
    assert [node.op_type for node in model.graph] == [name]
    assert [function[1] for function in model.functions] == [name]
    assert list(violations(model, Stage.PORTABLE)) == []
    (node,) = model.graph
    node.op_type = "MatMulW4A16"
    assert any("not the operator of" in line for line in violations(model, Stage.PORTABLE))


SHAPES = ["float[2,", "float[M,", "float[1, 3,", "float[A, B,"]
ADDED = "g ({shape} 40] x) => ({shape} 12] y) {{ m = MatMul(x, w) y = Add(m, b) }}"


@pytest.mark.parametrize("granularity", ActGranularity)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [16, 32, None])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rank", [0, 2])
def test_it_runs_and_computes_what_it_says(
    granularity: ActGranularity, bits: int, group: int | None, symmetric: bool, rank: int
) -> None:
    """8-bit blocks behind a static scale among them, which fail at run where nothing keeps them apart."""
    chosen = scheme(granularity, bits=bits, group=group, rank=rank, symmetric=symmetric)
    passes: list[Any] = [AddLowRankPass] if rank else []
    for shape, text in itertools.product(SHAPES, (ADDED, ADDED.replace("Add(m, b)", "Neg(m)"))):
        text = text.format(shape=shape)
        model, _ = rewritten(text, {"w": W, "b": B}, chosen, [*passes, InsertActivationQdqPass])
        onnx.checker.check_model(made := materialized(model, STATIC_SCALE), full_check=True)
        session, optimized = optimizing_session(made.SerializeToString(), FLOAT_ACTIVATIONS)
        dims = {SHAPES[0]: (2,), SHAPES[1]: (5,)}.get(shape, (1, 3))
        x = rand(*dims, 40, seed=3)
        x[..., 0, :16] = 0
        (result,) = session.run(None, {"x": x})
        product = expected_activation(x, chosen) @ rounded(W, chosen, branch=False)
        product += x @ (rounded(W, chosen) - rounded(W, chosen, branch=False))
        expected = product + B if "Add" in text else -product
        assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max(), shape
        left = {item.violation for item in findings(optimized)}
        if granularity is TENSOR and bits == 8 and group is None:
            assert left == {Violation.INT8_ACTIVATIONS}
        elif len(dims) > 1:
            assert left == set()


def test_without_the_max_between_a_static_scale_fails_on_blocks_of_eight_bits() -> None:
    """What the pass avoids; should ONNX Runtime mend it, the Max can go."""
    model, _ = rewritten(PRODUCT, {"w": W}, scheme(TENSOR, bits=8), [InsertActivationQdqPass])
    nodes = {node.name: node for node in model.graph}
    nodes["y"].replace_input_with(0, nodes["y/A_dequantized"].outputs[0])
    model.graph.remove(nodes["y/A_apart"])
    session, _ = optimizing_session(materialized(model).SerializeToString(), FLOAT_ACTIVATIONS)
    with pytest.raises(Exception, match="MatMulIntegerToFloat"):
        session.run(None, {"x": rand(2, 40)})


@pytest.mark.parametrize("granularity", ActGranularity)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_groups_are_checked(granularity: ActGranularity, dtype: Any, tmp_path: Path) -> None:
    text = "g (float[A, B, 40] x) => (y) { m = MatMul(x, w) y = Add(m, b) }"
    text = text.replace("float", "float16") if dtype == np.float16 else text
    chosen = scheme(granularity, rank=2)
    weights = {"w": W.astype(dtype), "b": B.astype(dtype)}
    model, _ = rewritten(text, weights, chosen, [AddLowRankPass, InsertActivationQdqPass])
    made = materialized(model)
    (group,) = find_groups(made).values()
    assert group.activation == "x" and group.may_multiply_int8 and not group.is_portable
    assert group.element_type == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    onnx.save(made, path := tmp_path / "m.onnx")
    report = check(path, ["m"], "full")
    assert report.nodes_checked == 1 and report.notes == []


STEPS = " ".join(f"y{at} = MatMul(x, w{at})" for at in range(3))
THREE = f"g (float[A, B, 40] x) => (y0, y1, y2) {{ {STEPS} }}"


@pytest.mark.parametrize("granularity", ActGranularity)
def test_onnxruntime_rounds_an_activation_once(granularity: ActGranularity) -> None:
    """And makes an integer product of each of those that share a static scale."""
    chosen = scheme(granularity, bits=8, group=None)
    weights = {f"w{at}": rand(40, 12, seed=at) for at in range(3)}
    model, _ = rewritten(THREE, weights, chosen, [InsertActivationQdqPass])
    _, optimized = optimizing_session(materialized(model).SerializeToString(), FLOAT_ACTIVATIONS)
    left = Counter(node.op_type for node in optimized.graph.node)
    if granularity is TENSOR:
        assert left == {"QuantizeLinear": 3, "MatMulIntegerToFloat": 3, "Max": 3}
    else:
        assert left["QuantizeLinear"] == left["ReduceMax"] == left["Div"] == 1


def test_float_layers_among_int8_ones_still_need_the_session_key(tmp_path: Path) -> None:
    rules = (NodeRule("^y1$", {"activation": Activation.A16}),)
    chosen = scheme(TENSOR, bits=8, group=None)
    weights = {f"w{at}": rand(40, 12, seed=at) for at in range(3)}
    model = graph(THREE, weights)
    policy = Policy(chosen, rules=rules)
    InsertQdqPass(select_nodes(model, policy))(model)
    assert InsertActivationQdqPass()(model).modified
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 2
    onnx.save(materialized(model), path := tmp_path / "m.onnx")
    found = findings(optimizing_session(path)[1])
    assert [item.operator for item in found].count("MatMulNBits") == 1
    found = findings(optimizing_session(path, FLOAT_ACTIVATIONS)[1])
    assert {item.operator for item in found} == {"MatMulIntegerToFloat"} and len(found) == 2
    assert check(path, ["y0", "y1", "y2"], "full").nodes_checked == 3
