"""Int8 activations with calibration: smoothing changes norms and weights, and not what is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import zq2onnx
from tests import zoo
from tests.calibration.walking import joined, run_whole
from tests.convert.calibrating import (
    TEXT,
    all_feeds,
    calibrate,
    divergence,
    relative_output_error,
    samples_of,
    written_weights,
)
from tests.convert.test_calibrated_bad_input import in_a_branch
from tests.outliers import plant_outliers
from zq2onnx.cli.app import main
from zq2onnx.conversion.calibration import SMOOTHING_IS_OFF
from zq2onnx.errors import UserError

KINDS = [
    ("token", "portable"),
    ("block", "portable"),
    ("token", "qdq"),
    ("block", "qdq"),
    ("tensor", "qdq"),
]
NORMS = [f"model.decoder.layers.{i}.{name}_layer_norm" for i in (0, 1) for name in ("self_attn", "final")]


@pytest.mark.parametrize(("scheme", "name"), [("w8a8", "opt"), ("w8a8", "llama"), ("w4a8", "gpt2")])
def test_every_granularity_runs_as_it_should(scheme: str, name: str, tmp_path: Path) -> None:
    model = zoo.model(name)
    feeds = joined(samples_of(model), held_out=False)
    for granularity, target in KINDS:
        path = tmp_path / f"{granularity}-{target}.onnx"
        report = calibrate(
            model, path, scheme=scheme, act_granularity=granularity, target=target, check="full"
        )
        assert report.check is not None and report.check.nodes_checked == len(report.quantized) > 0
        assert len(report.smoothed) == 4
        bound = 0.2 if scheme == "w4a8" else 0.1 if granularity == "tensor" else 0.05
        assert 0 < divergence(model, path, feeds) < bound


def vectors(path: Path) -> dict[str, list[np.ndarray]]:
    """Gamma and beta by normalization."""
    model = onnx.load(path)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.name: [tensors[name] for name in node.input[1:]]
        for node in model.graph.node
        if node.op_type == "LayerNormalization"
    }


def test_smoothing_divides_norms_and_multiplies_weights(tmp_path: Path) -> None:
    """The float function is the same: 8-bit weights behind float activations would be as near to it."""
    model = zoo.model("opt")
    report = calibrate(model, tmp_path / "q.onnx", scheme="w8a8")
    before, after = vectors(model), vectors(tmp_path / "q.onnx")
    changed = {name for name in before if not np.array_equal(before[name][0], after[name][0])}
    assert changed == {*report.smoothed} and len(changed) == 4
    for name in changed:
        gamma, beta = (old / new for old, new in zip(before[name], after[name], strict=True))
        assert np.allclose(gamma, beta, rtol=1e-5) and gamma.std() > 0.01  # both by the same scales
    roles = {name.rpartition(".")[2] for name in report.not_smoothed}
    assert roles == {"out_proj", "fc2"} and len(report.not_smoothed) == 4
    assert all("scales no channels by a constant" in why for why in report.not_smoothed.values())


def test_what_is_smoothed_is_calibrated_and_passed_on_as_the_float_graph_has_it(tmp_path: Path) -> None:
    """The reported errors, computed anew from the file: its norms tell the scales."""
    model, path = zoo.model("opt"), tmp_path / "q.onnx"
    report = calibrate(model, path, scheme="w2a8", target="qdq", lorc_dtype="float")
    nodes = {node.name: node for node in onnx.load(model, load_external_data=False).graph.node}
    made = {output: node for node in nodes.values() for output in node.output}
    old, new, written = vectors(model), vectors(path), written_weights(path)
    scales = {
        name: old[norm][0] / new[norm][0]
        for name in written
        if (norm := made[nodes[name].input[0]].name) in report.smoothed
    }
    assert len(scales) == 8
    before = {
        name: (weight / scales.get(name, 1)).astype(np.float32)
        for name, weight in written.items()
        if ".layers.0." in name
    }
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer}
    for name in ("model.decoder.layers.1.self_attn.q_proj", "model.decoder.layers.1.self_attn.v_proj"):
        value, weight_name = nodes[name].input[:2]
        x = run_whole(model, all_feeds(model), [value], before)[value] / scales[name]
        weight = stored[weight_name] if nodes[name].op_type == "Gemm" else stored[weight_name].T
        told = next(node.output_error for node in report.quantized if node.name == name)
        expected = relative_output_error(weight * scales[name], written[name], x)
        assert told == pytest.approx(expected, rel=1e-3)


def test_smoothing_saves_what_outliers_cost(tmp_path: Path) -> None:
    model = tmp_path / "planted" / "model.onnx"
    model.parent.mkdir()
    plant_outliers(zoo.model("opt"), model)
    feeds = joined(samples_of(model), held_out=False)
    apart = {}
    for smooth in ("auto", "off"):
        report = calibrate(model, tmp_path / f"{smooth}.onnx", scheme="w8a8", smooth=smooth)
        apart[smooth] = divergence(model, tmp_path / f"{smooth}.onnx", feeds)
        assert bool(report.smoothed) == (smooth == "auto")
    assert set(report.not_smoothed.values()) == {SMOOTHING_IS_OFF}
    assert len(report.not_smoothed) == len(report.quantized)
    calibrate(zoo.model("opt"), tmp_path / "untouched.onnx", scheme="w8a8")
    untouched = divergence(zoo.model("opt"), tmp_path / "untouched.onnx", feeds)
    assert apart["auto"] < 1.3 * untouched < apart["off"]


@pytest.mark.parametrize("scheme", ["w4a16", "w8a16"])
def test_float_activations_are_not_smoothed(scheme: str, tmp_path: Path) -> None:
    report = calibrate(zoo.model("opt"), tmp_path / "q.onnx", scheme=scheme)
    assert report.smoothed == [] and report.not_smoothed == {}
    before, after = vectors(zoo.model("opt")), vectors(tmp_path / "q.onnx")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_without_calibration_int8_is_rounded_and_the_report_says_so(tmp_path: Path) -> None:
    report = zq2onnx.convert(zoo.model("opt"), tmp_path / "q.onnx", scheme="w4a8", check="full")
    assert report.scheme["method"] == "rtn" and report.smoothed == []
    assert set(report.not_smoothed.values()) == {"there is no calibration data"}
    assert len(report.not_smoothed) == len(report.quantized)
    assert divergence(zoo.model("opt"), tmp_path / "q.onnx", zoo.feeds(zoo.model("opt"))) < 0.5


def test_the_command_line_says_where_it_smoothed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.model("opt")
    base: list[Any] = ["convert", model, "--scheme", "w8a8", "--check", "none"]
    data = ["--calib", TEXT, "--tokenizer", model.parent, "--calib-samples", 8, "--calib-length", 16]
    for options, line in (
        ([*data], "smoothed 4 normalizations: outliers moved into the weights behind them"),
        ([*data], "not smoothed: the inputs of 4 nodes (--report FILE.json says why)"),
        ([*data, "--smooth", "off"], "not smoothed: the inputs of 12 nodes (--smooth off)"),
        ([], "not smoothed: the inputs of 12 nodes (there is no calibration data)"),
    ):
        assert main([*map(str, [*base, "-o", tmp_path / "q.onnx", "--force", *options])]) == 0
        assert line in capsys.readouterr().out.splitlines()
    assert main([*map(str, ["convert", model, "-o", tmp_path / "w.onnx", "--check", "none"])]) == 0
    assert "smoothed" not in capsys.readouterr().out


def test_a_norm_before_a_branch_that_calibration_does_not_reach(tmp_path: Path) -> None:
    """One reader is in a subgraph, whose weight nobody would multiply: the norm stays as it is."""
    model = in_a_branch(tmp_path / "m.onnx")
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)}
    np.savez(tmp_path / "c.npz", **feeds)
    report = calibrate(model, tmp_path / "q.onnx", calib=tmp_path / "c.npz", scheme="w8a8", check="full")
    assert report.smoothed == []
    assert report.not_smoothed["inner"] == report.not_smoothed["outer"] == "calibration does not reach it"
    assert divergence(model, tmp_path / "q.onnx", feeds) < 0.02


def test_one_scale_for_activations_that_calibration_does_not_reach(tmp_path: Path) -> None:
    model = in_a_branch(tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=np.ones((4, 32), np.float32))
    given = {"calib": tmp_path / "c.npz", "scheme": "w8a8", "act_granularity": "tensor", "target": "qdq"}
    with pytest.raises(
        UserError, match=r"node 'inner': calibration does not reach it.*--exclude '\^inner\$'"
    ):
        calibrate(model, tmp_path / "q.onnx", **given)
    report = calibrate(model, tmp_path / "q.onnx", exclude=["^inner$"], check="full", **given)
    assert [node.name for node in report.quantized] == ["outer", "last"]
