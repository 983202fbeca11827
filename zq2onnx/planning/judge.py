"""Measures what a plan costs in perplexity: converts by it, and runs the result on held-out texts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.evaluation import check_perplexity, evaluate, plan_evaluation
from zq2onnx.evaluation.metrics import gap_error
from zq2onnx.pipeline import convert
from zq2onnx.planning.plan import Plan
from zq2onnx.planning.survey import Progress

JUDGED_WINDOWS = 40
"""Of each text that the class is judged by, the first ones."""


@dataclass(frozen=True)
class Judge:
    """Measures the perplexity above the float model's, of one plan after the other.

    Attributes:
        model: the float model.
        output: what is to be written; trials lie beside it, where there must be room anyway.
        calib: calibration data.
        tokenizer: as `convert` takes it; the model's folder where it is None.
        texts: what is judged by.
        blocks: told of the blocks of a trial that are calibrated.
        gradients: of the steps of a trial's pass that gathers gradients.
    """

    model: Path
    output: Path
    calib: Path
    tokenizer: Path | None
    texts: Sequence[str | Path]
    blocks: Progress | None = None
    gradients: Progress | None = None

    def check(self) -> None:
        """Find out whether model, tokenizer and texts fit each other; nothing is run.

        Raises:
            UserError: they do not, or there is no text.
        """
        if not self.texts:
            raise UserError(
                "--budget by class, without a text",
                "a held-out text to judge it by",
                "give --budget-text FILE",
            )
        plan_evaluation([self.model], self.texts, self._token_file, windows=JUDGED_WINDOWS)

    @cached_property
    def reference(self) -> float:
        """The float model's perplexity.

        Raises:
            UserError: it is not finite, or the model cannot be run.
        """
        found = evaluate([self.model], self.texts, self._token_file, windows=JUDGED_WINDOWS)
        check_perplexity(found)
        mean = found.models[0].mean
        if not math.isfinite(mean):
            raise UserError(
                f"{self.model}: its perplexity is {mean}: its logits are not all finite",
                "a float model that can be judged by its perplexity",
                "give --budget in bits or bytes",
            )
        return mean

    def gap(self, plan: Plan) -> float:
        """The gap of a plan, a standard error added: of many plans some come below a bound by luck.

        The plan's divergence is taken as it is estimated. What is written for the trial is removed, and what
        a killed run left of its own.
        """
        folder = self._trials
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            recipe, trial = folder / "plan.toml", folder / "trial.onnx"
            plan.save(recipe)
            convert(
                self.model,
                trial,
                recipe=recipe,
                calib=self.calib,
                tokenizer=self.tokenizer,
                check="none",
                block_progress=self.blocks,
                gradient_progress=self.gradients,
            )
            found = evaluate([trial], self.texts, self._token_file, windows=JUDGED_WINDOWS)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return found.models[0].mean - self.reference + gap_error(self.reference, plan.cost, found.positions)

    @property
    def _token_file(self) -> Path:
        return self.tokenizer or self.model.parent

    @property
    def _trials(self) -> Path:
        """A folder of this output's own."""
        folder = self.output.parent
        beside = folder if folder.is_dir() else folder.parent
        return beside / f".{self.output.name}.trial"
