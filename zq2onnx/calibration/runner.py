"""Runs the pieces of a model one after the other over all batches, by way of the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from zq2onnx.calibration.cache import ActivationCache
from zq2onnx.calibration.linears import Linear, find_linears
from zq2onnx.calibration.memory import give_back_memory
from zq2onnx.calibration.piece_graph import InputType, PieceGraph
from zq2onnx.calibration.piece_session import PieceSession
from zq2onnx.calibration.samples import Samples
from zq2onnx.numerics.grid import Float32Array
from zq2onnx.passes.partition import Piece

CURRENT = "current"
"""The stream of inputs that pieces are observed on."""
TEACHER = "teacher"
"""The stream of inputs that float pieces make, kept beside it."""


class Runner:
    """A model's pieces, and what was computed so far between them, in one or more streams.

    A value is kept for as long as a later piece reads it.

    Args:
        model: the float model, whose nodes have names of their own.
        path: its file, for messages.
        pieces: it, cut.
        samples: what it is run on.
        streams: names.
        budget: bytes to keep in memory; see `ActivationCache`.
        threads: for one operator; None for as many as there are cores.
    """

    def __init__(
        self,
        model: ir.Model,
        path: Path,
        pieces: Sequence[Piece],
        samples: Samples,
        streams: Sequence[str],
        budget: int,
        threads: int | None,
    ) -> None:
        self.pieces = pieces
        self.batches = len(samples.batches)
        self._model = model
        self._path = path
        self._linears = find_linears(model)
        self._streams = streams
        self._threads = threads
        self._last = {value: index for index, piece in enumerate(pieces) for value in piece.inputs}
        self.cache = ActivationCache(budget)
        for value in model.graph.inputs:
            if value in self._last:
                self._feed(value, samples)

    def label(self, index: int) -> str:
        """Names a piece."""
        nodes = self.pieces[index].nodes
        first = next((node for node in nodes if node.op_type != "Constant"), nodes[0])
        return f"block {index} of {len(self.pieces)} (from node {first.name!r} on)"

    def where(self, index: int) -> str:
        """Names a piece and its model, for messages."""
        return f"{self._path}: {self.label(index)}"

    def known(self, index: int) -> bool:
        """Whether the types of all inputs of a piece are known."""
        return all(self._is_kept(value) or value.dtype is not None for value in self.pieces[index].inputs)

    def passed_on(self, index: int) -> list[ir.Value]:
        """Those outputs of a piece that later pieces read."""
        return [value for value in self.pieces[index].outputs if self._last.get(value, -1) > index]

    def linears_of(self, index: int) -> list[Linear]:
        """The linears of a piece whose activations can be observed, in graph order."""
        piece = self.pieces[index]
        made = {value for node in piece.nodes for value in node.outputs} | {*piece.inputs}
        found = [self._linears.get(node.name or "") for node in piece.nodes]
        return [linear for linear in found if linear is not None and linear.activation in made]

    def inputs(self, stream: str, values: Sequence[ir.Value], batch: int) -> dict[str, np.ndarray]:
        """What is kept of these values, by name."""
        return {value.name or "": self.cache.get((stream, value.name, batch)) for value in values}

    def store(self, stream: str, index: int, batch: int, made: Mapping[str, np.ndarray]) -> None:
        """Keep what a piece passes on."""
        for value in self.passed_on(index):
            self.cache.put((stream, value.name, batch), made[value.name or ""])

    def open(
        self, index: int, outputs: Sequence[ir.Value], weights: Mapping[str, Float32Array]
    ) -> PieceSession:
        """Load those nodes of a piece that `outputs` need, and its weights.

        Args:
            index: the piece.
            outputs: values made in it.
            weights: by node name, `[N, K]`: what takes the place of a linear's, as `y = x Wᵀ`.

        Raises:
            ValueError: ONNX Runtime cannot load them.
        """
        session = self._load(index, outputs)
        session.read_weights(weights)
        return session

    def check(self, index: int) -> None:
        """Load a piece for nothing.

        Raises:
            ValueError: ONNX Runtime cannot load what is passed on or can be observed. The types of all
                inputs must be known.
        """
        inputs = self.pieces[index].inputs
        observed = [linear.activation for linear in self.linears_of(index)]
        outputs = [*self.passed_on(index), *(value for value in observed if value not in inputs)]
        if outputs:
            self._load(index, list(dict.fromkeys(outputs)))

    def _load(self, index: int, outputs: Sequence[ir.Value]) -> PieceSession:
        piece = self.pieces[index]
        graph = PieceGraph(self._model, piece, outputs, self._linears)
        types = {value.name or "": self._type(value) for value in graph.inputs}
        return PieceSession(graph, types, self._threads)

    def forward(self, index: int, weights: Mapping[str, Float32Array]) -> None:
        """Run a piece in every stream, if a later one reads what it makes.

        Args:
            index: the piece.
            weights: by node name, `[N, K]`, as `y = x Wᵀ`; of no concern to the teacher's stream.

        Raises:
            ValueError: ONNX Runtime cannot load it.
            UserError: ONNX Runtime cannot run it.
        """
        if not self.passed_on(index):
            return
        for stream in self._streams:
            session = self.open(index, self.passed_on(index), weights if stream == CURRENT else {})
            for batch in range(self.batches):
                inputs = self.inputs(stream, self.pieces[index].inputs, batch)
                self.store(stream, index, batch, session.run(self.where(index), inputs))
                self._drop(stream, index, batch)
            del session
            give_back_memory()

    def leave(self, index: int) -> None:
        """Forget what no piece after this one reads."""
        for stream in self._streams:
            for batch in range(self.batches):
                self._drop(stream, index, batch)

    def _drop(self, stream: str, index: int, batch: int) -> None:
        for value in self.pieces[index].inputs:
            if self._last[value] <= index:
                self.cache.drop((stream, value.name, batch))

    def _feed(self, value: ir.Value, samples: Samples) -> None:
        """Keep a graph input, in the graph's own float type; its default, where it is not fed."""
        for batch, array in enumerate(_arrays(value, samples)):
            for stream in self._streams:
                self.cache.put((stream, value.name, batch), array)

    def _is_kept(self, value: ir.Value) -> bool:
        return (CURRENT, value.name, 0) in self.cache

    def _type(self, value: ir.Value) -> InputType:
        if self._is_kept(value):
            array = self.cache.get((CURRENT, value.name, 0))
            return InputType(ir.DataType.from_numpy(array.dtype), array.ndim)
        return InputType(value.dtype or ir.DataType.FLOAT, None if value.shape is None else len(value.shape))


def _arrays(value: ir.Value, samples: Samples) -> Iterator[np.ndarray]:
    """A graph input, batch by batch."""
    default = None if value.const_value is None else value.const_value.numpy()
    for batch in samples.batches:
        array = batch[value.name or ""] if default is None else batch.get(value.name or "", default)
        is_float = value.dtype is not None and value.dtype.is_floating_point()
        yield array.astype(value.dtype.numpy(), copy=False) if is_float and value.dtype else array
