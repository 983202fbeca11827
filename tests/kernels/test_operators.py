"""Every operator in every granularity and type, run by Triton's interpreter, against the oracle."""

from __future__ import annotations

import pytest

from tests.kernels.interpreted import compare
from tests.kernels.problems import make
from zq2onnx.opset import OPERATORS, Operator


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256, 512, 1024, "row"])
def test_operator_is_the_oracle(operator: Operator, dtype: str, group: str | int) -> None:
    k = {"fp16": 1040, "bf16": 528, "fp32": 272}[dtype] if group in (512, 1024) else 272
    few = operator.lorc
    tokens, rows = (3, 31) if few else (18, 37)
    compare(*make(operator, tokens, k, rows, group, dtype, int8_factors=few, bias=few))
