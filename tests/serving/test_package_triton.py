"""`zq2onnx package --for triton` and `--for ort`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import zq2onnx
from tests import zoo
from tests.runtime.fused import needs_library
from zq2onnx.cli.app import main
from zq2onnx.packaging.kernels import LIBRARY

LAYERS = 4


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "tiny.w4.onnx"
    zq2onnx.convert(zoo.model("tiny-cache"), path, check="none")
    return path


def make(target: str, *arguments: str | Path) -> int:
    return main(["package", *map(str, arguments), "--for", target, "--quiet"])


def parsed(path: Path) -> Any:
    """A config.pbtxt as Triton reads it."""
    pytest.importorskip("tritonclient", reason="needs tritonclient[grpc]")
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())


def described(values: Any) -> dict[str, tuple[str, list[int]]]:
    """Types and dimensions of inputs or outputs."""
    enum = values[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return {value.name: (enum[value.data_type].name, list(value.dims)) for value in values}


@needs_library
def test_repository_of_a_model_with_cache(quantized: Path, tmp_path: Path) -> None:
    assert make("triton", quantized, "-o", tmp_path / "repository", "--fused") == 0
    home = tmp_path / "repository" / "tiny_w4"
    config = parsed(home / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("tiny_w4", "onnxruntime", 8)
    assert config.HasField("dynamic_batching")
    cache = {f"{n}.{part}": ("TYPE_FP32", [4, -1, 64]) for n in range(LAYERS) for part in ("key", "value")}
    tokens = {name: ("TYPE_INT64", [-1]) for name in ("input_ids", "attention_mask")}
    assert described(config.input) == tokens | {f"past_key_values.{name}": cache[name] for name in cache}
    logits = {"logits": ("TYPE_FP32", [-1, 4096])}
    assert described(config.output) == logits | {f"present.{name}": cache[name] for name in cache}
    (library,) = config.model_operations.op_library_filename
    assert library == f"/models/tiny_w4/1/{LIBRARY}"
    mounted = tmp_path / "repository" / Path(library).relative_to("/models")
    assert mounted.is_file()
    assert (home / "1" / config.default_model_filename).read_bytes() == quantized.read_bytes()
    readme = (tmp_path / "repository" / "README.md").read_text(encoding="utf-8")
    assert len([line for line in readme.splitlines() if line.startswith(("docker", "curl"))]) == 3
    assert library in readme and "tiny_w4/request.json" in readme


@needs_library
def test_example_request_is_what_the_config_takes(quantized: Path, tmp_path: Path) -> None:
    import onnxruntime as ort

    assert make("triton", quantized, "-o", tmp_path / "r", "--portable", "--name", "chat") == 0
    home = tmp_path / "r" / "chat"
    config = parsed(home / "config.pbtxt")
    assert not config.model_operations.op_library_filename and not (home / "1" / LIBRARY).exists()
    request = json.loads((home / "request.json").read_text(encoding="utf-8"))
    dims = {value.name: list(value.dims) for value in config.input}
    assert set(dims) == {value["name"] for value in request["inputs"]}
    feeds = {}
    for value in request["inputs"]:
        size, *rest = value["shape"]
        assert size == 1 and len(rest) == len(dims[value["name"]])
        assert all(want in (-1, got) for want, got in zip(dims[value["name"]], rest, strict=True))
        dtype = {"INT64": np.int64, "FP32": np.float32}[value["datatype"]]
        feeds[value["name"]] = np.array(value["data"], dtype).reshape(value["shape"])
    session = ort.InferenceSession(home / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run([each["name"] for each in request["outputs"]], feeds)
    assert output.shape == (1, 4, 4096)


@needs_library
def test_options_of_a_repository(quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = "/opt/zq/libzq2onnx_ops.so"
    options = ["--library-path", path, "--max-batch-size", "0", "--fused"]
    assert make("triton", quantized, "-o", tmp_path / "r", *options) == 0
    config = parsed(tmp_path / "r" / "tiny_w4" / "config.pbtxt")
    assert list(config.model_operations.op_library_filename) == [path]
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert described(config.input)["input_ids"] == ("TYPE_INT64", [-1, -1])
    for bad in (["--library-path", "lib.so"], ["--name", "a/b"], ["--context", "5"]):
        assert make("triton", quantized, "-o", tmp_path / "s", *bad) == 2
        assert capsys.readouterr().err.startswith(f"error: {bad[0]}")
    path = "/opt/libzq2onnx_ops.so"
    assert make("triton", quantized, "-o", tmp_path / "s", "--library-path", path, "--portable") == 2
    assert "and no library goes with" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@needs_library
def test_strings_are_quoted(quantized: Path, tmp_path: Path) -> None:
    path = '/opt/a "b"\\c\n] é/lib.so'
    assert make("triton", quantized, "-o", tmp_path / "r", "--library-path", path, "--fused") == 0
    config = parsed(tmp_path / "r" / "tiny_w4" / "config.pbtxt")
    assert list(config.model_operations.op_library_filename) == [path]


def test_positions_count_and_other_integers_are_one(tmp_path: Path) -> None:
    model = zoo.model("llama-cache")
    assert make("triton", model, "-o", tmp_path / "r", "--name", "chat") == 0
    request = json.loads((tmp_path / "r" / "chat" / "request.json").read_text(encoding="utf-8"))
    data = {value["name"]: value["data"] for value in request["inputs"]}
    assert (data["position_ids"], data["input_ids"]) == ([0, 1, 2, 3], [1, 1, 1, 1])
    assert make("ort", model, "-o", tmp_path / "ort") == 0
    program = (tmp_path / "ort" / "run.cc").read_text(encoding="utf-8")
    assert '== "position_ids"' in program and "INT32) fill(static_cast<int32_t*>" in program


def test_a_type_that_numpy_lacks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make("ort", zoo.model("opt-cache-bf16"), "-o", tmp_path / "r") == 2
    line = capsys.readouterr().err
    assert "past_key_values.0.key is tensor(bfloat16); required: types that NumPy has" in line
    assert line.count("\n") == 1 and not (tmp_path / "r").exists()


def test_a_graph_without_free_batch_is_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, [2, 3]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    path = tmp_path / "relu.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    assert make("triton", path, "-o", tmp_path / "r") == 0
    config = parsed(tmp_path / "r" / "relu" / "config.pbtxt")
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert described(config.input) == {"x": ("TYPE_FP16", [2, 3])}
    assert make("triton", path, "-o", tmp_path / "s", "--max-batch-size", "4") == 2
    assert "without a free first dimension" in capsys.readouterr().err


def run_snippet(folder: Path) -> str:
    """What run.py prints."""
    done = subprocess.run([sys.executable, "run.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_library
@pytest.mark.parametrize(("option", "there"), [("--fused", True), ("--portable", False)])
def test_snippets_register_the_library_where_it_is_there(
    option: str, there: bool, quantized: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    assert make("ort", quantized, "-o", folder, option) == 0
    for name, call in (("run.py", "register_custom_ops_library"), ("run.cc", "RegisterCustomOpsLibrary")):
        text = (folder / name).read_text(encoding="utf-8")
        assert (f'{call}("./{LIBRARY}")' in text) == there
        assert "qdq_matmulnbits_accuracy_level" not in text
    assert (folder / LIBRARY).is_file() == there
    assert run_snippet(folder).startswith("(1, 4, 4096) ")


def test_snippets_keep_the_activations_of_a_qdq_model_float(tmp_path: Path) -> None:
    quantized, folder = tmp_path / "m.onnx", tmp_path / "served"
    zq2onnx.convert(zoo.model("tiny-cache"), quantized, check="none", target="qdq")
    assert make("ort", quantized, "-o", folder) == 0
    for name in ("run.py", "run.cc"):
        assert "session.qdq_matmulnbits_accuracy_level" in (folder / name).read_text(encoding="utf-8")
    assert run_snippet(folder).startswith("(1, 4, 4096) ")


def test_snippet_of_an_encoder(tmp_path: Path) -> None:
    assert make("ort", zoo.model("bert"), "-o", tmp_path / "served") == 0
    assert run_snippet(tmp_path / "served").startswith("(1, 4, 96) ")
