"""Keeps the second moments of output gradients on disk."""

from __future__ import annotations

from typing import Self

from zq2onnx.numerics.grid import Float32Array
from zq2onnx.storage.array_store import ArrayStore


class OutputMoments:
    """What `output_moments` gathered, in a temporary folder until it is closed.

    Attributes:
        notes: why nodes that were asked for have no moment, a line each.
    """

    def __init__(self) -> None:
        self._store = ArrayStore()
        self.notes: tuple[str, ...] = ()

    def load(self, node: str) -> Float32Array | None:
        """`G = E[g gᵀ]` of a node's output, float32 `[N, N]`, symmetric; its file mapped, read-only.

        None where it was not gathered; `notes` say why.

        Raises:
            ValueError: it was closed.
        """
        return self._store.load(node) if node in self._store else None

    def save(self, node: str, moment: Float32Array) -> None:
        """Keep the moment of a node.

        Raises:
            UserError: the disk is full.
            ValueError: it was closed.
        """
        self._store.save(node, moment, f"moments of node {node!r}")

    def close(self) -> None:
        """Delete the files. May be called twice."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
