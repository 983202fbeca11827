"""What a folder is to hold, and how it comes there: whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.runtime.kernels.manifest import MANIFEST


@dataclass
class Contents:
    """Files of a folder, by their paths in it.

    Attributes:
        copied: where the bytes of each are.
        written: the bytes of each.
        weights: those of `copied` that are large, and are linked where that is wished.
        opened: those by which the folder is opened. In a folder that has older ones these go first, and the
            new ones come last, in this order: what is opened is of one package.
        ours: files, and folders of kernels, that an earlier package may have left: they go where they are
            not among the files.
    """

    copied: dict[Path, Path] = field(default_factory=dict)
    written: dict[Path, bytes] = field(default_factory=dict)
    weights: set[Path] = field(default_factory=set)
    opened: list[Path] = field(default_factory=list)
    ours: set[Path] = field(default_factory=set)

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
        if folder.is_dir() and any(folder.iterdir()) and not force:
            raise UserError(
                f"{folder} is not empty",
                "a new or an empty folder",
                "choose another with -o, or add --force to put the new package in its place",
            )
        self._check_places(folder)

    def _check_places(self, folder: Path) -> None:
        # By their places: a hard link of a source may be replaced, and leaves the source as it is.
        sources = {place for path in self.copied.values() for place in (_place(path), path.resolve())}
        for file in self.files:
            if _place(folder / file) in sources:
                raise UserError(
                    f"{folder / file} is what is packaged", "another folder", "choose one with -o"
                )
            if (folder / file).is_dir():
                raise UserError(f"{folder / file} is a folder", "room for a file", "remove it")
        for place in {folder / parent for file in self.files for parent in file.parents}:
            if os.path.lexists(place) and not place.is_dir():
                raise UserError(f"{place} is no folder", "room for a folder", "remove it")

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
            self._clear(folder)
            for file in [*(file for file in self.files if file not in self.opened), *self.opened]:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / file, folder / file)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _clear(self, folder: Path) -> None:
        """Take an earlier package from the folder, but for what is overwritten: first what names the rest."""
        *models, config = self.opened
        # In a folder that is no package, what is called as ours is the user's.
        ours = self.ours - set(self.files) if (folder / self.opened[0]).is_file() else ()
        (folder / config).unlink(missing_ok=True)
        for path in ours:
            _remove(folder / path)
        for model in models:
            (folder / model).unlink(missing_ok=True)

    def _make(self, file: Path, path: Path, link: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if file in self.written:
            path.write_bytes(self.written[file])
        elif link and file in self.weights:
            _link(self.copied[file], path)
        else:
            shutil.copyfile(self.copied[file], path)


def _remove(path: Path) -> None:
    """Remove a file, or a folder that is a bundle of kernels."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    elif (path / MANIFEST).is_file():
        shutil.rmtree(path)


def _place(path: Path) -> Path:
    """Where a file is, whatever leads there; a link is where it is itself."""
    return path.parent.resolve() / path.name


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
