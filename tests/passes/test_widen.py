"""A widened model holds no half precision, and gives what the float model gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import zoo
from zq2onnx.passes.widen import WidenToFloat32Pass

BF16, FP16 = TensorProto.BFLOAT16, TensorProto.FLOAT16
DTYPES = {BF16: ml_dtypes.bfloat16, FP16: np.float16}


def messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if hasattr(value, "__len__") else [value]:
                yield from messages(item)


def uses(model: ir.Model, dtype: int) -> int:
    """How many tensors, types and type attributes of the model are of this type."""
    count = 0
    for message in messages(ir.to_proto(model)):
        match message:
            case onnx.TensorProto():
                count += message.data_type == dtype
            case onnx.TypeProto.Tensor():
                count += message.elem_type == dtype
            case onnx.AttributeProto():
                count += message.name in ("to", "dtype") and message.i == dtype
    return count


def half(*shape: int, dtype: int = FP16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])


def everywhere(dtype: int) -> ir.Model:
    """The type as input, output, initializer, constant, cast, sequence, in a branch and a function."""
    value = helper.make_tensor_value_info
    branch = helper.make_graph(
        [helper.make_node("Add", ["cast", "inner"], ["chosen"])],
        "then",
        [],
        [value("chosen", dtype, None)],
        [numpy_helper.from_array(half(4, dtype=dtype, seed=1), "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["cast"], ["kept"])], "else", [], [value("kept", dtype, None)]
    )
    two = numpy_helper.from_array(half(1, dtype=dtype, seed=2))
    function = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["two"], value=two),
            helper.make_node("Cast", ["a"], ["c"], to=dtype),
            helper.make_node("Mul", ["c", "two"], ["b"]),
        ],
        [helper.make_opsetid("", 21)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["cast"], to=dtype),
        helper.make_node("If", ["condition"], ["branched"], then_branch=branch, else_branch=other),
        helper.make_node("Twice", ["branched"], ["doubled"], domain="local"),
        helper.make_node("SequenceConstruct", ["doubled", "doubled"], ["sequence"]),
        helper.make_node("ConcatFromSequence", ["sequence"], ["y"], axis=0),
        helper.make_node("Gather", ["y", "rows"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "everywhere",
        [value("x", dtype, ["n", 300]), value("condition", TensorProto.BOOL, [])],
        [value("z", dtype, ["n", 4])],
        [
            numpy_helper.from_array(half(300, 4, dtype=dtype), "w"),
            numpy_helper.from_array(np.array([0, 1, 0]), "rows"),
        ],
        value_info=[helper.make_tensor_sequence_value_info("sequence", dtype, None)],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    return ir.from_proto(helper.make_model(graph, ir_version=10, opset_imports=imports, functions=[function]))


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_the_type_is_widened_everywhere(dtype: int) -> None:
    model = everywhere(dtype)
    assert uses(model, dtype) >= 10
    assert WidenToFloat32Pass()(model).modified
    assert uses(model, dtype) == 0
    x = half(3, 300, dtype=dtype, seed=5).astype(np.float32)
    (z,) = run(model, {"x": x, "condition": np.array(True)})
    parts = [((300, 4), 0), ((4,), 1), ((1,), 2)]
    w, inner, two = (half(*shape, dtype=dtype, seed=seed).astype(np.float32) for shape, seed in parts)
    np.testing.assert_allclose(z, ((x @ w + inner) * two)[[0, 1, 0]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_a_second_run_changes_nothing(dtype: int) -> None:
    model = everywhere(dtype)
    WidenToFloat32Pass()(model)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not WidenToFloat32Pass()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("dtype", "other"), [(FP16, ir.DataType.BFLOAT16), (BF16, ir.DataType.FLOAT16)])
def test_a_type_that_is_not_named_stays(dtype: int, other: ir.DataType) -> None:
    model = everywhere(dtype)
    before = uses(model, dtype)
    assert not WidenToFloat32Pass((other,))(model).modified
    assert uses(model, dtype) == before


def test_weights_on_disk_are_read_only_when_asked_for_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(everywhere(FP16), path, external_data="model.data", size_threshold_bytes=0)
    model = ir.load(path)
    weight = model.graph.initializers["w"].const_value
    untouched = model.graph.initializers["rows"].const_value
    WidenToFloat32Pass()(model)
    assert isinstance(weight, ir.ExternalTensor)
    assert weight.raw is None  # not mapped
    assert model.graph.initializers["rows"].const_value is untouched
    widened = model.graph.initializers["w"].const_value
    assert widened is not None and widened.dtype is ir.DataType.FLOAT
    assert widened.name == "w"
    np.testing.assert_array_equal(widened.numpy(), half(300, 4).astype(np.float32))
    assert weight.raw is None
    data = bytearray((tmp_path / "model.data").read_bytes())
    (tmp_path / "model.data").write_bytes(bytes(len(data)))
    np.testing.assert_array_equal(widened.numpy(), np.zeros((300, 4), np.float32))


@pytest.mark.parametrize(("name", "tolerance"), [("opt-fp16", 5e-3), ("opt-bf16", 5e-2)])
def test_an_exported_model_gives_the_float_models_results(
    name: str, tolerance: float, tmp_path: Path
) -> None:
    """Weights are rounded, and that is all: far less differs than in half precision."""
    path = zoo.model(name)
    feeds = zoo.feeds(path)
    model = ir.load(path)
    WidenToFloat32Pass()(model)
    assert uses(model, FP16) + uses(model, BF16) == 0
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    (logits,) = zoo.run(tmp_path / "model.onnx", feeds)
    (expected,) = zoo.run(zoo.model("opt"), feeds)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()
