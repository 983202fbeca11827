"""What each linear layer of a float model would lose to each of several schemes."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import threadpoolctl

from zq2onnx.calibration.moment_store import OutputMoments
from zq2onnx.calibration.samples import Samples
from zq2onnx.calibration.walk import Walk
from zq2onnx.conversion.compute import float_matrix, not_finite
from zq2onnx.conversion.options import BY_GRADIENT
from zq2onnx.numerics.calibrated import Evidence
from zq2onnx.numerics.compensate import compensate
from zq2onnx.numerics.grid import Float32Array, Quantized, dequantize
from zq2onnx.numerics.lowrank import Factors, low_rank
from zq2onnx.numerics.moments import Moments
from zq2onnx.numerics.output_error import branch_gain, output_loss
from zq2onnx.numerics.quantize import quantize_weight
from zq2onnx.passes.planned import QuantizedWeight, WeightView
from zq2onnx.scheme import Compensation, Method, Objective, Scheme

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Loss:
    """What quantizing a layer costs by estimate.

    Attributes:
        layer: `tr(E R Eᵀ)`, the mean squared error of its output.
        model: `tr(G E R Eᵀ) / 2`, the divergence of the predictions to second order, in nats (K-FAC); None
            where the gradients at its output are not known.
    """

    layer: float
    model: float | None


@dataclass(frozen=True, eq=False)
class RoundedLayer:
    """One layer, quantized by one scheme.

    Attributes:
        node: its name.
        scheme: as it was asked for.
        quantized: its codes.
        factors: a branch of the greatest rank asked for; components that matter more come first.
        losses: by the rank of the branch: 0, and those asked for.
    """

    node: str
    scheme: Scheme
    quantized: Quantized
    factors: Factors | None
    losses: Mapping[int, Loss]

    def effective(self, rank: int) -> Float32Array:
        """What the layer multiplies with, `[N, K]`, with the first `rank` components of the branch."""
        values = dequantize(self.quantized, self.scheme.granularity)
        if self.factors is not None and rank > 0:
            u, v = self.factors.floats()
            values += (u[:, :rank] @ v[:rank]).T
        return values


def round_layers(
    model: ir.Model,
    path: Path,
    samples: Samples,
    views: Mapping[str, WeightView],
    schemes: Callable[[str], Sequence[Scheme]],
    ranks: Sequence[int],
    gradients: OutputMoments | None,
    *,
    jobs: int,
    progress: Progress | None = None,
) -> Iterator[RoundedLayer]:
    """Quantize every layer by every scheme, each on what the float model feeds it.

    Losses are those on held-out samples, where there are some. Layers that calibration does not reach are
    left out; distillation's codes are stood in for by GPTQ's.

    Args:
        model: the float graph, whose nodes have names of their own. What is float16 or bfloat16 in it
            becomes float32, in place.
        path: its file, for messages.
        samples: calibration samples.
        views: the layers' weights by node name.
        schemes: what to try, by node name.
        ranks: of the low-rank branches to try, beside none.
        gradients: moments of the gradients at the layers' outputs.
        jobs: how many to compute at a time.
        progress: is told how many layers of how many are done.

    Raises:
        UserError: a weight or an activation is NaN or infinite, or ONNX Runtime fails.
    """
    tell = progress or (lambda done, total: None)
    tell(0, len(views))
    done = 0
    with (
        Walk(model, path, samples, quantized_inputs=False) as walk,
        ThreadPoolExecutor(jobs, initializer=threadpoolctl.threadpool_limits, initargs=(1,)) as pool,
    ):
        for step in walk.steps():
            names = [name for name in step.linears() if name in views]
            moments = step.observe(names)
            with threadpoolctl.threadpool_limits(1):
                tasks: deque[Future[RoundedLayer]] = deque()
                for name in names:
                    moment = None if gradients is None else gradients.load(name)
                    layer = _Layer(name, views[name], moments[name], moment)
                    for scheme in schemes(name):
                        if len(tasks) > jobs:  # each holds a weight, and its result waits to be taken
                            yield tasks.popleft().result()
                        tasks.append(pool.submit(layer.round, scheme, ranks))
                while tasks:
                    yield tasks.popleft().result()
            done += len(names)
            tell(done, len(views))
            if done == len(views):
                break


class _Layer:
    """A layer's weight, and what calibration knows of it."""

    def __init__(self, name: str, view: WeightView, moments: Moments, gradients: Float32Array | None) -> None:
        self.name = name
        self.view = view
        self.moments = moments
        self.gradients = gradients

    def round(self, scheme: Scheme, ranks: Sequence[int]) -> RoundedLayer:
        """Quantize it, and judge what is lost with branches of several ranks."""
        weight = QuantizedWeight(self.view, scheme, self.name)
        matrix = np.array(float_matrix(weight), np.float32, order="C")
        numbers = quantize_weight(
            matrix, _codes_alone(scheme), self.view.dtype.numpy(), evidence=self._evidence(scheme)
        )
        if numbers.nonfinite:
            raise not_finite(weight, self.name, numbers.nonfinite)
        error = matrix - dequantize(numbers.quantized, scheme.granularity)
        losses, factors = {0: self._loss(error)}, None
        if wanted := [rank for rank in ranks if rank > 0]:
            factors = self._factors(error, dataclasses.replace(scheme, lorc_rank=max(wanted)))
            losses |= {rank: self._loss(error, factors, rank) for rank in wanted}
        return RoundedLayer(self.name, scheme, numbers.quantized, factors, losses)

    def _evidence(self, scheme: Scheme) -> Evidence:
        wanted = scheme.objective is Objective.MODEL
        return Evidence(self.moments, self.gradients if wanted else None)

    def _factors(self, error: Float32Array, scheme: Scheme) -> Factors:
        dtype = self.view.dtype.numpy()
        if scheme.lorc is Compensation.PLAIN:
            return low_rank(error, scheme.lorc_rank, scheme.lorc_dtype, dtype)
        gradients = self._evidence(scheme).gradients
        return compensate(error, scheme, dtype, self.moments.second, gradients)

    def _loss(self, error: Float32Array, factors: Factors | None = None, rank: int = 0) -> Loss:
        """What an error costs, less the first `rank` components of a branch."""
        judge = self.moments.second if self.moments.held_out is None else self.moments.held_out
        losses = [output_loss(error, judge)]
        if self.gradients is not None:
            losses.append(output_loss(error, judge, self.gradients) / 2)
        if factors is not None:
            u, v = (part.copy() for part in factors.floats())
            gains = [branch_gain(error, u[:, :rank], v[:rank], judge)]
            if self.gradients is not None:
                gains.append(branch_gain(error, u[:, :rank], v[:rank], judge, self.gradients) / 2)
            losses = [max(0.0, loss - gain) for loss, gain in zip(losses, gains, strict=True)]
        if not all(map(math.isfinite, losses)):
            losses = [math.inf for _ in losses]
        return Loss(losses[0], losses[1] if len(losses) > 1 else None)


def _codes_alone(scheme: Scheme) -> Scheme:
    """The same codes as far as they can be had at once: without a branch, and without distillation."""
    method = Method.GPTQ if scheme.method in BY_GRADIENT else scheme.method
    return dataclasses.replace(scheme, lorc_rank=0, lorc_rounds=1, method=method)
