"""Keeps arrays that are too many for memory in a temporary folder, each in a file of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from zq2onnx.errors import UserError


class ArrayStore:
    """float32 arrays by any key, on disk until it is closed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zq2onnx-")
        self._files: dict[Hashable, Path] | None = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._open_files()

    def load(self, key: Hashable) -> npt.NDArray[np.float32]:
        """An array, its file mapped, read-only.

        Raises:
            KeyError: there is none of this key.
            ValueError: the store was closed.
        """
        return np.asarray(np.load(self._open_files()[key], mmap_mode="r"))

    def save(self, key: Hashable, array: npt.NDArray[np.float32], what: str) -> None:
        """Keep an array.

        Args:
            key: what to find it by.
            array: it is written at once.
            what: names it in an error, as `moments of node 'a'`.

        Raises:
            UserError: the disk is full.
            ValueError: the store was closed.
        """
        file = Path(self._folder.name) / f"{len(self._open_files())}.npy"
        try:
            np.save(file, array)
        except OSError as error:
            raise UserError(
                f"{file.parent}: {(error.strerror or str(error)).lower()} while {array.nbytes / 1e6:.0f} MB"
                f" of {what} are kept there",
                "room for them, 4 bytes a number",
                "set TMPDIR to a folder on a larger disk",
            ) from error
        self._open_files()[key] = file

    def close(self) -> None:
        """Delete the files. May be called twice."""
        self._files = None
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_files(self) -> dict[Hashable, Path]:
        if self._files is None:
            raise ValueError("the store was closed")
        return self._files
