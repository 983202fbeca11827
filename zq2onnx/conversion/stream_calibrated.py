"""Quantize a model's weights block by block, each by what calibration shows of its layer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import threadpoolctl

from zq2onnx.calibration.linears import find_linears
from zq2onnx.calibration.walk import Step, Walk
from zq2onnx.conversion.calibration import Calibration
from zq2onnx.conversion.compute import Facts, float_matrix, not_finite
from zq2onnx.conversion.options import CalibrationInputs
from zq2onnx.conversion.placement import Compute, Copy, Plan
from zq2onnx.conversion.reread import reread
from zq2onnx.conversion.static_scales import check_shared, check_told
from zq2onnx.conversion.stream import Progress, Writer, Written, finished
from zq2onnx.conversion.summary import UNREACHED
from zq2onnx.numerics.calibrated import Evidence
from zq2onnx.numerics.grid import Float32Array, Quantized
from zq2onnx.numerics.moments import Moments
from zq2onnx.numerics.smooth import smoothing_scales
from zq2onnx.passes.partition import Piece, blocks
from zq2onnx.passes.planned import QuantizedWeight
from zq2onnx.scheme import Method, Objective
from zq2onnx.storage.journal import Journal
from zq2onnx.storage.output import OutputFiles

if TYPE_CHECKING:
    from zq2onnx.calibration.torch_gradients import OutputMoments

ROUNDED = f"rounded to nearest: {UNREACHED}"


class CalibratedWriter(Writer):
    """A `Writer` that walks the float model, and quantizes each weight by what reaches its layer."""

    def __init__(
        self,
        plan: Plan,
        files: OutputFiles,
        journal: Journal,
        progress: Progress,
        calibration: Calibration,
    ) -> None:
        super().__init__(plan, files, journal, progress)
        self.calibration = calibration
        self.site_of = {name: site for site in calibration.sites for name in site.linears}
        self.smoothing: dict[str, Float32Array] = {}
        self.tasks = {task.weight: task for task in plan.tasks if isinstance(task, Compute)}
        self.done: set[QuantizedWeight] = set()
        self.behind: set[QuantizedWeight] = set()
        """Those that the walk has passed."""
        self.gradients: OutputMoments | None = None
        self.warnings: list[str] = []

    def run(self, jobs: int) -> Written:
        """Do every task that the journal does not hold; stops at the first error or Ctrl-C."""
        written = super().run(jobs)
        return dataclasses.replace(written, smoothing=self.smoothing, warnings=tuple(self.warnings))

    def _work(self, pool: ThreadPoolExecutor) -> None:
        weights = self.calibration.weights
        walked = {weight for weight in weights.values() if not weight.table}
        self.done = {weight for weight in walked if self._done_before(self.tasks[weight])}
        for weight in self.done:
            self._tell(self.tasks[weight])
        self._do_all(
            pool, [task for task in self.plan.tasks if isinstance(task, Copy) or task.weight not in walked]
        )
        linears = find_linears(self.calibration.model)
        reached = {weights[name] for name in weights if name in linears}
        check_told(self.tasks[weight] for weight in walked - self.done - reached)
        check_shared(weights, self.tasks, linears)
        # Before anything is run: what a NaN in a weight makes of activations would be blamed on them.
        finished([pool.submit(check_finite, self.tasks[weight]) for weight in walked - self.done])
        if walked - self.done or self.site_of:
            with contextlib.ExitStack() as stack:
                self._open_gradients(stack, walked - self.done)
                self._walk(pool, stack)
        self._round(pool, walked - self.done)

    def _round(self, pool: ThreadPoolExecutor, unreached: Collection[QuantizedWeight]) -> None:
        """Round what the walk did not reach to nearest."""
        tasks = [task for weight, task in self.tasks.items() if weight in unreached]
        check_told(tasks)
        notes = [ROUNDED if task.weight.scheme.calibrated else "" for task in tasks]
        with threadpoolctl.threadpool_limits(1):
            finished(
                [pool.submit(self._compute, task, note=note) for task, note in zip(tasks, notes, strict=True)]
            )

    def _open_gradients(self, stack: contextlib.ExitStack, left: Collection[QuantizedWeight]) -> None:
        """Gather the gradients at the outputs of the layers that ask for them."""
        asking = [
            name
            for name, weight in self.calibration.weights.items()
            if weight in left and weight.scheme.objective is Objective.MODEL and not weight.table
        ]
        if not asking:
            return
        from zq2onnx.calibration.torch_gradients import output_moments  # needs torch

        given = self.calibration
        moments = output_moments(
            given.model, given.source.path, given.samples, asking, progress=given.gradient_progress
        )
        self.gradients = stack.enter_context(moments)
        self.warnings += moments.notes

    def _walk(self, pool: ThreadPoolExecutor, stack: contextlib.ExitStack) -> None:
        given = self.calibration
        quantized_inputs = given.options.inputs is CalibrationInputs.QUANTIZED
        methods = {weight.scheme.method for weight in given.weights.values() if weight not in self.done}
        walk = Walk(
            given.model,
            given.source.path,
            given.samples,
            quantized_inputs=quantized_inputs,
            keep_teacher=Method.ZQ_GLOBAL in methods,
        )
        stack.enter_context(walk)
        groups = blocks(walk.pieces)
        block_of = [index for index, group in enumerate(groups) for _ in group]
        last = self._last_step(walk)
        chosen: dict[str, Quantized] = {}
        for step in walk.steps() if last >= 0 else ():
            group = groups[block_of[step.index]]
            if step.piece is group[0]:
                given.progress(block_of[step.index], block_of[last] + 1)
                chosen = self._choose(step, group)
            effective = self._step(pool, step, chosen)
            step.advance(effective if quantized_inputs and step.index < last else {})
            if step.index == last:
                given.progress(block_of[last] + 1, block_of[last] + 1)
                break
        if walk.obstacle:
            self.warnings.append(f"not calibrated from there on: {walk.obstacle}")

    def _last_step(self, walk: Walk) -> int:
        """The last piece that holds a node with something left to do; -1 where none does."""
        asking = {
            name
            for name, weight in self.calibration.weights.items()
            if not weight.table and (weight not in self.done or name in self.site_of)
        }
        holding = [
            index
            for index, piece in enumerate(walk.pieces)
            if any(node.name in asking for node in piece.nodes)
        ]
        return max(holding, default=-1)

    def _choose(self, step: Step, group: Sequence[Piece]) -> dict[str, Quantized]:
        """The codes of those layers of a block that are chosen together.

        All of them, where one is left to do: what an interrupted run chose for the others depends on it.
        """
        weights = self.calibration.weights
        linears = {
            name: weights[name]
            for name in (node.name or "" for piece in group for node in piece.nodes)
            if name in weights
            and weights[name].scheme.method is Method.ZQ_GLOBAL
            and weights[name] not in self.behind
        }
        if self.done.issuperset(linears.values()):
            return {}
        from zq2onnx.conversion.global_block import choose_block  # needs torch

        return choose_block(step, group, linears)

    def _step(
        self, pool: ThreadPoolExecutor, step: Step, chosen: Mapping[str, Quantized]
    ) -> dict[str, Float32Array]:
        """Quantize the layers of a piece; the weight that each multiplies with from now on."""
        weights = self.calibration.weights
        names = [name for name in step.linears() if name in weights]
        fresh = dict.fromkeys(weights[name] for name in names if weights[name] not in self.done)
        asked = [name for name in names if weights[name] in fresh or name in self.site_of]
        moments = step.observe(asked) if asked else {}
        self._smooth(moments)
        first = {weights[name]: name for name in reversed(names)}
        with threadpoolctl.threadpool_limits(1):
            futures = {
                weight: pool.submit(
                    self._quantize,
                    weight,
                    self._evidence(first[weight], moments, chosen),
                    self._sharing(weight, first[weight]),
                )
                for weight in fresh
            }
            finished(list(futures.values()))
            effective = {weight: future.result() for weight, future in futures.items()}
            for name in names:
                if weights[name] not in effective:
                    effective[weights[name]] = self._reread(weights[name])
        self.done.update(fresh)
        self.behind.update(effective)
        return {name: self._unsmoothed(name, effective[weights[name]]) for name in names}

    def _sharing(self, weight: QuantizedWeight, observed: str) -> str:
        """What is to be said of a weight that several nodes read."""
        readers = sum(other == weight for other in self.calibration.weights.values())
        if readers == 1:
            return ""
        return f"calibrated on the input of {observed!r} alone, of {readers} nodes that share its weight"

    def _quantize(self, weight: QuantizedWeight, evidence: Evidence, note: str) -> Float32Array:
        computed = self._compute(self.tasks[weight], evidence, note)
        return computed.numbers.effective(weight.scheme.granularity)

    def _reread(self, weight: QuantizedWeight) -> Float32Array:
        """What an earlier piece or an earlier run wrote."""
        task = self.tasks[weight]
        facts = Facts(**self.journal.entries[task.name].facts)
        return reread(task.parts, self._read, branch=not facts.dropped)

    def _evidence(
        self, name: str, moments: Mapping[str, Moments], chosen: Mapping[str, Quantized]
    ) -> Evidence:
        site = self.site_of.get(name)
        return Evidence(
            moments[name],
            None if self.gradients is None else self.gradients.load(name),
            None if site is None else self.smoothing.get(site.norm),
            chosen.get(name),
        )

    def _smooth(self, moments: Mapping[str, Moments]) -> None:
        """Choose what the input of each site in a piece is divided by, if all linears there are at hand."""
        for site in self.calibration.sites:
            if site.norm not in self.smoothing and moments.keys() >= {*site.linears}:
                peaks = [_peak(self.calibration.weights[name]) for name in site.linears]
                scales = smoothing_scales(moments[site.linears[0]].peak, np.max(peaks, axis=0))
                self.smoothing[site.norm] = site.fit(scales)

    def _unsmoothed(self, name: str, weight: Float32Array) -> Float32Array:
        """The same for an input that was not divided: what the float graph has."""
        site = self.site_of.get(name)
        scales = None if site is None else self.smoothing.get(site.norm)
        return weight if scales is None else weight / scales


def check_finite(task: Compute) -> None:
    """Make sure that a weight has no NaN and no infinity.

    Raises:
        UserError: it has.
    """
    matrix = float_matrix(task.weight)
    nonfinite = matrix.size - int(np.count_nonzero(np.isfinite(matrix)))
    if nonfinite:
        raise not_finite(task.weight, task.node, nonfinite)


def _peak(weight: QuantizedWeight) -> Float32Array:
    """Greatest `|W|` of each input channel, `[K]`."""
    matrix = float_matrix(weight)
    return np.abs(np.asarray(matrix, np.float32)).max(axis=0)
