"""Second moments of the gradients at the outputs of linear layers: how much each output matters.

The gradients are those of the model's log-likelihood of labels drawn from its own prediction, so that
`G = E[g gᵀ]` is the Fisher information with respect to a layer's output: the factor G of K-FAC (J.
Martens and R. Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature",
2015). With `R = E[x xᵀ]` of its input, changing its weight by E costs about `KL = tr(G E R Eᵀ) / 2`.
Needs torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from zq2onnx.calibration.linears import Linear
from zq2onnx.calibration.moment_store import OutputMoments
from zq2onnx.calibration.piece_session import PieceSession
from zq2onnx.calibration.prediction import predicted
from zq2onnx.calibration.runner import CURRENT, Runner
from zq2onnx.calibration.samples import Samples
from zq2onnx.calibration.torch_backward import PieceGradients, descend
from zq2onnx.calibration.torch_loss import loss_gradient, shown_tokens
from zq2onnx.calibration.torch_piece import check_reproduces
from zq2onnx.calibration.walk import DEFAULT_BUDGET
from zq2onnx.errors import UserError
from zq2onnx.language import free_inputs, static_dim
from zq2onnx.numerics.moments import MomentSum
from zq2onnx.passes.partition import partition
from zq2onnx.passes.widen import WidenToFloat32Pass

__all__ = ["OutputMoments", "output_moments"]

WIDEST = 16384
"""Outputs of a linear up to which its moment is gathered: 1 GB of it."""

Tensor = torch.Tensor

_GRADIENT = "gradient"
"""The stream of gradients, beside that of activations."""


def output_moments(
    model: ir.Model,
    path: Path,
    samples: Samples,
    nodes: Collection[str],
    *,
    most_samples: int = 32,
    seed: int = 0,
    threads: int | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: Callable[[int, int], None] | None = None,
) -> OutputMoments:
    """Gather `G = E[g gᵀ]` per token at the outputs of linears, in one float pass forwards and back.

    The loss is the sum over tokens of `-log p(label)`, a label for each token drawn from the softmax of
    the output `logits`. A model without such an output (an encoder) is taken to predict the mean of a
    Gaussian of unit variance: the loss is `<y, ε>` of its first float output, `ε ~ N(0, 1)`. Tokens that
    an `attention_mask` hides have no loss and do not count.

    Pieces run in ONNX Runtime forwards, and in torch, in reverse order, for their gradients: in memory
    are one of them, the sums of its linears and `budget` bytes of activations and gradients.
    Deterministic for a number of threads.

    Args:
        model: the float graph, whose nodes have names of their own. What is float16 or bfloat16 in it
            becomes float32, in place.
        path: its file, for messages.
        samples: what it is run on; those held out are not, unless there are no others.
        nodes: names of MatMuls and Gemms with a constant weight.
        most_samples: how many samples to take, the first ones; at least 1. Whole batches, where the graph
            fixes their size.
        seed: of the labels, or of ε.
        threads: of ONNX Runtime and torch; None for as many as there are cores.
        budget: bytes of activations and gradients to keep in memory; more go to disk.
        progress: is told how many of how many steps are done, 0 first.

    Returns:
        By node; the caller closes it.

    Raises:
        UserError: torch does not compute a piece as ONNX Runtime does, ONNX Runtime cannot load or run
            one, or the disk is full.
    """
    WidenToFloat32Pass()(model)
    taken = _first_samples(model, samples, most_samples)
    found = OutputMoments()
    try:
        backward = _Backward(model, path, taken, nodes, seed, budget, threads)
        with _torch_threads(threads), backward.runner.cache:
            backward.run(found, progress or (lambda done, steps: None))
    except BaseException:
        found.close()
        raise
    return found


class _Backward:
    """A model's pieces, run forwards and then differentiated, the last one first."""

    def __init__(
        self,
        model: ir.Model,
        path: Path,
        samples: Samples,
        nodes: Collection[str],
        seed: int,
        budget: int,
        threads: int | None,
    ) -> None:
        self._path = path
        self._masks = [batch.get("attention_mask") for batch in samples.batches]
        self._seed = seed
        self._pieces = partition(model)
        self.runner = Runner(model, path, self._pieces, samples, [CURRENT], budget, threads)
        self._probe = self.runner.batches - 1
        """The batch that torch is compared with ONNX Runtime on; those before it are differentiated."""
        self._target = predicted(model)
        self._tokens = np.zeros(2, np.int64)
        """How many tokens the output has, and how many of them are shown."""
        self._notes = dict.fromkeys(sorted(nodes), "no product of an activation and a constant weight")
        self._wanted = [self._linears(index) for index in range(len(self._pieces))]
        self._moved = descend(self._pieces, [linear for linears in self._wanted for linear in linears])

    def _linears(self, index: int) -> list[Linear]:
        """The linears of a piece whose moments are wanted. They are noted until they are gathered."""
        linears = [linear for linear in self.runner.linears_of(index) if linear.name in self._notes]
        for linear in linears:
            wide = f"{linear.view.n} outputs, more than {WIDEST}"
            self._notes[linear.name] = wide if linear.view.n > WIDEST else "no prediction depends on it"
        return [linear for linear in linears if linear.view.n <= WIDEST]

    def run(self, found: OutputMoments, progress: Callable[[int, int], None]) -> None:
        """Gather what is wanted, and note what cannot be had."""
        last = next((i for i, piece in enumerate(self._pieces) if self._target in piece.outputs), -1)
        wanted = [index for index in range(last + 1) if self._wanted[index]]
        backward = range(last, wanted[0] - 1, -1) if wanted else range(0)
        forward = range(last if wanted else 0)
        steps = len(forward) + len(backward)
        progress(0, steps)
        for done, index in enumerate(forward):
            self._forward(index)
            if index < wanted[0]:
                self.runner.leave(index)
            progress(done + 1, steps)
        for done, index in enumerate(backward):
            self._back(index, found)
            progress(len(forward) + done + 1, steps)
        found.notes = tuple(f"node {name!r}: {why}" for name, why in self._notes.items())

    def _forward(self, index: int) -> None:
        """Make what later pieces read. Nothing is forgotten."""
        if outputs := self.runner.passed_on(index):
            session = self._open(index, outputs)
            for batch in range(self.runner.batches):
                made = session.run(self.runner.where(index), self._inputs(index, batch))
                self.runner.store(CURRENT, index, batch, made)

    def _inputs(self, index: int, batch: int) -> dict[str, np.ndarray]:
        return self.runner.inputs(CURRENT, self._pieces[index].inputs, batch)

    def _open(self, index: int, outputs: Sequence[ir.Value]) -> PieceSession:
        try:
            return self.runner.open(index, outputs, {})
        except ValueError as error:
            raise UserError(
                f"{self._path}: onnxruntime cannot load {self.runner.label(index)}: {error}",
                "operators that it knows",
            ) from error

    def _back(self, index: int, found: OutputMoments) -> None:
        """Take the gradients of a piece's outputs to its inputs, and gather those of its linears."""
        ends = [value for value in self._pieces[index].outputs if self._matters(value)]
        if ends:
            linears = self._wanted[index]
            piece = PieceGradients(self._pieces[index], ends, linears, self._moved)
            self._check(piece, index, ends)
            sums: dict[str, MomentSum] = {}
            for batch in range(self._probe):
                self._differentiate(piece, index, batch, sums)
            for name, total in sums.items():
                self._finish(name, total, found)
        self._forget(index)

    def _matters(self, value: ir.Value) -> bool:
        """Whether a value has a gradient, and linears a part in it."""
        known = value is self._target or (_GRADIENT, value.name, 0) in self.runner.cache
        return known and value in self._moved

    def _check(self, piece: PieceGradients, index: int, ends: Sequence[ir.Value]) -> None:
        """Compare torch with ONNX Runtime."""
        feeds = self._inputs(index, self._probe)
        if self._target in ends:
            expected = self._open(index, ends).run(self.runner.where(index), feeds)
        else:
            expected = self.runner.inputs(CURRENT, ends, self._probe)
        check_reproduces(piece.forward, {name: feeds[name] for name in piece.forward.inputs}, expected)

    def _differentiate(
        self, piece: PieceGradients, index: int, batch: int, sums: dict[str, MomentSum]
    ) -> None:
        """Take in what a batch adds to the moments, and leave gradients to the pieces before."""
        inputs, inner = piece.run(self._inputs(index, batch), lambda name, y: self._gradient(name, y, batch))
        with np.errstate(all="ignore"):  # what is not finite is noted when they are finished
            for name, gradient in inner.items():
                sums.setdefault(name, MomentSum(gradient.shape[-1])).add(gradient.numpy())
        cache = self.runner.cache
        for name, gradient in inputs.items():
            key = (_GRADIENT, name, batch)
            array = gradient.numpy()
            cache.put(key, cache.get(key) + array if key in cache else array)

    def _gradient(self, name: str, output: Tensor, batch: int) -> Tensor:
        """The gradient of an output: what later pieces left, and the loss's own."""
        key = (_GRADIENT, name, batch)
        if self._target is None or name != self._target.name:
            return torch.tensor(self.runner.cache.get(key))
        shown = shown_tokens(output, self._masks[batch])
        tokens = output.shape[:-1].numel()
        self._tokens += (tokens, tokens if shown is None else int(shown.sum()))
        return loss_gradient(output, name, shown, np.random.default_rng([self._seed, batch]))

    def _finish(self, name: str, total: MomentSum, found: OutputMoments) -> None:
        """Save the moment of a linear: the mean over those tokens that are shown."""
        moments = total.result()
        if not moments.finite:
            self._notes[name] = "the gradient at its output is NaN or infinite"
            return
        moment, (tokens, shown) = moments.fitted, map(int, self._tokens)
        if moments.tokens[0] == tokens != shown:
            moment *= np.float32(tokens / max(1, shown))
        found.save(name, moment)
        del self._notes[name]

    def _forget(self, index: int) -> None:
        """Drop what a piece makes: all that read it are done."""
        for value in self._pieces[index].outputs:
            for batch in range(self.runner.batches):
                self.runner.cache.drop((CURRENT, value.name, batch))
                self.runner.cache.drop((_GRADIENT, value.name, batch))


def _first_samples(model: ir.Model, samples: Samples, most: int) -> Samples:
    """The first samples that are not held out, or the first if all are; the first of them once more.

    By itself, as the last batch: the outputs of a whole batch would be large to compare.
    """
    fitted = [batch for batch, out in zip(samples.batches, samples.held_out, strict=True) if not out]
    fixed = any(static_dim(value, 0) for value in free_inputs(model))
    batches: list[dict[str, np.ndarray]] = []
    left = max(1, most)
    for batch in fitted or samples.batches:
        count = max(map(len, batch.values()), default=0)
        if left > 0:
            batches.append(batch if fixed else {name: array[:left] for name, array in batch.items()})
        left -= count
    batches.append(batches[0] if fixed else {name: array[:1] for name, array in batches[0].items()})
    return dataclasses.replace(samples, batches=tuple(batches), held_out=(False,) * len(batches))


@contextlib.contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
