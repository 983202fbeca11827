"""Every operator in every granularity and type, run by Triton's interpreter, against the oracle."""

from __future__ import annotations

import pytest

from tests.kernels.interpreted import compare
from tests.kernels.problems import make
from zq2onnx.opset import OPERATORS

# In float16 all of them; in the other types those with a branch, or those without.
CASES = [
    (name, dtype)
    for name, operator in OPERATORS.items()
    for dtype in ("fp16", "bf16" if operator.lorc else "fp32")
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256, 512, 1024, "row"])
def test_operator_is_the_oracle(name: str, dtype: str, group: str | int) -> None:
    operator = OPERATORS[name]
    k = {"fp16": 1040, "bf16": 528, "fp32": 272}[dtype] if group in (512, 1024) else 272
    few = operator.lorc
    tokens, rows = (3, 31) if few else (18, 37)
    compare(*make(operator, tokens, k, rows, group, dtype, int8_factors=few, bias=few))
