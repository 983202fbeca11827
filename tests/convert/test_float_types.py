"""`--dtype`: the output's floats are of one type, made of what is stored, a piece at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tests import zoo
from tests.convert import linear_model
from tests.convert.calibrating import calibrate
from tests.convert.converting import contents, convert
from zq2onnx.conversion.loading import load
from zq2onnx.conversion.stored import stored_array, stored_digest, written_chunks
from zq2onnx.conversion.stream import Writer
from zq2onnx.passes.recast import recast
from zq2onnx.report import Report
from zq2onnx.storage import mapped


@pytest.mark.parametrize(
    ("dtype", "source", "expected"),
    [
        ("fp16", "opt", np.float16),
        ("bf16", "opt", ml_dtypes.bfloat16),
        ("fp32", "opt-fp16", np.float32),
        ("fp16", "opt-bf16", np.float16),
        ("keep", "opt-fp16", np.float16),
    ],
)
def test_what_stays_float_is_stored_in_the_type_once(
    dtype: str, source: str, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding is tied to the lm_head: one place in the file. It is read in small pieces."""
    monkeypatch.setattr(mapped, "CHUNK", 4096)
    report = convert(zoo.model(source), tmp_path / "q.onnx", dtype=dtype, lorc_dtype="float")
    given = {each.name: each for each in onnx.load(zoo.model(source)).graph.initializer}
    stored = {each.name: each for each in onnx.load(report.output).graph.initializer}
    kinds = {numpy_helper.to_array(each).dtype for each in stored.values() if "Q4" in each.name}
    assert kinds - {np.dtype(np.uint8)} == {np.dtype(expected)}
    name = "lm_head.weight"
    table = numpy_helper.to_array(given[name]).astype(np.float32)
    np.testing.assert_array_equal(numpy_helper.to_array(stored[name]), table.astype(expected))
    assert sum(list(each.dims) == list(table.shape) for each in stored.values()) == 1


def test_quantized_weights_are_made_of_what_is_stored(tmp_path: Path) -> None:
    """Of float32, not of bfloat16: 8 bits of a weight rounded to 8 bits before would be others."""
    tensor = (
        load(linear_model.write(tmp_path / "m.onnx")).model.graph.initializers["layers.0.weight"].const_value
    )
    assert tensor is not None
    narrow = recast(tensor, ir.DataType.BFLOAT16)
    np.testing.assert_array_equal(stored_array(narrow), linear_model.weights()["layers.0.weight"])
    assert stored_digest(narrow) == stored_digest(tensor) == mapped.tensor_digest(tensor)
    written = b"".join(written_chunks(narrow))
    assert written == linear_model.weights()["layers.0.weight"].astype(ml_dtypes.bfloat16).tobytes()
    errors = [
        convert(tmp_path / "m.onnx", tmp_path / f"{dtype}.onnx", dtype=dtype, scheme="w8a16", lorc_rank=0)
        for dtype in ("keep", "fp16")
    ]
    plain, half = ([node.weight_error for node in report.quantized] for report in errors)
    np.testing.assert_allclose(half, plain, rtol=0.05)


def test_calibration_sees_the_float32_model(tmp_path: Path) -> None:
    model = zoo.model("llama")
    plain = calibrate(model, tmp_path / "f.onnx", scheme="w3a16")
    half = calibrate(model, tmp_path / "h.onnx", scheme="w3a16", dtype="fp16", check="full")
    pairs = zip(_output_errors(plain), _output_errors(half), strict=True)
    assert all(got == pytest.approx(expected, rel=0.05) for expected, got in pairs)


def _output_errors(report: Report) -> list[float]:
    return [node.output_error or 0.0 for node in report.quantized]


def test_a_resumed_conversion_takes_over_what_was_converted(tmp_path: Path) -> None:
    model, output = linear_model.write(tmp_path / "m.onnx"), tmp_path / "q.onnx"
    options = {"dtype": "fp16", "exclude": ["layers.2"], "lorc_rank": 0}
    convert(model, tmp_path / "whole.onnx", **options)
    compute, calls = Writer._compute, []

    def fail_at_second(self: Writer, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(self, *arguments)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Writer, "_compute", fail_at_second)
        convert(model, output, jobs=1, **options)
    report = convert(model, output, resume=True, **options)
    assert report.reused_weights >= 1
    assert contents(output)[1] == contents(tmp_path / "whole.onnx")[1]


def test_a_model_with_nothing_to_quantize_is_left_as_it_is(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    report = convert(model, tmp_path / "q.onnx", dtype="fp16", exclude=["layers"])
    assert report.warnings[-1] == "dtype fp16: only a model that is quantized is converted to it"
    assert (tmp_path / "q.onnx").read_bytes() == model.read_bytes()
