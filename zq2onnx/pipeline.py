"""`convert`: the whole conversion, top to bottom."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common

from zq2onnx.calibration.samples import Samples
from zq2onnx.conversion.calibration import BlockProgress, read_samples, set_up
from zq2onnx.conversion.choices import Choices
from zq2onnx.conversion.dumps import Dumps
from zq2onnx.conversion.finish import copy_unchanged, finish, least_ir_version, stale_data
from zq2onnx.conversion.identity import journal_header, stamp
from zq2onnx.conversion.loading import Source, load, naming
from zq2onnx.conversion.options import Options, check_scheme, resolve
from zq2onnx.conversion.placement import plan_output
from zq2onnx.conversion.profiles import GENAI, genai_obstacles
from zq2onnx.conversion.stream import Progress, Writer
from zq2onnx.conversion.stream_calibrated import CalibratedWriter
from zq2onnx.conversion.summary import fill_nodes, fill_sizes, fill_smoothing, peak_rss_bytes, requirements
from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.passes.add_low_rank import AddLowRankPass
from zq2onnx.passes.drop_low_rank import DropLowRankPass
from zq2onnx.passes.insert_activation_qdq import InsertActivationQdqPass
from zq2onnx.passes.insert_embedding_qdq import InsertEmbeddingQdqPass
from zq2onnx.passes.insert_qdq import InsertQdqPass
from zq2onnx.passes.lower_embeddings import LowerEmbeddingsPass
from zq2onnx.passes.lower_portable import LowerToPortablePass
from zq2onnx.passes.merge_siblings import MergeSiblingsPass
from zq2onnx.passes.narrow import NarrowFloatsPass
from zq2onnx.passes.narrow_codes import NarrowCodesPass
from zq2onnx.passes.normalize import NormalizePass
from zq2onnx.passes.raise_opset import BODY_OPSET, INT2_OPSET, QDQ_OPSET, RaiseOpsetPass
from zq2onnx.passes.select_nodes import Selection, select_nodes
from zq2onnx.passes.smooth import SmoothPass
from zq2onnx.passes.unpack_embeddings import UnpackEmbeddingsPass
from zq2onnx.passes.widen import WidenToFloat32Pass
from zq2onnx.report import Report
from zq2onnx.runtime.providers import require_onnxruntime, usable_cores
from zq2onnx.scheme import BiasPlace, CheckMode, FloatType, Target, parse_choice
from zq2onnx.storage.companions import add_companions
from zq2onnx.storage.failures import keeping_the_journal
from zq2onnx.storage.journal import Journal
from zq2onnx.storage.lock import locked
from zq2onnx.storage.output import OutputFiles
from zq2onnx.storage.paths import check_side_files
from zq2onnx.verify import check as check_model

MOST_JOBS = 8
"""Weights quantized at a time where nobody says how many."""


def convert(
    model: str | Path,
    output: str | Path | None = None,
    *,
    profile: str | None = None,
    scheme: str | None = None,
    group_size: int | str | None = None,
    symmetric: bool | None = None,
    method: str | None = None,
    clip: str | None = None,
    lorc_rank: int | None = None,
    lorc_dtype: str | None = None,
    lorc: str | None = None,
    lorc_rounds: int | None = None,
    objective: str | None = None,
    act_granularity: str | None = None,
    smooth: str | None = None,
    calib: str | Path | None = None,
    tokenizer: str | Path | None = None,
    calib_samples: int | None = None,
    calib_length: int | None = None,
    calib_inputs: str | None = None,
    embedding_bits: int | None = None,
    dtype: str | None = None,
    target: str | None = None,
    bias: str | None = None,
    merge: bool | None = None,
    only: Sequence[str] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    recipe: str | Path | None = None,
    jobs: int | None = None,
    resume: bool = False,
    check: str = "sample",
    report: str | Path | None = None,
    dump_passes: str | Path | None = None,
    single_file: bool | None = None,
    force: bool = False,
    progress: Progress | None = None,
    block_progress: BlockProgress | None = None,
    gradient_progress: BlockProgress | None = None,
    check_progress: Progress | None = None,
) -> Report:
    """Quantize an exported transformer and write a model that stock ONNX Runtime runs.

    Arguments are the options of `zq2onnx convert`, whose help describes them; None means the
    recipe's value, the profile's or the default.

    Args:
        model: ONNX file; its external data beside it.
        output: file to write, by default `MODEL.SCHEME.onnx` beside the input. Weights go to
            `OUT.onnx.data`.
        progress: called with the number of parameters done since the last call and of all.
        block_progress: called with the number of transformer blocks calibrated so far and of all.
        gradient_progress: called with the number of steps done so far, and of all, of the pass over the
            model that gathers gradients for `objective="model"`.
        check_progress: called with the number of nodes checked so far and of those to check.

    Returns:
        What was done to every node, sizes, errors and what the file needs to run.

    Raises:
        UserError: the input, an option or the output path is not usable, or another process is
            writing this output; nothing is left behind.
        CheckFailed: the file was written and does not compute what it should.
    """
    started = time.monotonic()
    said = Choices(
        profile=profile,
        scheme=scheme,
        group_size=group_size,
        symmetric=symmetric,
        method=method,
        clip=clip,
        lorc_rank=lorc_rank,
        lorc_dtype=lorc_dtype,
        lorc=lorc,
        lorc_rounds=lorc_rounds,
        objective=objective,
        act_granularity=act_granularity,
        smooth=smooth,
        calib_samples=calib_samples,
        calib_length=calib_length,
        calib_inputs=calib_inputs,
        embedding_bits=embedding_bits,
        dtype=dtype,
        target=target,
        bias=bias,
        merge=merge,
        single_file=single_file,
        only=_patterns(only),
        include=_patterns(include),
        exclude=_patterns(exclude),
    )
    check_byte_order()
    options = resolve(said, _path(recipe), calib is not None)
    mode = parse_choice(CheckMode, check, "check")
    if mode is not CheckMode.NONE or calib is not None:
        require_onnxruntime()
    workers = default_jobs() if jobs is None else jobs
    if workers < 1:
        raise UserError(f"{workers} jobs", "1 or more")
    source = load(Path(model))
    path = default_output(source.path, options) if output is None else Path(output)
    files = OutputFiles(path, options.single_file)
    files.check_inputs(source.files)
    samples = read_samples(source, options, _path(calib), _path(tokenizer))
    dumps = Dumps(_path(dump_passes))
    report_path = _path(report)
    with locked(files):
        journal = Journal(files.journal, journal_header(source, options, samples))
        resumed = resume and journal.resume()
        files.check(force or (resumed and journal.wrote(path)))
        check_side_files(report_path, dumps.folder, [*source.files, *files.final, *files.unfinished])
        files.stale = stale_data(files, source)
        result = Report(options.describe(), requirements(source.model), str(path), options.target.value)
        result.bytes_before = source.nbytes
        result.profile = None if options.profile is None else options.profile.report
        selection = prepare(source, options, result, dumps)
        if selection.chosen:
            run = Run(source, options, files, journal, dumps, resumed, samples)
            quantize(
                run,
                selection,
                result,
                workers,
                progress or _silent,
                block_progress or _silent,
                gradient_progress or _silent,
            )
        else:
            copy_unchanged(source, files)
            result.bytes_after = source.nbytes
        for kept in add_companions(source.path.parent, path.parent):
            result.warnings.append(f"{kept} differs from the input's, and was kept")
        if options.profile is not None and options.profile.profile is GENAI:
            result.warnings += genai_obstacles(source.model, path)
        failure = verify(source, result, mode, check_progress)
        result.seconds = time.monotonic() - started
        result.peak_rss_bytes = peak_rss_bytes()
        if report_path is not None:
            report_path.parent.mkdir(exist_ok=True)
            result.save(report_path)
        files.discard()
    if failure is not None:
        raise failure
    return result


@dataclass(frozen=True)
class Run:
    """What a conversion works with."""

    source: Source
    options: Options
    files: OutputFiles
    journal: Journal
    dumps: Dumps
    resumed: bool
    samples: Samples | None = None


def check_byte_order() -> None:
    """ONNX stores little-endian bytes, and weights are mapped as they are stored.

    Raises:
        UserError: this machine has another byte order.
    """
    if sys.byteorder != "little":
        raise UserError(
            f"this machine is {sys.byteorder}-endian", "a little-endian one", "convert the model on another"
        )


def prepare(source: Source, options: Options, result: Report, dumps: Dumps) -> Selection:
    """Normalize, select; where there is something to quantize, raise the opset, merge, convert floats and
    select again; tell the report.

    A model without anything to quantize is written unchanged, so its opset is of no concern.
    """
    graph = source.model
    normalize, raising = NormalizePass(), raise_opset(options)
    with naming(source.path):
        dumps.run([normalize], graph)
        selection = select_nodes(graph, options.policy)
        if selection.chosen:
            dumps.run([raising], graph)
            if options.merge:
                merging = MergeSiblingsPass(select_nodes(graph, options.policy))
                dumps.run([merging], graph)
                result.not_merged = merging.refused
            dumps.run(float_passes(options), graph)
            selection = select_nodes(graph, options.policy)
    result.nodes = selection.reports
    if any(scheme.bits == 3 for _, scheme in selection.chosen.values()) and options.target is Target.QDQ:
        result.warnings.append("standard ONNX has no 3-bit type: qdq stores 3-bit codes in 4 bits")
    if not selection.chosen and source.data and Path(result.output).parent.resolve() == source.folder:
        names = ", ".join(path.name for path in source.data)
        result.warnings.append(f"{result.output} reads its weights from the input's data: {names}")
    for _, scheme in selection.chosen.values():
        check_scheme(scheme, options)
    if selection.chosen:
        result.warnings += [*normalize.warnings, *selection.warnings, *raising.warnings]
        result.warnings += [] if options.profile is None else options.profile.obstacles(selection.layouts)
    elif options.dtype is not FloatType.KEEP:
        result.warnings.append(
            f"dtype {options.dtype.value}: only a model that is quantized is converted to it"
        )
    return selection


def quantize(
    run: Run,
    selection: Selection,
    result: Report,
    workers: int,
    progress: Progress,
    block_progress: BlockProgress,
    gradient_progress: BlockProgress,
) -> None:
    """Rewrite the graph, stream the weights, publish the files; tell the report."""
    graph, files = run.source.model, run.files
    calibration = set_up(run.source, run.options, run.samples, selection, block_progress, gradient_progress)
    sites = () if calibration is None else calibration.sites
    with naming(run.source.path):
        run.dumps.run(passes_for(run.options, selection, graph), graph)
    plan = plan_output(graph, inline={vector.constant.name for site in sites for vector in site.vectors})
    files.check_size(plan.data.size + plan.factors.size)
    with keeping_the_journal(files, run.journal):
        files.reserve(plan.data.size, plan.factors.size, keep=run.resumed)
        run.journal.open()
        with naming(run.source.path):
            writer = Writer(plan, files, run.journal, progress)
            if calibration is not None:
                writer = CalibratedWriter(plan, files, run.journal, progress, calibration)
            written = writer.run(workers)
        DropLowRankPass({weight for weight, facts in written.facts.items() if facts.dropped})(graph)
        SmoothPass(sites, written.smoothing)(graph)
        graph.ir_version = least_ir_version(graph)
        graph.metadata_props.update(stamp(run.source, run.options, written, run.samples))
        finish(graph, plan, files, run.journal)
    result.requires = requirements(graph)
    result.warnings += [*(() if run.samples is None else run.samples.warnings), *written.warnings]
    fill_nodes(result, selection, written.facts)
    fill_smoothing(result, selection, calibration, written.smoothing)
    fill_sizes(result, plan, written.facts)
    result.reused_weights = written.reused
    result.bytes_after = files.nbytes
    if result.bytes_after >= result.bytes_before:
        result.warnings.append("the output is no smaller than the input")


def raise_opset(options: Options) -> RaiseOpsetPass:
    """21 for blocked Q/DQ and 4-bit tensors, 25 for 2-bit ones; portable bodies can do with 18."""
    if options.target is Target.PORTABLE:
        return RaiseOpsetPass(QDQ_OPSET, least=BODY_OPSET)
    bits = {options.policy.scheme.bits, *(rule.overrides.get("bits") for rule in options.policy.rules)}
    return RaiseOpsetPass(INT2_OPSET if 2 in bits else QDQ_OPSET, least=QDQ_OPSET)


def float_passes(options: Options) -> list[ir.passes.PassBase]:
    """To the float type that was asked for; from one half type to the other by way of float32."""
    bfloat16, float16 = ir.DataType.BFLOAT16, ir.DataType.FLOAT16
    match options.dtype:
        case FloatType.FP32:
            return [WidenToFloat32Pass()]
        case FloatType.FP16:
            return [WidenToFloat32Pass((bfloat16,)), NarrowFloatsPass(float16)]
        case FloatType.BF16:
            return [WidenToFloat32Pass((float16,)), NarrowFloatsPass(bfloat16)]
        case FloatType.KEEP:
            return []


def passes_for(options: Options, selection: Selection, model: ir.Model) -> list[ir.passes.PassBase]:
    """The compiler: middle form, branch, target, clean-up."""
    middle = [
        InsertQdqPass(selection),
        InsertEmbeddingQdqPass(selection),
        AddLowRankPass(),
    ]
    if options.target is Target.QDQ:
        middle.append(InsertActivationQdqPass())
    if options.target is Target.PORTABLE:
        lower = [LowerToPortablePass(bias=options.bias is BiasPlace.INSIDE), LowerEmbeddingsPass()]
    else:
        narrow = [NarrowCodesPass()] if model.opset_imports[""] >= INT2_OPSET else []
        lower = [*narrow, UnpackEmbeddingsPass()]
    return [*middle, *lower, common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass()]


def verify(
    source: Source, report: Report, mode: CheckMode, progress: Progress | None = None
) -> CheckFailed | None:
    """Check the written file; the failure is returned, so that the report can be saved first."""
    names = [node.name for node in report.quantized]
    if mode is CheckMode.NONE or not names:
        return None
    try:
        written = Path(report.output)
        report.check = check_model(written, names, mode, original=source.path, progress=progress)
    except CheckFailed as failure:
        return failure
    return None


def default_output(model: Path, options: Options) -> Path:
    """`MODEL.SCHEME.onnx` beside the input."""
    return model.with_name(f"{model.name.removesuffix('.onnx')}.{options.policy.scheme.name}.onnx")


def default_jobs() -> int:
    """The cores this process may use, `MOST_JOBS` at most: each job holds a weight in memory."""
    return min(usable_cores(), MOST_JOBS)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _patterns(given: Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    return (given,) if isinstance(given, str) else tuple(given)


def _silent(done: int, total: int) -> None:
    """The progress of whoever does not ask."""
