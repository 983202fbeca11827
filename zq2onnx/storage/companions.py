"""The files a model needs beside it: which they are, and how they follow it to another folder."""

from __future__ import annotations

import filecmp
import fnmatch
import os
import shutil
import uuid
from pathlib import Path

from zq2onnx.errors import UserError

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "genai_config.json",
    "preprocessor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates",
)
"""File names, as shell patterns. The last is a folder."""


def find_companions(folder: Path) -> list[Path]:
    """Companion files in `folder`, relative to it, in order of their names."""
    found: list[Path] = []
    for path in folder.iterdir():
        if not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in COMPANIONS):
            continue
        files = path.rglob("*") if path.is_dir() else [path]
        found += [file.relative_to(folder) for file in files if file.is_file()]
    return sorted(found)


def check_companions(source_dir: Path, target_dir: Path, *, force: bool) -> list[Path]:
    """Look at what `copy_companions` would do.

    Returns:
        Relative paths of the files that are not in `target_dir` yet, or not the same there.

    Raises:
        UserError: a file of that name and other content is there, and `force` is off.
    """
    if source_dir.resolve() == target_dir.resolve():
        return []
    missing = []
    for relative in find_companions(source_dir):
        target = target_dir / relative
        if target.exists() and filecmp.cmp(source_dir / relative, target, shallow=False):
            continue
        if target.exists() and not force:
            raise UserError(
                f"{target} exists and differs from {source_dir / relative}",
                remedy="give --force to overwrite it, or an output in another folder",
            )
        missing.append(relative)
    return missing


def copy_companions(source_dir: Path, target_dir: Path, *, force: bool) -> list[Path]:
    """Copy what a model needs beside it from one folder to another.

    Nothing happens where both are the same folder. Every target is looked at before the first file
    is copied, and each file appears under its name only when whole.

    Returns:
        Paths of the files that were copied.

    Raises:
        UserError: a file of that name and other content is there, and `force` is off.
    """
    missing = check_companions(source_dir, target_dir, force=force)
    for relative in missing:
        _copy(source_dir / relative, target_dir / relative)
    return [target_dir / relative for relative in missing]


def add_companions(source_dir: Path, target_dir: Path) -> list[Path]:
    """Copy those of a model's companions that the other folder has none of.

    Returns:
        Paths there that differ from the source's; they are another model's, and stay.
    """
    if source_dir.resolve() == target_dir.resolve():
        return []
    kept = []
    for relative in find_companions(source_dir):
        target = target_dir / relative
        if not target.exists():
            _copy(source_dir / relative, target)
        elif not filecmp.cmp(source_dir / relative, target, shallow=False):
            kept.append(target)
    return kept


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
