"""`zq2onnx package --for genai`: a folder that onnxruntime-genai opens, and nothing less."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import zoo
from tests.runtime.fused import needs_library
from tests.serving.engines import PROMPTS, by_genai, by_generator, encoded, require_genai, tokenizer
from tests.serving.packaging import make, refused
from zq2onnx.cli.app import main
from zq2onnx.packaging.kernels import LIBRARY
from zq2onnx.runtime.serving import Generator, find_model


def config(folder: Path) -> dict[str, dict[str, object]]:
    read: dict[str, dict[str, object]] = json.loads(
        (folder / "genai_config.json").read_text(encoding="utf-8")
    )
    return read


def test_config_of_a_model(float_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "served"
    assert make(float_model, "-o", folder) == 0
    names = sorted(path.name for path in folder.iterdir())
    expected = ["config.json", "genai_config.json", "generation_config.json", "model.onnx"]
    assert names == [*expected, "model.onnx.data", "tokenizer.json", "tokenizer_config.json"]
    printed = capsys.readouterr().out
    assert "runs by stock kernels" in printed and all(name in printed for name in names)
    for name in ("model.onnx", "model.onnx.data"):
        assert (folder / name).read_bytes() == (float_model.parent / name).read_bytes()
        assert not (folder / name).samefile(float_model.parent / name)
    assert config(folder) == {
        "model": {
            "type": "llama",
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "vocab_size": 4096,
            "context_length": 256,
            "decoder": {
                "filename": "model.onnx",
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "session.qdq_matmulnbits_accuracy_level": "0",
                    "provider_options": [],
                },
                "head_size": 64,
                "hidden_size": 256,
                "num_attention_heads": 4,
                "num_hidden_layers": 4,
                "num_key_value_heads": 4,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": 256, "past_present_share_buffer": False},
    }


def test_grouped_heads_positions_and_what_authors_say_of_sampling(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(zoo.model("llama-cache").parent, source)
    said = {"eos_token_id": [2, 9], "temperature": 1, "top_p": 0.9, "top_k": None, "max_length": 20}
    (source / "generation_config.json").write_text(json.dumps(said), encoding="utf-8")
    assert make(source / "model.onnx", "-o", tmp_path / "served", "--context", "48", "--quiet") == 0
    model = config(tmp_path / "served")["model"]
    decoder = model["decoder"]
    assert isinstance(decoder, dict)
    assert (decoder["num_key_value_heads"], decoder["num_attention_heads"], decoder["head_size"]) == (
        2,
        4,
        16,
    )
    assert decoder["inputs"]["position_ids"] == "position_ids"
    assert (model["eos_token_id"], model["pad_token_id"], model["context_length"]) == ([2, 9], 1, 48)
    chosen = {"do_sample": False, "temperature": 1, "top_p": 0.9}
    assert config(tmp_path / "served")["search"] == chosen | {
        "max_length": 48,
        "past_present_share_buffer": False,
    }
    require_genai().Model(str(tmp_path / "served"))


@needs_library
def test_the_library_is_in_the_folder_where_it_is_wanted(quantized: Path, tmp_path: Path) -> None:
    for option, there in (("--fused", True), ("--portable", False)):
        folder = tmp_path / option
        assert make(quantized, "-o", folder, option, "--quiet") == 0
        decoder = config(folder)["model"]["decoder"]
        assert isinstance(decoder, dict)
        assert decoder["session_options"].get("custom_ops_library") == (LIBRARY if there else None)
        assert (folder / LIBRARY).is_file() is there
        deployed = find_model(folder)
        assert deployed.library == (folder / LIBRARY if there else None) and deployed.settled


@needs_library
def test_genai_runs_it_from_anywhere(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genai = require_genai()
    made, moved = tmp_path / "made", tmp_path / "some where" / "else"
    assert make(quantized, "-o", made, "--fused", "--quiet") == 0
    moved.parent.mkdir()
    shutil.move(made, moved)
    monkeypatch.chdir(tmp_path)
    prompts = encoded(quantized.parent, PROMPTS[:3])
    texts = by_generator(Generator(moved, threads=1), prompts, 12)
    assert by_genai(moved, prompts, 12) == texts
    words = genai.Tokenizer(genai.Model(str(moved)))
    assert [list(words.encode(prompt)) for prompt in PROMPTS] == encoded(quantized.parent)
    assert words.decode(texts[0]) == tokenizer(quantized.parent).decode(texts[0])
    (moved / LIBRARY).unlink()
    assert main(["generate", str(moved), "--prompt", "a"]) == 2


def test_bad_input_is_one_line(
    float_model: Path, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("-o", tmp_path / "served")
    assert "no such file" in refused(capsys, tmp_path / "absent.onnx", *out)
    assert "no such file" in refused(capsys, tmp_path, *out)  # a folder that is no model
    assert "a graph without key-value cache" in refused(capsys, zoo.model("llama"), *out)
    assert "no node that the operator library could run" in refused(capsys, float_model, *out, "--fused")
    assert "at most 256, the context of" in refused(capsys, float_model, *out, "--context", "257")
    assert "--name with --for genai; required: --for triton" in refused(
        capsys, float_model, *out, "--name", "a"
    )
    line = refused(capsys, float_model, *out, "--tokenizer", tmp_path / "absent")
    assert "absent: no such file or folder" in line
    assert "is what is packaged" in refused(capsys, float_model, "-o", float_model.parent, "--force")
    assert "no folder" in refused(capsys, float_model, "-o", tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    assert "is no folder" in refused(capsys, float_model, "-o", tmp_path / "file")
    assert not (tmp_path / "served").exists()


def test_what_a_model_lacks_is_said(
    float_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", ("-o", tmp_path / "served")
    shutil.copytree(float_model.parent, source)
    model = source / "model.onnx"
    (source / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "no tokenizer.json; required: the model's tokenizer" in refused(capsys, model, *out)
    for name in ("config.json", "generation_config.json"):
        (source / name).rename(tmp_path / name)
    assert "no file names the token that ends a text" in refused(capsys, model, *out)
    (source / "config.json").write_text("{")
    assert "not a JSON file" in refused(capsys, model, *out)
    (source / "model.onnx.data").unlink()
    assert "weights in model.onnx.data are missing" in refused(capsys, model, *out)


def test_another_tokenizer_takes_the_place_of_the_models(float_model: Path, tmp_path: Path) -> None:
    other = zoo.checkpoint("llama")
    assert make(float_model, "-o", tmp_path / "served", "--tokenizer", other, "--quiet") == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "served" / name).read_bytes() == (other / name).read_bytes()
    own = (float_model.parent / "config.json").read_bytes()
    assert (tmp_path / "served" / "config.json").read_bytes() == own


def test_a_tokenizer_may_be_named_by_its_file(
    float_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(zoo.checkpoint("llama"), other)
    (other / "tokenizer.json").rename(other / "mine.json")
    options = ("--tokenizer", other / "mine.json")
    assert make(float_model, "-o", tmp_path / "served", *options, "--quiet") == 0
    for name, source in (("tokenizer.json", "mine.json"), ("tokenizer_config.json",) * 2):
        assert (tmp_path / "served" / name).read_bytes() == (other / source).read_bytes()
    (other / "mine.json").write_text("{")
    assert "mine.json: not a tokenizer" in refused(capsys, float_model, "-o", tmp_path / "s", *options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("filename", "../model.onnx", "it names ../model.onnx; required: files in"),
        ("filename", "/etc/hostname", "it names /etc/hostname; required: files in"),
        ("library", "../evil.so", "it names ../evil.so; required: files in"),
        ("library", ["evil.so"], "custom_ops_library is ['evil.so']; required: the name of a file"),
        ("library", "linked.so", "is a link to another folder"),
    ],
)
def test_a_folder_brings_nothing_from_outside(
    key: str, name: object, said: str, float_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "served"
    assert make(float_model, "-o", folder, "--link", "--quiet") == 0
    for outside in ("model.onnx", "evil.so"):
        (tmp_path / outside).touch()
    (folder / "linked.so").symlink_to(tmp_path / "evil.so")
    said_before = config(folder)
    decoder = said_before["model"]["decoder"]
    assert isinstance(decoder, dict)
    if key == "filename":
        decoder[key] = name
    else:
        decoder["session_options"]["custom_ops_library"] = name
    (folder / "genai_config.json").write_text(json.dumps(said_before), encoding="utf-8")
    assert main(["generate", str(folder), "--prompt", "a"]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
