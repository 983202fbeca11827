"""What a folder is to hold, and how it comes there: whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.storage.paths import identity


@dataclass
class Contents:
    """Files of a folder, by their paths in it.

    Attributes:
        copied: where the bytes of each are.
        written: the bytes of each.
        weights: those of `copied` that are large, and are linked where that is wished.
    """

    copied: dict[Path, Path] = field(default_factory=dict)
    written: dict[Path, bytes] = field(default_factory=dict)
    weights: set[Path] = field(default_factory=set)

    @property
    def files(self) -> list[Path]:
        """All of them, in order of their names."""
        return sorted({*self.copied, *self.written})

    def write(self, path: str | Path, text: str) -> None:
        """Add a UTF-8 file."""
        self.written[Path(path)] = text.encode()

    def check(self, folder: Path, force: bool) -> None:
        """Make sure that they may come into `folder`; writes nothing.

        Raises:
            UserError: it is no folder or not empty, or a file would be written over its source.
        """
        existing = folder if folder.is_dir() else folder.parent
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is no folder", "a folder", "choose another with -o")
        if not existing.is_dir():
            raise UserError(f"there is no folder {existing}", "an existing one", f"mkdir -p {existing}")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{existing} is not writable", "a writable folder", "choose another with -o")
        sources = set(map(identity, self.copied.values()))
        for file in self.files:
            if identity(folder / file) in sources:
                raise UserError(
                    f"{folder / file} is what is packaged", "another folder", "choose one with -o"
                )
        if folder.is_dir() and any(folder.iterdir()) and not force:
            raise UserError(
                f"{folder} is not empty",
                "a new or an empty folder",
                "choose another with -o, or add --force to overwrite files of the same names",
            )

    def put(self, folder: Path, link: bool) -> None:
        """Make the folder. Every file is made elsewhere first, so that a new folder appears whole.

        Raises:
            UserError: weights are to be linked, and the file system cannot.
        """
        new = not folder.exists()
        # On the file system of what it becomes.
        staging = (folder.absolute().parent if new else folder) / f".{folder.name}.{uuid.uuid4().hex}"
        staging.mkdir()
        try:
            for file in self.files:
                self._make(file, staging / file, link)
            if new:
                staging.rename(folder)
                return
            for file in self.files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / file, folder / file)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _make(self, file: Path, path: Path, link: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if file in self.written:
            path.write_bytes(self.written[file])
        elif link and file in self.weights:
            _link(self.copied[file], path)
        else:
            shutil.copyfile(self.copied[file], path)


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source.resolve(), path)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        raise UserError(
            f"{source} cannot be linked ({os.strerror(error.errno)})",
            "a folder on the same file system",
            "leave out --link to copy it",
        ) from None
