"""The self-check passes what is right, and names what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from tests.operator_model import Array
from tests.verify.hand_made import embedding_model, portable_model, qdq_model, save
from zq2onnx.errors import CheckFailed
from zq2onnx.opset import DOMAIN, GROUP_KEY, OPERATORS
from zq2onnx.scheme import CheckMode
from zq2onnx.verify import check, groups, optimized, walk
from zq2onnx.verify.groups import find_groups

CHAIN = {f"layer.{at}/{name}": name for at, name in enumerate(OPERATORS)}


@pytest.mark.parametrize("group_size", [32, "row"])
@pytest.mark.parametrize("mode", ["sample", "full"])
def test_portable_operators_pass(tmp_path: Path, mode: str, group_size: str | int) -> None:
    path = save(portable_model(CHAIN, group_size=group_size), tmp_path / "m.onnx")
    report = check(path, list(CHAIN), mode)
    assert (report.mode, report.nodes_checked) == (mode, len(CHAIN))
    assert 0 < report.worst_error <= 1e-5
    assert report.worst_node in CHAIN
    assert report.notes == []


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("block", [32, None])
@pytest.mark.parametrize("lorc", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_qdq_groups_pass(tmp_path: Path, bits: int, block: int | None, lorc: bool, bias: bool) -> None:
    path = save(qdq_model(bits=bits, block=block, lorc=lorc, bias=bias), tmp_path / "m.onnx")
    report = check(path, ["layer/MatMul"], "full")
    assert report.nodes_checked == 1
    assert report.worst_error <= 1e-5


@pytest.mark.parametrize("target", ["portable", "qdq"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_embeddings_pass(tmp_path: Path, target: str, bits: int, dtype: Any) -> None:
    path = save(embedding_model(target, bits, dtype=dtype), tmp_path / "m.onnx")
    assert check(path, ["embed"], "full").nodes_checked == 1


@pytest.mark.parametrize("target", ["portable", "qdq"])
def test_float16_passes_at_its_own_tolerance(tmp_path: Path, target: str) -> None:
    model = portable_model(CHAIN, dtype=np.float16) if target == "portable" else qdq_model(dtype=np.float16)
    names = list(CHAIN) if target == "portable" else ["layer/MatMul"]
    report = check(save(model, tmp_path / "m.onnx"), names, "sample")
    assert 1e-6 < report.worst_error < 4e-3


@pytest.mark.parametrize("target", ["portable", "qdq"])
def test_bfloat16_is_checked_on_float32_copies(tmp_path: Path, target: str) -> None:
    dtype = ml_dtypes.bfloat16
    model = portable_model(CHAIN, dtype=dtype) if target == "portable" else qdq_model(dtype=dtype)
    names = list(CHAIN) if target == "portable" else ["layer/MatMul"]
    report = check(save(model, tmp_path / "m.onnx"), names, "full")
    assert report.nodes_checked == len(names)
    assert report.worst_error <= 1e-5
    assert any("float32 copies" in note for note in report.notes)
    assert any("needs a GPU provider" in note for note in report.notes)


def test_weights_inside_the_file_are_read_too(tmp_path: Path) -> None:
    path = save(portable_model(CHAIN), tmp_path / "m.onnx", external=False)
    assert check(path, list(CHAIN), "sample").nodes_checked == len(CHAIN)


def test_sample_takes_one_of_a_kind_and_full_all(tmp_path: Path) -> None:
    names = {"a": "MatMulW4A16", "b": "MatMulW4A16", "c": "MatMulW4A16LoRC", "d": "MatMulW4A16"}
    path = save(portable_model(names), tmp_path / "m.onnx")
    seen: list[tuple[int, int]] = []
    assert check(path, list(names), "sample", progress=lambda *at: seen.append(at)).nodes_checked == 2
    assert seen == [(1, 2), (2, 2)]
    assert check(path, list(names), "full").nodes_checked == 4


def test_transposed_activation_and_bias_of_two_dimensions(tmp_path: Path) -> None:
    model = qdq_model(bits=4, lorc=False)
    graph = model.graph
    graph.node.insert(0, helper.make_node("Transpose", ["A"], ["A_transposed"], perm=[1, 0]))
    graph.node[0].metadata_props.add(key=GROUP_KEY, value="layer/MatMul")
    graph.node[2].input[0] = "A_transposed"
    graph.input[0].CopyFrom(helper.make_tensor_value_info("A", 1, [96, "rows"]))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("biased", 1, ["rows", 64]))
    path = save(model, tmp_path / "m.onnx")
    assert check(path, ["layer/MatMul"], "sample").worst_error <= 1e-5


def test_computed_bias_is_left_out_and_said(tmp_path: Path) -> None:
    model = qdq_model(lorc=False)
    model.graph.node.insert(0, helper.make_node("Neg", ["bias"], ["computed"]))
    model.graph.node[-1].input[1] = "computed"
    report = check(save(model, tmp_path / "m.onnx"), ["layer/MatMul"], "sample")
    assert report.notes == ["node 'layer/MatMul' was checked without its computed bias"]


def conditional_model(*, outside: bool) -> onnx.ModelProto:
    """A group in a branch of an If, its constants beside it or in the graph around."""
    inner = qdq_model(lorc=False)
    constants = list(inner.graph.initializer)
    branch = helper.make_graph(
        list(inner.graph.node), "then", [], list(inner.graph.output), [] if outside else constants
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["A", "zeros"], ["z"])],
        "else",
        [],
        [helper.make_tensor_value_info("z", 1, None)],
        [numpy_helper.from_array(np.zeros((96, 64), np.float32), "zeros")],
    )
    node = helper.make_node("If", ["flag"], ["Y"], then_branch=branch, else_branch=other)
    graph = helper.make_graph(
        [node],
        "outer",
        [*inner.graph.input, helper.make_tensor_value_info("flag", 9, [])],
        [helper.make_tensor_value_info("Y", 1, None)],
        constants if outside else [],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=list(inner.opset_import))


def test_node_in_a_subgraph_is_found(tmp_path: Path) -> None:
    path = save(conditional_model(outside=False), tmp_path / "m.onnx")
    assert check(path, ["layer/MatMul"], "sample").nodes_checked == 1


def test_a_branch_sees_the_constants_around_it() -> None:
    (group,) = find_groups(conditional_model(outside=True)).values()
    assert set(group.constants) == {"codes", "scales", "zero_points", "bias"}


def attribute_heavy_model() -> onnx.ModelProto:
    model = qdq_model()
    model.graph.node.extend(helper.make_node("Odd", [], [f"o{at}"], a=1, b=2, c="d") for at in range(9))
    return model


@pytest.mark.parametrize(
    ("module", "name", "walk"),
    [
        (groups, "_graph_groups", find_groups),
        (optimized, "_graph_findings", optimized.findings),
        (walk, "all_nodes", lambda model: list(walk.all_nodes(model.graph))),
    ],
    ids=["groups", "findings", "nodes"],
)
def test_attributes_that_hold_no_graph_are_not_walked(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, walk: Callable[[onnx.ModelProto], object]
) -> None:
    """Each walk knows all constants around it: one for every attribute is quadratic."""
    seen = []
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda graph, *rest: (seen.append(graph), real(graph, *rest))[1])
    model = attribute_heavy_model()
    before = model.SerializeToString()
    walk(model)
    assert len(seen) == 1
    assert model.SerializeToString() == before


def test_missing_node_is_named(tmp_path: Path) -> None:
    path = save(portable_model({"a": "MatMulW4A16"}), tmp_path / "m.onnx")
    with pytest.raises(CheckFailed, match="node 'b': not in the written model"):
        check(path, ["a", "b"], "sample")


def change(model: onnx.ModelProto, suffix: str, values: Array) -> None:
    """Give the initializer of this name's end other contents."""
    (tensor,) = (item for item in model.graph.initializer if item.name.endswith(suffix))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("target", ["portable", "qdq"])
def test_corrupted_scale_is_found_and_named(tmp_path: Path, target: str) -> None:
    is_portable = target == "portable"
    model = portable_model({"layer/MatMul": "MatMulW4A16"}) if is_portable else qdq_model(n=96, lorc=False)
    scales = np.full((96, 3) if is_portable else (3, 96), 0.01, np.float32)
    scales[1, 2] = np.nan
    change(model, "scales", scales)
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(CheckFailed, match="node 'layer/MatMul': off its dequantized oracle by inf"):
        check(path, ["layer/MatMul"], "sample")


def test_zero_point_nibbles_that_differ_are_found(tmp_path: Path) -> None:
    """Where a scale is repeated, its zero point's byte holds the nibble twice."""
    model = portable_model({"a": "MatMulW4A16"}, group_size="row")
    change(model, "zero_points", np.full((96, 1), 0x57, np.uint8))
    with pytest.raises(CheckFailed, match="node 'a': off its dequantized oracle"):
        check(save(model, tmp_path / "m.onnx"), ["a"], "sample")


def test_wrong_body_is_found(tmp_path: Path) -> None:
    model = portable_model({"good": "MatMulW4A16", "bad": "MatMulW8A16"})
    (sixteen,) = (
        attribute for node in model.functions[1].node for attribute in node.attribute if attribute.f == 16.0
    )
    sixteen.f = 15.9
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(CheckFailed, match=r"node 'bad': off its dequantized oracle by \d\.\d+e-0\d of"):
        check(path, ["good", "bad"], "sample")


BODIES = {
    "DequantizeLinear node .* dequantizes a constant weight on every run": """
  codes_t = Transpose <perm = [1, 0]> (codes)
  w = DequantizeLinear <axis = 1> (codes_t, s)
  wt = Abs (w)
""",
    "MatMulNBits node .* multiplies int8 activations": """
  codes_t = Transpose <perm = [1, 0]> (codes)
  wt = DequantizeLinear <axis = 1> (codes_t, s)
""",
    "holds no MatMulNBits": """
  codes_float = CastLike (codes, scales)
  w = Mul (codes_float, scales)
  wt = Transpose <perm = [1, 0]> (w)
""",
}
"""Bodies whose numbers are right, and whose graphs are not."""


@pytest.mark.parametrize("complaint", BODIES)
def test_body_that_unpacks_or_rounds_is_found(tmp_path: Path, complaint: str) -> None:
    model = portable_model({"a": "MatMulW8A16"}, group_size="row", bias=False, dtype=np.float32)
    # Codes of two equal nibbles are the same in both planes: a plain reshape reads them.
    change(model, "_B", np.full((192, 3, 16), 0x77, np.uint8))
    change(model, "zero_points", np.zeros((192, 1), np.uint8))
    model.functions[0].CopyFrom(
        onnx.parser.parse_function(f"""<domain: "{DOMAIN}", opset_import: ["" : 21]>
MatMulW8A16 <K, N, block_size, scale_repeat, zero_point_repeat, stored_rows>
  (A, B, scales, zero_points, bias) => (Y) {{
  shape = Constant <value_ints: ints = [96, 96]> ()
  flat = Constant <value_ints: ints = [-1]> ()
  codes = Reshape (B, shape)
  s = Reshape (scales, flat)
  {BODIES[complaint]}
  Y = MatMul (A, wt)
}}""")
    )
    model.functions[0].opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(CheckFailed, match=f"node 'a'.*{complaint}"):
        check(path, ["a"], "sample")


def test_body_at_level_four_is_found(tmp_path: Path) -> None:
    """In float16 the error of int8 activations would pass; the graph shows them."""
    model = portable_model({"a": "MatMulW4A16"}, dtype=np.float16, bias=False)
    for node in model.functions[0].node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 4
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(CheckFailed, match="node 'a': in .*MatMulNBits node .* multiplies int8 activations"):
        check(path, ["a"], "sample")


def set_level(model: onnx.ModelProto, name: str, level: int) -> None:
    (function,) = (item for item in model.functions if item.name == name)
    for node in function.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level


def test_a_runtime_without_int8_products_is_said_and_right(tmp_path: Path) -> None:
    """Level 0 is what level 4 is where there is no int8 kernel."""
    model = portable_model({"a": "MatMulW4A8BlockLoRC", "b": "MatMulW4A8Block"}, bias=False)
    set_level(model, "MatMulW4A8BlockLoRC", 0)
    report = check(save(model, tmp_path / "m.onnx"), ["a", "b"], "sample")
    assert report.nodes_checked == 2 and report.worst_error <= 1e-5
    assert report.notes == [
        "this ONNX Runtime has no int8 product for some nodes: there it multiplies floats"
    ]


def test_tokens_that_are_rounded_twice_are_found(tmp_path: Path) -> None:
    model = portable_model({"a": "MatMulW4A8"}, bias=False)
    set_level(model, "MatMulW4A8", 4)
    with pytest.raises(CheckFailed, match="node 'a': in .*multiplies int8 activations"):
        check(save(model, tmp_path / "m.onnx"), ["a"], "sample")


@pytest.mark.parametrize("name", ["MatMulW4A8", "MatMulW4A8LoRC"])
def test_tokens_that_are_not_rounded_are_found(tmp_path: Path, name: str) -> None:
    model = portable_model({"a": name})
    for node in model.functions[0].node:
        node.op_type = "Identity" if node.op_type == "Round" else node.op_type
    with pytest.raises(CheckFailed, match="node 'a': off its dequantized oracle"):
        check(save(model, tmp_path / "m.onnx"), ["a"], "sample")


def test_slack_is_for_what_lies_between_two_steps_alone(tmp_path: Path) -> None:
    """Truncation is found, though it too ends at a neighbouring step."""
    model = portable_model({"a": "MatMulW8A8"})
    for node in model.functions[0].node:
        node.op_type = "Floor" if node.op_type == "Round" else node.op_type
    with pytest.raises(CheckFailed, match="node 'a': off its dequantized oracle"):
        check(save(model, tmp_path / "m.onnx"), ["a"], "sample")


def test_unknown_operator_in_a_group_is_named(tmp_path: Path) -> None:
    model = qdq_model(lorc=False, bias=False)
    relu = helper.make_node("Relu", ["product"], ["positive"])
    relu.metadata_props.add(key=GROUP_KEY, value="layer/MatMul")
    model.graph.node.append(relu)
    model.graph.output[0].name = "positive"
    with pytest.raises(CheckFailed, match="unexpected operator Relu"):
        check(save(model, tmp_path / "m.onnx"), ["layer/MatMul"], "sample")


def test_group_that_does_not_run_is_named(tmp_path: Path) -> None:
    model = embedding_model("qdq", 4)
    nodes = [node for node in model.graph.node if node.op_type != "Cast"]
    for node in nodes:
        node.input[0] = node.input[0].removesuffix("_bytes")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with pytest.raises(CheckFailed, match=r"node 'embed': ONNX Runtime does not run it: .*uint4.*Gather"):
        check(save(model, tmp_path / "m.onnx"), ["embed"], "sample")


def test_mode_none_reads_nothing_and_unknown_modes_are_refused(tmp_path: Path) -> None:
    assert check(tmp_path / "absent.onnx", ["a"], CheckMode.NONE).nodes_checked == 0
    with pytest.raises(ValueError, match="'some' is not a valid CheckMode"):
        check(tmp_path / "absent.onnx", ["a"], "some")
