"""What is written, where, under which names, and what the report and the metadata say of it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import threadpoolctl
from onnx import TensorProto, helper, numpy_helper

import zq2onnx
from tests import zoo
from tests.convert import linear_model
from zq2onnx.cli.app import main
from zq2onnx.conversion.identity import blas_architectures, journal_header
from zq2onnx.conversion.loading import load
from zq2onnx.conversion.options import Choices, resolve
from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.passes.measure_sizes import measure_sizes
from zq2onnx.report import CheckReport, Status
from zq2onnx.storage.output import OutputFiles

TARGETS = ("portable", "qdq")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return linear_model.write(tmp_path / "m.onnx")


def convert(model: Path, output: Path | None = None, **options: Any) -> zq2onnx.Report:
    return zq2onnx.convert(model, output, **{"check": "none", **options})


def contents(output: Path) -> list[bytes]:
    data = Path(f"{output}.data")
    return [path.read_bytes() for path in (output, data) if path.exists()]


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def run(path: Path) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((5, linear_model.WIDTH)).astype(np.float32)
    return zoo.run(path, {"x": x})[0]


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


def test_report_is_what_the_issue_lists(model: Path) -> None:
    path = model.with_name("reports") / "r.json"
    returned = convert(model, exclude=["layers.2"], report=path, check="sample")
    report = json.loads(path.read_text())
    assert json.loads(returned.to_json()) == report
    assert {
        "scheme",
        "requires",
        "seconds",
        "peak_rss_bytes",
        "bytes_before",
        "bytes_after",
        "effective_bits",
        "reused_weights",
        "nodes",
    } <= report.keys()
    fields = "name op shape status reason bits group_size rank weight_error weight_error_without_lorc"
    assert all(set(node) == set(fields.split()) for node in report["nodes"])
    first, _, last = report["nodes"]
    assert first["name"] == "layers.0" and first["op"] == "MatMul" and first["shape"] == [64, 64]
    assert (first["status"], first["bits"], first["group_size"], first["rank"]) == ("quantized", 4, "128", 8)
    assert 0 < first["weight_error"] < first["weight_error_without_lorc"] < 0.2
    assert (last["status"], last["reason"]) == ("skipped", "excluded by 'layers.2'")
    assert last["bits"] is None and last["weight_error"] is None
    assert report["bytes_before"] == sum(map(len, contents(model)))
    assert report["bytes_after"] == sum(map(len, contents(model.with_name("m.w4a16.onnx"))))
    # A row of 64 is one group: 4 bits, a scale and a zero point a row, int8 factors with their scales.
    bits = (64 * 32 + 64 * 5 + 2 * 64 * 8 + 2 * 8 * 4) * 8 / 64**2
    assert report["effective_bits"] == pytest.approx(bits)
    assert report["load_bytes"] == int(0.6 * 2 * 64**2)
    assert report["reused_weights"] == 0 and report["check"]["nodes_checked"] == 1


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


@pytest.mark.parametrize(
    ("options", "known"),
    [({}, True), ({"target": "qdq"}, False), ({"embedding_bits": 8}, False)],
)
def test_memory_for_loading_is_null_where_it_is_not_known(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], known: bool
) -> None:
    report = convert(tiny_model / "model.onnx", tmp_path / "q.onnx", **options)
    said = json.loads(report.to_json())["load_bytes"]
    assert (said is not None and said > 10**6) if known else said is None


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


def test_another_conversion_to_the_same_output_is_refused(model: Path) -> None:
    output = model.parent / "new" / "q.onnx"
    refusals = []

    def again(done: int, total: int) -> None:
        if not refusals:
            with pytest.raises(UserError, match=r"q\.onnx is being written by another process") as error:
                convert(model, output, scheme="w8a16", force=True, resume=True)
            refusals.append(str(error.value))

    convert(model, output, progress=again)
    convert(model, model.with_name("q.onnx"))
    assert refusals and contents(output)[1] == contents(model.with_name("q.onnx"))[1]
    assert sorted(linear_model.files(output.parent)) == ["q.onnx", "q.onnx.data"]


def test_big_endian_machines_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zq2onnx.pipeline.sys.byteorder", "big")
    with pytest.raises(UserError, match="big-endian"):
        convert(model)


def test_every_worker_limits_its_own_blas(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some BLAS libraries keep the number of threads by thread."""
    limited = set()
    limits = threadpoolctl.threadpool_limits

    def watched(limit: int) -> threadpoolctl.threadpool_limits:
        limited.add((threading.current_thread(), limit))
        return limits(limit)

    monkeypatch.setattr("zq2onnx.conversion.stream.threadpoolctl.threadpool_limits", watched)
    convert(model, jobs=1)
    assert len(limited) == 2 and {limit for _, limit in limited} == {1}
    assert threading.main_thread() in {thread for thread, _ in limited}


def test_arithmetic_is_the_journals_business_and_not_the_files(model: Path) -> None:
    source = load(model)
    header = journal_header(source, resolve(Choices(), None))
    assert header["numpy"] == np.__version__ and header["blas"] == blas_architectures() != []
    convert(model, model.with_name("q.onnx"))
    assert blas_architectures()[0] not in contents(model.with_name("q.onnx"))[0].decode("latin-1")


@pytest.mark.parametrize("length", [1, 3 * 10**6])
def test_copying_checks_the_length(model: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    chunks = [memoryview(bytes(length))]
    monkeypatch.setattr("zq2onnx.storage.mapped.tensor_chunks", lambda tensor: chunks)
    with pytest.raises(ValueError, match="'bias'.*region of 256"):
        convert(model)


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


def test_passes_are_dumped(model: Path) -> None:
    folder = model.with_name("dumps")
    convert(model, dump_passes=folder)
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "00-NormalizePass.onnxtxt" and "-InsertQdqPass" in " ".join(names)
    assert [int(name[:2]) for name in names] == list(range(len(names)))


def test_data_in_attributes_and_empty_tensors(model: Path) -> None:
    """A Constant node with external data, and an initializer without any bytes."""
    proto = onnx.load(model, load_external_data=False)
    graph = proto.graph
    constant = graph.initializer[1]
    empty = numpy_helper.from_array(np.empty((0, 64), np.float32), "empty")
    empty.ClearField("raw_data")
    empty.data_location = TensorProto.EXTERNAL
    for key, value in {"location": f"{model.name}.data", "offset": "0", "length": "0"}.items():
        empty.external_data.add(key=key, value=value)
    graph.initializer.append(empty)
    graph.node.insert(0, helper.make_node("Constant", [], [constant.name], name="constant", value=constant))
    del graph.initializer[1]
    graph.node[-1].CopyFrom(helper.make_node("Concat", [graph.node[-1].input[0], "empty"], ["y"], axis=0))
    model.write_bytes(proto.SerializeToString())
    output = model.parent / "new" / "q.onnx"
    linear_model.write(model.with_name("plain.onnx"))
    convert(model.with_name("plain.onnx"), exclude=["layers.1"])
    convert(model, output, exclude=["layers.1"])
    np.testing.assert_array_equal(run(output), run(model.with_name("plain.w4a16.onnx")))


def test_a_float_tensor_may_have_the_name_of_a_quantized_weight(tmp_path: Path) -> None:
    matrices = linear_model.weights(layers=2)
    matrices["layers.0.weight_Q4"] = matrices.pop("layers.1.weight")
    model = linear_model.write(tmp_path / "m.onnx", matrices)
    report = convert(model, only=["^layers.0$"], check="full")
    assert [node.name for node in report.quantized] == ["layers.0"]
    assert len(report.skipped) == 1


def test_opset_by_the_domains_long_name(model: Path) -> None:
    proto = onnx.load(model, load_external_data=False)
    proto.opset_import[0].domain = "ai.onnx"
    model.write_bytes(proto.SerializeToString())
    assert len(convert(model).quantized) == 3


def test_failed_check_keeps_output_and_report(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> CheckReport:
        raise CheckFailed("layers.1 is off")

    monkeypatch.setattr("zq2onnx.pipeline.check_model", fail)
    report = model.with_name("r.json")
    assert main(["convert", str(model), "--report", str(report)]) == 1
    assert report.exists() and model.with_name("m.w4a16.onnx").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_progress_ends_at_the_total(model: Path, jobs: int) -> None:
    calls: list[tuple[int, int]] = []
    convert(model, jobs=jobs, progress=lambda done, total: calls.append((done, total)))
    assert {total for _, total in calls} == {sum(done for done, _ in calls)} == {3 * 64 * 64 + 64}


def test_checking_has_a_progress_of_its_own(model: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert(model, check="full", check_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_failing_progress_stops_the_run(tmp_path: Path) -> None:
    model = linear_model.write(tmp_path / "m.onnx", linear_model.weights(layers=40))
    calls = []

    def fail(done: int, total: int) -> None:
        calls.append(done)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        convert(model, jobs=2, progress=fail)
    assert len(calls) < 10 and threading.active_count() < 10
    assert not (tmp_path / "m.w4a16.onnx").exists()


def test_failing_worker_stops_the_others(tmp_path: Path) -> None:
    matrices = linear_model.weights(layers=40)
    matrices["layers.0.weight"][0, 0] = np.nan
    model = linear_model.write(tmp_path / "m.onnx", matrices)
    done = []
    with pytest.raises(UserError, match=r"layers\.0"):
        convert(model, jobs=2, progress=lambda count, total: done.append(count))
    assert len(done) < 20


def test_no_jobs_are_refused(model: Path) -> None:
    with pytest.raises(UserError, match="0 jobs; required: 1 or more"):
        convert(model, jobs=0)


def test_leftovers_of_an_interrupted_run_are_overwritten(model: Path) -> None:
    files = OutputFiles(model.with_name("q.onnx"))
    for path in files.unfinished:
        path.write_bytes(b"left over" * 1000)
    convert(model, files.model)
    convert(model, model.with_name("clean.onnx"))
    assert contents(files.model)[1] == contents(model.with_name("clean.onnx"))[1]
    assert not any(path.exists() for path in files.unfinished)


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
