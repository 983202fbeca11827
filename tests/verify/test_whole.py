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
from zq2onnx.verify import check

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


def test_what_stays_unfused_in_qdq_is_said(tmp_path: Path) -> None:
    model = qdq_model(lorc=False)
    # A second reader of the DequantizeLinear: ONNX Runtime does not fuse such.
    model.graph.node.append(helper.make_node("ReduceSum", ["weight"], ["sum"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))
    (note,) = check(save(model, tmp_path / "m.onnx"), ["layer/MatMul"], "full").notes
    # ONNX Runtime gives each reader one of its own, and then may fuse one.
    assert re.fullmatch("[12] DequantizeLinear nodes stay unfused in the whole model", note)
