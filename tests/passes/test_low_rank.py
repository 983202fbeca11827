from __future__ import annotations

import dataclasses

import pytest

from tests.passes.hand_made import (
    BIASED,
    FLOAT_LORC,
    LORC,
    PRODUCT,
    SCHEME,
    initializers,
    rand,
    rewritten,
    structure,
)
from zq2onnx.passes.add_low_rank import AddLowRankPass
from zq2onnx.passes.drop_low_rank import DropLowRankPass
from zq2onnx.passes.lower_portable import LowerToPortablePass
from zq2onnx.scheme import Scheme

W, B = rand(40, 12), rand(12)

DQ = (
    "m/weight/output = DequantizeLinear <axis=0, block_size=16>"
    " (w_Q4_DQ_codes, w_Q4_DQ_scales, w_Q4_DQ_zero_points)"
)
BRANCH = [
    DQ,
    "m/product = MatMul (x, m/weight/output)",
    "m/lorc_U_cast/output = Cast <to=1> (w_Q4_lorc_U)",
    "m/lorc_U/output = Mul (m/lorc_U_cast/output, w_Q4_lorc_U_scales)",
    "m/lorc_V_cast/output = Cast <to=1> (w_Q4_lorc_V)",
    "m/lorc_V/output = Mul (m/lorc_V_cast/output, w_Q4_lorc_V_scales)",
    "m/lorc_down/output = MatMul (x, m/lorc_U/output)",
    "m/lorc_up/output = MatMul (m/lorc_down/output, m/lorc_V/output)",
    "m = Add (m/product, m/lorc_up/output)",
    "y = Add (m, b)",
]


def test_add_low_rank() -> None:
    model, _ = rewritten(BIASED, {"w": W, "b": B}, LORC, [AddLowRankPass])
    assert structure(model) == BRANCH
    assert {name: shape for name, shape in initializers(model).items() if "lorc" in name} == {
        "w_Q4_lorc_U": "INT8[40,2]",
        "w_Q4_lorc_U_scales": "FLOAT[1,2]",
        "w_Q4_lorc_V": "INT8[2,12]",
        "w_Q4_lorc_V_scales": "FLOAT[2,1]",
    }


def test_add_low_rank_with_float_factors() -> None:
    model, _ = rewritten(PRODUCT, {"w": W}, FLOAT_LORC, [AddLowRankPass])
    assert structure(model)[1:] == [
        "y/product = MatMul (x, y/weight/output)",
        "y/lorc_down/output = MatMul (x, w_Q4_lorc_U)",
        "y/lorc_up/output = MatMul (y/lorc_down/output, w_Q4_lorc_V)",
        "y = Add (y/product, y/lorc_up/output)",
    ]


def test_a_rank_is_at_most_the_weights() -> None:
    model, _ = rewritten(PRODUCT, {"w": W[:, :3]}, dataclasses.replace(SCHEME, lorc_rank=8), [AddLowRankPass])
    assert initializers(model)["w_Q4_lorc_U"] == "INT8[40,3]"


def test_no_branch_is_added_where_none_is_asked_for() -> None:
    model, _ = rewritten(PRODUCT, {"w": W})
    assert not AddLowRankPass()(model).modified


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize("scheme", [LORC, FLOAT_LORC])
def test_drop_low_rank_leaves_what_there_were_without_a_branch(scheme: Scheme, portable: bool) -> None:
    lower = [LowerToPortablePass] if portable else []
    model, selection = rewritten(BIASED, {"w": W, "b": B}, scheme, [AddLowRankPass, *lower])
    assert not DropLowRankPass(set())(model).modified
    drop = DropLowRankPass({selection.weights["m"]})
    assert drop(model).modified
    assert not drop(model).modified
    plain, _ = rewritten(BIASED, {"w": W, "b": B}, SCHEME, lower)
    assert structure(model) == [line.replace("m/product", "m") for line in structure(plain)]
    assert initializers(model) == initializers(plain)
    assert list(model.functions) == list(plain.functions)


def test_drop_low_rank_keeps_other_branches() -> None:
    text = "g (float[2, 40] x) => (a, b) { a = MatMul(x, w) b = MatMul(x, v) }"
    weights = {"w": W, "v": rand(40, 12, seed=3)}
    model, selection = rewritten(text, weights, LORC, [AddLowRankPass, LowerToPortablePass])
    DropLowRankPass({selection.weights["a"]})(model)
    assert [node.op_type for node in model.graph] == ["MatMulW4A16", "MatMulW4A16LoRC"]
    assert len(model.functions) == 2
