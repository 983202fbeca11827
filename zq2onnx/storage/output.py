"""The output's files while they are being written, and the step that gives them their names."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.storage.mapped import CHUNK
from zq2onnx.storage.plan import Region


@dataclass(frozen=True)
class OutputFiles:
    """Paths of a conversion's output.

    Attributes:
        model: final path of the model file.
        single_file: whether the model file is to hold the weights too.
    """

    model: Path
    single_file: bool = False

    @property
    def data(self) -> Path:
        """Final path of the external data."""
        return self.model.with_name(self.model.name + ".data")

    @property
    def partial_model(self) -> Path:
        """The model file until it is whole."""
        return self.model.with_name(self.model.name + ".partial")

    @property
    def partial_data(self) -> Path:
        """Codes, scales, zero points and what stayed float, until all are there."""
        return self.model.with_name(self.model.name + ".data.partial")

    @property
    def partial_factors(self) -> Path:
        """Low-rank factors: which of them stay is known only when all are computed."""
        return self.model.with_name(self.model.name + ".factors.partial")

    @property
    def journal(self) -> Path:
        """The journal that `--resume` reads."""
        return self.model.with_name(self.model.name + ".journal")

    @property
    def nbytes(self) -> int:
        """Size of the finished output."""
        return sum(path.stat().st_size for path in (self.model, self.data) if path.exists())

    def check(self, inputs: list[Path], force: bool) -> None:
        """Make sure that writing here is wanted and possible; makes the last folder.

        Raises:
            UserError: an output path is one of the inputs, exists, or has no parent folder.
        """
        targets = [self.model] if self.single_file else [self.model, self.data]
        sources = {path.resolve() for path in inputs}
        for target in targets:
            if target.resolve() in sources:
                raise UserError(
                    f"{target} is the input, or its data", "another output path", "choose one with -o"
                )
            if target.is_dir():
                raise UserError(f"{target} is a folder", "a file name", "add the file's name to -o")
            interrupted = target == self.data and self.journal.exists() and not self.model.exists()
            if target.exists() and not force and not interrupted:
                raise UserError(f"{target} exists", "a new path", "choose another with -o, or add --force")
        folder = self.model.parent
        if not folder.parent.is_dir():
            raise UserError(f"{folder.parent} is no folder", "an existing one", "create it first")
        folder.mkdir(exist_ok=True)

    def reserve(self, data_size: int, factors_size: int, keep: bool) -> None:
        """Take the room that the output needs, before anything is computed.

        Raises:
            UserError: the file system has not enough of it.
        """
        present = self.partial_data.stat().st_size if keep and self.partial_data.exists() else 0
        needed = data_size + 2 * factors_size - present
        free = shutil.disk_usage(self.model.parent).free
        if needed > free:
            raise UserError(
                f"{self.model.parent}: {free / 1e6:.0f} MB free",
                f"{needed / 1e6:.0f} MB for the output",
                "free some room or choose another folder with -o",
            )
        for path, size in ((self.partial_data, data_size), (self.partial_factors, factors_size)):
            with path.open("r+b" if keep and path.exists() else "wb") as file:
                file.truncate(size)

    def append_factors(self, data_size: int, moves: list[tuple[Region, Region]]) -> None:
        """Copy the factors that stay behind the data, `(from, to)` each; safe to repeat."""
        with self.partial_factors.open("rb") as source, self.partial_data.open("r+b") as target:
            target.truncate(data_size)
            for old, new in moves:
                for start in range(0, old.length, CHUNK):
                    size = min(CHUNK, old.length - start)
                    target.seek(new.offset + start)
                    target.write(os.pread(source.fileno(), size, old.offset + start))
            target.flush()
            os.fsync(target.fileno())

    def publish(self, model_bytes: bytes) -> None:
        """Give the files their final names: data before model, an old model away before either."""
        with self.partial_model.open("wb") as file:
            file.write(model_bytes)
            file.flush()
            os.fsync(file.fileno())
        if not self.single_file:
            self.model.unlink(missing_ok=True)
            self.partial_data.replace(self.data)
        self.partial_model.replace(self.model)
        self.partial_data.unlink(missing_ok=True)
        self.partial_factors.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove everything unfinished."""
        for path in (self.partial_model, self.partial_data, self.partial_factors, self.journal):
            path.unlink(missing_ok=True)


def write_region(descriptor: int, region: Region, content: memoryview) -> None:
    """Write a tensor's bytes at its place."""
    if content.nbytes != region.length:
        raise ValueError(f"{content.nbytes} bytes for a region of {region.length}")
    written = 0
    while written < region.length:
        written += os.pwrite(descriptor, content[written : written + CHUNK], region.offset + written)


@contextlib.contextmanager
def no_space_is_told(folder: Path) -> Iterator[None]:
    """Turn a full disk into a line that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{folder}: {os.strerror(error.errno)}",
            "room for the output",
            "free some and run again with --resume",
        ) from error
