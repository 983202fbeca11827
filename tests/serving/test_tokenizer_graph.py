"""Tokenizer and detokenizer as graphs: the same ids, and the same text, as the tokenizer's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests import zoo
from zq2onnx.cli.app import main

ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
extensions = pytest.importorskip("onnxruntime_extensions", reason="needs onnxruntime-extensions")

LINES = 1000


def opened(path: Path) -> Any:
    """A session with the operators of onnxruntime-extensions."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(extensions.get_library_path())
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def packaged(model: Path, folder: Path, *options: str | Path) -> int:
    arguments = [
        "package",
        model,
        "--for",
        "ort",
        "-o",
        folder,
        "--with-tokenizer-graph",
        *options,
        "--quiet",
    ]
    return main([str(argument) for argument in arguments])


def agree(folder: Path, tokenizer: Tokenizer, lines: list[str]) -> None:
    """Hold both graphs against a tokenizer, line by line."""
    encode, decode = opened(folder / "tokenizer.onnx"), opened(folder / "detokenizer.onnx")
    for line in lines:
        ids = tokenizer.encode(line).ids
        assert encode.run(None, {"text": np.array([line], object)})[0].tolist() == [ids], line
        if ids:
            found = decode.run(None, {"ids": np.array(ids, np.int64)})[0]
            assert found.tolist() == [tokenizer.decode(ids)], line


def test_a_thousand_lines_of_the_trained_opt(shared_data: Path, tmp_path: Path) -> None:
    checkpoint = zoo.opt_17m()
    assert packaged(zoo.model("tiny-cache"), tmp_path / "served", "--tokenizer", checkpoint) == 0
    text = (shared_data / "wikitext2-test.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()][:LINES]
    assert len(lines) == LINES
    agree(tmp_path / "served", Tokenizer.from_file(str(checkpoint / "tokenizer.json")), lines)


def test_the_bundled_models_tokenizer(tmp_path: Path) -> None:
    folder = zoo.tiny()
    assert packaged(zoo.model("tiny-cache"), tmp_path / "served") == 0
    lines = (folder / "heldout.txt").read_text(encoding="utf-8").splitlines()[:200]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    agree(tmp_path / "served", tokenizer, [*lines, "", "日本 👩‍👩‍👧", "</s> in the midst <s>"])
    encode = opened(tmp_path / "served" / "tokenizer.onnx")
    (both,) = encode.run(None, {"text": np.array(["one two three", "one"], object)})
    assert both.shape == (2, len(tokenizer.encode("one two three").ids))


def test_a_tokenizer_as_transformers_5_saves_it(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(zoo.tiny(), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"backend": "tokenizers", "tokenizer_class": "TokenizersBackend"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    parts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert packaged(zoo.model("tiny-cache"), tmp_path / "served", "--tokenizer", folder) == 0
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    agree(tmp_path / "served", tokenizer, ["Once upon a time", "日本 👩‍👩‍👧"])
    kept = json.loads((tmp_path / "served" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert kept == settings
    del parts["added_tokens"]
    (folder / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    options = ("--tokenizer", folder, "--force")
    assert packaged(zoo.model("tiny-cache"), tmp_path / "served", *options) == 0


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Folder of a tokenizer by words, at which onnxruntime-extensions crashes now and then."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "fox": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.ByteLevel()
    folder = tmp_path / "foreign"
    folder.mkdir()
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_a_kind_that_is_not_known_is_refused(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert packaged(zoo.model("tiny-cache"), tmp_path / "served", "--tokenizer", foreign) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert "its model is WordLevel; required: BPE; leave out --with-tokenizer-graph" in printed
    assert not (tmp_path / "served").exists()


def test_what_ends_the_process_that_tries_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -SEGV $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(dying))
    assert packaged(zoo.model("tiny-cache"), tmp_path / "served") == 2
    assert "onnxruntime-extensions dies of it (SIGSEGV); required: a kind" in capsys.readouterr().err


def test_another_decoder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(zoo.tiny(), folder)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.decoder = decoders.WordPiece()
    words.save(str(folder / "tokenizer.json"))
    assert packaged(zoo.model("tiny-cache"), tmp_path / "served", "--tokenizer", folder) == 2
    assert "its decoder is WordPiece; required: ByteLevel" in capsys.readouterr().err


def test_a_tokenizer_that_differs_in_little_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(zoo.tiny(), folder)
    parts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, parts["pre_tokenizer"]],
    }
    parts["normalizer"] = {"type": "Replace", "pattern": {"String": "q"}, "content": "k"}
    (folder / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    assert packaged(zoo.model("tiny-cache"), tmp_path / "served", "--tokenizer", folder) == 2
    assert "encodes 'The quick brown fox" in capsys.readouterr().err


def test_without_the_package_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime_extensions", None)
    assert packaged(zoo.model("tiny-cache"), tmp_path / "served") == 2
    assert 'pip install "zq2onnx[tokenizer]"' in capsys.readouterr().err
