"""`convert` within a budget: plan, save the plan as a recipe, convert by it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zq2onnx.conversion.choices import Choices
from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.evaluation import evaluate
from zq2onnx.pipeline import convert
from zq2onnx.planning.budget import Budget, Bytes, Quality, parse_budget
from zq2onnx.planning.plan import Plan, read_origin
from zq2onnx.planning.planner import Planner
from zq2onnx.planning.quality import least_of_class
from zq2onnx.planning.survey import Steps
from zq2onnx.report import Report
from zq2onnx.storage.output import OutputFiles

JUDGED_WINDOWS = 40
"""Of each text that the class is judged by, the first ones."""


@dataclass(frozen=True)
class Spent:
    """What was planned, and what came of it.

    Attributes:
        plan: None where it was made by an earlier run, which was resumed.
        recipe: the file that holds it.
        report: of the conversion.
    """

    plan: Plan | None
    recipe: Path
    report: Report


def convert_within(
    model: str | Path,
    output: str | Path | None = None,
    *,
    budget: str,
    calib: str | Path,
    tokenizer: str | Path | None = None,
    texts: Sequence[str | Path] = (),
    plan_file: str | Path | None = None,
    recipe: str | Path | None = None,
    choices: Mapping[str, object] | None = None,
    steps: Steps | None = None,
    planned: Callable[[Plan], None] | None = None,
    resume: bool = False,
    force: bool = False,
    **run: object,
) -> Spent:
    """Choose bits, group size and rank of every layer so that a budget is best spent, and convert.

    Args:
        model: ONNX file.
        output: file to write, by default `MODEL.BUDGET.onnx` beside the input.
        budget: as `parse_budget` reads it.
        calib: calibration data.
        tokenizer: the model's `tokenizer.json`, or the folder that holds it.
        texts: held-out texts that a class is judged by; of no concern to other budgets.
        plan_file: where the plan is saved, by default `OUT.plan.toml`.
        recipe: options in TOML; what its tables fix for a node is kept.
        choices: other options of `convert` that change the bytes, by name. `scheme` gives the kind of
            activations, `group_size` the one size to try, `lorc_rank` the greatest rank.
        steps: told of the plan's progress.
        planned: told of the plan before the conversion begins.
        resume: go on with the plan and the journal of an interrupted run of the same input and options.
        force: overwrite output and plan.
        **run: options of `convert` that do not change the bytes.

    Raises:
        UserError: as `convert` does; the budget cannot be kept; a class is asked for without texts.
        CheckFailed: as `convert` does; or the output is larger than the budget.
    """
    source, limit = Path(model), parse_budget(budget)
    path = _default_output(source, limit) if output is None else Path(output)
    recipe_out = path.with_suffix(".plan.toml") if plan_file is None else Path(plan_file)
    if isinstance(limit, Quality) and not texts:
        raise UserError(f"--budget {budget}", "a held-out text to judge it by", "give --budget-text FILE")
    files = OutputFiles(path)
    files.check(force or resume)
    if recipe_out.exists() and not (force or resume):
        raise UserError(f"{recipe_out} exists", "a new path for the plan", "choose --plan, or add --force")
    token_file = None if tokenizer is None else Path(tokenizer)
    said = Choices(**(choices or {}))  # type: ignore[arg-type]
    planner = Planner(source, said, Path(calib), token_file, None if recipe is None else Path(recipe), path)
    marked = f"{planner.origin} {limit}"
    plan = None
    if not (resume and read_origin(recipe_out) == marked):
        planner.size_up(steps or Steps())
        plan = _plan(planner, limit, _Judge(source, path, Path(calib), token_file, texts))
        files.make_folder()
        plan.save(recipe_out, marked)
        if planned is not None:
            planned(plan)
    report = convert(
        source,
        path,
        recipe=recipe_out,
        calib=calib,
        tokenizer=tokenizer,
        resume=resume,
        force=force,
        **run,  # type: ignore[arg-type]
    )
    if isinstance(limit, Bytes) and report.bytes_after > limit.limit:
        raise CheckFailed(f"{path}: {report.bytes_after} bytes, more than the budget of {limit.limit}")
    return Spent(plan, recipe_out, report)


def _plan(planner: Planner, limit: Budget, judge: _Judge) -> Plan:
    if isinstance(limit, Quality):
        return least_of_class(planner, limit, judge.gap)
    return planner.plan(limit)


def _default_output(model: Path, budget: Budget) -> Path:
    """`MODEL.BUDGET.onnx` beside the input."""
    return model.with_name(f"{model.name.removesuffix('.onnx')}.{budget}.onnx")


@dataclass(frozen=True)
class _Judge:
    """Converts by a plan, and measures the perplexity above the float model's."""

    model: Path
    output: Path
    calib: Path
    tokenizer: Path | None
    texts: Sequence[str | Path]

    def gap(self, plan: Plan) -> float:
        """The gap. Trials lie beside the output, where there must be room anyway; nothing is left of them."""
        folder = self.output.parent
        beside = folder if folder.is_dir() else folder.parent
        with tempfile.TemporaryDirectory(prefix=".zq2onnx-", dir=beside) as scratch:
            recipe, trial = Path(scratch) / "plan.toml", Path(scratch) / "trial.onnx"
            plan.save(recipe)
            convert(
                self.model,
                trial,
                recipe=recipe,
                calib=self.calib,
                tokenizer=self.tokenizer,
                check="none",
            )
            tokenizer = self.tokenizer or self.model.parent
            return evaluate([self.model, trial], self.texts, tokenizer, windows=JUDGED_WINDOWS).models[1].gap
