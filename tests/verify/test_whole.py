"""The whole model's run: feeds from names and shapes, finite results, the optimized graph."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.verify.hand_made import portable_model, qdq_model, save
from zq2onnx.errors import CheckFailed
from zq2onnx.verify import check, whole
from zq2onnx.verify.feeds import made_up_feeds

IMPORTS = [helper.make_opsetid("", 21)]


def language_model(inputs: list[onnx.ValueInfoProto], rows: int = 5) -> onnx.ModelProto:
    """Looks up ids, adds every other input's sum, and multiplies a quantized weight."""
    quantized = qdq_model(lorc=False)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["hidden0"])]
    for at, value in enumerate(inputs[1:]):
        nodes += [
            helper.make_node("Cast", [value.name], [f"float{at}"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", [f"float{at}"], [f"sum{at}"], keepdims=0),
            helper.make_node("Add", [f"hidden{at}", f"sum{at}"], [f"hidden{at + 1}"]),
        ]
    nodes.append(helper.make_node("Identity", [f"hidden{len(inputs) - 1}"], ["A"]))
    table = numpy_helper.from_array(np.ones((rows, 96), np.float32), "table")
    graph = helper.make_graph(
        [*nodes, *quantized.graph.node],
        "language_model",
        inputs,
        list(quantized.graph.output),
        [table, *quantized.graph.initializer],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=IMPORTS)


def ids(name: str, *shape: str | int, element: int = TensorProto.INT64) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def test_inputs_of_a_decoder_with_cache_are_made_up(tmp_path: Path) -> None:
    inputs = [
        ids("input_ids", "batch", "sequence"),
        ids("attention_mask", "batch", "past_sequence + sequence"),
        ids("position_ids", "batch", "sequence"),
        ids("token_type_ids", "batch", "sequence", element=TensorProto.INT32),
        ids("past_key_values.0.key", "batch", 4, "past_sequence", 16, element=TensorProto.FLOAT),
    ]
    path = save(language_model(inputs), tmp_path / "m.onnx")
    assert check(path, ["layer/MatMul"], "full").notes == []


def test_a_float_layer_among_int8_ones_must_stay_float(tmp_path: Path) -> None:
    """Of a whole model, an int8 product is right where the operator is one of those that say so."""
    names = {"a": "MatMulW4A8Block", "b": "MatMulW4A16", "c": "MatMulW3A8BlockLoRC", "d": "MatMulW3A16"}
    model = portable_model(names)
    assert check(save(model, tmp_path / "m.onnx"), list(names), "full").nodes_checked == 4
    for name in ("MatMulW4A16", "MatMulW3A16"):
        wrong = portable_model(names)
        (function,) = (item for item in wrong.functions if item.name == name)
        for node in function.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 4
        path = save(wrong, tmp_path / f"{name}.onnx")
        with pytest.raises(CheckFailed, match="of the whole model, MatMulNBits node .* int8 activations"):
            whole.judge_whole_model(path, wrong)


def test_ids_stay_within_the_table(tmp_path: Path) -> None:
    path = save(language_model([ids("input_ids", "batch", "sequence")], rows=1), tmp_path / "m.onnx")
    assert check(path, ["layer/MatMul"], "full").notes == []


@pytest.mark.parametrize("element", [TensorProto.INT64, TensorProto.BOOL])
def test_unknown_input_is_a_note(tmp_path: Path, element: int) -> None:
    inputs = [ids("input_ids", "batch", "sequence"), ids("use_cache_branch", 1, element=element)]
    path = save(language_model(inputs), tmp_path / "m.onnx")
    assert check(path, ["layer/MatMul"], "full").notes == [
        "whole model not run: input 'use_cache_branch' is not one that can be made up"
    ]


def test_result_that_is_not_finite_is_found(tmp_path: Path) -> None:
    model = portable_model({"a": "MatMulW4A16"})
    infinite = numpy_helper.from_array(np.array(np.inf, np.float32), "infinite")
    model.graph.initializer.append(infinite)
    model.graph.node.append(helper.make_node("Mul", ["x1", "infinite"], ["y"]))
    model.graph.output[0].name = "y"
    path = save(model, tmp_path / "m.onnx")
    assert check(path, ["a"], "sample").nodes_checked == 1
    with pytest.raises(CheckFailed, match="output 'y' of the whole model: 96 of 96 values not finite"):
        check(path, ["a"], "full")


def quantized_before(name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes = [
        helper.make_node("DequantizeLinear", ["c0", "s0"], ["w0"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x1", "w0"], ["y"], name=name),
    ]
    codes = np.ones((96, 96), np.uint8)
    constants = [
        numpy_helper.from_array(codes, "c0"),
        numpy_helper.from_array(np.ones((3, 96), np.float32), "s0"),
    ]
    return nodes, constants


def test_what_was_quantized_before_us_is_not_judged(tmp_path: Path) -> None:
    model = portable_model({"a": "MatMulW4A16"})
    nodes, constants = quantized_before("theirs")
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    model.graph.output[0].name = "y"
    assert check(save(model, tmp_path / "m.onnx"), ["a"], "full").notes == []


@pytest.mark.parametrize("mode", ["sample", "full"])
def test_what_stays_unfused_in_qdq_is_said(tmp_path: Path, mode: str) -> None:
    """Alone the group fuses; in the model it has a second reader."""
    model = qdq_model(lorc=False)
    model.graph.node.append(helper.make_node("ReduceSum", ["weight"], ["sum"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))
    (note,) = check(save(model, tmp_path / "m.onnx"), ["layer/MatMul"], mode).notes
    # ONNX Runtime gives each reader one of its own, and then may fuse one.
    assert re.fullmatch(
        "[12] DequantizeLinear nodes stay unfused in the whole model: '[^']*layer/MatMul/weight.*", note
    )


@pytest.mark.parametrize("mode", ["sample", "full"])
def test_int8_activations_in_the_whole_qdq_model_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    path = save(qdq_model(), tmp_path / "m.onnx")
    assert check(path, ["layer/MatMul"], mode).notes == []
    monkeypatch.setattr(whole, "FLOAT_ACTIVATIONS", {})
    with pytest.raises(CheckFailed, match="the whole model, MatMulNBits node .* multiplies int8 activations"):
        check(path, ["layer/MatMul"], mode)


def test_a_large_qdq_model_is_not_opened_whole_by_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(qdq_model(lorc=False), tmp_path / "m.onnx")
    monkeypatch.setattr(whole, "AFFORDABLE_BYTES", 1000)
    monkeypatch.setattr(whole, "optimizing_session", None)
    (note,) = check(path, ["layer/MatMul"], "sample").notes
    assert note.startswith("whole model's optimized graph not read: 0 MB")


def picky_model() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Takes five rows and no other number, though its input's shape does not say so; its float twin."""
    quantized = qdq_model(lorc=False, bias=False)
    quantized.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    quantized.graph.input[0].CopyFrom(helper.make_tensor_value_info("A", TensorProto.FLOAT, ["m", 96]))
    five = numpy_helper.from_array(np.zeros((5, 64), np.float32), "five")
    shape = numpy_helper.from_array(np.array([5, 64]), "shape")
    reshape = helper.make_node("Reshape", ["product", "shape"], ["five_rows"])
    nodes = [reshape, helper.make_node("Add", ["five_rows", "five"], ["y"])]
    quantized.graph.node.extend(nodes)
    quantized.graph.initializer.extend([five, shape])
    weight = numpy_helper.from_array(np.zeros((96, 64), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["A", "weight"], ["product"]), *nodes],
        "float",
        list(quantized.graph.input),
        list(quantized.graph.output),
        [weight, five, shape],
    )
    return quantized, helper.make_model(graph, ir_version=10, opset_imports=IMPORTS)


@pytest.mark.parametrize("with_original", [False, True])
def test_inputs_that_do_not_suit_the_model_are_a_note(tmp_path: Path, with_original: bool) -> None:
    quantized, original = picky_model()
    path = save(quantized, tmp_path / "m.onnx", external=False)
    source = save(original, tmp_path / "float.onnx", external=False) if with_original else None
    (note,) = check(path, ["layer/MatMul"], "full", original=source).notes
    assert note.startswith("whole model not run: the inputs made up do not suit it (whole model")
    assert "Reshape" in note


def test_inputs_on_which_only_the_float_model_runs_are_a_failure(tmp_path: Path) -> None:
    quantized, original = picky_model()
    shape = numpy_helper.from_array(np.array([1, 64]), "shape")
    original.graph.initializer[2].CopyFrom(shape)
    path, source = (
        save(quantized, tmp_path / "m.onnx", external=False),
        save(original, tmp_path / "float.onnx", external=False),
    )
    with pytest.raises(CheckFailed, match="whole model, on inputs made up .*Reshape"):
        check(path, ["layer/MatMul"], "full", original=source)


def test_a_model_that_does_not_load_is_a_failure(tmp_path: Path) -> None:
    quantized, _ = picky_model()
    quantized.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(CheckFailed, match="whole model: ONNX Runtime does not run it: .*NoSuchOperator"):
        check(save(quantized, tmp_path / "m.onnx", external=False), ["layer/MatMul"], "full")


def test_an_image_is_made_up() -> None:
    """As the stem of a vision transformer declares it, all sizes free."""
    names = ["batch_size", "num_channels", "height", "width"]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, names)
    feeds = made_up_feeds(helper.make_graph([], "stem", [pixels], []))
    assert feeds["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("attributes", "packed", "size"),
    [
        ({"num_heads": 4, "kv_num_heads": 2}, True, 12),
        ({"num_heads": 4}, False, 24),
        ({}, False, None),
    ],
)
def test_width_of_a_head_is_that_of_the_first_attention(
    attributes: dict[str, int], packed: bool, size: int | None
) -> None:
    inputs = ["q"] if packed else ["q", "k"]
    node = helper.make_node("GroupQueryAttention", inputs, ["y"], domain="com.microsoft", **attributes)
    shape = ["batch", 4, "past_sequence", "kv_cache_dim"]
    cache = helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, shape)
    hidden = helper.make_tensor_value_info("q", TensorProto.FLOAT, ["batch", "sequence", 96])
    graph = helper.make_graph([node], "attention", [cache], [], value_info=[hidden])
    if size is None:
        with pytest.raises(LookupError, match="past_key_values.0.key"):
            made_up_feeds(graph)
    else:
        assert made_up_feeds(graph)["past_key_values.0.key"].shape == (1, 4, 0, size)
