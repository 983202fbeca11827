"""Which ONNX Runtime a bfloat16 model needs: tests/runtimes/run.py finds out on the releases."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.verify.hand_made import portable_model, qdq_model
from zq2onnx.conversion.summary import requirements


@pytest.mark.parametrize(
    ("target", "dtype", "release"),
    [
        ("portable", ml_dtypes.bfloat16, "1.23"),
        ("portable", np.float16, "1.20"),
        ("qdq", ml_dtypes.bfloat16, "1.20"),
    ],
)
def test_a_product_of_bfloat16_needs_a_release_that_knows_it(target: str, dtype: type, release: str) -> None:
    made = (
        portable_model({"a": "MatMulW4A16"}, dtype=dtype) if target == "portable" else qdq_model(dtype=dtype)
    )
    onnx.checker.check_model(made)
    assert requirements(ir.serde.deserialize_model(made)).onnxruntime == release
