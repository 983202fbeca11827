from __future__ import annotations

import dataclasses

import pytest

from tests.passes.hand_made import (
    PRODUCT,
    SCHEME,
    initializers,
    rand,
    rewritten,
)
from zq2onnx.passes.narrow_codes import NarrowCodesPass


@pytest.mark.parametrize(
    ("bits", "n", "symmetric", "narrow"),
    [
        (2, 12, False, "UINT2"),
        (2, 12, True, "INT2"),
        (2, 10, False, "UINT4"),
        (2, 10, True, "INT4"),
        (3, 12, False, "UINT4"),
        (4, 12, True, "INT4"),
        (8, 12, False, "UINT8"),
    ],
)
def test_narrow_codes(bits: int, n: int, symmetric: bool, narrow: str) -> None:
    scheme = dataclasses.replace(SCHEME, bits=bits, symmetric=symmetric)
    narrows = narrow in ("UINT2", "INT2")
    model, _ = rewritten(PRODUCT, {"w": rand(40, n)}, scheme, [NarrowCodesPass] if narrows else [])
    assert NarrowCodesPass()(model).modified is False
    found = initializers(model)
    assert found[f"w_Q{bits}_DQ_codes"] == f"{narrow}[40,{n}]"
    assert found[f"w_Q{bits}_DQ_scales"] == f"FLOAT[3,{n}]"
    if not symmetric:
        assert found[f"w_Q{bits}_DQ_zero_points"] == f"{narrow}[3,{n}]"
