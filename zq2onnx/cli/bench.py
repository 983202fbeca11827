"""`zq2onnx bench`: how fast models run, on stock ONNX Runtime and by the operator library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zq2onnx.cli.bench_table import memory_table, operator_lines, route_lines, speed_table
from zq2onnx.cli.console import progress, stdout
from zq2onnx.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from zq2onnx.benchmark import Agreement, Benchmark


def bench(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A converted model, or any other.")],
    against: Annotated[
        Path | None,
        typer.Option(metavar="OTHER.onnx", help="The model to compare it with, such as the float one."),
    ] = None,
    prompt: Annotated[
        list[int] | None,
        typer.Option(
            metavar="TOKENS",
            help="Length of a prompt. May be repeated.",
            show_default="128, or what the model takes",
        ),
    ] = None,
    past: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="With a KV cache among the inputs: tokens that it holds when the single one comes.",
            show_default="512, or what the context admits",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Sequences at once; samples at once with --npz.",
            show_default="1, or what the graph takes",
        ),
    ] = None,
    npz: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="In place of tokens, for any model: its inputs by name, samples along the first axis.",
        ),
    ] = None,
    ops: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,..|all|none",
            help="Operators that the library registers for the fused rows.",
            show_default="those that are measured to pay, or what ZQ2ONNX_OPS says",
        ),
    ] = None,
    provider: Annotated[
        str,
        typer.Option(metavar="cpu|cuda", help="What sessions run on; cuda needs onnxruntime-gpu and a GPU."),
    ] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Threads of ONNX Runtime.", show_default="as many as it chooses"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Time to measure for, all rows together; loading comes on top.",
            show_default="20",
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Instead of that: timed runs of each row and shape."),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as JSON too.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.")] = False,
) -> None:
    """Measure how fast a model runs, and in how much memory.

    A converted model runs on two routes: stock, where stock ONNX Runtime inlines the functions in the file;
    and fused, where the operator library's kernels take over the nodes of the operators it registers. Each
    model is timed on each of its routes, in a process of its own, with a prompt and with a single token:
    after --past tokens where the graph has a KV cache, else by itself. Tokens are random.

    Processes take turns, one running at a time, so that what else the machine does falls on all of them. `vs
    first` is how many times as fast a row is as the first one: the median over turns. `10-90 %` is the range
    that 80% of the runs lie in. Memory is the most that the process held at once, Python included; a GPU's is
    not counted. There inputs and outputs stay on the GPU.

    Both routes must compute the same: the largest difference of their outputs is printed, and more of it than
    the order of sums explains is an error (exit code 1).

    \b
    zq2onnx bench model.w4a16.onnx
    zq2onnx bench model.w4a16.onnx --against model.onnx --prompt 32 --prompt 512 --json speed.json
    zq2onnx bench model.w3a16.onnx --ops all --threads 1
    """
    from zq2onnx.benchmark import plan_benchmark

    if seconds is not None and runs is not None:
        raise UserError("--seconds and --runs together", "one of them")
    _check_json(json, [model, against, npz])
    plan = plan_benchmark(
        model,
        against=against,
        npz=npz,
        prompts=prompt or (),
        batch=batch,
        past=past,
        ops=None if ops is None else [name.strip() for name in ops.split(",") if name.strip()],
        threads=threads,
        runs=runs,
        provider=provider,
        **({} if seconds is None else {"seconds": seconds}),
    )
    with progress("timing", plan.work, quiet, unit="s" if runs is None else "runs") as advance:
        result = plan.run(advance)
    if json is not None:
        from zq2onnx.storage.text_file import write_whole

        json.parent.mkdir(exist_ok=True)
        write_whole(json, result.to_json())
    if not quiet:
        _print(result)
    _check(result.agreements)


def _check_json(json: Path | None, read: list[Path | None]) -> None:
    """Find out before any work whether the results can be written, and over nothing that is read."""
    from zq2onnx.evaluation import model_files
    from zq2onnx.storage.paths import check_folder, same_file

    if json is None:
        return
    if json.is_dir():
        raise UserError(f"--json {json}: a folder", "a file name")
    model, against, npz = read
    models = [file for path in (model, against) if path is not None for file in model_files(path)]
    configs = [path.parent / "config.json" for path in (model, against) if path is not None]
    if any(same_file(json, path) for path in (*models, *configs, *([npz] if npz else []))):
        raise UserError(f"--json {json}: it is one of the inputs", "another file")
    check_folder(json)


def _print(result: Benchmark) -> None:
    stdout.print(speed_table(result))
    stdout.print(memory_table(result))
    for line in (*route_lines(result), *operator_lines(result)):
        stdout.print(line)
    if result.agreements:
        worst = max(result.agreements, key=lambda each: each.difference)
        stdout.print(f"fused and stock outputs differ by {_difference(worst)}")


def _difference(agreement: Agreement) -> str:
    return (
        f"{agreement.difference:.1e} of the largest value at most"
        f" ({agreement.output}, {agreement.shape.name}; tolerated: {agreement.tolerance:g})"
    )


def _check(agreements: tuple[Agreement, ...]) -> None:
    """Fail on outputs that differ too much, once all was shown."""
    for agreement in agreements:
        if not agreement.holds:
            raise CheckFailed(
                f"{agreement.model}: fused and stock outputs differ by {_difference(agreement)}: a kernel of"
                " the operator library does not compute what its function says"
            )
