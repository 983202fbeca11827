"""What is read back of a written weight is what the layer multiplied with before it was written."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zq2onnx.conversion.compute import Computed, compute_weight
from zq2onnx.conversion.reread import reread
from zq2onnx.numerics.calibrated import Evidence
from zq2onnx.numerics.moments import MomentSum
from zq2onnx.passes.planned import (
    FACTORS,
    Form,
    Part,
    PlannedTensor,
    QuantizedWeight,
    WeightView,
    factor_part,
    portable_part,
    qdq_part,
)
from zq2onnx.scheme import FactorType, PerBlock, PerChannel, Scheme

DTYPES = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
}
GROUPS = (PerBlock(16), PerBlock(32), PerBlock(512), PerChannel())
INTEGERS = (Part.CODES, Part.SCALES, Part.ZERO_POINTS)


def planned(scheme: Scheme, dtype: ir.DataType, k: int, n: int, transposed: bool = False) -> QuantizedWeight:
    rng = np.random.default_rng(k * n)
    matrix = rng.normal(0, 0.1, (n, k) if transposed else (k, n)).astype(DTYPES[dtype])
    view = WeightView(ir.tensor(matrix, name="w"), "w", k, n, transposed, 1.0, dtype)
    return QuantizedWeight(view, scheme, "w")


def parts_of(weight: QuantizedWeight, form: Form, narrow: bool = False) -> list[PlannedTensor]:
    """As the passes plan them: symmetric qdq has no zero points, 2 bits are narrowed at opset 25."""
    symmetric_qdq = form is Form.QDQ and weight.scheme.symmetric
    make = portable_part if form is Form.PORTABLE else qdq_part
    parts = [make(weight, part) for part in INTEGERS if part is not Part.ZERO_POINTS or not symmetric_qdq]
    if narrow and weight.scheme.bits == 2:
        small = {ir.DataType.UINT4: ir.DataType.UINT2, ir.DataType.INT4: ir.DataType.INT2}
        parts = [
            PlannedTensor(weight, p.part, p.form, small.get(p.dtype, p.dtype), tuple(p.shape.numpy()))
            for p in parts
        ]
    if weight.scheme.lorc_rank:
        wanted = FACTORS if weight.scheme.lorc_dtype is FactorType.INT8 else FACTORS[:2]
        parts += [factor_part(weight, part) for part in wanted]
    return parts


def check_reread(weight: QuantizedWeight, parts: list[PlannedTensor], evidence: Evidence | None) -> Computed:
    computed = compute_weight(weight, parts, "node", evidence)
    written = {id(part): bytes(content) for part, content in zip(parts, computed.contents, strict=True)}
    found = reread(parts, lambda part: written[id(part)], branch=not computed.facts.dropped)
    assert found.dtype == np.float32 and found.shape == (weight.view.n, weight.view.k)
    expected = computed.numbers.effective(weight.scheme.granularity)
    assert np.array_equal(found, expected)
    return computed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [Form.PORTABLE, Form.QDQ])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_every_form(form: Form, bits: int, dtype: ir.DataType) -> None:
    """Every group size, symmetric and not, and every kind of branch; K and N are no multiples of anything."""
    for granularity, symmetric, branch in itertools.product(GROUPS, (False, True), (None, *FactorType)):
        scheme = Scheme(
            bits,
            granularity=granularity,
            symmetric=symmetric,
            lorc_rank=0 if branch is None else 3,
            lorc_dtype=branch or FactorType.INT8,
        )
        weight = planned(scheme, dtype, 70, 13)
        for narrow in (False, True) if bits == 2 and form is Form.QDQ else (False,):
            computed = check_reread(weight, parts_of(weight, form, narrow), None)
            assert (computed.numbers.factors is None) == (branch is None or bool(computed.facts.dropped))


@settings(max_examples=40)
@given(
    st.sampled_from([Form.PORTABLE, Form.QDQ]),
    st.sampled_from([8, 4, 3, 2]),
    st.sampled_from(GROUPS),
    st.booleans(),
    st.sampled_from(list(DTYPES)),
    st.integers(1, 40),
    st.integers(1, 20),
    st.booleans(),
    st.integers(0, 4),
)
def test_every_shape(
    form: Form,
    bits: int,
    granularity: PerBlock | PerChannel,
    symmetric: bool,
    dtype: ir.DataType,
    k: int,
    n: int,
    transposed: bool,
    rank: int,
) -> None:
    """Calibrated: the codes and branches are others than those of rounding, and the bytes are read alike."""
    scheme = Scheme(bits, granularity=granularity, symmetric=symmetric, lorc_rank=rank)
    weight = planned(scheme, dtype, k, n, transposed)
    sums = MomentSum(k)
    sums.add(np.random.default_rng(n).normal(size=(2 * k, k)).astype(np.float32))
    check_reread(weight, parts_of(weight, form), Evidence(sums.result()))


def test_a_dropped_branch_is_not_read() -> None:
    """Its bytes are whatever the file holds there."""
    weight = planned(
        Scheme(8, granularity=PerBlock(16), symmetric=True, lorc_rank=2), ir.DataType.FLOAT, 16, 4
    )
    exact = np.sign(np.random.default_rng(0).normal(size=(16, 4))).astype(np.float32)
    view = WeightView(ir.tensor(exact, name="w"), "w", 16, 4, False, 1.0, ir.DataType.FLOAT)
    weight = QuantizedWeight(view, weight.scheme, "w")
    parts = parts_of(weight, Form.PORTABLE)
    computed = compute_weight(weight, parts, "node")
    assert computed.facts.dropped
    contents = {part.part: bytes(content) for part, content in zip(parts, computed.contents, strict=True)}
    garbage = {part.part: bytes([0x3F]) * part.nbytes for part in parts if part.part in FACTORS}
    found = reread(parts, lambda part: (contents | garbage)[part.part], branch=False)
    assert np.array_equal(found, computed.numbers.effective(weight.scheme.granularity))
    assert np.allclose(found, exact.T, atol=1e-6)
    assert not np.allclose(reread(parts, lambda part: (contents | garbage)[part.part], branch=True), exact.T)
