"""How a conversion runs: report, progress, workers, what stops it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import threadpoolctl
from onnx import TensorProto, helper, numpy_helper

from tests.convert import linear_model
from tests.convert.converting import contents, convert, run
from zq2onnx.cli.app import main
from zq2onnx.conversion.choices import Choices
from zq2onnx.conversion.identity import blas_architectures, journal_header
from zq2onnx.conversion.loading import load
from zq2onnx.conversion.options import resolve
from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.report import CheckReport
from zq2onnx.storage.output import OutputFiles


def test_report_has_its_fields(model: Path) -> None:
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
    fields += " output_error output_error_without_lorc merged"
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
