"""Errors of outputs are those of the definition, over all samples of all archives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.evaluation.language import Array, save
from zq2onnx.errors import UserError
from zq2onnx.evaluation import OutputEvaluation, plan_outputs

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

IN, OUT = 6, 4


def write_model(
    path: Path,
    weight: Array,
    *,
    batch: int | str = "batch",
    outputs: tuple[str, ...] = ("y", "positive"),
    inputs: tuple[str, str] = ("x", "scale"),
) -> Path:
    """`y = x W scale`, and how many numbers of it are positive."""
    element = helper.np_dtype_to_tensor_dtype(weight.dtype)
    x, scale = inputs
    nodes = [
        helper.make_node("MatMul", [x, "w"], ["product"]),
        helper.make_node("Mul", ["product", scale], ["y"]),
        helper.make_node("Greater", ["y", "zero"], ["above"]),
        helper.make_node("Cast", ["above"], ["counts"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["counts", "last"], ["positive"]),
    ]
    described = {
        "y": helper.make_tensor_value_info("y", element, [batch, OUT]),
        "positive": helper.make_tensor_value_info("positive", TensorProto.INT64, [batch, 1]),
    }
    graph = helper.make_graph(
        nodes,
        "linear",
        [
            helper.make_tensor_value_info(x, element, [batch, IN]),
            helper.make_tensor_value_info(scale, element, [batch, 1]),
        ],
        [described[name] for name in outputs],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.zeros((), weight.dtype), "zero"),
            numpy_helper.from_array(np.array([-1]), "last"),
        ],
    )
    return save(path, graph)


@pytest.fixture
def weights() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((IN, OUT)).astype(np.float32)
    return weight, weight + 0.5 * rng.standard_normal(weight.shape).astype(np.float32)


@pytest.fixture
def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal((7, IN)).astype(np.float32),
        "scale": rng.uniform(1, 2, (7, 1)).astype(np.float32),
    }


@pytest.fixture
def folder(tmp_path: Path, weights: tuple[Array, Array], arrays: dict[str, Array]) -> Path:
    write_model(tmp_path / "float.onnx", weights[0])
    write_model(tmp_path / "quant.onnx", weights[1])
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path


def run(
    folder: Path, *names: str, archives: tuple[str, ...] = ("a.npz",), **options: Any
) -> OutputEvaluation:
    models = [folder / name for name in names or ("float.onnx", "quant.onnx")]
    return plan_outputs(models, [folder / name for name in archives], **options).run()


def expected(arrays: dict[str, Array], weights: tuple[Array, Array]) -> dict[str, tuple[float, float]]:
    """By output: the relative error and the largest difference."""
    y, other = (arrays["x"].astype(np.float64) @ weight * arrays["scale"] for weight in weights)
    found = {}
    for name, (a, b) in {"y": (y, other), "positive": ((y > 0).sum(-1), (other > 0).sum(-1))}.items():
        found[name] = (float(np.linalg.norm(b - a) / np.linalg.norm(a)), float(np.abs(b - a).max()))
    return found


def test_errors_are_over_all_samples(
    folder: Path, arrays: dict[str, Array], weights: tuple[Array, Array]
) -> None:
    result = run(folder)
    first, second = result.models
    assert set(first.relative_error.values()) | set(first.largest_difference.values()) == {0.0}
    for name, (relative, largest) in expected(arrays, weights).items():
        assert second.relative_error[name] == pytest.approx(relative, rel=1e-5)
        assert second.largest_difference[name] == pytest.approx(largest, rel=1e-5)
    assert result.samples == 7
    assert second.relative_error["positive"] > 0


def test_archives_count_as_one(folder: Path, arrays: dict[str, Array], weights: tuple[Array, Array]) -> None:
    np.savez(folder / "b.npz", **{name: array[:3] for name, array in arrays.items()})
    np.savez(folder / "c.npz", **{name: array[3:] for name, array in arrays.items()})
    parts = run(folder, archives=("b.npz", "c.npz")).models[1]
    assert parts.relative_error["y"] == pytest.approx(expected(arrays, weights)["y"][0], rel=1e-5)
    few = run(folder, archives=("b.npz", "c.npz"), samples=2)
    assert few.samples == 4


def test_a_batch_that_the_graph_fixes_is_respected(
    folder: Path, arrays: dict[str, Array], weights: tuple[Array, Array]
) -> None:
    write_model(folder / "quant.onnx", weights[1], batch=3)
    result = run(folder)
    some = {name: array[:6] for name, array in arrays.items()}
    assert result.samples == 6
    assert result.models[1].relative_error["y"] == pytest.approx(expected(some, weights)["y"][0], rel=1e-5)
    with pytest.raises(UserError, match=r"a.npz: 2 samples; required: the 3 that the graph takes at once"):
        run(folder, samples=2)
    write_model(folder / "float.onnx", weights[0], batch=2)
    with pytest.raises(UserError, match=r"samples taken at once: 2 by .*float.onnx, 3 by .*quant.onnx"):
        run(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_models_are_fed_in_their_own_type(
    folder: Path, arrays: dict[str, Array], weights: tuple[Array, Array], dtype: Any
) -> None:
    narrow = weights[0].astype(dtype)
    write_model(folder / "quant.onnx", narrow)
    error = run(folder).models[1].relative_error["y"]
    exact = expected(arrays, (weights[0], narrow.astype(np.float32)))["y"][0]
    eps = 2.0**-11 if dtype is np.float16 else 2.0**-8
    assert abs(error - exact) < 2 * eps
    assert error > 0


def test_numbers_that_are_not_finite_are_null(folder: Path, weights: tuple[Array, Array]) -> None:
    write_model(folder / "quant.onnx", np.full_like(weights[1], np.nan))
    result = run(folder)
    assert math.isnan(result.models[1].largest_difference["y"])
    model = json.loads(result.to_json())["models"][1]
    assert list(model) == ["path", "bytes", "bits_per_weight", "relative_error", "largest_difference"]
    assert model["relative_error"]["y"] is None
    write_model(folder / "float.onnx", np.zeros_like(weights[0]))
    write_model(folder / "quant.onnx", weights[1])
    assert run(folder).models[1].relative_error["y"] == math.inf
    write_model(folder / "quant.onnx", np.zeros_like(weights[0]))
    assert run(folder).models[1].relative_error["y"] == 0


def refuse(folder: Path, message: str, *names: str, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(folder, *names, **options)
    assert "\n" not in str(caught.value)


def test_models_and_arrays_that_do_not_fit(folder: Path, weights: tuple[Array, Array]) -> None:
    refuse(folder, r"float.onnx: one model, with nothing to compare", "float.onnx")
    refuse(folder, r"--windows 0; required: at least 1", samples=0)
    refuse(folder, r"none.npz: no such file", archives=("none.npz",))
    write_model(folder / "other.onnx", weights[0], inputs=("pixels", "scale"))
    refuse(folder, r"a.npz: x, which the model does not read; .*other.onnx", "float.onnx", "other.onnx")
    write_model(folder / "fewer.onnx", weights[0], outputs=("y",))
    refuse(folder, r"fewer.onnx: no output positive, which .*float.onnx has", "float.onnx", "fewer.onnx")
    assert run(folder, "fewer.onnx", "quant.onnx").models[1].relative_error["y"] > 0
    text = helper.make_tensor_value_info("text", TensorProto.STRING, ["b"])
    strings = [helper.make_node("Identity", ["text"], ["said"])]
    said = helper.make_tensor_value_info("said", TensorProto.STRING, ["b"])
    save(folder / "words.onnx", helper.make_graph(strings, "words", [text], [said]))
    np.savez(folder / "words.npz", text=np.array(["a", "b"]))
    with pytest.raises(UserError):
        run(folder, "words.onnx", "words.onnx", archives=("words.npz",))


def test_outputs_of_another_shape_are_refused_when_they_come(folder: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", IN])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    axes = numpy_helper.from_array(np.array([1]), "axes")
    for name, op in (("sum", "ReduceSum"), ("same", "Identity")):
        operands = ["x", "axes"] if op == "ReduceSum" else ["x"]
        node = helper.make_node(op, operands, ["y"])
        save(folder / f"{name}.onnx", helper.make_graph([node], name, [x], [y], [axes]))
    np.savez(folder / "x.npz", x=np.ones((2, IN), np.float32))
    refuse(
        folder,
        r"same.onnx: output y is of shape \[1, 6\], in .*sum.onnx of \[1, 1\]",
        *("sum.onnx", "same.onnx"),
        archives=("x.npz",),
    )
