"""Every operator of the library against the oracle, by every set of kernels that this processor can run."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.operator_model import operator_layout, operator_model, random_constants
from tests.runtime.fused import (
    around_bfloat16,
    check,
    needs_library,
    open_session,
    run_node,
    with_fed_constants,
)
from zq2onnx.opset import OPERATORS, Operator
from zq2onnx.runtime.library import describe, library_file
from zq2onnx.scheme import Activation

pytestmark = needs_library

EVERY = pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
A8 = [operator for operator in OPERATORS.values() if operator.activation is Activation.A8]
LORC = [operator for operator in OPERATORS.values() if operator.lorc]


@pytest.fixture(autouse=True, params=describe().kernels if library_file() else [None])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of kernels: nodes read the environment when they are created."""
    monkeypatch.setenv("ZQ2ONNX_KERNEL", request.param)


@EVERY
@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 256, 512, 1024, "row"])
def test_operator_is_the_oracle(operator: Operator, group_size: str | int) -> None:
    run_node(operator, 100, 66, group_size, (2, 3), int8_factors=True)
    run_node(operator, 1500, 17, group_size, (1,), bias=False, int8_factors=False)


@EVERY
@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 256, 1024, "row"])
def test_many_tokens(operator: Operator, group_size: str | int) -> None:
    run_node(operator, 1300, 35, group_size, (8,), int8_factors=False)
    run_node(operator, 1300, 35, group_size, (33,), int8_factors=True)
    run_node(operator, 1300, 18, group_size, (9,), dtype=np.float16)


@EVERY
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats(operator: Operator, dtype: Any) -> None:
    run_node(operator, 300, 33, 32, (2, 3), dtype=dtype, int8_factors=True)
    run_node(operator, 300, 33, "row", (5,), dtype=dtype, bias=False, int8_factors=False)


@EVERY
@pytest.mark.parametrize("leading", [(0,), (2, 0), (1,), (31,), (33,), (2, 1, 2, 2)])
def test_any_leading_dimensions(operator: Operator, leading: tuple[int, ...]) -> None:
    run_node(operator, 100, 18, 32, leading)


@EVERY
@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 40), (17, 1), (16, 16), (255, 15), (257, 1)])
def test_odd_sizes(operator: Operator, k: int, n: int) -> None:
    run_node(operator, k, n, 16, (64,))
    run_node(operator, k, n, "row", (64,), dtype=np.float16)


@pytest.mark.parametrize("operator", LORC, ids=lambda operator: operator.name)
@pytest.mark.parametrize("rank", [1, 7, 40, 128, 300])
@pytest.mark.parametrize("int8_factors", [True, False])
def test_any_rank(operator: Operator, rank: int, int8_factors: bool) -> None:
    run_node(operator, 100, 33, 32, (3,), rank=rank, int8_factors=int8_factors)


@pytest.mark.parametrize("narrow", ["U", "V"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_factor_of_each_type(narrow: str, dtype: Any) -> None:
    operator = OPERATORS["MatMulW4A16LoRC"]
    rng = np.random.default_rng(3)
    layout = operator_layout(operator, 100, 33, 32)
    constants = random_constants(operator, layout, rng, dtype=dtype)
    constants[narrow] = (0.1 * rng.standard_normal(constants[narrow].shape)).astype(dtype)
    a = rng.standard_normal((3, 100)).astype(dtype)
    session = open_session(operator_model(operator, layout, constants))
    check(operator, layout, {"A": a, **constants}, session.run(None, {"A": a})[0])


@EVERY
def test_weights_may_be_computed(operator: Operator) -> None:
    rng = np.random.default_rng(5)
    layout = operator_layout(operator, 100, 33, 32)
    constants = random_constants(operator, layout, rng)
    model = operator_model(operator, layout, constants)
    fed = {"A": rng.standard_normal((3, 100)).astype(np.float32), **with_fed_constants(model)}
    check(operator, layout, fed, open_session(model).run(None, fed)[0])


@EVERY
def test_the_number_of_threads_changes_no_bit(operator: Operator) -> None:
    for leading in [(1,), (70,)]:  # large enough for several threads to be asked
        one = run_node(operator, 2100, 80, 32, leading, threads=1)
        two = run_node(operator, 2100, 80, 32, leading, threads=2)
        assert one.tobytes() == two.tobytes()


@EVERY  # few tokens are summed in one order, many in another
def test_a_token_is_the_same_beside_others(operator: Operator) -> None:
    rng = np.random.default_rng(9)
    layout = operator_layout(operator, 300, 40, 32)
    session = open_session(operator_model(operator, layout, random_constants(operator, layout, rng)))
    a = rng.standard_normal((40, 300)).astype(np.float32)
    few, alone = (session.run(None, {"A": part})[0] for part in (a[29:36], a[35:36]))
    assert few[6:].tobytes() == alone.tobytes()
    many, others = (session.run(None, {"A": part})[0] for part in (a, np.roll(a[:37], 3, axis=0)))
    assert many[20].tobytes() == others[23].tobytes()


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_number_stays_in_its_token(operator: Operator, bad: float) -> None:
    rng = np.random.default_rng(7)
    layout = operator_layout(operator, 100, 20, 32)
    constants = random_constants(operator, layout, rng)
    a = rng.standard_normal((3, 100)).astype(np.float32)
    session = open_session(operator_model(operator, layout, constants))
    clean = session.run(None, {"A": a})[0]
    a[1, 40] = bad
    result = session.run(None, {"A": a})[0]
    assert not np.isfinite(result[1]).all()
    assert np.array_equal(result[[0, 2]], clean[[0, 2]])


@EVERY
@pytest.mark.parametrize("k", [16, 100, 272])
def test_no_number_stays_in_its_row(operator: Operator, k: int) -> None:
    rng = np.random.default_rng(7)
    layout = operator_layout(operator, k, 40, 16)
    constants = random_constants(operator, layout, rng)
    a = rng.standard_normal((3, k)).astype(np.float32)
    clean = open_session(operator_model(operator, layout, constants)).run(None, {"A": a})[0]
    constants["scales"][20, 0] = np.inf
    result = open_session(operator_model(operator, layout, constants)).run(None, {"A": a})[0]
    assert not np.isfinite(result[:, 20]).all()
    assert np.array_equal(np.delete(result, 20, axis=1), np.delete(clean, 20, axis=1))


@pytest.mark.parametrize("operator", A8, ids=lambda operator: operator.name)
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-6, 300.0, 1e30])
def test_activations_of_any_size_are_rounded(operator: Operator, size: float) -> None:
    rng = np.random.default_rng(0)
    layout = operator_layout(operator, 100, 66, 32)
    constants = random_constants(operator, layout, rng, bias=False)
    a = (rng.uniform(-1, 1, (4, 100)) * size).astype(np.float32)
    a[1, :] = 0
    a[2, 32:64] = 0
    result = open_session(operator_model(operator, layout, constants)).run(None, {"A": a})[0]
    assert np.isfinite(result).all() and (result[1] == 0).all()
    if size > 1e-35:
        check(operator, layout, {"A": a, **constants}, result)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_rounded_to_even(dtype: Any) -> None:
    """Row n of the weight adds channels n and n + 1: sums of any two values, in float32, rounded once."""
    operator = OPERATORS["MatMulW4A16"]
    layout = operator_layout(operator, 16, 16, 16)
    constants = random_constants(operator, layout, np.random.default_rng(0), dtype=dtype, bias=False)
    codes = np.eye(16, dtype=np.uint8) | np.roll(np.eye(16, dtype=np.uint8), 1, axis=1)
    constants["B"] = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(layout.codes_shape)
    constants["scales"][:] = 1
    constants["zero_points"][:] = 0
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        finite = every[np.isfinite(every)]
    a = np.random.default_rng(1).permutation(np.concatenate([finite] * 4))[: len(finite) // 16 * 64]
    a = np.concatenate([a, np.sort(finite)[: len(finite) // 16 * 16]]).reshape(-1, 16)
    model = operator_model(operator, layout, constants)
    if dtype == ml_dtypes.bfloat16:
        around_bfloat16(model)
    wide = a.astype(np.float32)
    fed = wide if dtype == ml_dtypes.bfloat16 else a
    result = open_session(model).run(None, {"A": fed})[0]
    with np.errstate(over="ignore"):
        expected = (wide + np.roll(wide, -1, axis=1)).astype(dtype)
    assert np.array_equal(result.astype(np.float32), expected.astype(np.float32))


def test_the_environment_names_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZQ2ONNX_KERNEL", "generic")
    run_node(OPERATORS["MatMulW4A16"], 100, 18, 32, (3,))
    monkeypatch.setenv("ZQ2ONNX_KERNEL", "avx9")
    with pytest.raises(Exception, match="ZQ2ONNX_KERNEL is 'avx9'; required: of those .* can run: .*generic"):
        run_node(OPERATORS["MatMulW4A16"], 100, 18, 32, (3,))
