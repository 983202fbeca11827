"""What a conversion writes: names, bytes, sizes, metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import zq2onnx
from tests import zoo
from tests.convert import linear_model
from tests.convert.converting import TARGETS, contents, convert, metadata, run
from zq2onnx.errors import UserError
from zq2onnx.passes.measure_sizes import measure_sizes


def test_default_name_is_beside_the_input(model: Path) -> None:
    report = convert(model, scheme="w3a16")
    assert report.output == str(model.with_name("m.w3a16.onnx"))
    names = sorted(path.name for path in model.parent.iterdir())
    assert names == ["m.onnx", "m.onnx.data", "m.w3a16.onnx", "m.w3a16.onnx.data"]


def test_name_without_the_usual_ending(model: Path) -> None:
    renamed = model.rename(model.with_name("model.bin"))
    assert Path(convert(renamed).output).name == "model.bin.w4a16.onnx"


def test_input_is_not_touched(model: Path) -> None:
    before = linear_model.files(model.parent)
    convert(model)
    after = linear_model.files(model.parent)
    assert before.items() <= after.items()


def test_another_folder_is_made_and_gets_the_companions(model: Path) -> None:
    (model.parent / "config.json").write_text("{}")
    (model.parent / "notes.txt").write_text("not needed")
    output = model.parent / "new" / "q.onnx"
    convert(model, output)
    assert sorted(linear_model.files(output.parent)) == ["config.json", "q.onnx", "q.onnx.data"]


def test_overwriting_needs_force(model: Path) -> None:
    output = model.with_name("q.onnx")
    convert(model, output, scheme="w8a16")
    first = contents(output)
    with pytest.raises(UserError, match=r"q\.onnx exists.*--force"):
        convert(model, output)
    assert contents(output) == first
    convert(model, output, force=True)
    convert(model, model.with_name("r.onnx"))
    second = contents(output)
    assert second != first
    assert len(second[1]) == len(contents(model.with_name("r.onnx"))[1])


def test_old_model_goes_before_the_data_takes_its_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = model.with_name("q.onnx")
    convert(model, output)
    renames = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        renames.append((target.name, output.exists(), Path(f"{output}.data").exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    convert(model, output, scheme="w8a16", force=True)
    assert renames[-2:] == [("q.onnx.data", False, True), ("q.onnx", False, True)]


def test_force_replaces_a_link_and_not_what_it_leads_to(model: Path) -> None:
    precious = model.with_name("precious")
    precious.write_text("precious")
    output = model.with_name("q.onnx")
    output.symlink_to(precious)
    convert(model, output, force=True)
    assert precious.read_text() == "precious" and not output.is_symlink()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("external", [True, False])
def test_single_file_computes_the_same(model: Path, target: str, external: bool) -> None:
    linear_model.write(model, external=external)
    two, one = model.with_name("two.onnx"), model.with_name("one.onnx")
    convert(model, two, target=target)
    report = convert(model, one, target=target, single_file=True)
    assert not Path(f"{one}.data").exists()
    assert report.bytes_after == one.stat().st_size
    np.testing.assert_array_equal(run(one), run(two))
    onnx.checker.check_model(onnx.load(one))


def test_single_file_does_not_count_data_that_lay_there(model: Path) -> None:
    output = model.with_name("q.onnx")
    Path(f"{output}.data").write_bytes(bytes(10**6))
    assert convert(model, output, single_file=True).bytes_after == output.stat().st_size


@pytest.mark.parametrize("target", TARGETS)
def test_bytes_do_not_depend_on_jobs_paths_or_time(model: Path, target: str) -> None:
    other = model.parent / "elsewhere"
    other.mkdir()
    moved = linear_model.write(other / "m.onnx")
    os.utime(moved, (1, 1))
    first, second = model.with_name("q.onnx"), other / "q.onnx"
    convert(model, first, target=target, jobs=1)
    convert(moved, second, target=target, jobs=2, check="full", report=other / "r.json")
    assert contents(first) == contents(second)


def test_metadata_says_how_and_not_where_or_when(model: Path) -> None:
    convert(model, recipe=None, scheme="w3a16", exclude=["layers.2"])
    said = metadata(model.with_name("m.w3a16.onnx"))
    assert set(said) == {"zq2onnx.version", "zq2onnx.scheme", "zq2onnx.options", "zq2onnx.input"}
    assert said["zq2onnx.version"] == zq2onnx.__version__
    assert said["zq2onnx.scheme"] == "w3a16"
    assert json.loads(said["zq2onnx.options"])["exclude"] == ["layers.2"]
    assert said["zq2onnx.input"].startswith("sha256:")
    text = " ".join(contents(model.with_name("m.w3a16.onnx"))[0].decode("latin-1").split())
    assert str(model.parent) not in text and os.uname().nodename not in said["zq2onnx.options"]


def test_fingerprint_covers_the_weights(model: Path) -> None:
    convert(model, model.with_name("a.onnx"))
    matrices = linear_model.weights()
    matrices["layers.2.weight"][0, 0] += 1
    linear_model.write(model, matrices)
    convert(model, model.with_name("b.onnx"))
    a, b = (metadata(model.with_name(name)) for name in ("a.onnx", "b.onnx"))
    assert a.pop("zq2onnx.input") != b.pop("zq2onnx.input")
    assert a == b


def test_tied_tensors_stay_tied(model: Path) -> None:
    proto = onnx.load(model, load_external_data=False)
    twin = onnx.TensorProto()
    twin.CopyFrom(next(tensor for tensor in proto.graph.initializer if tensor.name == "layers.2.weight"))
    twin.name = "twin"
    proto.graph.initializer.append(twin)
    proto.graph.node.append(helper.make_node("MatMul", ["y", "twin"], ["z"], name="tied"))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 64]))
    model.write_bytes(proto.SerializeToString())

    def places(output: Path) -> dict[str, set[str]]:
        written = onnx.load(output, load_external_data=False)
        names = {node.name: [name for name in node.input if name != "y"] for node in written.graph.node}
        regions = {
            tensor.name: str([(entry.key, entry.value) for entry in tensor.external_data])
            for tensor in written.graph.initializer
        }
        return {
            node: {regions[name] for name in names[node] if name in regions} for node in ("layers.2", "tied")
        }

    convert(model, model.with_name("float.onnx"), only=["layers.0"])
    convert(model, model.with_name("quantized.onnx"))
    for name in ("float.onnx", "quantized.onnx"):
        found = places(model.with_name(name))
        assert set() != found["tied"] <= found["layers.2"]


def test_data_of_an_overwritten_model_goes_with_it(model: Path) -> None:
    output, data = model.with_name("q.onnx"), model.with_name("q.onnx.data")
    convert(model, output)
    assert data.exists()
    convert(model, output, single_file=True, force=True)
    assert not data.exists()
    run(output)
    convert(model, output, force=True)
    convert(model, output, only=["layers.0"], exclude=["layers.0"], force=True)  # nothing is left to do
    assert output.read_bytes() == model.read_bytes() and not data.exists()


def test_data_that_the_overwritten_model_did_not_name_stays(model: Path) -> None:
    output, data = model.with_name("q.onnx"), model.with_name("q.onnx.data")
    for old in (b"no model", linear_model.write(model.with_name("n.onnx"), external=False).read_bytes()):
        output.write_bytes(old)
        data.write_bytes(b"precious")
        convert(model, output, single_file=True, force=True)
        assert data.read_bytes() == b"precious"


def test_stale_data_that_is_the_inputs_stays(model: Path) -> None:
    """The input's data has the name of the output's, and the old output named it too."""
    output, data = model.with_name("q.onnx"), model.with_name("q.onnx.data")
    Path(f"{model}.data").rename(data)
    for name in ("bias", *linear_model.weights()):
        linear_model.edit(model, name, location=data.name)
    output.write_bytes(model.read_bytes())
    before = data.read_bytes()
    convert(model, output, single_file=True, force=True)
    assert data.read_bytes() == before and len(convert(model, model.with_name("r.onnx")).quantized) == 3


def test_size_of_the_bundled_model(tiny_model: Path, tmp_path: Path) -> None:
    """No more than 3% above codes, scales, zero points, factors and what stayed float."""
    output = tmp_path / "q.onnx"
    report = convert(tiny_model / "model.onnx", output)
    tensors = sum(size.bytes for size in measure_sizes(ir.load(output)))
    assert tensors < report.bytes_after <= 1.03 * tensors


@pytest.mark.parametrize("target", TARGETS)
def test_data_file_has_no_padding_to_speak_of(tiny_model: Path, tmp_path: Path, target: str) -> None:
    output = tmp_path / "q.onnx"
    convert(tiny_model / "model.onnx", output, target=target, embedding_bits=8, lorc_dtype="float")
    tensors = sum(size.bytes for size in measure_sizes(ir.load(output)))
    assert 0.99 * tensors < Path(f"{output}.data").stat().st_size < 1.002 * tensors


@pytest.mark.parametrize("name", ["opt", "llama", "opt-fp16"])
def test_layout_of_files_does_not_change_logits(name: str, tmp_path: Path) -> None:
    path = zoo.model(name)
    two, one = tmp_path / "two.onnx", tmp_path / "one.onnx"
    convert(path, two, group_size=32)
    convert(path, one, group_size=32, single_file=True, jobs=1)
    feeds = zoo.feeds(path)
    np.testing.assert_array_equal(zoo.run(two, feeds)[0], zoo.run(one, feeds)[0])
