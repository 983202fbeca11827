"""Keeps the second moments of output gradients on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

from zq2onnx.errors import UserError
from zq2onnx.numerics.grid import Float32Array


class OutputMoments:
    """What `output_moments` gathered, in a temporary folder until it is closed.

    Attributes:
        notes: why nodes that were asked for have no moment, a line each.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zq2onnx-")
        self._files: dict[str, Path] | None = {}
        self.notes: tuple[str, ...] = ()

    def load(self, node: str) -> Float32Array | None:
        """`G = E[g gᵀ]` of a node's output, float32 `[N, N]`, symmetric; its file mapped, read-only.

        None where it was not gathered; `notes` say why.

        Raises:
            ValueError: it was closed.
        """
        file = self._open_files().get(node)
        return None if file is None else np.asarray(np.load(file, mmap_mode="r"))

    def save(self, node: str, moment: Float32Array) -> None:
        """Keep the moment of a node.

        Raises:
            UserError: the disk is full.
            ValueError: it was closed.
        """
        file = Path(self._folder.name) / f"{len(self._open_files())}.npy"
        try:
            np.save(file, moment)
        except OSError as error:
            raise UserError(
                f"{file.parent}: {(error.strerror or str(error)).lower()} while {moment.nbytes / 1e6:.0f} MB"
                f" of moments of node {node!r} are kept there",
                "room for them",
                "set TMPDIR to a folder on a larger disk",
            ) from error
        self._open_files()[node] = file

    def close(self) -> None:
        """Delete the files. May be called twice."""
        self._files = None
        self._folder.cleanup()

    def __enter__(self) -> OutputMoments:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_files(self) -> dict[str, Path]:
        if self._files is None:
            raise ValueError("the moments were closed")
        return self._files
