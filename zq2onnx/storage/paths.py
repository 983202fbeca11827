"""Look at a path before anything is written to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from zq2onnx.errors import UserError


def check_folder(file: Path) -> None:
    """Make sure that `file` can be made: its folder is writable, or can be made in one that is.

    Raises:
        UserError: it cannot.
    """
    folder = file.parent
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{file}: {folder} is no folder", "a folder", "choose another path")
    existing = folder if folder.is_dir() else folder.parent
    if not existing.is_dir():
        raise UserError(f"{file}: there is no folder {existing}", "an existing one", f"mkdir -p {existing}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{file}: {existing} is not writable", "a writable folder", "choose another path")


def check_side_files(report: Path | None, dumps: Path | None, taken: Sequence[Path]) -> None:
    """Make sure, before any work, that report and dumps can be written, and over nothing of the model's.

    Raises:
        UserError: they cannot.
    """
    if report is not None:
        if report.is_dir():
            raise UserError(f"the report {report} is a folder", "a file name")
        if any(same_file(report, path) for path in taken):
            raise UserError(f"the report {report} is a file of the model", "another path for it")
        check_folder(report)
    if dumps is not None:
        check_folder(dumps / "dump")


def same_file(path: Path, other: Path) -> bool:
    """Whether two paths are one file, or would be."""
    return identity(path) == identity(other)


def identity(path: Path) -> object:
    """What is equal for two paths, and hashable, where they are one file or would be."""
    try:
        found = path.stat()
    except OSError:
        return path.resolve()
    return found.st_dev, found.st_ino
