"""Problems with random contents, and one for every configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.interpreted import NUMPY
from tests.operator_model import Array, operator_layout, random_constants
from zq2onnx.layout import PackedLayout
from zq2onnx.opset import OPERATORS, Operator
from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.problem import WHOLE_BYTES, Problem
from zq2onnx.scheme import ActGranularity


def make(
    operator: Operator,
    tokens: int,
    k: int,
    n: int,
    group: str | int,
    dtype: str,
    *,
    rank: int = 8,
    bias: bool = True,
    int8_factors: bool = True,
) -> tuple[Problem, dict[str, Array]]:
    """A problem, and arrays for its node's inputs: of several tokens the first is all zeros."""
    rng = np.random.default_rng([tokens, k, n, rank])
    layout = operator_layout(operator, k, n, group)
    numpy_type: Any = NUMPY[dtype].type
    constants = random_constants(
        operator, layout, rng, dtype=numpy_type, rank=rank, bias=bias, int8_factors=int8_factors
    )
    a = rng.standard_normal((tokens, k))
    a[-1:, 0] = 5.0
    if tokens > 1:
        a[0] = 0
    held = rank if operator.lorc else 0
    problem = Problem(operator, layout, tokens, dtype, held, bias, int8_factors, int8_factors)
    return problem, {"A": a.astype(numpy_type), **constants}


def operator_of(configuration: Configuration, *, lorc: bool) -> Operator:
    """An operator that may run by a product: of int8 activations where that reads int8 codes."""
    constants = dict(configuration.constants)
    by_block = bool(constants.get("BY_BLOCK")) or constants["BITS"] == WHOLE_BYTES
    granularity = ActGranularity.BLOCK if by_block else ActGranularity.TOKEN
    bits = min(int(constants["BITS"]), 8)
    for operator in OPERATORS.values():
        wanted = granularity if configuration.x_dtype == "i8" or by_block else None
        if (operator.bits, operator.lorc, operator.act_granularity) == (bits, lorc, wanted):
            return operator
    raise AssertionError(configuration.name)


def row_bytes(layout: PackedLayout) -> int:
    """Bytes of a row of codes."""
    _, blocks, length = layout.codes_shape
    return blocks * length


def for_product(configuration: Configuration, *, small: bool = False) -> tuple[Problem, dict[str, Array]]:
    """A problem that a product may be taken for, ragged in all its sizes.

    Args:
        small: of less than a tile of rows and tokens, without branch and bias.
    """
    lorc = bias = int8_factors = not small
    constants = dict(configuration.constants)
    tile = int(constants["BM"])
    tokens = {"few_tokens": tile - 3, "many_tokens": tile + 29, "any_shape": 21}[configuration.kernel]
    rows = int(constants["BN"]) + 37
    if small:
        tokens, rows = tile // 2 + 1, int(constants["BN"]) - 11
    if configuration.kernel == "any_shape":
        return make(
            operator_of(configuration, lorc=lorc), tokens, 77, rows, 16, configuration.dtype,
            int8_factors=int8_factors, bias=bias,
        )  # fmt: skip
    if constants.get("ONE_GROUP"):
        group: str | int = "row"
    else:
        group = int(constants["BLOCK"]) or max(int(constants["UNIT"]), 32)
    # Two steps and a part of a third; then on until a row is of a multiple of 16 bytes.
    step = int(constants["BK"]) * int(constants.get("PARTS", 1))
    k = (step if small else 2 * step) + int(constants["BK"]) + 16
    operator = operator_of(configuration, lorc=lorc)
    while row_bytes(operator_layout(operator, k, rows, group)) % 16:
        k += 16
    return make(
        operator, tokens, k, rows, group, configuration.dtype,
        rank=20, int8_factors=int8_factors, bias=bias,
    )  # fmt: skip


def named(values: Any) -> Any:
    """Parametrize a test over configurations."""
    return pytest.mark.parametrize("configuration", values, ids=lambda made: made.name)
