"""Measures what changing one layer alone does to a model's predictions, for many layers in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from zq2onnx.calibration.memory import give_back_memory
from zq2onnx.calibration.piece_session import PieceSession
from zq2onnx.calibration.prediction import LOGITS, predicted
from zq2onnx.calibration.runner import CURRENT, Runner
from zq2onnx.calibration.samples import Samples
from zq2onnx.calibration.walk import DEFAULT_BUDGET
from zq2onnx.errors import UserError
from zq2onnx.evaluation.metrics import Reference, score_reference, score_window
from zq2onnx.numerics.grid import Float32Array
from zq2onnx.passes.partition import partition
from zq2onnx.passes.widen import WidenToFloat32Pass

Progress = Callable[[int, int], None]


def divergences(
    model: ir.Model,
    path: Path,
    samples: Samples,
    changes: Mapping[str, Callable[[], Float32Array]],
    *,
    budget: int = DEFAULT_BUDGET,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """The mean divergence of a model's predictions when one linear at a time has another weight.

    With an output `logits` it is `KL(float ‖ changed)` in nats, over all tokens but each window's last;
    any other output is taken for the mean of a Gaussian of unit variance, and half its squared error is
    the same measure. What comes before the changed layer is run once for all of them, and only what
    follows it is run again: every piece of the model is loaded once.

    Args:
        model: the float graph, whose nodes have names of their own. What is float16 or bfloat16 in it
            becomes float32, in place.
        path: its file, for messages.
        samples: what it is run on, one window or sample a batch.
        changes: by node name, what returns the weight `[N, K]` that takes its place, as `y = x Wᵀ`.
        budget: bytes of activations to keep in memory; more go to disk.
        threads: of ONNX Runtime; None for as many as there are cores.
        progress: is told how many of how many pieces are done, 0 first.

    Returns:
        By node name; those that the predictions do not depend on are left out.

    Raises:
        UserError: the model predicts nothing, or ONNX Runtime cannot load or run it.
    """
    WidenToFloat32Pass()(model)
    target = predicted(model)
    if target is None:
        raise UserError(f"{path}: no output of a float type", "a model that predicts something")
    return _Alone(model, path, samples, changes, target, budget, threads).run(progress or (lambda i, n: None))


class _Alone:
    """The float model's stream of activations, and one more for each changed layer behind it."""

    def __init__(
        self,
        model: ir.Model,
        path: Path,
        samples: Samples,
        changes: Mapping[str, Callable[[], Float32Array]],
        target: ir.Value,
        budget: int,
        threads: int | None,
    ) -> None:
        self._pieces = partition(model)
        self._samples = samples
        self._changes = changes
        self._target = target
        self._path = path
        self._last_use = {value: index for index, piece in enumerate(self._pieces) for value in piece.inputs}
        self._runner = Runner(model, path, self._pieces, samples, [CURRENT], budget, threads)
        self._streams: list[str] = []

    def run(self, progress: Progress) -> dict[str, float]:
        """Take all streams through the pieces, up to the one that makes the predictions."""
        last = next(i for i, piece in enumerate(self._pieces) if self._target in piece.outputs)
        progress(0, last + 1)
        with self._runner.cache:
            for index in range(last):
                self._advance(index)
                progress(index + 1, last + 1)
            found = self._predict(last)
        progress(last + 1, last + 1)
        return found

    def _open(self, index: int, outputs: Sequence[ir.Value]) -> PieceSession:
        try:
            return self._runner.open(index, outputs, {})
        except ValueError as error:
            raise UserError(
                f"{self._path}: onnxruntime cannot load {self._runner.label(index)}: {error}",
                "operators that it knows",
            ) from error

    def _changed_in(self, index: int) -> list[str]:
        """The linears of a piece that are to be changed."""
        return [linear.name for linear in self._runner.linears_of(index) if linear.name in self._changes]

    def _inputs(self, index: int, stream: str, batch: int) -> dict[str, np.ndarray]:
        """What a piece reads in a stream: the float model's own, where the stream does not differ."""
        cache = self._runner.cache
        keys = {value.name or "": (stream, value.name, batch) for value in self._pieces[index].inputs}
        return {name: cache.get(key if key in cache else (CURRENT, *key[1:])) for name, key in keys.items()}

    def _advance(self, index: int) -> None:
        """Run a piece in every stream, and start a stream for each layer in it that is to be changed."""
        if outputs := self._runner.passed_on(index):
            session = self._open(index, outputs)
            for stream in (CURRENT, *self._streams):
                self._pass(session, index, stream, stream)
            for name in self._changed_in(index):
                session.read_weights({name: self._changes[name]()})
                self._pass(session, index, CURRENT, name)
                self._streams.append(name)
            del session
            give_back_memory()
        for value in self._pieces[index].inputs:
            if self._last_use[value] <= index:
                for stream in (CURRENT, *self._streams):
                    for batch in range(self._runner.batches):
                        self._runner.cache.drop((stream, value.name, batch))

    def _pass(self, session: PieceSession, index: int, source: str, stream: str) -> None:
        """Run a piece on the inputs of one stream, and keep what it makes as another's."""
        for batch in range(self._runner.batches):
            made = session.run(self._runner.where(index), self._inputs(index, source, batch))
            self._runner.store(stream, index, batch, made)

    def _predict(self, index: int) -> dict[str, float]:
        """Run the piece that makes the predictions, and compare."""
        session, changed = self._open(index, [self._target]), self._changed_in(index)
        name, where = self._target.name or "", self._runner.where(index)
        totals, positions = dict.fromkeys([*self._streams, *changed], 0.0), 0
        for batch, feeds in enumerate(self._samples.batches):
            inputs = self._inputs(index, CURRENT, batch)
            compare = Comparison(session.run(where, inputs)[name], name, feeds.get("attention_mask"))
            positions += compare.positions
            for stream in self._streams:
                output = session.run(where, self._inputs(index, stream, batch))[name]
                totals[stream] += compare.divergence(output)
            for node in changed:
                session.read_weights({node: self._changes[node]()})
                totals[node] += compare.divergence(session.run(where, inputs)[name])
            if changed:
                session.read_weights({})
        return {node: total / max(1, positions) for node, total in totals.items()}


class Comparison:
    """A batch's predictions, to compare others with.

    Args:
        output: of the float model, `[.., tokens, V]`.
        name: of the output.
        mask: `[batch, past + tokens]`, not zero for the tokens that count; None where all do.

    Attributes:
        positions: how many predictions are compared.
    """

    def __init__(self, output: np.ndarray, name: str, mask: np.ndarray | None) -> None:
        self._is_logits = name == LOGITS and output.ndim == 3
        self._counts = _counting(output, mask, self._is_logits)
        self._rows = self._taken(output)
        self.positions = len(self._rows)
        self._reference = self._referred() if self._is_logits else None

    def _referred(self) -> Reference:
        return score_reference(self._rows, np.zeros(len(self._rows) + 1, np.int64))[1]

    def _taken(self, output: np.ndarray) -> npt.NDArray[np.floating]:
        rows: npt.NDArray[np.floating] = output.reshape(-1, output.shape[-1])[self._counts]
        return rows

    def divergence(self, output: np.ndarray) -> float:
        """The sum over positions, in nats."""
        rows = self._taken(output)
        if self._reference is None:
            return 0.5 * float(np.square(rows - self._rows, dtype=np.float64).sum())
        return score_window(rows, np.zeros(len(rows) + 1, np.int64), self._reference).divergence


def _counting(output: np.ndarray, mask: np.ndarray | None, is_logits: bool) -> npt.NDArray[np.bool_]:
    """Which rows of an output are compared: tokens that are shown, and of logits not a window's last."""
    counts = np.ones(output.shape[:-1], bool)
    if output.ndim == 3 and mask is not None and mask.ndim == 2 and mask.shape[1] >= output.shape[1]:
        counts &= mask[:, mask.shape[1] - output.shape[1] :] != 0
    if is_logits:
        counts[:, -1] = False
    return counts.reshape(-1)
