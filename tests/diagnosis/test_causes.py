"""Each cause, planted in the bundled model, is named; without the fault nothing is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import zq2onnx
from tests.diagnosis.faults import BLOCK, change_constant, times
from tests.outliers import plant_outliers
from zq2onnx.diagnosis import Cause, Comparison, compare

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

OPTIONS = {"lorc_rank": 0, "check": "none"}
FC1, QUERY = f"{BLOCK}.1.fc1", f"{BLOCK}.2.self_attn.q_proj"
SCALES = 2
"""Which input of an operator of ours holds the scales, `[N, groups]`."""


@pytest.fixture(scope="module")
def healthy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("healthy") / "w4.onnx"
    zq2onnx.convert(tiny_model / "model.onnx", output, scheme="w4a16", **OPTIONS)
    return output


def run(tiny_model: Path, quantized: Path, of_float: Path | None = None) -> Comparison:
    return compare(
        of_float or tiny_model / "model.onnx",
        quantized,
        texts=[tiny_model / "heldout.txt"],
        tokenizer=tiny_model,
        length=64,
        windows=2,
    )


def layer(comparison: Comparison, name: str) -> object:
    return next(each for each in comparison.layers if each.name == name)


@pytest.mark.parametrize("scheme", ["w4a16", "w3a16", "w2a16", "w8a8"])
def test_a_healthy_conversion_has_no_jump_and_no_finding(
    tiny_model: Path, tmp_path: Path, scheme: str
) -> None:
    output = tmp_path / "healthy.onnx"
    zq2onnx.convert(tiny_model / "model.onnx", output, scheme=scheme, **OPTIONS)
    comparison = run(tiny_model, output)
    assert comparison.jump is None
    assert comparison.findings == ()
    assert len(comparison.layers) == 25
    assert not comparison.identical


def test_dead_rows_are_named(tiny_model: Path, healthy: Path, tmp_path: Path) -> None:
    broken = change_constant(healthy, tmp_path / "b.onnx", FC1, SCALES, times(0, [7, 300]))
    (finding,) = run(tiny_model, broken).findings
    assert (finding.layer, finding.cause) == (FC1, Cause.DEAD_ROW)
    assert set(finding.indices) == {7, 300}
    assert "are all zero" in finding.sentence


def test_many_dead_rows_are_a_jump(tiny_model: Path, healthy: Path, tmp_path: Path) -> None:
    broken = change_constant(healthy, tmp_path / "b.onnx", FC1, SCALES, times(0, slice(0, 200)))
    comparison = run(tiny_model, broken)
    assert comparison.jump is not None and comparison.jump.layer == FC1
    assert (comparison.jump.block, comparison.findings[0].cause) == (1, Cause.DEAD_ROW)
    assert set(comparison.findings[0].indices) == set(range(200))
    assert "and 197 more" in comparison.findings[0].sentence


def test_a_row_dead_in_the_float_model_too_is_none(tiny_model: Path, tmp_path: Path) -> None:
    """fc1's weight is `[N, K]`: a row of zeros there is the model's own."""
    source = change_constant(tiny_model / "model.onnx", tmp_path / "f.onnx", FC1, 1, times(0, [7]))
    zq2onnx.convert(source, tmp_path / "q.onnx", scheme="w4a16", **OPTIONS)
    assert run(tiny_model, tmp_path / "q.onnx", source).findings == ()


def test_clipped_weights_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    """Codes made of weights whose range was cut, compared with the weights before that."""
    original = tiny_model / "model.onnx"
    stretched = change_constant(original, tmp_path / "f.onnx", FC1, 1, _stretch)
    zq2onnx.convert(original, tmp_path / "q.onnx", scheme="w4a16", **OPTIONS)
    (finding,) = run(tiny_model, tmp_path / "q.onnx", stretched).findings
    assert (finding.layer, finding.cause) == (FC1, Cause.CLIPPED_RANGE)
    assert set(finding.indices) == set(range(40, 60))
    assert finding.sentence.startswith("40 weights of rows ")


def _stretch(weight: np.ndarray) -> np.ndarray:
    """Give 20 rows two weights each that are far beyond the others."""
    for row in range(40, 60):
        weight[row, [3, 100]] = 12 * np.abs(weight[row]).max()
    return weight


def test_wrong_scales_are_named_with_their_factor(tiny_model: Path, healthy: Path, tmp_path: Path) -> None:
    broken = change_constant(healthy, tmp_path / "b.onnx", QUERY, SCALES, times(2, slice(None)))
    comparison = run(tiny_model, broken)
    assert comparison.jump is not None and comparison.jump.layer == QUERY
    finding = comparison.findings[0]
    assert (finding.cause, finding.indices) == (Cause.WRONG_SCALE, ())
    assert "the quantized weights are 2 times the float ones" in finding.sentence


def test_weights_of_another_layer_are_unrelated(tiny_model: Path, healthy: Path, tmp_path: Path) -> None:
    broken = change_constant(healthy, tmp_path / "b.onnx", QUERY, 1, lambda codes: np.roll(codes, 1, axis=0))
    comparison = run(tiny_model, broken)
    assert comparison.jump is not None and comparison.jump.layer == QUERY
    assert comparison.findings[0].cause is Cause.UNRELATED_WEIGHTS
    assert "little in common" in comparison.findings[0].sentence


def test_numbers_that_are_not_finite_are_found_where_they_arise(
    tiny_model: Path, healthy: Path, tmp_path: Path
) -> None:
    broken = change_constant(healthy, tmp_path / "b.onnx", FC1, SCALES, times(math.nan, [5]))
    comparison = run(tiny_model, broken)
    assert comparison.jump is not None and comparison.jump.layer == FC1
    finding = comparison.findings[0]
    assert (finding.cause, finding.indices) == (Cause.NOT_FINITE, (5,))
    assert "128 of 131072 numbers of its output are NaN or infinite: row 5" in finding.sentence
    assert math.isnan(layer(comparison, FC1).accumulated)
    assert layer(comparison, f"{BLOCK}.1.self_attn.out_proj").broken == 0


def test_a_norm_that_makes_nan_is_not_blamed_on_the_layer_behind(
    tiny_model: Path, healthy: Path, tmp_path: Path
) -> None:
    norm = f"{BLOCK}.1.final_layer_norm"
    broken = change_constant(healthy, tmp_path / "b.onnx", norm, 1, times(math.nan, [5]))
    comparison = run(tiny_model, broken)
    assert comparison.jump is not None and comparison.jump.layer == FC1
    finding = comparison.findings[0]
    assert finding.cause is Cause.NOT_FINITE
    assert "of its input" in finding.sentence
    assert "not finite" in layer(comparison, FC1).note


@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_an_outlier_channel_is_named(tiny_model: Path, tmp_path: Path, granularity: str) -> None:
    source = tmp_path / "model.onnx"
    planted = plant_outliers(tiny_model / "model.onnx", source, channels=1, factor=100)
    output = tmp_path / "q.onnx"
    options = {"act_granularity": granularity, "smooth": "off", "target": "qdq"}
    if granularity == "tensor":
        options |= {"calib": tiny_model / "heldout.txt", "tokenizer": tiny_model, "method": "rtn"}
        options |= {"calib_samples": 4, "calib_length": 64}
    zq2onnx.convert(source, output, scheme="w8a8", **OPTIONS, **options)
    comparison = run(tiny_model, output, source)
    channels = {f"{BLOCK}.{norm.split('.')[3]}.fc1": int(chosen[0]) for norm, chosen in planted.items()}
    assert comparison.jump is not None and comparison.jump.layer == f"{BLOCK}.0.fc1"
    assert {each.cause for each in comparison.findings} == {Cause.OUTLIER_CHANNEL}
    assert {each.layer: each.indices for each in comparison.findings} == {
        name: (channel,) for name, channel in channels.items()
    }


def test_smoothing_takes_the_outlier_away(tiny_model: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "model.onnx", tmp_path / "q.onnx"
    plant_outliers(tiny_model / "model.onnx", source, channels=1, factor=100)
    calib = {"calib": tiny_model / "heldout.txt", "tokenizer": tiny_model, "method": "rtn"}
    sizes = {"calib_samples": 4, "calib_length": 64}
    zq2onnx.convert(source, output, scheme="w8a8", smooth="auto", **OPTIONS, **calib, **sizes)
    comparison = run(tiny_model, output, source)
    assert comparison.jump is None
    assert comparison.findings == ()
    # Fed as it is, with gamma divided, the layer's error would be near 1.
    assert 0 < layer(comparison, f"{BLOCK}.0.fc1").own < 0.01
    assert 0 < layer(comparison, f"{BLOCK}.0.fc1").inherited < 0.02


def test_an_outlier_channel_of_weights_is_named(tiny_model: Path, tmp_path: Path) -> None:
    """Activations stay float: what the channel makes large is the error of its weights."""
    source = change_constant(
        tiny_model / "model.onnx", tmp_path / "model.onnx", f"{BLOCK}.1.final_layer_norm", 1, times(60, [9])
    )
    recipe = tmp_path / "coarse.toml"
    recipe.write_text('scheme = "w4a16"\n[[node]]\nmatch = "layers.1.fc1$"\nscheme = "w2a16"\n')
    zq2onnx.convert(source, tmp_path / "q.onnx", recipe=recipe, **OPTIONS)
    comparison = run(tiny_model, tmp_path / "q.onnx", source)
    assert comparison.jump is not None and comparison.jump.layer == FC1
    finding = comparison.findings[0]
    assert (finding.cause, finding.indices) == (Cause.OUTLIER_CHANNEL, (9,))
    assert "outlier channel 9 of its input reaches" in finding.sentence


def test_clipped_activations_are_named(tiny_model: Path, tmp_path: Path) -> None:
    """A static scale a tenth of what it should be."""
    output = tmp_path / "q.onnx"
    calib = {"calib": tiny_model / "heldout.txt", "tokenizer": tiny_model, "method": "rtn"}
    options = {"act_granularity": "tensor", "smooth": "off", "target": "qdq"}
    zq2onnx.convert(
        *(tiny_model / "model.onnx", output),
        **{**OPTIONS, **options, **calib, "scheme": "w8a8", "calib_samples": 4, "calib_length": 64},
    )
    model = onnx.load(output)
    rounding = next(
        node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.name.startswith(FC1)
    )
    scale = next(each for each in model.graph.initializer if each.name == rounding.input[1])
    small = numpy_helper.to_array(scale) * np.float32(0.1)
    scale.CopyFrom(numpy_helper.from_array(np.asarray(small, np.float32), scale.name))
    onnx.save(model, tmp_path / "b.onnx")
    comparison = run(tiny_model, tmp_path / "b.onnx")
    assert comparison.jump is not None and comparison.jump.layer == FC1
    assert comparison.findings[0].cause is Cause.CLIPPED_ACTIVATIONS
    assert "its constant scale holds inputs from" in comparison.findings[0].sentence
