"""The errors against NumPy, and what is said of errors that come from elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import zq2onnx
from tests.convert import linear_model
from zq2onnx.diagnosis import Cause, LayerError, compare
from zq2onnx.diagnosis.jump import find_jump, usual_error
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime.reference import unpack_weight

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

WIDTH = linear_model.WIDTH


def save_inputs(path: Path, samples: int = 6, seed: int = 1) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((samples, WIDTH)).astype(np.float32)
    np.savez(path, x=x)
    return x


def rounded_weights(path: Path) -> dict[str, np.ndarray]:
    """`[K, N]` by node, from the file's bytes and the oracle of the operators."""
    model = onnx.load(path)
    tensors = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in OPERATORS:
            parts = dict(
                zip(("B", "scales", "zero_points"), (tensors[n] for n in node.input[1:4]), strict=True)
            )
            attributes = {item.name: item.i for item in node.attribute}
            found[node.name] = unpack_weight(OPERATORS[node.op_type], **attributes, **parts).T
    return found


def test_errors_are_those_of_numpy(tmp_path: Path) -> None:
    source = linear_model.write(tmp_path / "float.onnx")
    zq2onnx.convert(source, tmp_path / "quant.onnx", scheme="w3a16", lorc_rank=0, check="none")
    x = save_inputs(tmp_path / "x.npz").astype(np.float64)
    comparison = compare(source, tmp_path / "quant.onnx", npz=tmp_path / "x.npz", windows=6)
    rounded = rounded_weights(tmp_path / "quant.onnx")
    bias = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    mine = theirs = x
    for (name, weight), found in zip(linear_model.weights().items(), comparison.layers, strict=True):
        node = name.removesuffix(".weight")
        assert found.name == node
        inherited = np.linalg.norm(theirs - mine) / np.linalg.norm(mine)
        own = mine @ rounded[node] + bias
        mine, theirs = mine @ weight + bias, theirs @ rounded[node] + bias
        assert found.inherited == pytest.approx(inherited, rel=1e-4)
        assert found.own == pytest.approx(np.linalg.norm(own - mine) / np.linalg.norm(mine), rel=1e-4)
        assert found.accumulated == pytest.approx(
            np.linalg.norm(theirs - mine) / np.linalg.norm(mine), rel=1e-4
        )
        assert found.snr_db == pytest.approx(-20 * np.log10(found.accumulated))
    assert (comparison.tokens, comparison.unmatched) == (6 * WIDTH, {})


def test_chunks_of_layers_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = linear_model.write(tmp_path / "float.onnx")
    zq2onnx.convert(source, tmp_path / "quant.onnx", scheme="w3a16", check="none")
    save_inputs(tmp_path / "x.npz")
    whole = compare(source, tmp_path / "quant.onnx", npz=tmp_path / "x.npz")
    monkeypatch.setattr("zq2onnx.diagnosis.measure.MEMORY_BYTES", 1)
    steps: list[float] = []
    parts = compare(source, tmp_path / "quant.onnx", npz=tmp_path / "x.npz", progress=steps.append)
    assert parts == whole
    assert sum(steps) == 4 * linear_model.LAYERS


def test_the_models_of_one_file_do_not_differ(tmp_path: Path) -> None:
    source = linear_model.write(tmp_path / "float.onnx")
    save_inputs(tmp_path / "x.npz")
    comparison = compare(source, source, npz=tmp_path / "x.npz")
    assert comparison.identical
    assert (comparison.jump, comparison.findings) == (None, ())


def write_pair(
    folder: Path, first: np.ndarray, error: np.ndarray, second: np.ndarray, less: np.ndarray | None
) -> tuple[Path, Path]:
    """`second` reads what `first` makes, `less` subtracted; the other model's `first` is off by `error`."""
    paths = []
    for name, weight in (("float.onnx", first), ("quant.onnx", first + error)):
        nodes = [helper.make_node("MatMul", ["x", "w0"], ["y0"], name="first")]
        tensors = {"w0": weight, "w1": second}
        read = "y0"
        if less is not None:
            nodes.append(helper.make_node("Sub", ["y0", "less"], ["rest"], name="less"))
            tensors["less"] = less
            read = "rest"
        nodes.append(helper.make_node("MatMul", [read, "w1"], ["y"], name="second"))
        graph = helper.make_graph(
            nodes,
            "pair",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
            [numpy_helper.from_array(array.astype(np.float32), key) for key, array in tensors.items()],
        )
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
        onnx.save(model, folder / name)
        paths.append(folder / name)
    return paths[0], paths[1]


def common_part(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs that are nearly the same, a weight, and an error of 0.01 of it."""
    rng = np.random.default_rng(0)
    x = 1 + 0.02 * rng.standard_normal((8, WIDTH))
    np.savez(folder / "x.npz", x=x.astype(np.float32))
    weight = rng.standard_normal((WIDTH, WIDTH)) / 8
    return x, weight, 0.01 * rng.standard_normal((WIDTH, WIDTH)) / 8


def test_an_error_that_a_difference_lays_bare_is_amplified_before_the_layer(tmp_path: Path) -> None:
    x, weight, error = common_part(tmp_path)
    less = x.mean(axis=0) @ weight
    pair = write_pair(tmp_path, weight, error, np.eye(WIDTH), less)
    comparison = compare(*pair, npz=tmp_path / "x.npz", windows=8)
    assert comparison.jump is not None and comparison.jump.layer == "second"
    (finding,) = comparison.findings
    assert finding.cause is Cause.AMPLIFIED
    assert "first has the largest own error" in finding.sentence


def test_an_error_that_the_product_itself_lays_bare_is_inherited(tmp_path: Path) -> None:
    x, weight, error = common_part(tmp_path)
    common = x.mean(axis=0) @ weight
    common /= np.linalg.norm(common)
    blind = np.eye(WIDTH) - np.outer(common, common)  # to what all inputs have in common
    pair = write_pair(tmp_path, weight, error, blind, None)
    comparison = compare(*pair, npz=tmp_path / "x.npz", windows=8)
    assert comparison.jump is not None and comparison.jump.layer == "second"
    (finding,) = comparison.findings
    assert finding.cause is Cause.INHERITED
    assert "times) in its product" in finding.sentence


def error(own: float, accumulated: float, inherited: float = 0.0, broken: int = 0) -> LayerError:
    return LayerError("n", "MatMulW4A16", 0, True, accumulated, own, inherited, broken)


def test_the_jump_is_the_first_of_several() -> None:
    errors = [error(0.05, 0.05), error(0.06, 0.08, 0.05), error(0.5, 0.5, 0.1), error(0.9, 2.5, 0.5)]
    found = find_jump(errors, usual_error(errors))
    assert found is not None
    assert (found[0], found[1].before, found[1].after) == (2, 0.08, 0.5)


def test_an_error_that_grows_slowly_is_no_jump() -> None:
    errors = [error(0.1, 0.1 * 1.6**step, 0.1 * 1.5**step) for step in range(8)]
    assert find_jump(errors, usual_error(errors)) is None


def test_small_errors_are_no_jump_whatever_their_ratio() -> None:
    errors = [error(1e-4, 1e-4), error(1e-4, 1e-4), error(0.015, 0.015)]
    assert find_jump(errors, usual_error(errors)) is None


def test_what_is_not_finite_is_a_jump_and_json_has_null_for_it(tmp_path: Path) -> None:
    found = find_jump([error(0.05, 0.05), error(math.nan, math.nan, broken=3)], 0.05)
    assert found is not None and found[0] == 1
    source = linear_model.write(tmp_path / "float.onnx")
    matrices = linear_model.weights()
    matrices["layers.1.weight"][:, 3] = np.inf
    broken = linear_model.write(tmp_path / "broken.onnx", matrices)
    save_inputs(tmp_path / "x.npz")
    said = json.loads(compare(source, broken, npz=tmp_path / "x.npz").to_json())
    assert said["jump"]["layer"] == "layers.1"
    assert said["jump"]["after"] is None
    assert said["findings"][0] == {
        **said["findings"][0],
        "layer": "layers.1",
        "cause": "not finite",
        "indices": [3],
    }


def test_a_layer_that_lost_its_name_is_listed_with_the_reason(tmp_path: Path) -> None:
    source = linear_model.write(tmp_path / "float.onnx")
    model = onnx.load(source)
    for node in model.graph.node:
        if node.name == "layers.1":
            node.name = "gemm_7"
            node.output[0] = "t7"
        elif node.name == "layers.1.add":
            node.input[0] = "t7"
    onnx.save(model, tmp_path / "renamed.onnx")
    save_inputs(tmp_path / "x.npz")
    comparison = compare(source, tmp_path / "renamed.onnx", npz=tmp_path / "x.npz")
    assert [each.name for each in comparison.layers] == ["layers.0", "layers.2"]
    assert list(comparison.unmatched) == ["layers.1"]
    assert "neither its output value nor a node of its name" in comparison.unmatched["layers.1"]


def test_a_layer_whose_input_was_renamed_has_no_own_error_and_says_why(tmp_path: Path) -> None:
    source = linear_model.write(tmp_path / "float.onnx")
    model = onnx.load(source)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "layers.0.out":
                    names[index] = "t0"
    onnx.save(model, tmp_path / "renamed.onnx")
    save_inputs(tmp_path / "x.npz")
    layers = compare(source, tmp_path / "renamed.onnx", npz=tmp_path / "x.npz").layers
    assert (layers[1].own, layers[1].inherited) == (None, None)
    assert layers[1].note == "its input layers.0.out has no counterpart"
    assert layers[0].own == layers[2].own == 0
