"""What is hard in the kernels' inputs, by Triton's interpreter, against the oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.kernels.interpreted import NUMPY, check, compare, run
from tests.kernels.problems import make
from zq2onnx.opset import OPERATORS, Operator
from zq2onnx.scheme import Activation

EVERY = pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
DTYPES = pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
A8 = [operator for operator in OPERATORS.values() if operator.activation is Activation.A8]


@EVERY
@pytest.mark.parametrize(("k", "n"), [(1, 1), (17, 40), (255, 1)])
def test_odd_sizes(operator: Operator, k: int, n: int) -> None:
    compare(*make(operator, 1, k, n, 16, "fp16"))
    compare(*make(operator, 17, k, n, "row", "bf16"))


@pytest.mark.parametrize("name", ["MatMulW4A16LoRC", "MatMulW8A8LoRC", "MatMulW2A8BlockLoRC"])
@pytest.mark.parametrize("rank", [1, 7, 40, 128, 300])
def test_any_rank(name: str, rank: int) -> None:
    compare(*make(OPERATORS[name], 3, 528, 33, 128, "fp16", rank=rank, int8_factors=True))
    compare(*make(OPERATORS[name], 20, 272, 33, 128, "bf16", rank=rank, int8_factors=False))
    compare(*make(OPERATORS[name], 2, 100, 33, 32, "fp32", rank=rank, int8_factors=False))


@pytest.mark.parametrize("narrow", ["U", "V"])
@DTYPES
def test_one_factor_of_each_type(narrow: str, dtype: str) -> None:
    problem, inputs = make(OPERATORS["MatMulW4A16LoRC"], 3, 272, 33, 32, dtype)
    rng = np.random.default_rng(3)
    inputs[narrow] = (0.1 * rng.standard_normal(inputs[narrow].shape)).astype(NUMPY[dtype])
    flag = {"U": "int8_u", "V": "int8_v"}[narrow]
    compare(dataclasses.replace(problem, **{flag: False}), inputs)


@pytest.mark.parametrize("name", ["MatMulW4A16LoRC", "MatMulW8A8LoRC", "MatMulW4A8BlockLoRC"])
def test_many_parts_of_many_tiles(name: str) -> None:
    compare(*make(OPERATORS[name], 20, 2200, 17, 128, "fp16"))
    compare(*make(OPERATORS[name], 2, 4400, 17, "row", "fp16"))


@EVERY
@pytest.mark.parametrize(("k", "bad"), [(528, np.nan), (528, np.inf), (100, -np.inf)])
def test_no_number_stays_in_its_token(operator: Operator, k: int, bad: float) -> None:
    problem, inputs = make(operator, 3, k, 20, 128, "fp16")
    clean = run(problem, inputs)
    inputs["A"][1, 40] = bad
    result = run(problem, inputs)
    assert not np.isfinite(result[1]).all()
    assert np.array_equal(result[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("operator", A8, ids=lambda operator: operator.name)
@pytest.mark.parametrize("size", [1e-38, 1e-30, 300.0, 1e30])
def test_activations_of_any_size_are_rounded(operator: Operator, size: float) -> None:
    problem, inputs = make(operator, 3, 144, 33, 32, "fp32", bias=False)
    rng = np.random.default_rng(0)
    inputs["A"] = (rng.uniform(-1, 1, (3, 144)) * size).astype(np.float32)
    inputs["A"][1] = 0
    result = run(problem, inputs)
    assert np.isfinite(result).all() and (result[1] == 0).all()
    if size > 1e-35:
        check(problem, inputs, result)


@EVERY
def test_a_wrong_code_is_seen(operator: Operator) -> None:
    problem, inputs = make(operator, 3, 256, 33, 128, "fp16")
    result = run(problem, inputs)
    inputs["B"][5, 1] ^= 0x55
    with pytest.raises(AssertionError, match="oracle"):
        check(problem, inputs, result)
