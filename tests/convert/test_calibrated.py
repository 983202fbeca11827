"""Every architecture, both targets: calibrated weights are better, are what is written, and run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import zq2onnx
from tests import zoo
from tests.calibration.walking import joined, run_whole
from tests.convert.calibrating import (
    TEXT,
    all_feeds,
    calibrate,
    divergence,
    means,
    relative_output_error,
    samples_of,
    written_weights,
)
from tests.convert.converting import TARGETS, metadata
from tests.passes.test_partition_models import cached_model
from zq2onnx.cli.app import main
from zq2onnx.passes.widen import WidenToFloat32Pass

MODELS = (*zoo.ARCHITECTURES, "opt-fp16", "opt-bf16", "opt-torchscript-13")
FEW_BITS = {"scheme": "w3a16", "lorc_rank": 4}


@pytest.mark.parametrize("name", MODELS)
def test_both_targets_of_every_model_are_right_and_better_than_rounding(name: str, tmp_path: Path) -> None:
    model = zoo.model(name)
    reports = [
        calibrate(model, tmp_path / f"{target}.onnx", target=target, check="full", **FEW_BITS)
        for target in TARGETS
    ]
    plain = calibrate(model, tmp_path / "rtn.onnx", method="rtn", lorc="plain", **FEW_BITS)
    for report in reports:
        assert report.check is not None and report.check.nodes_checked == len(report.quantized) > 0
        pairs = list(zip(report.quantized, plain.quantized, strict=True))
        assert all(new.name == old.name for new, old in pairs)
        better = [new.output_error < old.output_error for new, old in pairs]  # type: ignore[operator]
        assert sum(better) > 0.9 * len(better)
        assert means(report) < 0.75 * means(plain)
        for node in report.quantized:
            assert node.rank == 0 or node.output_error <= node.output_error_without_lorc  # type: ignore[operator]
    if name != "opt-bf16":  # which the CPU cannot run
        feeds = joined(samples_of(model), held_out=False)  # random models know nothing of other text
        apart = [divergence(model, tmp_path / f"{target}.onnx", feeds) for target in (*TARGETS, "rtn")]
        assert apart[0] == pytest.approx(apart[1], rel=0.02)
        assert apart[0] < apart[2]


@pytest.mark.parametrize("inputs", ["quantized", "float"])
def test_a_block_is_calibrated_on_what_is_written_of_those_before(inputs: str, tmp_path: Path) -> None:
    """The reported errors, computed anew from the file and a float model with the file's first block."""
    model = zoo.model("opt")
    report = calibrate(model, tmp_path / "q.onnx", target="qdq", scheme="w2a16", calib_inputs=inputs)
    written = written_weights(tmp_path / "q.onnx")
    assert written.keys() == {node.name for node in report.quantized}
    before = {name: weight.astype(np.float32) for name, weight in written.items() if ".layers.0." in name}
    proto = onnx.load(model)
    nodes = {node.name: node for node in proto.graph.node}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for name in ("q_proj", "v_proj"):
        node = nodes[f"model.decoder.layers.1.self_attn.{name}"]
        [told] = [each for each in report.quantized if each.name == node.name]
        replaced = before if inputs == "quantized" else None
        x = run_whole(model, all_feeds(model), [node.input[0]], replaced)[node.input[0]]
        weight = stored[node.input[1]] if node.op_type == "Gemm" else stored[node.input[1]].T
        expected = relative_output_error(weight, written[node.name], x)
        assert told.output_error == pytest.approx(expected, rel=1e-4)


def test_calibration_inputs_make_a_difference(tmp_path: Path) -> None:
    model = zoo.model("opt")
    for inputs in ("quantized", "float"):
        calibrate(model, tmp_path / f"{inputs}.onnx", target="qdq", scheme="w2a16", calib_inputs=inputs)
    one, other = (written_weights(tmp_path / f"{inputs}.onnx") for inputs in ("quantized", "float"))
    same = {name for name in one if np.array_equal(one[name], other[name])}
    assert {name for name in one if ".layers.0.self_attn.q_proj" in name} <= same
    assert {name for name in one if ".layers.1." in name}.isdisjoint(same)


@pytest.mark.parametrize("name", ["opt-cache", "llama-cache", "llama-torchscript"])
def test_models_with_a_cache(name: str, tmp_path: Path) -> None:
    model = cached_model(name)
    tokenizer = zoo.checkpoint(name.partition("-")[0])
    report = calibrate(model, tmp_path / "q.onnx", tokenizer=tokenizer, check="full", **FEW_BITS)
    plain = calibrate(
        model, tmp_path / "rtn.onnx", tokenizer=tokenizer, method="rtn", lorc="plain", **FEW_BITS
    )
    assert means(report) < 0.75 * means(plain)


def test_the_samples_are_in_the_metadata_and_nothing_of_the_run(tmp_path: Path) -> None:
    model = zoo.model("opt")
    calibrate(model, tmp_path / "q.onnx")
    entries = metadata(tmp_path / "q.onnx")
    assert entries["zq2onnx.calibration"] == f"sha256:{samples_of(model).digest}"
    assert (
        '"method": "gptq"' in entries["zq2onnx.options"]
        and '"calib-length": 16' in entries["zq2onnx.options"]
    )
    assert not any(str(tmp_path) in value for value in entries.values())


def test_a_half_precision_graph_keeps_its_types(tmp_path: Path) -> None:
    """Calibration widens a copy, which shares its type objects with the graph that is written."""
    model = ir.load(zoo.model("opt-fp16"))
    before = {value.name: value.dtype for node in model.graph for value in node.outputs}
    WidenToFloat32Pass()(model.clone())
    assert {value.name: value.dtype for node in model.graph for value in node.outputs} == before
    calibrate(zoo.model("opt-fp16"), tmp_path / "q.onnx")
    written = ir.load(tmp_path / "q.onnx")
    types = {value.name: value.dtype for node in written.graph for value in node.outputs}
    assert ir.DataType.FLOAT16 in before.values()
    assert {name: types[name] for name in before.keys() & types.keys()} == {
        name: before[name] for name in before.keys() & types.keys()
    }


def test_progress_goes_over_blocks_once_each(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    parameters: list[tuple[int, int]] = []
    calibrate(
        zoo.model("opt"),
        tmp_path / "q.onnx",
        progress=lambda done, total: parameters.append((done, total)),
        block_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 2), (1, 2), (2, 2)]  # lm_head stays float: its block is not run
    assert sum(done for done, _ in parameters) == parameters[0][1]


def test_the_command_line_shows_a_bar_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, float | None, str]] = []
    advanced: list[float] = []

    @contextlib.contextmanager
    def progress(
        description: str, total: float | None, quiet: bool, unit: str
    ) -> Iterator[Callable[[float], None]]:
        shown.append((description, total, unit))
        yield advanced.append if description == "calibrating" else lambda amount: None

    monkeypatch.setattr("zq2onnx.cli.bars.console.progress", progress)
    model = zoo.model("opt")
    command = ["convert", model, "-o", tmp_path / "q.onnx", "--calib", TEXT, "--tokenizer", model.parent]
    command += ["--calib-samples", 4, "--calib-length", 16, "--quiet"]
    assert main([*map(str, command)]) == 0
    assert [(description, unit) for description, _, unit in shown] == [
        ("quantizing", "params"),
        ("calibrating", "blocks"),
        ("checking", "nodes"),
    ]
    assert shown[1][1] == sum(advanced) == 2 and advanced == [0, 1, 1]


def test_samples_that_are_fewer_are_told(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("a text of some words, and then some more of them. " * 4)
    report = calibrate(zoo.model("opt"), tmp_path / "q.onnx", calib=text, calib_samples=100)
    assert any("fewer than the 100 asked for" in line for line in report.warnings)


def test_without_calibration_nothing_is_measured(tmp_path: Path) -> None:
    report = zq2onnx.convert(zoo.model("opt"), tmp_path / "q.onnx", check="none")
    assert all(node.output_error is None for node in report.quantized)
    assert "zq2onnx.calibration" not in metadata(tmp_path / "q.onnx")
