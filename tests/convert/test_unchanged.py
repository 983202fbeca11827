"""Models in which there is nothing to quantize: written as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.convert import linear_model
from tests.convert.converting import TARGETS, contents, convert, run
from zq2onnx.cli.app import main
from zq2onnx.errors import UserError
from zq2onnx.report import Status


@pytest.mark.parametrize("target", TARGETS)
def test_converted_model_is_left_as_it_is(model: Path, target: str, capsys: pytest.CaptureFixture) -> None:
    first = model.with_name("first.onnx")
    convert(model, first, target=target)
    same, other = model.with_name("same.onnx"), model.parent / "other" / "moved.onnx"
    assert main(["convert", str(first), "-o", str(same), "--target", target]) == 0
    assert "nothing to quantize" in capsys.readouterr().out
    report = convert(first, other)
    assert same.read_bytes() == other.read_bytes() == first.read_bytes()
    assert sorted(linear_model.files(other.parent)) == ["first.onnx.data", "moved.onnx"]
    np.testing.assert_array_equal(run(other), run(first))
    assert report.bytes_after == report.bytes_before == sum(map(len, contents(first)))
    assert all(node.status is Status.SKIPPED and node.reason for node in report.nodes)


@pytest.mark.parametrize("opset", [9, 13])
def test_nothing_to_quantize_of_an_old_opset_keeps_its_requirements(tmp_path: Path, opset: int) -> None:
    model = linear_model.write(tmp_path / "m.onnx", {}, opset=opset, external=False)
    output = tmp_path / "new" / "q.onnx"
    report = convert(model, output)
    assert output.read_bytes() == model.read_bytes()
    assert report.requires.opset == {"": opset} and report.warnings == []


def test_nothing_to_quantize_with_functions_of_another_opset(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path / "m.onnx", {}, opset=13, external=False)
    proto = onnx.load(model)
    opset = helper.make_opsetid("", 17)
    body = [helper.make_node("Relu", ["a"], ["b"])]
    proto.functions.append(helper.make_function("own", "F", ["a"], ["b"], body, [opset]))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.graph.node[-1].CopyFrom(helper.make_node("F", [proto.graph.node[-1].input[0]], ["y"], domain="own"))
    model.write_bytes(proto.SerializeToString())
    convert(model, tmp_path / "q.onnx", target="qdq")
    assert (tmp_path / "q.onnx").read_bytes() == model.read_bytes()


def test_unchanged_data_does_not_overwrite_another_file(model: Path) -> None:
    first, other = model.with_name("first.onnx"), model.parent / "other"
    convert(model, first)
    other.mkdir()
    (other / "first.onnx.data").write_text("precious")
    with pytest.raises(UserError, match="first.onnx.data exists"):
        convert(first, other / "q.onnx")
    assert linear_model.files(other) == {"first.onnx.data": b"precious"}
    with pytest.raises(UserError, match="name of the input's data too"):
        convert(first, other / "first.onnx.data", force=True)
    with pytest.raises(UserError, match="first.onnx.data exists"):
        convert(first, other / "q.onnx", force=True)
    (other / "first.onnx.data").unlink()
    convert(first, other / "q.onnx")
    assert (other / "first.onnx.data").read_bytes() == contents(first)[1]


def test_unchanged_output_beside_the_input_tells_whose_data_it_reads(model: Path) -> None:
    first = model.with_name("first.onnx")
    convert(model, first)
    report = convert(first, model.with_name("second.onnx"))
    assert any("reads its weights from the input's data: first.onnx.data" in w for w in report.warnings)
