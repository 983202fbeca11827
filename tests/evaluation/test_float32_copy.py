"""A float32 copy means what its bfloat16 original says, and holds no bfloat16 anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import zoo
from tests.evaluation.language import Array, save
from tests.operator_model import operator_model, random_constants
from zq2onnx.errors import UserError
from zq2onnx.evaluation import evaluate, float32_copy
from zq2onnx.layout import packed_layout
from zq2onnx.opset import OPERATORS, node_attributes
from zq2onnx.runtime import reference
from zq2onnx.scheme import PerBlock

BF16 = TensorProto.BFLOAT16


def bfloat16(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(ml_dtypes.bfloat16)


def run(path: Path, feeds: dict[str, Array]) -> list[Array]:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    return zoo.run(path, feeds)


def messages(message: object) -> Iterator[object]:
    """A protobuf message and all messages in it."""
    yield message
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            for item in value if hasattr(value, "__len__") else [value]:
                yield from messages(item)


def bfloat16_uses(path: Path) -> list[object]:
    """Every tensor, type and type attribute of the file that is bfloat16."""
    found = []
    for message in messages(onnx.load(path, load_external_data=False)):
        is_tensor = isinstance(message, onnx.TensorProto) and message.data_type == BF16
        is_type = isinstance(message, onnx.TypeProto.Tensor) and message.elem_type == BF16
        named = isinstance(message, onnx.AttributeProto) and message.name in ("to", "dtype")
        if is_tensor or is_type or (named and message.i == BF16):
            found.append(message)
    return found


def everywhere(path: Path) -> Path:
    """bfloat16 as input, output, initializer, constant, cast, sequence, in a branch and a function."""
    value = helper.make_tensor_value_info
    branch = helper.make_graph(
        [helper.make_node("Add", ["cast", "inner"], ["chosen"])],
        "then",
        [],
        [value("chosen", BF16, None)],
        [numpy_helper.from_array(bfloat16(4, seed=1), "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["cast"], ["kept"])], "else", [], [value("kept", BF16, None)]
    )
    function = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(bfloat16(1, seed=2))),
            helper.make_node("Cast", ["a"], ["c"], to=BF16),
            helper.make_node("Mul", ["c", "two"], ["b"]),
        ],
        [helper.make_opsetid("", 21)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["wide"], ["cast"], to=BF16),
        helper.make_node("If", ["condition"], ["branched"], then_branch=branch, else_branch=other),
        helper.make_node("Twice", ["branched"], ["doubled"], domain="local"),
        helper.make_node("SequenceConstruct", ["doubled", "doubled"], ["sequence"]),
        helper.make_node("ConcatFromSequence", ["sequence"], ["y"], axis=0),
        helper.make_node("Gather", ["y", "one"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "everywhere",
        [value("x", BF16, ["n", 300]), value("condition", TensorProto.BOOL, [])],
        [value("z", BF16, ["n", 4])],
        [
            numpy_helper.from_array(bfloat16(300, 4), "w"),
            numpy_helper.from_array(np.array([0, 1, 0]), "one"),
        ],
        value_info=[
            value("product", BF16, ["n", 4]),
            helper.make_tensor_sequence_value_info("sequence", BF16, None),
        ],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=imports, functions=[function]), path)
    return path


def test_a_model_without_bfloat16_is_given_as_it_is(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [output])
    path = save(tmp_path / "model.onnx", graph)
    with float32_copy(path) as copy:
        assert copy == path


@pytest.mark.parametrize("external", [False, True])
def test_bfloat16_is_widened_everywhere(tmp_path: Path, external: bool) -> None:
    path = everywhere(tmp_path / "model.onnx")
    if external:
        onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="m.data")
    before = path.read_bytes()
    assert len(bfloat16_uses(path)) >= 10
    with float32_copy(path) as copy:
        assert copy != path
        assert bfloat16_uses(copy) == []
        onnx.checker.check_model(copy, full_check=True)
        x = bfloat16(3, 300, seed=5).astype(np.float32)
        (z,) = run(copy, {"x": x, "condition": np.array(True)})
    w, inner, two = (bfloat16(*s, seed=i).astype(np.float32) for i, s in enumerate([(300, 4), (4,), (1,)]))
    expected = (x @ w + inner) * two
    np.testing.assert_allclose(z, expected[[0, 1, 0]], rtol=1e-5, atol=1e-5)
    assert not copy.exists()
    assert not copy.parent.exists()
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["MatMulW4A16LoRC", "MatMulW3A16LoRC", "MatMulW2A16", "MatMulW8A16LoRC"])
def test_a_quantized_model_keeps_its_integers(tmp_path: Path, name: str) -> None:
    operator = OPERATORS[name]
    layout = packed_layout(96, 40, operator.bits, PerBlock(32))
    constants = random_constants(operator, layout, np.random.default_rng(0), dtype=ml_dtypes.bfloat16)
    path = tmp_path / "model.onnx"
    onnx.save(
        operator_model(operator, layout, constants), path, save_as_external_data=True, location="m.data"
    )
    a = bfloat16(3, 96, seed=9).astype(np.float32)
    with float32_copy(path) as copy:
        assert bfloat16_uses(copy) == []
        stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(copy).graph.initializer}
        (y,) = run(copy, {"A": a})
    for key, array in constants.items():
        widened = array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
        np.testing.assert_array_equal(stored[key], widened)
        assert stored[key].dtype == widened.dtype
    expected = reference.matmul(operator, node_attributes(layout), {"A": a, **constants})
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_an_exported_bfloat16_model_runs_and_is_near_its_float32_twin() -> None:
    path = zoo.model("opt-bf16")
    feeds = zoo.feeds(path)
    with float32_copy(path) as copy:
        assert bfloat16_uses(copy) == []
        logits = run(copy, feeds)[0]
    expected = zoo.run(zoo.model("opt"), feeds)[0]
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_evaluation_runs_a_bfloat16_model(tmp_path: Path) -> None:
    path = zoo.model("opt-bf16")
    text = tmp_path / "a.txt"
    text.write_text("A text of the test's own, long enough for one window. " * 8, encoding="utf-8")
    result = evaluate([zoo.model("opt"), path], [text], path.parent, length=32, windows=2)
    assert result.models[1].path == str(path)
    assert result.models[1].bits_per_weight == 16
    assert 0 < result.models[1].kl < 0.05
    assert abs(result.models[1].gap) < 0.02 * result.models[0].mean


def test_truncated_external_data_is_one_line(tmp_path: Path) -> None:
    path = everywhere(tmp_path / "model.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="m.data")
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model.onnx: no float32 copy of it") as caught, float32_copy(path):
        pass
    assert "\n" not in str(caught.value)
    data.unlink()
    with pytest.raises(UserError, match=r"model.onnx: no float32 copy of it"), float32_copy(path):
        pass
