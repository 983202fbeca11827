"""`zq2onnx.models.capture`: the graph computes what torch computes, and is named after its modules."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner

from tests import zoo
from zq2onnx.cli.export import export as export_command
from zq2onnx.errors import UserError
from zq2onnx.models import capture
from zq2onnx.models.naming import NAME_SCOPES
from zq2onnx.storage.companions import copy_companions, find_companions

WEIGHTED = {
    "opt": [
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
        "fc1",
        "fc2",
    ],
    "bloom": [
        "self_attention.query_key_value",
        "self_attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": [
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
    ],
    "bert": [
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
}
LAYERS = {
    "opt": "model.decoder.layers",
    "bloom": "transformer.h",
    "gpt2": "transformer.h",
    "llama": "model.layers",
    "bert": "encoder.layer",
}
each_architecture = pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)


def reference(architecture: str, feeds: dict[str, np.ndarray], dtype: str = "float32") -> np.ndarray:
    """What transformers computes for the zoo's checkpoint."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModel if architecture == "bert" else AutoModelForCausalLM
    model = kind.from_pretrained(zoo.checkpoint(architecture), dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        outputs = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    return (outputs.last_hidden_state if architecture == "bert" else outputs.logits).float().numpy()


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert actual.shape == expected.shape
    worst = np.abs(actual - expected).max()
    limit = tolerance * np.abs(expected).max()
    assert worst <= limit, f"worst element is off by {worst:.3g}, allowed {limit:.3g}"


@each_architecture
def test_equals_torch_at_any_batch_and_length(architecture: str) -> None:
    path = zoo.model(architecture)
    for batch, length in ((1, 1), (3, 11), (2, zoo.CONTEXT)):
        feeds = zoo.feeds(path, batch, length, seed=length)
        assert_close(zoo.run(path, feeds)[0], reference(architecture, feeds), 1e-4)


@each_architecture
def test_padding_is_masked(architecture: str) -> None:
    path = zoo.model(architecture)
    feeds = zoo.feeds(path, batch=2, length=9)
    feeds["attention_mask"][1, 5:] = 0
    actual = zoo.run(path, feeds)[0]
    assert_close(actual[0], reference(architecture, feeds)[0], 1e-4)
    assert_close(actual[1, :5], reference(architecture, feeds)[1, :5], 1e-4)
    feeds["input_ids"][1, 5:] = 7
    assert_close(zoo.run(path, feeds)[0][1, :5], actual[1, :5], 1e-6)


@each_architecture
def test_signature(architecture: str) -> None:
    graph = onnx.load(zoo.model(architecture), load_external_data=False).graph
    shapes = {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    }
    ids = (onnx.TensorProto.INT64, ["batch", "sequence"])
    output, width = ("last_hidden_state", 96) if architecture == "bert" else ("logits", zoo.VOCABULARY)
    assert shapes == {
        "input_ids": ids,
        "attention_mask": ids,
        output: (onnx.TensorProto.FLOAT, ["batch", "sequence", width]),
    }


@each_architecture
def test_nodes_and_weights_are_named_after_modules(architecture: str) -> None:
    graph = onnx.load(zoo.model(architecture), load_external_data=False).graph
    names = Counter(node.name for node in graph.node)
    assert max(names.values()) == 1 and "" not in names
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    by_name = {node.name: node for node in graph.node}
    paths = [f"{LAYERS[architecture]}.{n}.{name}" for n in range(2) for name in WEIGHTED[architecture]]
    for path in paths:
        assert by_name[path].op_type in ("MatMul", "Gemm")
        assert by_name[path].input[1] == f"{path}.weight"
        assert f"{path}.weight" in matrices
        scopes = next(prop.value for prop in by_name[path].metadata_props if prop.key == NAME_SCOPES)
        assert ast.literal_eval(scopes)[-2] == path
    if architecture != "bert":
        assert by_name["lm_head"].op_type == "MatMul"


def test_tied_weight_is_stored_once() -> None:
    graph = onnx.load(zoo.model("opt"), load_external_data=False).graph
    tables = [tensor for tensor in graph.initializer if sorted(tensor.dims) == [96, zoo.VOCABULARY]]
    assert len(tables) == 1
    assert {node.op_type for node in graph.node if tables[0].name in node.input} == {"Gather", "Transpose"}


@pytest.mark.parametrize("name", [*zoo.ARCHITECTURES, "opt-fp16", "opt-bf16"])
def test_file_tells_nothing_of_the_machine(name: str) -> None:
    path = zoo.model(name)
    model = onnx.load(path, load_external_data=False)
    keys = {prop.key for node in model.graph.node for prop in node.metadata_props}
    assert keys == {NAME_SCOPES}
    assert not model.metadata_props and not model.graph.metadata_props
    data = path.read_bytes()
    private = (b"site-packages", b"/home", b"modeling_", b"captured", b"Wrapper", b".py")
    local = (tempfile.gettempdir().encode(), sys.prefix.encode(), str(Path.cwd()).encode())
    assert [word for word in (*private, *local) if word in data] == []


@each_architecture
def test_checker_accepts_it(architecture: str) -> None:
    onnx.checker.check_model(zoo.model(architecture), full_check=True)


def test_fp16_follows_torch() -> None:
    path = zoo.model("opt-fp16")
    feeds = zoo.feeds(path, batch=2, length=9)
    logits = zoo.run(path, feeds)[0]
    assert logits.dtype == np.float16
    assert_close(logits.astype(np.float32), reference("opt", feeds), 1e-2)


@pytest.mark.parametrize(
    ("name", "dtype"), [("opt-fp16", onnx.TensorProto.FLOAT16), ("opt-bf16", onnx.TensorProto.BFLOAT16)]
)
def test_dtype_is_that_of_every_float_weight(name: str, dtype: int) -> None:
    model = onnx.load(zoo.model(name), load_external_data=False)
    weights = {t.name: t.data_type for t in model.graph.initializer if t.name.endswith((".weight", ".bias"))}
    assert set(weights.values()) == {dtype}
    assert model.graph.output[0].type.tensor_type.elem_type == dtype


def test_weights_and_companions_lie_beside_the_model() -> None:
    path = zoo.model("opt")
    names = {file.name for file in path.parent.iterdir()}
    companions = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == {"model.onnx", "model.onnx.data", *companions}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        external = {entry.key: entry.value for entry in tensor.external_data}
        assert external.get("location", "model.onnx.data") == "model.onnx.data"
        assert len(tensor.raw_data) <= capture.INLINE_BYTES


def test_published_encoder_is_captured() -> None:
    path = zoo.model("minilm")
    feeds = zoo.feeds(path, batch=2, length=12)
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    with torch.no_grad():
        inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
        expected = AutoModel.from_pretrained(zoo.minilm()).eval()(**inputs).last_hidden_state.numpy()
    assert_close(zoo.run(path, feeds)[0], expected, 1e-4)


class TestOverwriting:
    def test_needs_force(self, tmp_path: Path) -> None:
        for existing in ("model.onnx", "model.onnx.data"):
            folder = tmp_path / existing.replace(".", "-")
            folder.mkdir()
            (folder / existing).write_bytes(b"precious")
            with pytest.raises(UserError, match=rf"{existing} exists; give --force"):
                capture.export(zoo.checkpoint("opt"), folder / "model.onnx")
            assert [file.name for file in folder.iterdir()] == [existing]
            assert (folder / existing).read_bytes() == b"precious"

    def test_of_other_companions_needs_force(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(UserError, match=r"config\.json exists and differs"):
            capture.export(zoo.checkpoint("opt"), tmp_path / "model.onnx")
        assert [file.name for file in tmp_path.iterdir()] == ["config.json"]

    def test_with_force_gives_the_same_bytes(self, tmp_path: Path) -> None:
        expected = zoo.model("opt").parent
        for name in ("model.onnx", "model.onnx.data", "config.json"):
            (tmp_path / name).write_bytes(b"old")
        stages: list[str] = []
        result = capture.export(
            zoo.checkpoint("opt"), tmp_path / "model.onnx", force=True, progress=stages.append
        )
        assert {file.name for file in tmp_path.iterdir()} == {file.name for file in expected.iterdir()}
        for file in expected.iterdir():
            assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
        assert stages == ["loading", "capturing", "writing"]
        assert result.bytes == sum(
            (tmp_path / name).stat().st_size for name in ("model.onnx", "model.onnx.data")
        )
        assert result.inputs == (
            "input_ids int64[batch, sequence]",
            "attention_mask int64[batch, sequence]",
        )
        assert result.outputs == (f"logits float[batch, sequence, {zoo.VOCABULARY}]",)
        assert result.opset >= 18


class TestErrors:
    def test_unknown_dtype(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"unknown dtype 'int8'; one of fp32, fp16, bf16"):
            capture.export("anything", tmp_path / "model.onnx", dtype="int8")

    def test_no_such_folder(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        with pytest.raises(UserError, match="absent is not a folder"):
            capture.export(tmp_path / "absent", tmp_path / "model.onnx")

    def test_hub_cannot_be_asked(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")  # the suite runs with HF_HUB_OFFLINE
        with pytest.raises(UserError, match="nobody/absent is no folder here, and the hub gave: "):
            capture.export("nobody/absent", tmp_path / "model.onnx")

    def test_folder_without_a_model(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        with pytest.raises(UserError, match=r"holds no config\.json; the folder of a transformers model"):
            capture.export(tmp_path, tmp_path / "model.onnx")

    def test_unknown_architecture(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
        with pytest.raises(UserError, match="cannot be loaded: .*abacus") as caught:
            capture.export(tmp_path, tmp_path / "model.onnx")
        assert "\n" not in str(caught.value)

    def test_missing_output_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="folder .*/a does not exist; create it"):
            capture.export("anything", tmp_path / "a" / "b" / "model.onnx")

    def test_output_is_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is a folder; the path of a file to write"):
            capture.export("anything", tmp_path)

    def test_missing_torch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(UserError, match=r'pip install "zq2onnx\[torch\]"'):
            capture.export("anything", tmp_path / "model.onnx")

    def test_model_that_cannot_be_captured(self, tmp_path: Path) -> None:
        """An encoder-decoder asks for inputs that capture does not give."""
        transformers = pytest.importorskip("transformers")
        config = transformers.T5Config(
            vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
        transformers.T5Model(config).save_pretrained(tmp_path / "t5")
        with pytest.raises(UserError, match="torch.export cannot capture T5Model: ValueError: ") as caught:
            capture.export(tmp_path / "t5", tmp_path / "model.onnx")
        assert "\n" not in str(caught.value)
        assert [file.name for file in tmp_path.iterdir()] == ["t5"]

    def test_checkpoint_that_lacks_a_weight(self, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        from safetensors.numpy import load_file, save_file

        folder = Path(shutil.copytree(zoo.checkpoint("opt"), tmp_path / "opt"))
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.decoder.layers.1.fc2.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        message = r"lacks 1 weights of OPTForCausalLM, model\.decoder\.layers\.1\.fc2\.weight for one"
        with pytest.raises(UserError, match=message):
            capture.export(folder, tmp_path / "model.onnx")
        assert [file.name for file in tmp_path.iterdir()] == ["opt"]

    def test_truncated_weights(self, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(zoo.checkpoint("opt"), tmp_path / "opt"))
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(UserError, match="cannot be loaded: "):
            capture.export(folder, tmp_path / "model.onnx")


def test_hub_id_is_read_from_the_hub_client(tmp_path: Path) -> None:
    """A cache laid out as the client's own stands for the network."""
    cached = tmp_path / "cache" / "models--zoo--opt"
    shutil.copytree(zoo.checkpoint("opt"), cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from zq2onnx.models import capture; capture.export('zoo/opt', Path(sys.argv[2]))"
    )
    output = tmp_path / "out" / "model.onnx"
    run = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parents[2]), str(output)],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    for file in zoo.model("opt").parent.iterdir():
        assert output.with_name(file.name).read_bytes() == file.read_bytes(), file.name


def test_head_that_is_left_out_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo.checkpoint("bert"), tmp_path / "bert"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    result = capture.export(folder, tmp_path / "model.onnx")
    assert (result.architecture, result.dropped_head) == ("BertModel", "BertForMaskedLM")


def test_command_prints_what_it_wrote(tmp_path: Path) -> None:
    application = typer.Typer()
    application.command()(export_command)
    path = tmp_path / "model.onnx"
    arguments = [str(zoo.checkpoint("gpt2")), "-o", str(path), "--dtype", "fp16", "--no-cache"]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    size = path.stat().st_size + path.with_name("model.onnx.data").stat().st_size
    for expected in (
        f"{path}  {size / 1e6:.1f} MB, GPT2LMHeadModel, fp16",
        "inputs   input_ids int64[batch, sequence], attention_mask int64[batch, sequence]",
        f"outputs  logits float16[batch, sequence, {zoo.VOCABULARY}]",
        "opset    ",
        "copied   config.json, generation_config.json, tokenizer.json, tokenizer_config.json",
    ):
        assert expected in result.output
    again = CliRunner().invoke(application, arguments)
    assert isinstance(again.exception, UserError)


class TestCompanions:
    def test_are_found_by_name(self, tmp_path: Path) -> None:
        names = [
            "chat_template.jinja",
            "config.json",
            "genai_config.json",
            "merges.txt",
            "spiece.model",
            "tokenizer.json",
            "vocab.txt",
        ]
        for name in (*names, "model.safetensors", "model.onnx", "README.md"):
            (tmp_path / name).write_text(name)
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tools.jinja").write_text("tools")
        found = [path.as_posix() for path in find_companions(tmp_path)]
        assert found == ["additional_chat_templates/tools.jinja", *names]
        target = tmp_path / "target"
        target.mkdir()
        assert copy_companions(tmp_path, target, force=False) == [target / name for name in found]
        assert (target / found[0]).read_text() == "tools"
        assert copy_companions(tmp_path, target, force=False) == []

    def test_nothing_is_copied_where_one_is_in_the_way(self, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        for folder in (source, target):
            folder.mkdir()
            (folder / "tokenizer.json").write_text(folder.name)
        (source / "config.json").write_text("{}")
        with pytest.raises(UserError, match=r"tokenizer\.json exists and differs"):
            copy_companions(source, target, force=False)
        assert [file.name for file in target.iterdir()] == ["tokenizer.json"]
        copy_companions(source, target, force=True)
        assert (target / "tokenizer.json").read_text() == "source"

    def test_same_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        assert copy_companions(tmp_path, tmp_path / "." / "", force=False) == []
