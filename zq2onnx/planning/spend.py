"""`convert` within a budget: plan, save the plan as a recipe, convert by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zq2onnx.conversion.choices import Choices
from zq2onnx.conversion.options import resolve
from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.pipeline import convert
from zq2onnx.planning.budget import Budget, Bytes, Quality, parse_budget
from zq2onnx.planning.judge import Judge
from zq2onnx.planning.plan import Plan, read_origin
from zq2onnx.planning.planner import Planner
from zq2onnx.planning.quality import least_of_class
from zq2onnx.planning.survey import Steps
from zq2onnx.report import Report
from zq2onnx.scheme import CheckMode, parse_choice
from zq2onnx.storage.mapped import file_digest
from zq2onnx.storage.output import OutputFiles
from zq2onnx.storage.paths import check_folder, check_side_files, same_file


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
    recipe_out = _default_plan(path) if plan_file is None else Path(plan_file)
    given = None if recipe is None else Path(recipe)
    token_file = None if tokenizer is None else Path(tokenizer)
    said = Choices(**(choices or {}))  # type: ignore[arg-type]
    options = resolve(said, given, calibrated=True)
    if options.merge:
        raise UserError(
            f"--budget {budget} with --merge",
            "one of them",
            "layers are planned each by itself, by their names",
        )
    files = OutputFiles(path, options.single_file)
    files.check(force or resume)
    parse_choice(CheckMode, str(run.get("check", "sample")), "check")
    told = steps or Steps()
    judge = Judge(source, path, Path(calib), token_file, texts, told.blocks, told.gradients)
    if isinstance(limit, Quality):
        judge.check()
    planner = Planner(source, said, Path(calib), token_file, given, path)
    files.check_inputs(planner.source.files)
    read = [*planner.source.files, Path(calib), *map(Path, texts), *([] if given is None else [given])]
    _check_side_files(recipe_out, files, read, run)
    judged = map(Path, texts if isinstance(limit, Quality) else ())
    marked = " ".join([planner.origin, str(limit), *map(file_digest, judged)])
    plan = None
    if not (resume and read_origin(recipe_out) == marked):
        _check_new(files, recipe_out, force)
        plan = _make_plan(planner, limit, files, judge, told)
        files.make_folder()
        recipe_out.parent.mkdir(exist_ok=True)
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


def _make_plan(planner: Planner, limit: Budget, files: OutputFiles, judge: Judge, steps: Steps) -> Plan:
    """Size up the layers and choose; what can be known to be in vain is found out before."""
    if isinstance(limit, Quality):
        _ = judge.reference  # told now if it is none
        planner.size_up(steps)
        return least_of_class(planner, limit, judge.gap)
    files.check_size(planner.check(limit).bytes)
    planner.size_up(steps)
    return planner.plan(limit)


def _check_side_files(
    plan: Path, files: OutputFiles, read: Sequence[Path], run: Mapping[str, object]
) -> None:
    """Make sure that plan, report and dumps can be written, and over nothing that is read or written too.

    Args:
        plan: where the plan is to be saved.
        files: the output.
        read: the input's files, and all others that are given.
        run: options of `convert` that do not change the bytes.

    Raises:
        UserError: one cannot.
    """
    report, dumps = (
        None if run.get(key) is None else Path(str(run[key])) for key in ("report", "dump_passes")
    )
    written = [*files.final, *files.unfinished]
    if plan.is_dir():
        raise UserError(f"--plan {plan} is a folder", "a file name")
    others = [*read, *written, *([] if report is None else [report])]
    if any(same_file(plan, path) for path in others):
        raise UserError(f"--plan {plan} is another file of this run", "a file for the plan alone")
    check_folder(plan)
    check_side_files(report, dumps, [*read, *written])


def _check_new(files: OutputFiles, plan: Path, force: bool) -> None:
    """Make sure that nothing is overwritten that nobody said."""
    files.check(force)
    if plan.exists() and not force:
        raise UserError(f"{plan} exists", "a new path for the plan", "choose --plan, or add --force")


def _default_plan(output: Path) -> Path:
    """`OUT.plan.toml` for `OUT.onnx`, and `OUT.v2.plan.toml` for `OUT.v2`."""
    return output.with_name(f"{output.name.removesuffix('.onnx')}.plan.toml")


def _default_output(model: Path, budget: Budget) -> Path:
    """`MODEL.BUDGET.onnx` beside the input."""
    return model.with_name(f"{model.name.removesuffix('.onnx')}.{budget}.onnx")
