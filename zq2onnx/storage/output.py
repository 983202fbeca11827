"""The output's files while they are being written, and the step that gives them their names."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.storage.mapped import CHUNK
from zq2onnx.storage.paths import check_folder, same_file
from zq2onnx.storage.plan import PAGE, Region

SINGLE_FILE_LIMIT = 2_000_000_000
"""A protobuf message holds less than 2 GiB."""

_NO_ALLOCATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclass
class OutputFiles:
    """Paths of a conversion's output.

    Attributes:
        model: final path of the model file.
        single_file: whether the model file is to hold the weights too.
        made_folder: whether this conversion made the folder of `model`.
        stale: data of the model that is to be overwritten, which nothing will name any more.
    """

    model: Path
    single_file: bool = False
    made_folder: bool = False
    stale: Path | None = None

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
    def lock(self) -> Path:
        """The file that says, by a lock on it, that a conversion is under way."""
        return self.model.with_name(self.model.name + ".lock")

    @property
    def final(self) -> list[Path]:
        """What the output consists of in the end."""
        return [self.model] if self.single_file else [self.model, self.data]

    @property
    def unfinished(self) -> list[Path]:
        """What is there only while a conversion is under way or interrupted, the journal last."""
        partial = [self.partial_model, self.partial_data, self.partial_factors]
        return [*partial, self.journal.with_name(self.journal.name + ".new"), self.journal]

    @property
    def nbytes(self) -> int:
        """Size of the finished output."""
        return sum(path.stat().st_size for path in self.final)

    def check_inputs(self, inputs: list[Path]) -> None:
        """Make sure that no file of this output is one of the input's.

        Raises:
            UserError: one is.
        """
        for target in (*self.final, *self.unfinished, self.lock):
            if any(same_file(target, path) for path in inputs):
                raise UserError(f"{target} is the input, or its data", "another output", "choose one with -o")

    def check(self, force: bool) -> None:
        """Make sure that writing here is wanted and possible; writes nothing.

        Raises:
            UserError: the output exists, or its folder cannot be made or written to.
        """
        for target in self.final:
            if target.is_dir():
                raise UserError(f"{target} is a folder", "a file name", "add the file's name to -o")
            # Killed between the renames of data and model: what stands there is this journal's.
            interrupted = target == self.data and self.journal.exists() and not self.model.exists()
            if os.path.lexists(target) and not force and not interrupted:
                raise UserError(f"{target} exists", "a new path", "choose another with -o, or add --force")
        check_folder(self.model)

    def check_size(self, weights: int) -> None:
        """Make sure that the weights, in bytes, fit in the model file if they are to be there.

        Raises:
            UserError: they do not.
        """
        if self.single_file and weights > SINGLE_FILE_LIMIT:
            raise UserError(
                f"{self.model}: the weights take {weights / 1e6:.0f} MB",
                f"less than {SINGLE_FILE_LIMIT / 1e6:.0f} MB in a single file",
                "leave out --single-file",
            )

    def make_folder(self) -> None:
        """Make the output's folder where it is missing."""
        with contextlib.suppress(FileExistsError):
            self.model.parent.mkdir()
            self.made_folder = True

    def leave_folder(self) -> None:
        """Remove the output's folder if that is as this run made it: empty."""
        if self.made_folder:
            with contextlib.suppress(OSError):  # the output is there, or somebody's file
                self.model.parent.rmdir()

    def reserve(self, data_size: int, factors_size: int, keep: bool) -> None:
        """Take the room that the output needs, before anything is computed.

        Args:
            data_size: bytes of the data file before the factors follow.
            factors_size: bytes of all factors.
            keep: leave in the partial files what an interrupted run wrote.

        Raises:
            UserError: the file system has not enough of it.
        """
        self.make_folder()
        if keep:
            self._take_back()
        sizes = {self.partial_data: data_size + factors_size + PAGE, self.partial_factors: factors_size}
        taken = sum(path.stat().st_blocks * 512 for path in sizes if path.exists())
        free = shutil.disk_usage(self.model.parent).free
        if sum(sizes.values()) > free + taken:
            raise UserError(
                f"{self.model.parent}: {free / 1e6:.0f} MB free",
                f"{(sum(sizes.values()) - taken) / 1e6:.0f} MB for the output",
                "free some room or choose another folder with -o",
            )
        for path, size in sizes.items():
            with path.open("r+b" if keep and path.exists() else "wb") as file:
                # Behind the data may lie factors of the interrupted run: gaps must hold zeros again.
                file.truncate(data_size if path == self.partial_data else factors_size)
                _allocate(file.fileno(), size)

    def _take_back(self) -> None:
        """Undo what a kill while publishing left: the data under its final name, the model or not."""
        if not self.single_file and self.data.exists() and not self.partial_data.exists():
            self.model.unlink(missing_ok=True)
            self.data.replace(self.partial_data)

    def append_factors(self, data_size: int, moves: list[tuple[Region, Region]]) -> None:
        """Copy the factors that stay behind the data, `(from, to)` each; safe to repeat."""
        end = max([data_size, *(new.offset + new.length for _, new in moves)])
        with self.partial_factors.open("rb") as source, self.partial_data.open("r+b") as target:
            for old, new in moves:
                for start in range(0, old.length, CHUNK):
                    size = min(CHUNK, old.length - start)
                    target.seek(new.offset + start)
                    target.write(os.pread(source.fileno(), size, old.offset + start))
            target.truncate(end)
            target.flush()
            os.fsync(target.fileno())

    def publish(self, model_bytes: bytes) -> None:
        """Give the files their final names: data before model, an old model away before either.

        Journal and factors stay until `discard`: a run that is killed after this can be resumed too.
        """
        with self.partial_model.open("wb") as file:
            file.write(model_bytes)
            file.flush()
            os.fsync(file.fileno())
        if self.single_file:
            self.remove_stale()
        else:
            self.model.unlink(missing_ok=True)
            self.partial_data.replace(self.data)
        self.partial_model.replace(self.model)

    def remove_stale(self) -> None:
        """Remove the data that only the old model named, and that model before it."""
        if self.stale is not None:
            self.model.unlink(missing_ok=True)
            self.stale.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove everything unfinished, and the folder if that leaves it as this run made it: empty."""
        for path in self.unfinished:
            path.unlink(missing_ok=True)
        self.leave_folder()


def write_region(descriptor: int, region: Region, content: memoryview) -> None:
    """Write a tensor's bytes at its place."""
    if content.nbytes != region.length:
        raise ValueError(f"{content.nbytes} bytes for a region of {region.length}")
    written = 0
    while written < region.length:
        written += os.pwrite(descriptor, content[written : written + CHUNK], region.offset + written)


def _allocate(descriptor: int, size: int) -> None:
    """Take blocks for a file, where the system can: a full disk shows now, not after hours."""
    if size == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _NO_ALLOCATION:
            raise
