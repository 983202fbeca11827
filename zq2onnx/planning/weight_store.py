"""Keeps what quantized layers multiply with on disk until it is wanted again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

from zq2onnx.errors import UserError
from zq2onnx.numerics.grid import Float32Array


class WeightStore:
    """Weights of layers under a label and the layer's name, in a temporary folder.

    They are the effective ones, codes and branch multiplied out: float32, since float16 would blur 8 bits.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zq2onnx-")
        self._files: dict[tuple[str, str], Path] = {}

    def save(self, label: str, node: str, weight: Float32Array) -> None:
        """Keep a layer's weight `[N, K]`.

        Raises:
            UserError: the disk is full.
        """
        file = Path(self._folder.name) / f"{len(self._files)}.npy"
        try:
            np.save(file, weight)
        except OSError as error:
            raise UserError(
                f"{file.parent}: {(error.strerror or str(error)).lower()} while {weight.nbytes / 1e6:.0f} MB"
                f" of the quantized layer {node!r} are kept there",
                "room for the layers, 4 bytes a weight",
                "set TMPDIR to a folder on a larger disk",
            ) from error
        self._files[label, node] = file

    def load(self, label: str, node: str) -> Float32Array:
        """`[N, K]`, mapped, read-only."""
        return np.asarray(np.load(self._files[label, node], mmap_mode="r"))

    def __enter__(self) -> WeightStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()
