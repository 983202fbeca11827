"""ZQ-Global: the codes of a transformer block's layers by gradient descent on the block's output.

Z. Yao et al., "ZeroQuant-V2", 2023, section 3 (layer-by-layer distillation of ZeroQuant, 2022). The
teacher is the float block, the student the same block with fake-quantized weights. The block itself
comes as functions of torch, so nothing here knows of graphs. Needs torch: nothing else of the
numerics imports this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from zq2onnx.errors import UserError
from zq2onnx.numerics.distill_grid import TrainableCodes
from zq2onnx.numerics.distill_int8 import fake_int8
from zq2onnx.numerics.grid import Float32Array, Quantized
from zq2onnx.scheme import Activation, Scheme

Tensor = torch.Tensor
Feeds = Mapping[str, npt.NDArray[np.generic]]
Batch = tuple[Feeds, Feeds, bool]
"""Inputs of the block by value name as the quantized blocks before it make them, the same as the float
model makes them, and whether they are held out: `zq2onnx.calibration.walk` yields such."""
ActivationHook = Callable[[str, Tensor], Tensor]

STEPS = 100
LEARNING_RATE = 0.001
"""Of weights, in grid steps. Batches are noisy: at four times that, nothing better than the start is met."""
SCALE_RATE = 1.0
"""Learning rate of scales (of their logarithms) as a part of the weights'."""
ZERO_RATE = 10.0
"""The same of zero points, in codes."""
FINAL_RATE = 0.05
"""What is left of the learning rates at the last step."""
JUDGEMENTS = 5
"""How often the student is judged, the start not counted."""


class Half(Protocol):
    """A part of a block, as a function of torch: `zq2onnx.calibration.torch_piece.TorchPiece`."""

    def run(
        self,
        feeds: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None = None,
        activation: ActivationHook | None = None,
    ) -> dict[str, Tensor]:
        """Values by name; `weights [N, K]` replace those of the nodes they are named after."""
        ...


@dataclass(frozen=True, eq=False)
class BlockLinear:
    """A linear layer of the block.

    Attributes:
        weight: float32 `[N, K]`, as in `y = x Wᵀ`, any factor included.
        scheme: how it is quantized; int8 activations are rounded in the student too.
        start: codes to begin with.
    """

    weight: Float32Array
    scheme: Scheme
    start: Quantized


def zq_global(
    halves: Sequence[Half],
    linears: Mapping[str, BlockLinear],
    batches: Callable[[], Iterable[Batch]],
    output: str,
    float_dtype: npt.DTypeLike,
    *,
    steps: int = STEPS,
    lr: float = LEARNING_RATE,
    teacher_inputs: bool = False,
) -> dict[str, Quantized]:
    """Tune the codes, scales and zero points of a block for the least error of its output.

    Batches are taken in order, again and again. On those held out the student is judged now and then,
    and the best is returned, be it the start. Deterministic for a number of torch's threads.

    Args:
        halves: the block's parts, in order; each takes what was fed and what those before it made.
        linears: by node name.
        batches: each call goes through all batches, at least one. If all or none are held out, all
            serve both ends.
        output: name of the block's hidden output.
        float_dtype: float32, float16 or bfloat16, in which scales are stored.
        steps: of AdamW, a batch each.
        lr: learning rate of the weights, in grid steps.
        teacher_inputs: whether the student reads the float model's inputs, as the paper has it, and
            not those that the quantized blocks before it make.

    Raises:
        UserError: the block's output is not finite.
        ValueError: there are no batches.
    """
    trained = {
        name: TrainableCodes(linear.weight, linear.scheme, float_dtype, linear.start)
        for name, linear in linears.items()
    }
    block = _Block(halves, linears, trained, output, teacher_inputs)
    best = _Best(block, batches)
    rates = (lr, SCALE_RATE * lr, ZERO_RATE * lr)
    groups = [group for codes in trained.values() for group in codes.parameters(*rates)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)  # decay would pull codes to zero
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, FINAL_RATE, max(1, steps))
    every = max(1, steps // JUDGEMENTS)
    for step, batch in zip(range(1, steps + 1), _endless(batches), strict=False):
        block.error(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % every == 0 or step == steps:
            best.judge()
    return best.codes


class _Block:
    """The student and its teacher."""

    def __init__(
        self,
        halves: Sequence[Half],
        linears: Mapping[str, BlockLinear],
        trained: Mapping[str, TrainableCodes],
        output: str,
        teacher_inputs: bool,
    ) -> None:
        self._halves = halves
        self._teacher_inputs = teacher_inputs
        self._linears = linears
        self.trained = trained
        self._output = output

    def error(self, batch: Batch) -> Tensor:
        """Mean squared difference of the outputs, as a part of the teacher's mean square."""
        student, teacher, _ = batch
        with torch.no_grad():
            wanted = self._run(teacher, None, None)
        weights = {name: codes.weight() for name, codes in self.trained.items()}
        made = self._run(teacher if self._teacher_inputs else student, weights, self._activation)
        return (made - wanted).square().mean() / wanted.square().mean().clamp(min=1e-30)

    def _run(
        self, feeds: Feeds, weights: Mapping[str, Tensor] | None, activation: ActivationHook | None
    ) -> Tensor:
        values = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
        for half in self._halves:
            values |= half.run(values, weights, activation)
        return values[self._output]

    def _activation(self, name: str, x: Tensor) -> Tensor:
        scheme = self._linears[name].scheme
        return fake_int8(x, scheme) if scheme.activation is Activation.A8 else x


class _Best:
    """The codes that did best on the held-out batches."""

    def __init__(self, block: _Block, batches: Callable[[], Iterable[Batch]]) -> None:
        self._block = block
        self._batches = batches
        self._error = math.inf
        self.codes: dict[str, Quantized] = {}
        self.judge()

    def judge(self) -> None:
        """Look at the codes as they are now."""
        with torch.no_grad():
            errors = [self._block.error(batch).item() for batch in _of_kind(self._batches, held_out=True)]
        if not errors:
            raise ValueError("there are no batches to train on")
        error = sum(errors) / len(errors)
        if not math.isfinite(error):
            raise UserError(
                "a transformer block's output is not finite on calibration data",
                "finite values",
                "quantize with --method gptq, or leave the layer float with --exclude",
            )
        if error < self._error:
            self._error = error
            self.codes = {name: codes.quantized() for name, codes in self._block.trained.items()}


def _of_kind(batches: Callable[[], Iterable[Batch]], held_out: bool) -> Iterator[Batch]:
    """The batches that are held out, or those that are not; all where there are none of that kind."""
    found = False
    for batch in batches():
        if batch[2] == held_out:
            found = True
            yield batch
    if not found:
        yield from batches()


def _endless(batches: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
    """The batches that are not held out, round after round."""
    while True:
        yield from _of_kind(batches, held_out=False)
