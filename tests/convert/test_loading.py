"""What is read of a model, and what stays on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import zq2onnx
from tests.convert import linear_model
from zq2onnx.conversion.loading import load
from zq2onnx.storage import embedded, mapped

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 512


def write(path: Path, count: int, width: int = WIDTH) -> dict[str, np.ndarray]:
    """A model that holds `count` weights in its file, beside one of numbers that are not raw."""
    matrices = linear_model.weights(count, width)
    tensors = [numpy_helper.from_array(matrix, name) for name, matrix in matrices.items()]
    tensors.append(helper.make_tensor("typed", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]))
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}.y"], name=name) for name in matrices]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    outputs = [helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None) for name in matrices]
    graph = helper.make_graph(nodes, "inside", [x], outputs, tensors)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), path)
    return matrices


def test_weights_inside_the_file_stay_there(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    matrices = write(path, 3)
    source = load(path)
    assert source.data == [] and source.digest == mapped.file_digest(path)
    initializers = source.model.graph.initializers
    assert list(initializers) == [*matrices, "typed"]
    for name, matrix in matrices.items():
        tensor = initializers[name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        np.testing.assert_array_equal(mapped.tensor_array(tensor), matrix)
        np.testing.assert_array_equal(tensor.numpy(), matrix)
    assert not isinstance(initializers["typed"].const_value, ir.ExternalTensor)
    proto, location = embedded.parse_model(path)
    assert proto.ByteSize() < 3000 and location not in path.read_bytes().decode("latin-1")


def test_a_link_to_a_model_with_its_weights_inside(tmp_path: Path) -> None:
    path, link, hard = (tmp_path / name for name in ("m.onnx", "a/link.onnx", "hard.onnx"))
    matrices = write(path, 1)
    link.parent.mkdir()
    link.symlink_to(path)
    hard.hardlink_to(path)
    for each in (link, hard):
        tensor = load(each).model.graph.initializers["layers.0.weight"].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), matrices["layers.0.weight"])


@pytest.mark.parametrize("piece", [100, 1 << 24])
@pytest.mark.parametrize("threshold", [1, 1 << 12, 1 << 30])
def test_parsing_keeps_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: int, piece: int
) -> None:
    monkeypatch.setattr(embedded, "THRESHOLD", threshold)
    monkeypatch.setattr(embedded, "_PIECE", piece)
    path = tmp_path / "m.onnx"
    write(path, 2, 64)
    proto, location = embedded.parse_model(path)
    expected = onnx.load(path)
    content = path.read_bytes()
    moved = 0
    for tensor in proto.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            assert place["location"] == location
            offset, length = int(place["offset"]), int(place["length"])
            tensor.raw_data = content[offset : offset + length]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            moved += 1
    assert proto == expected
    assert moved == (0 if threshold == 1 << 30 else 2)


def test_in_one_file_or_in_two_the_result_is_the_same(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside.onnx", tmp_path / "outside.onnx"
    write(inside, 3)
    onnx.save_model(
        onnx.load(inside), outside, save_as_external_data=True, location="outside.data", size_threshold=1024
    )
    data = []
    for model in (inside, outside):
        zq2onnx.convert(model, tmp_path / "out" / model.name, check="none")
        data.append((tmp_path / "out" / f"{model.name}.data").read_bytes())
    assert data[0] == data[1]


def test_memory_is_not_the_models(tmp_path: Path) -> None:
    """96 MB of weights inside the file, of which parsing takes none."""
    write(tmp_path / "m.onnx", 24, 1024)
    program = (
        "import sys; from pathlib import Path; from zq2onnx.conversion.loading import load;"
        "from zq2onnx.conversion.summary import peak_rss_bytes; before = peak_rss_bytes();"
        "load(Path(sys.argv[1])); print(peak_rss_bytes() - before)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "m.onnx")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 48e6


def test_constants_with_external_data_become_initializers(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    proto = onnx.load(model, load_external_data=False)
    graph = proto.graph
    constant = graph.initializer[1]
    graph.node.insert(0, helper.make_node("Constant", [], [constant.name], name="constant", value=constant))
    del graph.initializer[1]
    model.write_bytes(proto.SerializeToString())
    loaded = load(model).model.graph
    assert all(node.op_type != "Constant" for node in loaded)
    tensor = loaded.initializers["layers.1.weight"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(mapped.tensor_array(tensor), linear_model.weights()["layers.1.weight"])
    report = zq2onnx.convert(model, check="full")
    assert len(report.quantized) == 3
