"""Methods beside each other in one model, weights in odd places, and models of other shapes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import zq2onnx
from tests import zoo
from tests.calibration.walking import joined, run_whole
from tests.convert import linear_model
from tests.convert.calibrating import (
    all_feeds,
    calibrate,
    divergence,
    means,
    relative_output_error,
    samples_of,
    written_weights,
)
from tests.convert.converting import TARGETS, run
from tests.convert.test_calibrated_bad_input import in_a_branch
from zq2onnx.conversion.stream_calibrated import ROUNDED
from zq2onnx.report import NodeReport, Report

RECIPE = """
scheme = "w4a16"
group-size = 32
embedding-bits = 8

[[node]]
match = "q_proj"
method = "rtn"
lorc = "plain"

[[node]]
match = "k_proj"
method = "zq-local"
scheme = "w3a16"

[[node]]
match = "v_proj"
keep-float = true

[[node]]
match = "fc1"
scheme = "w8a8"

[[node]]
match = "layers.1.fc2"
scheme = "w2a16"
objective = "model"
lorc-rank = 2
lorc-dtype = "float"
"""


def node(report: Report, name: str) -> NodeReport:
    [found] = [each for each in report.nodes if each.name.endswith(name)]
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_every_node_gets_what_the_recipe_says(target: str, tmp_path: Path) -> None:
    model = zoo.model("opt")
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE)
    report = calibrate(
        model, tmp_path / "q.onnx", recipe=recipe, target=target, check="full", group_size=None
    )
    assert report.check is not None and report.check.nodes_checked == len(report.quantized)
    for layer in "01":
        of = {name: node(report, f"layers.{layer}.{name}") for name in ("fc1", "fc2")}
        of |= {
            name: node(report, f"layers.{layer}.self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj")
        }
        assert of["v_proj"].reason == "kept float by the recipe's 'v_proj'"
        bits = [of[name].bits for name in ("q_proj", "k_proj", "fc1")]
        assert bits == [4, 3, 8] and of["fc2"].bits == (2 if layer == "1" else 4)
        assert all(each.output_error is not None for name, each in of.items() if name != "v_proj")
    assert node(report, "layers.1.fc2").rank in (0, 2)
    tables = [each for each in report.quantized if each.op == "Gather"]
    assert [table.bits for table in tables] == [8] and tables[0].output_error is None
    # int8 activations alone are smoothed: what the attention's linears read stays as it is
    assert [name.rpartition(".")[2] for name in report.smoothed] == ["final_layer_norm"] * 2
    assert report.not_smoothed == {}
    assert divergence(model, tmp_path / "q.onnx", joined(samples_of(model), held_out=False)) < 0.6


def twins(folder: Path) -> Path:
    """OPT whose second layer multiplies with the first one's fc1."""
    shutil.copytree(zoo.model("opt").parent, folder)
    path = folder / "model.onnx"
    proto = onnx.load(path)
    nodes = {item.name: item for item in proto.graph.node}
    nodes["model.decoder.layers.1.fc1"].input[1] = nodes["model.decoder.layers.0.fc1"].input[1]
    Path(f"{path}.data").unlink(missing_ok=True)
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_weight_of_two_blocks_is_replaced_in_both(jobs: int, tmp_path: Path) -> None:
    """The error told of lm_head, behind both, is that of a model with both replaced."""
    model = twins(tmp_path / "twins")
    path = tmp_path / "q.onnx"
    report = calibrate(
        model, path, target="qdq", scheme="w2a16", include=["lm_head"], lorc_rank=0, jobs=jobs, check="full"
    )
    first, second = (node(report, f"layers.{layer}.fc1") for layer in (0, 1))
    assert first.output_error == second.output_error and first.reason == second.reason
    assert (
        first.reason == f"calibrated on the input of {first.name!r} alone, of 2 nodes that share its weight"
    )
    written = written_weights(path)
    one, other = (written[f"model.decoder.layers.{layer}.fc1"] for layer in (0, 1))
    assert np.array_equal(one, other)
    head = written.pop("lm_head")
    proto = onnx.load(model)
    [reader] = [item for item in proto.graph.node if item.name == "lm_head"]
    weights = {name: weight.astype(np.float32) for name, weight in written.items()}
    x = run_whole(model, all_feeds(model), [reader.input[0]], weights)[reader.input[0]]
    table = next(
        numpy_helper.to_array(item) for item in proto.graph.initializer if item.dims == [zoo.VOCABULARY, 96]
    )
    expected = relative_output_error(table, head, x)
    assert node(report, "lm_head").output_error == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_a_weight_in_a_branch_is_rounded_and_told(target: str, tmp_path: Path) -> None:
    model = in_a_branch(tmp_path / "m.onnx")
    feeds = {"x": np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)}
    np.savez(tmp_path / "c.npz", **feeds)
    report = calibrate(model, tmp_path / "q.onnx", calib=tmp_path / "c.npz", target=target, check="full")
    inner, outer = node(report, "inner"), node(report, "outer")
    assert inner.reason == ROUNDED and inner.output_error is None and inner.weight_error is not None
    assert outer.reason == "" and outer.output_error is not None
    plain = zq2onnx.convert(model, tmp_path / "plain.onnx", group_size=32, target=target, check="none")
    assert inner.weight_error == node(plain, "inner").weight_error


def test_rounding_that_was_asked_for_is_not_told(tmp_path: Path) -> None:
    model = in_a_branch(tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=np.ones((4, 32), np.float32))
    given: dict[str, Any] = {"calib": tmp_path / "c.npz", "method": "rtn", "lorc": "plain"}
    assert node(calibrate(model, tmp_path / "q.onnx", **given), "inner").reason == ""


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("target", TARGETS)
def test_ready_made_inputs_of_a_model_that_reads_no_text(target: str, layers: int, tmp_path: Path) -> None:
    model = linear_model.write(tmp_path / "m.onnx", linear_model.weights(layers))
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((200, 8)) @ rng.standard_normal((8, linear_model.WIDTH))).astype(np.float32)
    x += rng.normal(0, 0.05, x.shape).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    given: dict[str, Any] = {"calib": tmp_path / "c.npz", "calib_samples": 200, "scheme": "w2a16"}
    report = calibrate(model, tmp_path / "q.onnx", target=target, check="full", **given)
    plain = calibrate(model, tmp_path / "p.onnx", target=target, method="rtn", lorc="plain", **given)
    assert len(report.quantized) == layers
    assert means(report) < 0.6 * means(plain)
    apart = [divergence(model, tmp_path / f"{name}.onnx", {"x": x}) for name in "qp"]
    assert apart[0] < apart[1]
    assert np.isfinite(run(tmp_path / "q.onnx")).all()


def without_a_cut(path: Path) -> Path:
    """Two hidden values are alive wherever one could cut."""
    rng = np.random.default_rng(1)
    tensors = [
        numpy_helper.from_array(rng.normal(0, 0.2, (32, 32)).astype(np.float32), name) for name in "ABCD"
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"], name="a"),
        helper.make_node("MatMul", ["x", "B"], ["b"], name="b"),
        helper.make_node("Tanh", ["a"], ["t"], name="t"),
        helper.make_node("MatMul", ["t", "C"], ["c"], name="c"),
        helper.make_node("Mul", ["c", "b"], ["m"], name="m"),
        helper.make_node("Gemm", ["b", "D"], ["d"], name="d", alpha=0.5),
        helper.make_node("Add", ["m", "d"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        tensors,
    )
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def test_a_graph_without_a_cut_is_one_block(tmp_path: Path) -> None:
    model = without_a_cut(tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    told: list[tuple[int, int]] = []
    report = calibrate(
        model,
        tmp_path / "q.onnx",
        calib=tmp_path / "c.npz",
        scheme="w3a16",
        check="full",
        block_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 1), (1, 1)]
    assert [each.name for each in report.quantized] == ["a", "b", "c", "d"]
    assert all(each.output_error is not None for each in report.quantized)
    assert divergence(model, tmp_path / "q.onnx", {"x": x}) < 0.4
