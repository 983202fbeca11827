"""What ONNX Runtime makes of a model, and what of that is a violation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.verify.hand_made import portable_model, qdq_model, save
from zq2onnx.opset import FLOAT_ACTIVATIONS, MICROSOFT, OPERATORS
from zq2onnx.verify import Violation, findings, optimized_graph, violations


def test_qdq_runs_with_int8_activations_unless_the_session_says_not(tmp_path: Path) -> None:
    path = save(qdq_model(bits=4), tmp_path / "m.onnx")
    (finding,) = findings(optimized_graph(path))
    assert finding.violation is Violation.INT8_ACTIVATIONS
    assert finding.operator == "MatMulNBits"
    assert violations(optimized_graph(path)) == [str(finding)]
    assert str(finding).endswith("multiplies int8 activations")
    assert violations(optimized_graph(path, FLOAT_ACTIVATIONS)) == []


def test_portable_needs_no_session_key(tmp_path: Path) -> None:
    path = save(portable_model({name: name for name in OPERATORS}), tmp_path / "m.onnx")
    optimized = optimized_graph(path)
    int8 = [finding for finding in findings(optimized) if finding.violation is Violation.INT8_ACTIVATIONS]
    assert len(int8) == len(findings(optimized)) == sum(item.int8_product for item in OPERATORS.values())
    assert sum(node.op_type == "MatMulNBits" for node in optimized.graph.node) == len(OPERATORS)


def test_large_weights_stay_out_of_the_graph_read_back(tmp_path: Path) -> None:
    path = save(portable_model({"a": "MatMulW8A16"}, k=256), tmp_path / "m.onnx")
    assert optimized_graph(path).ByteSize() < 20_000


def test_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    optimized_graph(qdq_model().SerializeToString())
    assert list((tmp_path / "tmp").iterdir()) == []


def model_of(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g", [], [], [numpy_helper.from_array(array, name) for name, array in constants.items()]
    )
    return helper.make_model(graph)


CODES = np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("node", "violation"),
    [
        (helper.make_node("BitwiseAnd", ["codes", "codes"], ["y"]), Violation.UNPACKED),
        (helper.make_node("BitShift", ["codes", "codes"], ["y"], direction="LEFT"), Violation.UNPACKED),
        (helper.make_node("DequantizeLinear", ["codes", "scale"], ["y"]), Violation.DEQUANTIZED),
        (helper.make_node("DequantizeLinear", ["computed", "scale"], ["y"]), Violation.DEQUANTIZED),
        (helper.make_node("MatMulInteger", ["a", "codes"], ["y"]), Violation.INT8_ACTIVATIONS),
        (helper.make_node("BitwiseAnd", ["a", "codes"], ["y"]), None),
        (helper.make_node("DequantizeLinear", ["a", "scale"], ["y"]), None),
        (helper.make_node("MatMulNBits", ["a"], ["y"], domain=MICROSOFT, accuracy_level=0), None),
        (helper.make_node("MatMulNBits", ["a"], ["y"], domain=MICROSOFT), None),
        (
            helper.make_node("MatMulNBits", ["a"], ["y"], domain=MICROSOFT, accuracy_level=4),
            Violation.INT8_ACTIVATIONS,
        ),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_rules(node: onnx.NodeProto, violation: Violation | None, nested: bool) -> None:
    computed = helper.make_node("Reshape", ["codes", "shape"], ["computed"])
    if nested:
        node = helper.make_node("If", ["flag"], ["y"], then_branch=helper.make_graph([node], "then", [], []))
    scale, shape = np.ones((), np.float32), np.array([2, 8])
    found = findings(model_of(computed, node, codes=CODES, scale=scale, shape=shape))
    assert [item.violation for item in found] == ([] if violation is None else [violation])
