"""Walks a float model piece by piece over calibration samples, quantized weights behind it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir

from zq2onnx.calibration.observe import observe_linears
from zq2onnx.calibration.runner import CURRENT, TEACHER, Runner
from zq2onnx.calibration.samples import Samples
from zq2onnx.errors import UserError
from zq2onnx.numerics.grid import Float32Array
from zq2onnx.numerics.moments import Moments
from zq2onnx.passes.partition import Piece, partition
from zq2onnx.passes.widen import WidenToFloat32Pass

DEFAULT_BUDGET = 256_000_000
"""Bytes of activations kept in memory; more go to disk."""

Batch = tuple[dict[str, np.ndarray], dict[str, np.ndarray], bool]
"""The current inputs of a piece by value name, the float model's, and whether they are held out."""


class Walk:
    """A model taken through its pieces, once.

        with Walk(model, path, samples) as walk:
            for step in walk.steps():
                moments = step.observe(step.linears())
                step.advance(quantize(moments))

    In memory are one piece's weights, the moments asked for and `budget` bytes of activations. A piece
    is run no sooner than what it makes is asked for: what follows the last piece observed is never run.

    Args:
        model: the float graph, whose nodes have names of their own. What is float16 or bfloat16 in it
            becomes float32, in place.
        path: its file, for messages.
        samples: what it is run on.
        quantized_inputs: whether a piece is observed on what the pieces before it make with the
            weights given to `Step.advance`; else on what the float model makes.
        budget: bytes of activations to keep in memory.
        threads: for one operator; None for as many as there are cores.
        keep_teacher: keep the float model's inputs of each piece beside the current ones.

    Raises:
        UserError: the disk is full.
    """

    def __init__(
        self,
        model: ir.Model,
        path: Path,
        samples: Samples,
        *,
        quantized_inputs: bool = True,
        budget: int = DEFAULT_BUDGET,
        threads: int | None = None,
        keep_teacher: bool = False,
    ) -> None:
        self.path = path
        self.samples = samples
        WidenToFloat32Pass()(model)
        self.pieces: list[Piece] = partition(model)
        self.obstacle = ""
        """Why ONNX Runtime cannot load a piece: from there on nothing is observed. "" until then."""
        self._quantized_inputs = quantized_inputs
        self._teacher = CURRENT if not quantized_inputs else TEACHER if keep_teacher else None
        streams = [CURRENT, TEACHER] if self._teacher == TEACHER else [CURRENT]
        self._runner = Runner(model, path, self.pieces, samples, streams, budget, threads)
        self._due: list[tuple[int, Mapping[str, Float32Array]]] = []
        self._loaded = 0

    def steps(self) -> Iterator[Step]:
        """Every piece, in order. A step is of use until the next one is taken.

        A piece that was not advanced is advanced with the weights it has.
        """
        for index in range(len(self.pieces)):
            step = Step(self, index)
            yield step
            if not step.advanced:
                step.advance({})

    def close(self) -> None:
        """Give back memory and disk. May be called twice."""
        self._due.clear()
        self._runner.cache.close()

    def __enter__(self) -> Walk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _defer(self, index: int, weights: Mapping[str, Float32Array]) -> None:
        """Note that a piece is to be run. One at most is due with weights of its own."""
        if weights:
            self._catch_up(index)
        self._due.append((index, weights))

    def _catch_up(self, before: int) -> None:
        """Run the pieces that are due, up to one."""
        while self._due and self._due[0][0] < before and self._loads(self._due[0][0]):
            index, weights = self._due.pop(0)
            self._runner.forward(index, weights)
            self._runner.leave(index)

    def _loads(self, index: int) -> bool:
        """Whether ONNX Runtime loads this piece and all before it."""
        while self._loaded <= index and not self.obstacle:
            if not self._runner.known(self._loaded):
                self._catch_up(self._loaded)
            try:
                self._runner.check(self._loaded)
            except ValueError as error:
                self.obstacle = f"onnxruntime cannot load {self._runner.label(self._loaded)}: {error}"
            else:
                self._loaded += 1
        return self._loaded > index


class Step:
    """One piece, its inputs at hand.

    Attributes:
        piece: the piece.
        index: its place in `Walk.pieces`.
        advanced: whether `advance` was called.
    """

    def __init__(self, walk: Walk, index: int) -> None:
        self.piece = walk.pieces[index]
        self.index = index
        self.advanced = False
        self._walk = walk
        self._passed_on = False

    def linears(self) -> list[str]:
        """Names of the MatMul and Gemm nodes of the piece that read a constant weight, in graph order.

        Those that cannot be observed are left out: nodes in subgraphs, those whose activation is a
        constant, and all of a piece that ONNX Runtime cannot load and of those that follow it
        (`Walk.obstacle` says why).
        """
        linears = self._walk._runner.linears_of(self.index)
        return [linear.name for linear in linears] if linears and self._walk._loads(self.index) else []

    def observe(self, nodes: Collection[str]) -> dict[str, Moments]:
        """Run the float piece on the current inputs and gather what its linears read.

        Args:
            nodes: names, of `linears()`.

        Returns:
            By node name. Nodes that read one value share one object.

        Raises:
            UserError: ONNX Runtime fails, or an activation is NaN or infinite: the block is named.
        """
        walk = self._walk
        linears = [linear for linear in walk._runner.linears_of(self.index) if linear.name in nodes]
        if not linears or not walk._loads(self.index):
            return {}
        walk._catch_up(self.index)
        self._passed_on = not walk._quantized_inputs
        return observe_linears(
            walk._runner, self.index, linears, walk.samples.held_out, pass_on=self._passed_on
        )

    def batches(self, following: Sequence[Piece] = ()) -> Iterator[Batch]:
        """The inputs of the piece, batch by batch.

        Args:
            following: pieces that come next and make one block with this one: what they read of
                others is among the inputs.

        Raises:
            ValueError: the walk keeps no teacher.
            UserError: ONNX Runtime fails on a piece before this one, or cannot load one.
        """
        walk = self._walk
        if walk._teacher is None:
            raise ValueError("a walk without keep_teacher has no teacher's inputs")
        walk._catch_up(self.index)
        if walk.obstacle:
            raise UserError(f"{walk.path}: {walk.obstacle}", "operators that it knows")
        pieces = (self.piece, *following)
        own = {value for piece in pieces for node in piece.nodes for value in node.outputs}
        values = [*dict.fromkeys(value for piece in pieces for value in piece.inputs if value not in own)]
        for batch, held_out in enumerate(walk.samples.held_out):
            current = walk._runner.inputs(CURRENT, values, batch)
            yield current, walk._runner.inputs(walk._teacher, values, batch), held_out

    def reference(
        self, following: Sequence[Piece] = ()
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What ONNX Runtime makes of the teacher's first batch: for who computes the block otherwise.

        Args:
            following: pieces that come next and make one block with this one.

        Returns:
            The block's inputs, and the outputs of all of its pieces, by value name.

        Raises:
            ValueError: the walk keeps no teacher, or ONNX Runtime cannot load a piece.
            UserError: ONNX Runtime fails on a piece.
        """
        _, inputs, _ = next(iter(self.batches(following)))
        values = dict(inputs)
        made: dict[str, np.ndarray] = {}
        runner = self._walk._runner
        for index in range(self.index, self.index + 1 + len(following)):
            session = runner.open(index, runner.pieces[index].outputs, {})
            made |= session.run(runner.where(index), values | made)
        return inputs, made

    def advance(self, weights: Mapping[str, Float32Array]) -> None:
        """Go on to the next piece, whose inputs come from this one with other weights.

        Args:
            weights: by node name, float32 `[N, K]`, what takes the place of a linear's weight as
                `y = x Wᵀ`, Gemm's alpha included. Others keep theirs. They must not change later.

        Raises:
            UserError: ONNX Runtime fails on a piece before this one.
        """
        self.advanced = True
        if self._passed_on:
            self._walk._runner.leave(self.index)
        else:
            self._walk._defer(self.index, weights if self._walk._quantized_inputs else {})
