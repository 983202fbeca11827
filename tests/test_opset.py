"""Every operator's body on stock ONNX Runtime against the oracle, and what is left of it at run time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.operator_model import Array, operator_layout, operator_model, random_constants
from zq2onnx.errors import UserError
from zq2onnx.layout import PackedLayout
from zq2onnx.opset import OPERATORS, Operator, function_proto, node_attributes, operator_for
from zq2onnx.runtime import reference
from zq2onnx.scheme import ActGranularity, Activation, Scheme
from zq2onnx.verify.optimized import Violation, findings, optimized_graph

GROUP_SIZES = ["row", 16, 32, 128, 256, 512, 1024]
BODIES = [
    pytest.param(operator, int8, id=f"{operator.name}{'-int8' if int8 else ''}")
    for operator in OPERATORS.values()
    for int8 in (
        (True, False) if operator.lorc and operator.activation is Activation.A16 else (operator.lorc,)
    )
]
SHAPES: list[tuple[int, bool, tuple[int, ...]]] = [
    (66, True, (2, 3)),
    (66, False, (1,)),
    (1, True, (64,)),
    (1, False, (2, 32)),
]
"""N, whether there is a bias, and A's shape without K. Never one result alone: it may cancel out."""


def run(model: onnx.ModelProto, a: Array) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"A": a})[0])


def compare_with_oracle(
    operator: Operator,
    layout: PackedLayout,
    leading: tuple[int, ...],
    *,
    eps: float,
    dtype: type[np.floating[Any]] = np.float32,
    **contents: Any,
) -> None:
    rng = np.random.default_rng(layout.k)
    constants = random_constants(operator, layout, rng, dtype=dtype, **contents)
    a = rng.standard_normal((*leading, layout.k)).astype(dtype)
    a[:1] = 0 if leading[0] > 1 else a[:1]
    a[-1:, ..., 0] = 5.0  # what a token's own scale is made of
    result = run(operator_model(operator, layout, constants, leading=len(leading)), a)
    inputs = {"A": a, **constants}
    expected, slack = reference.matmul_with_slack(operator, node_attributes(layout), inputs)
    assert result.dtype == dtype
    assert result.shape == (*leading, layout.n)
    difference = (np.abs(result - expected) - slack).max(initial=0.0)
    assert difference <= eps * np.abs(expected).max(initial=0.0), f"{layout} {leading}: off by {difference}"


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize(("operator", "int8_factors"), BODIES)
@pytest.mark.parametrize("k", [1, 100, 300, 1500])
def test_body_is_the_oracle(operator: Operator, int8_factors: bool, group_size: str | int, k: int) -> None:
    for n, bias, leading in SHAPES:
        layout = operator_layout(operator, k, n, group_size)
        compare_with_oracle(operator, layout, leading, eps=1e-5, bias=bias, int8_factors=int8_factors)


@pytest.mark.parametrize("group_size", ["row", 16, 128, 512])
@pytest.mark.parametrize(("operator", "int8_factors"), BODIES)
def test_body_is_the_oracle_in_float16(operator: Operator, int8_factors: bool, group_size: str | int) -> None:
    for k, n, bias, leading in [(100, 66, True, (2, 3)), (1500, 66, False, (1,)), (300, 1, True, (64,))]:
        layout = operator_layout(operator, k, n, group_size)
        compare_with_oracle(
            operator, layout, leading, eps=4e-3, dtype=np.float16, bias=bias, int8_factors=int8_factors
        )


A8 = [operator for operator in OPERATORS.values() if operator.activation is Activation.A8]


def answer(operator: Operator, a: Array, *, k: int, group_size: int = 32) -> tuple[Array, Array, Array]:
    """A body's results, the oracle's and its slack."""
    layout = operator_layout(operator, k, 66, group_size)
    constants = random_constants(operator, layout, np.random.default_rng(1), bias=False, dtype=a.dtype.type)
    result = run(operator_model(operator, layout, constants), a)
    oracle = reference.matmul_with_slack(operator, node_attributes(layout), {"A": a, **constants})
    return result, *oracle


@pytest.mark.parametrize("operator", A8, ids=lambda operator: operator.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [1e-38, 1e-30, 6e-8, 1e-6, 1.0, 300.0])
def test_activations_of_any_size_are_rounded(operator: Operator, dtype: Any, size: float) -> None:
    """Scales of float16 activations may themselves be none of float16's numbers.

    Level 4 takes what is below 3.7e-37, whose inverse overflows, for next to nothing; so may we.
    """
    a = np.random.default_rng(0).uniform(-1, 1, (4, 100)).astype(np.float32)
    a = (a * size).astype(dtype)
    a[1, :] = 0  # a token of zeros
    a[2, 32:64] = 0  # a block of zeros
    result, expected, slack = answer(operator, a, k=100)
    assert np.isfinite(result).all() and (result[1] == 0).all()
    # float16: what is below 6e-5 has fewer bits
    eps = 1e-5 if dtype == np.float32 else 4e-3
    least = 1e-35 if dtype == np.float32 else 100 * 2.0**-25
    allowed = eps * np.abs(expected).max() + least
    assert (np.abs(result - expected) - slack).max() <= allowed


@pytest.mark.parametrize("operator", A8, ids=lambda operator: operator.name)
def test_the_branch_reads_activations_as_they_are(operator: Operator) -> None:
    if not operator.lorc:
        pytest.skip("has no branch")
    a = np.zeros((2, 100), np.float32)
    a[:, 0], a[:, 1] = 1000.0, 1.0  # the second is 0 beside the first in int8
    result, expected, _ = answer(operator, a, k=100)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    layout = operator_layout(operator, 100, 66, 32)
    branch = reference.low_rank(random_constants(operator, layout, np.random.default_rng(1), bias=False))
    assert np.abs(branch[1]).max() > 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("operator", A8, ids=lambda operator: operator.name)
def test_ties_go_to_the_even_step(operator: Operator) -> None:
    a = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    assert reference.round_activations(a, 32)[0].tolist() == [[127.0, 0.0, 2.0, 2.0, 0.0, -2.0]]
    plain = dataclasses.replace(operator, lorc=False)
    result, expected, slack = answer(plain, a, k=6)
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max() < slack.max()


@pytest.mark.parametrize("rank", [1, 3, 32])
@pytest.mark.parametrize("name", ["MatMulW4A16LoRC", "MatMulW8A16LoRC"])
def test_any_rank(name: str, rank: int) -> None:
    operator = OPERATORS[name]
    layout = operator_layout(operator, 100, 66, 32)
    compare_with_oracle(operator, layout, (2, 3), eps=1e-5, rank=rank)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3)])
def test_no_rows_in_no_rows_out(operator: Operator, leading: tuple[int, ...]) -> None:
    layout = operator_layout(operator, 100, 66, 32)
    compare_with_oracle(operator, layout, leading, eps=0)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
@pytest.mark.parametrize("opset", [21, 25])
def test_checker_accepts_the_model(operator: Operator, opset: int) -> None:
    layout = operator_layout(operator, 300, 66, "row")
    constants = random_constants(operator, layout, np.random.default_rng(0))
    onnx.checker.check_model(operator_model(operator, layout, constants, opset=opset), full_check=True)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
def test_signature_is_that_of_the_operator(operator: Operator) -> None:
    function = function_proto(operator)
    assert function.name == operator.name
    assert tuple(function.input) == operator.inputs
    assert tuple(function.attribute) == operator.attributes
    assert OPERATORS[operator.name] == operator


def test_scheme_names_its_operator() -> None:
    assert operator_for(Scheme(bits=3)).name == "MatMulW3A16LoRC"
    assert operator_for(Scheme(bits=2, lorc_rank=0)).name == "MatMulW2A16"
    # What int8 activations would share is of no concern with A16.
    assert operator_for(Scheme(act_granularity=ActGranularity.BLOCK)) == operator_for(Scheme())
    token = Scheme(bits=8, activation=Activation.A8)
    assert operator_for(token).name == "MatMulW8A8LoRC"
    block = dataclasses.replace(token, act_granularity=ActGranularity.BLOCK, lorc_rank=0)
    assert operator_for(block).name == "MatMulW8A8Block"


def test_no_operator_has_one_activation_scale_for_good() -> None:
    scheme = Scheme(activation=Activation.A8, act_granularity=ActGranularity.TENSOR)
    with pytest.raises(UserError, match="act-granularity tensor.*; choose one of these, or --target qdq"):
        operator_for(scheme)


TOKENS = {"Abs": 1, "ReduceMax": 1, "Div": 2, "Max": 1, "Round": 1, "Mul": 1}


def products_of(operator: Operator) -> dict[str, int]:
    """What must be left of an operator without its branch."""
    halves = {"Split": 1, "Add": 1} if operator.half_bytes else {}
    tokens = TOKENS if operator.act_granularity is ActGranularity.TOKEN else {}
    return {"MatMulNBits": 1, **halves, **tokens}


def left_at_run_time(
    operator: Operator, group_size: str | int, *, leading: int, dtype: type[np.floating[Any]], int8: bool
) -> Counter[str]:
    layout = operator_layout(operator, 1500, 66, group_size)
    constants = random_constants(operator, layout, np.random.default_rng(3), dtype=dtype, int8_factors=int8)
    model = operator_model(operator, layout, constants, leading=leading)
    optimized = optimized_graph(model.SerializeToString())
    int8 = [Violation.INT8_ACTIVATIONS] if operator.int8_product else []
    assert [finding.violation for finding in findings(optimized)] == int8
    return Counter(node.op_type for node in optimized.graph.node)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize(("operator", "int8_factors"), BODIES)
def test_unpacking_folds_away(operator: Operator, int8_factors: bool, group_size: str | int) -> None:
    products = products_of(operator)
    branch = {"MatMul": 2, "Add": 1} if operator.lorc else {}
    left = left_at_run_time(operator, group_size, leading=2, dtype=np.float32, int8=int8_factors)
    assert left == Counter(products) + Counter(branch)


@pytest.mark.parametrize(("operator", "int8_factors"), BODIES)
def test_on_a_matrix_the_branch_ends_in_a_gemm(operator: Operator, int8_factors: bool) -> None:
    products = products_of(operator)
    branch = {"MatMul": 1, "Gemm": 1} if operator.lorc else {}
    left = left_at_run_time(operator, 128, leading=1, dtype=np.float32, int8=int8_factors)
    assert left == Counter(products) + Counter(branch)


@pytest.mark.parametrize(("operator", "int8_factors"), BODIES)
def test_float16_adds_casts_alone(operator: Operator, int8_factors: bool) -> None:
    """The branch is float32 on the CPU. Scales must fold: where they did not, 1.20.1 and 1.24.4 failed."""
    left = left_at_run_time(operator, 128, leading=2, dtype=np.float16, int8=int8_factors)
    assert set(left) <= {*products_of(operator), "MatMul", "Add", "Cast"}
    assert left["MatMulNBits"] == 1
