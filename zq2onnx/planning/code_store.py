"""Keeps quantized layers on disk until they are wanted again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

from zq2onnx.numerics.grid import Float32Array
from zq2onnx.planning.rounding import RoundedLayer


class CodeStore:
    """Effective weights of layers by name, in a temporary folder: float16 would blur 8 bits, so float32."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zq2onnx-")
        self._files: dict[tuple[str, str], Path] = {}

    def save(self, label: str, layer: RoundedLayer, rank: int) -> None:
        """Keep what a layer multiplies with, under a label and its own name."""
        file = Path(self._folder.name) / f"{len(self._files)}.npy"
        np.save(file, layer.effective(rank))
        self._files[label, layer.node] = file

    def load(self, label: str, node: str) -> Float32Array:
        """`[N, K]`, mapped, read-only."""
        return np.asarray(np.load(self._files[label, node], mmap_mode="r"))

    def __enter__(self) -> CodeStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()
