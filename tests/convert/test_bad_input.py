"""Bad input: one line, exit 2, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.convert import linear_model
from zq2onnx import convert
from zq2onnx.cli.app import main
from zq2onnx.storage import output

ROOT = Path(__file__).resolve().parents[2]


class Refusal:
    """Runs `convert` and asserts that it is refused in one line, without a trace in the folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> str:
        before = linear_model.files(self.folder)
        code = main(["convert", *map(str, arguments)])
        captured = self.capsys.readouterr()
        assert code == 2, captured.err
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert captured.out == ""
        assert linear_model.files(self.folder) == before
        return captured.err


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return linear_model.write(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "content",
    [
        np.random.default_rng(0).bytes(5000),
        b"",
        b"a text, not a model\n" * 9,
        (24).to_bytes(8, "little") + b'{"__metadata__":{}}     ',
    ],
    ids=["random", "empty", "text", "safetensors"],
)
def test_file_that_is_no_model(refused: Refusal, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    message = refused(path)
    assert str(path) in message and "not an ONNX" in message


def test_folder_and_nothing(refused: Refusal, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "is a folder" in refused(tmp_path / "folder")
    assert "no such file" in refused(tmp_path / "absent.onnx")


def test_truncated_model_file(refused: Refusal, tmp_path: Path) -> None:
    path = linear_model.write(tmp_path / "m.onnx", external=False)
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated" in refused(path)


def test_file_too_large_for_a_model_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 31)
    assert main(["convert", str(path)]) == 2
    assert "2147 MB" in capsys.readouterr().err


def test_truncated_external_data(refused: Refusal, model: Path) -> None:
    data = Path(f"{model}.data")
    data.write_bytes(data.read_bytes()[:-1000])
    message = refused(model)
    assert str(data) in message and "truncated" in message


@pytest.mark.parametrize("location", ["../secret.data", "/etc/hostname", "sub/../../secret.data"])
def test_external_data_outside_the_folder(refused: Refusal, model: Path, location: str) -> None:
    linear_model.edit(model, "layers.1.weight", location=location)
    message = refused(model)
    assert location in message and "layers.1.weight" in message and "inside the model's folder" in message


def test_missing_external_data(refused: Refusal, model: Path) -> None:
    Path(f"{model}.data").unlink()
    assert "m.onnx.data is missing" in refused(model)


@pytest.mark.parametrize("entries", [{"offset": "4611686018427387904"}, {"length": "7"}])
def test_external_data_at_an_impossible_place(refused: Refusal, model: Path, entries: dict[str, str]) -> None:
    linear_model.edit(model, "layers.1.weight", **entries)
    assert "layers.1.weight" in refused(model)


@pytest.mark.parametrize("entries", [{"offset": "seven"}, {"offset": "-4096"}, {"location": ""}])
def test_external_data_with_malformed_entries(refused: Refusal, model: Path, entries: dict[str, str]) -> None:
    linear_model.edit(model, "layers.1.weight", **entries)
    assert str(model) in refused(model)


@pytest.mark.parametrize("nested", [False, True])
def test_sparse_initializers(refused: Refusal, model: Path, nested: bool) -> None:
    proto = onnx.load(model, load_external_data=False)
    graph = proto.graph
    if nested:
        branch = helper.make_graph(
            [helper.make_node("Identity", ["thin"], ["z"])],
            "branch",
            [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])],
        )
        condition = numpy_helper.from_array(np.array(True), "condition")
        graph.initializer.append(condition)
        graph.node.append(
            helper.make_node("If", ["condition"], ["w"], then_branch=branch, else_branch=branch)
        )
        graph = graph.node[-1].attribute[0].g
    values = numpy_helper.from_array(np.ones(2, np.float32), "thin")
    indices = numpy_helper.from_array(np.array([0, 2]), "indices")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    model.write_bytes(proto.SerializeToString())
    message = refused(model)
    assert str(model) in message and "'thin' is sparse" in message


@pytest.mark.parametrize("width", [8, 200])
@pytest.mark.parametrize("kind", ["short", "long", "typed", "nothing"])
def test_tensor_in_the_file_that_is_not_whole(
    refused: Refusal, tmp_path: Path, width: int, kind: str
) -> None:
    path = linear_model.write(tmp_path / "m.onnx", external=False)
    proto = onnx.load(path)
    odd = numpy_helper.from_array(np.ones((width, width), np.float32), "odd")
    match kind:
        case "short":
            odd.raw_data = odd.raw_data[:-4]
        case "long":
            odd.raw_data += bytes(4)
        case "typed":
            odd.ClearField("raw_data")
            odd.float_data.extend([1.0] * (width**2 - 1))
        case "nothing":
            odd.ClearField("raw_data")
    proto.graph.initializer.append(odd)
    proto.graph.output.append(helper.make_tensor_value_info("odd", TensorProto.FLOAT, [width, width]))
    path.write_bytes(proto.SerializeToString())
    message = refused(path)
    assert str(path) in message and "the tensor 'odd' holds" in message


def test_attribute_that_is_not_whole(refused: Refusal, model: Path) -> None:
    proto = onnx.load(model, load_external_data=False)
    constant = numpy_helper.from_array(np.ones(4, np.float32))
    constant.raw_data = constant.raw_data[:-1]
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], name="odd", value=constant))
    model.write_bytes(proto.SerializeToString())
    assert "the tensor 'odd.value' holds 15 bytes; required: 16" in refused(model)


def test_large_attribute_with_external_data(
    refused: Refusal, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Constant is made an initializer; other attributes cannot be left where they are."""
    proto = onnx.load(model, load_external_data=False)
    tensor = proto.graph.initializer[0]
    proto.graph.node.append(
        helper.make_node("ConstantOfShape", ["shape"], ["c"], name="filled", value=tensor)
    )
    model.write_bytes(proto.SerializeToString())
    monkeypatch.setattr("zq2onnx.storage.mapped.CHUNK", 1000)
    assert "node 'filled' holds 0 MB in its attribute 'value'" in refused(model)


@pytest.mark.parametrize("opset", [7, 99])
def test_unknown_opset(refused: Refusal, tmp_path: Path, opset: int) -> None:
    path = linear_model.write(tmp_path / "m.onnx")
    proto = onnx.load(path, load_external_data=False)
    proto.opset_import[0].version = opset
    path.write_bytes(proto.SerializeToString())
    message = refused(path)
    assert str(path) in message and f"opset is {opset}" in message and "11 to 25" in message


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize(("value", "count"), [(np.nan, 1), (np.inf, 3), (-np.inf, 64 * 64)])
def test_weight_that_is_not_finite(
    refused: Refusal, tmp_path: Path, external: bool, value: float, count: int
) -> None:
    matrices = linear_model.weights()
    matrices["layers.1.weight"].reshape(-1)[:count] = value
    path = linear_model.write(tmp_path / "m.onnx", matrices, external=external)
    message = refused(path, "-o", tmp_path / "new" / "out.onnx")
    assert f"node 'layers.1': {count} of the 4096 numbers of its weight 'layers.1.weight'" in message
    assert str(path) in message
    remedy = re.findall(r"--exclude '(.*)'$", message.strip())
    assert remedy == [r"^layers\.1$"]
    assert main(["convert", str(path), "--exclude", remedy[0], "--check", "none"]) == 0


def test_output_is_the_input(refused: Refusal, model: Path, tmp_path: Path) -> None:
    link, hard = tmp_path / "link.onnx", tmp_path / "hard.onnx"
    link.symlink_to(model)
    hard.hardlink_to(model)
    (tmp_path / "sub").mkdir()
    for path in (model, f"{tmp_path}/./sub/../m.onnx", link, hard):
        assert "is the input, or its data" in refused(model, "-o", path, "--force")


@pytest.mark.parametrize(
    "name",
    ["m.onnx.data", "o.onnx", "o.onnx.data", "o.onnx.data.partial", "o.onnx.journal", "o.onnx.partial"],
)
def test_output_would_overwrite_the_inputs_data(refused: Refusal, model: Path, name: str) -> None:
    Path(f"{model}.data").rename(model.with_name(name))
    for tensor in ("bias", *linear_model.weights()):
        linear_model.edit(model, tensor, location=name)
    target = name if name == "m.onnx.data" else "o.onnx"
    assert "is the input, or its data" in refused(model, "-o", model.with_name(target), "--force")


def test_output_exists(refused: Refusal, model: Path, tmp_path: Path) -> None:
    for name in ("o.onnx", "o.onnx.data"):
        (tmp_path / name).write_text("precious")
        assert f"{name} exists" in refused(model, "-o", tmp_path / "o.onnx")
        (tmp_path / name).unlink()


def test_output_is_a_folder(refused: Refusal, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert "is a folder" in refused(model, "-o", tmp_path / "out", "--force")


def test_folders_that_are_missing_or_none(refused: Refusal, model: Path, tmp_path: Path) -> None:
    assert "mkdir -p" in refused(model, "-o", tmp_path / "a" / "b" / "o.onnx")
    assert "is no folder" in refused(model, "-o", model / "o.onnx")
    assert "mkdir -p" in refused(model, "--report", tmp_path / "a" / "b" / "r.json")
    assert "mkdir -p" in refused(model, "--dump-passes", tmp_path / "a" / "b" / "c")
    assert "is no folder" in refused(model, "--dump-passes", model)


def test_unwritable_folders(
    refused: Refusal, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(output.os, "access", lambda path, mode: Path(path).name != "locked")
    assert "locked is not writable" in refused(model, "-o", tmp_path / "locked" / "o.onnx")
    assert "locked is not writable" in refused(model, "--report", tmp_path / "locked" / "r.json")
    assert "locked is not writable" in refused(model, "--dump-passes", tmp_path / "locked" / "dumps")


def test_report_over_the_model(refused: Refusal, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    for report in (model, f"{model}.data", out, f"{out}.data", f"{out}.journal"):
        assert "is a file of the model" in refused(model, "-o", out, "--report", report)
    assert "is a folder" in refused(model, "-o", out, "--report", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (["--scheme", "w5a16"], "w8a16, w4a16, w3a16, w2a16"),
        (["--scheme", "w4a4"], "w8a16, w4a16, w3a16, w2a16, w8a8, w4a8, w3a8, w2a8"),
        (["--group-size", "48"], "16, 32, 64, 128, 256, 512, 1024 or row"),
        (["--group-size", "column"], "16, 32, 64, 128, 256, 512, 1024 or row"),
        (["--method", "awq"], "rtn, gptq, zq-local, zq-global"),
        (["--objective", "task"], "layer, model"),
        (["--lorc", "svd"], "plain, exact"),
        (["--act-granularity", "channel"], "token, block, tensor"),
        (["--smooth", "on"], "auto, off"),
        (["--calib-inputs", "both"], "quantized, float"),
        (["--clip", "max"], "none, mse"),
        (["--target", "tflite"], "portable, qdq"),
        (["--check", "some"], "sample, full, none"),
        (["--lorc-dtype", "int4"], "int8, float"),
        (["--lorc-rank", "-1"], "0 to 128"),
        (["--lorc-rank", "129"], "0 to 128"),
        (["--embedding-bits", "3"], "8 or 4"),
    ],
)
def test_unknown_value_lists_the_known(
    refused: Refusal, model: Path, arguments: list[str], known: str
) -> None:
    message = refused(model, *arguments)
    assert known in message and arguments[1] in message


@pytest.mark.parametrize("arguments", [["--lorc-rank", "many"], ["--jobs", "0"], ["--jobs", "x"]])
def test_number_that_is_none(refused: Refusal, model: Path, arguments: list[str]) -> None:
    assert arguments[0] in refused(model, *arguments)


@pytest.mark.parametrize("option", ["--only", "--include", "--exclude"])
def test_regular_expressions(refused: Refusal, model: Path, option: str) -> None:
    message = refused(model, option, "nowhere")
    assert "'nowhere' matches no node" in message and str(model) in message
    assert "'(' is not a regular expression" in refused(model, option, "(")


@pytest.mark.parametrize("force", [False, True])
def test_companion_of_another_model_is_kept_and_told(model: Path, tmp_path: Path, force: bool) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (target / "config.json").write_text("other")
    report = convert(model, target / "o.onnx", force=force)
    assert any("config.json differs from the input's, and was kept" in line for line in report.warnings)
    assert (target / "config.json").read_text() == "other"
    assert (target / "tokenizer.json").read_text() == "{}"


def test_missing_onnxruntime_ends_before_any_work(
    refused: Refusal, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("zq2onnx.pipeline.load", pytest.fail)
    assert "zq2onnx[cpu]" in refused(model)
    assert "zq2onnx[cpu]" in refused(model, "--check", "full")


def test_no_check_needs_no_onnxruntime(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["convert", str(model), "--check", "none", "--quiet"]) == 0


def test_no_space_by_the_systems_own_figure(
    refused: Refusal, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = output.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage)
    assert "0 MB free" in refused(model, "-o", tmp_path / "new" / "o.onnx")


def no_space(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("when", ["reserving", "writing", "appending", "publishing"])
def test_no_space(
    refused: Refusal, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    place: dict[str, Callable[[], None]] = {
        "reserving": lambda: monkeypatch.setattr(output.os, "posix_fallocate", no_space, raising=False),
        "writing": lambda: monkeypatch.setattr(output.os, "pwrite", no_space),
        "appending": lambda: monkeypatch.setattr(output.os, "pread", no_space),
        "publishing": lambda: monkeypatch.setattr(output.os, "fsync", no_space),
    }
    place[when]()
    message = refused(model, "-o", tmp_path / "new" / "o.onnx", "--check", "none")
    assert "no space left on device" in message and "free some" in message


def test_no_space_shows_before_anything_is_computed(
    refused: Refusal, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.os, "posix_fallocate", no_space, raising=False)
    monkeypatch.setattr("zq2onnx.conversion.stream.compute_weight", pytest.fail)
    refused(model, "--check", "none")


def test_a_limit_of_the_system_itself(model: Path, tmp_path: Path) -> None:
    """Nothing is patched: the process may write no file of more than 8 kB."""
    before = linear_model.files(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "zq2onnx", "convert", str(model), "--check", "none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1 and "file too large" in done.stderr
    assert linear_model.files(tmp_path) == before


def test_single_file_over_its_limit(
    refused: Refusal, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zq2onnx.storage.output.SINGLE_FILE_LIMIT", 1000)
    assert "leave out --single-file" in refused(model, "--single-file", "-o", tmp_path / "new" / "o.onnx")
