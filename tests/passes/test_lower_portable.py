from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from tests.passes.hand_made import (
    BIASED,
    FLOAT_LORC,
    LORC,
    PRODUCT,
    SCHEME,
    groups,
    initializers,
    rand,
    rewritten,
    structure,
)
from zq2onnx import opset
from zq2onnx.opset import OPERATORS
from zq2onnx.passes.add_low_rank import AddLowRankPass
from zq2onnx.passes.lower_portable import LowerToPortablePass

W, B = rand(40, 12), rand(12)
OPERATOR = "block_size=16, scale_repeat=1, zero_point_repeat=1"


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lower_to_portable(bits: int) -> None:
    scheme = dataclasses.replace(SCHEME, bits=bits)
    model, _ = rewritten(BIASED, {"w": W, "b": B}, scheme, [LowerToPortablePass])
    codes, scales, zeros = (f"w_Q{bits}_{part}" for part in ("codes", "scales", "zero_points"))
    assert structure(model) == [
        f"y = ai.zq2onnx.MatMulW{bits}A16 <K=40, N=12, {OPERATOR}> (x, {codes}, {scales}, {zeros}, b)"
    ]
    assert initializers(model) == {
        "b": "FLOAT[12]",
        codes: f"UINT8[12,3,{2 * bits}]",
        scales: "FLOAT[12,3]",
        zeros: "UINT8[12,2]",
    }
    assert [name for _, name, _ in model.functions] == [f"MatMulW{bits}A16"]
    assert model.opset_imports["ai.zq2onnx"] == 1 and groups(model) == {"m"}


def test_lower_to_portable_with_eight_bits_follows_the_layout() -> None:
    model, selection = rewritten(
        BIASED, {"w": W, "b": B}, dataclasses.replace(SCHEME, bits=8), [LowerToPortablePass]
    )
    (node,) = model.graph
    layout = selection.weights["m"].layout
    assert tuple(node.attributes) == OPERATORS[node.op_type].attributes
    assert initializers(model)["w_Q8_codes"] == f"UINT8[{','.join(map(str, layout.codes_shape))}]"
    bias = node.inputs[4].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_array_equal(bias, np.concatenate([B, np.zeros_like(B)]))


def test_lower_to_portable_with_a_branch() -> None:
    passes = [AddLowRankPass, LowerToPortablePass]
    for scheme in (LORC, FLOAT_LORC):
        model, _ = rewritten(BIASED, {"w": W, "b": B}, scheme, passes)
        assert structure(model) == [
            f"y = ai.zq2onnx.MatMulW4A16LoRC <K=40, N=12, {OPERATOR}> (x, w_Q4_codes, w_Q4_scales,"
            " w_Q4_zero_points, b, w_Q4_lorc_U, w_Q4_lorc_V, w_Q4_lorc_U_scales, w_Q4_lorc_V_scales)"
        ]
    ones = model.graph.initializers["w_Q4_lorc_U_scales"].const_value
    assert ones is not None and ones.numpy().tolist() == [[1.0, 1.0]]


def test_an_absent_bias_before_a_branch_is_an_empty_input() -> None:
    model, _ = rewritten(PRODUCT, {"w": W}, LORC, [AddLowRankPass, LowerToPortablePass])
    assert "zero_points, -, w_Q4_lorc_U" in structure(model)[0]


NOT_ABSORBED = {
    "a row": (BIASED, B[None]),
    "a scalar": (BIASED, np.float32(1).reshape(())),
    "rows": (BIASED, rand(2, 12)),
    "one number": (BIASED, B[:1]),
    "two readers": ("g (float[2, 40] x) => (y, z) { m = MatMul(x, w) y = Add(m, b) z = Relu(m) }", B),
    "an output": ("g (float[2, 40] x) => (m, y) { m = MatMul(x, w) y = Add(m, b) }", B),
    "a computed bias": ("g (float[2, 40] x) => (y) { a = Relu(b) m = MatMul(x, w) y = Add(m, a) }", B),
    "itself": ("g (float[2, 40] x) => (y) { m = MatMul(x, w) y = Add(m, m) }", B),
    "a product": ("g (float[2, 40] x) => (y) { m = MatMul(x, w) y = Mul(m, b) }", B),
    "a Gemm's beta": ("g (float[2, 40] x) => (y) { y = Gemm <beta = 2.0> (x, w, b) }", B),
}


@pytest.mark.parametrize("case", NOT_ABSORBED)
def test_what_is_no_vector_or_has_other_readers_is_not_absorbed(case: str) -> None:
    text, bias = NOT_ABSORBED[case]
    model, _ = rewritten(text, {"w": W, "b": bias}, SCHEME, [LowerToPortablePass])
    operator = next(node for node in model.graph if node.op_type == "MatMulW4A16")
    assert len(operator.inputs) == 4
    assert any(node.op_type in ("Add", "Mul") for node in model.graph)


@pytest.mark.parametrize("add", ["Add(m, b)", "Add(b, m)"])
def test_a_bias_made_late_is_absorbed_from_either_side(add: str) -> None:
    text = f"g (float[2, 40] x) => (y) {{ m = MatMul(x, w) b = Constant <value_int = 0> () y = {add} }}"
    model, _ = rewritten(text, {"w": W, "b": B}, SCHEME, [LowerToPortablePass])
    assert [node.op_type for node in model.graph] == ["Constant", "MatMulW4A16"]


def test_an_operators_body_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = opset.function_proto

    def counted(operator: opset.Operator, version: int) -> onnx.FunctionProto:
        made.append(operator)
        return original(operator, version)

    monkeypatch.setattr(opset, "function_proto", counted)
    steps = " ".join(f"y{i} = MatMul(x, w{i})" for i in range(4))
    outputs = ", ".join(f"y{i}" for i in range(4))
    rewritten(
        f"g (float[2, 40] x) => ({outputs}) {{ {steps} }}",
        {f"w{i}": rand(40, 12, seed=i) for i in range(4)},
        SCHEME,
        [LowerToPortablePass],
    )
    assert made == [opset.OPERATORS["MatMulW4A16"]]
