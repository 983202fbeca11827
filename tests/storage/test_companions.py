"""Files that a model needs beside it follow it, and overwrite nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from zq2onnx.errors import UserError
from zq2onnx.storage.companions import copy_companions, find_companions


def test_are_found_by_name(tmp_path: Path) -> None:
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


def test_nothing_is_copied_where_one_is_in_the_way(tmp_path: Path) -> None:
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


def test_same_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert copy_companions(tmp_path, tmp_path / "." / "", force=False) == []
