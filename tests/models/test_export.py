"""`capture.export` and its command as seen from outside: files, refusals, errors, what is printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests import zoo
from zq2onnx.cli.export import export as export_command
from zq2onnx.errors import UserError
from zq2onnx.models import capture, checkpoint


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

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_spares_the_checkpoint_even_with_force(self, name: str, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(zoo.checkpoint("opt"), tmp_path / "opt"))
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        (tmp_path / "elsewhere").symlink_to(folder)
        (tmp_path / f"{name}.data").symlink_to(folder / name)  # what the weights would be called
        for output in (folder / name, tmp_path / "elsewhere" / name, tmp_path / name):
            with pytest.raises(UserError, match=rf"{re.escape(name)} of the model that is exported"):
                capture.export(folder, output, force=True)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before

    def test_of_an_earlier_export_in_the_checkpoints_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def reached(*arguments: object) -> None:
            raise UserError("on to the capture")

        folder = Path(shutil.copytree(zoo.checkpoint("opt"), tmp_path / "opt"))
        for name in ("model.onnx", "model.onnx.data"):
            (folder / name).write_bytes(b"old")
        monkeypatch.setattr(capture, "_capture", reached)
        with pytest.raises(UserError, match="on to the capture"):
            capture.export(folder, folder / "model.onnx", force=True)

    def test_of_other_companions_needs_force(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(UserError, match=r"config\.json exists and differs"):
            capture.export(zoo.checkpoint("opt"), tmp_path / "model.onnx")
        assert [file.name for file in tmp_path.iterdir()] == ["config.json"]

    def test_with_force_gives_the_same_bytes(self, tmp_path: Path) -> None:
        expected = zoo.model("opt-cache").parent
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
        assert result.cached
        assert result.inputs[:3] == (
            "input_ids int64[batch, sequence]",
            "attention_mask int64[batch, past + sequence]",
            "past_key_values.0.key float[batch, 4, past, 24]",
        )
        assert result.outputs[:2] == (
            f"logits float[batch, sequence, {zoo.VOCABULARY}]",
            "present.0.key float[batch, 4, past + sequence, 24]",
        )
        assert result.opset >= 18


class TestErrors:
    def test_unknown_dtype(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"unknown dtype 'int8'; required: one of fp32, fp16, bf16"):
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
        with pytest.raises(UserError, match=r"holds no config\.json; required: the folder of a"):
            capture.export(tmp_path, tmp_path / "model.onnx")

    def test_unknown_architecture(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
        with pytest.raises(UserError, match="cannot be loaded: .*abacus") as caught:
            capture.export(tmp_path, tmp_path / "model.onnx")
        assert "\n" not in str(caught.value)

    def test_missing_output_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="there is no folder .*/a; required: an existing one"):
            capture.export("anything", tmp_path / "a" / "b" / "model.onnx")

    def test_a_folder_that_cannot_be_written_is_found_before_any_work(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            (tmp_path / "sealed").write_text("no folder")  # root may write anywhere
        else:
            (tmp_path / "sealed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="sealed is no(t writable| folder)"):
            capture.export("anything", tmp_path / "sealed" / "model.onnx")

    def test_output_is_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is a folder; required: the path of a file to write"):
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


def test_hub_id_is_read_from_the_hub_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache laid out as the client's own stands for the network."""
    cached = tmp_path / "cache" / "models--zoo--opt"
    shutil.copytree(zoo.checkpoint("opt"), cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "out" / "model.onnx"
    capture.export("zoo/opt", output, cache=False)
    for file in zoo.model("opt").parent.iterdir():
        assert output.with_name(file.name).read_bytes() == file.read_bytes(), file.name


def test_head_that_is_left_out_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo.checkpoint("bert"), tmp_path / "bert"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    loaded = checkpoint.load(folder, "fp32")
    assert (loaded.architecture, loaded.dropped_head) == ("BertModel", "BertForMaskedLM")
    assert loaded.output == "last_hidden_state"


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
