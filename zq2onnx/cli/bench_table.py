"""The tables that `bench` prints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from zq2onnx.benchmark import Benchmark, OperatorUse, Timing


def speed_table(result: Benchmark) -> Table:
    """A line per shape and row."""
    threads = "" if result.threads is None else f", threads: {result.threads}"
    table = Table(title="speed", caption=f"onnxruntime {result.onnxruntime}{threads}")
    for heading in ("input", "model", "route"):
        table.add_column(heading, overflow="fold")
    unit = "samples" if result.rows[0].timings[0].shape.tokens is None else "tokens"
    for heading in ("ms", "10-90 %", f"{unit}/s", "vs first", "runs"):
        table.add_column(heading, justify="right")
    names = model_names(result)
    for index, timing in enumerate(result.rows[0].timings):
        shape = timing.shape.name
        for row in result.rows:
            table.add_row(shape, names[row.model], row.route.value, *_numbers(row.timings[index]))
            shape = ""
        table.add_section()
    return table


def memory_table(result: Benchmark) -> Table:
    """A line per row."""
    table = Table(title="loading and peak memory")
    table.add_column("model", overflow="fold")
    table.add_column("route")
    for heading in ("file MB", "load s", "MB when loaded", "MB after runs"):
        table.add_column(heading, justify="right")
    names = model_names(result)
    for row in result.rows:
        table.add_row(
            names[row.model],
            row.route.value,
            f"{row.bytes / 1e6:.2f}",
            f"{row.load_seconds:.2f}",
            f"{row.load_peak_bytes / 1e6:.0f}",
            f"{row.peak_bytes / 1e6:.0f}",
        )
    return table


def route_lines(result: Benchmark) -> Iterator[str]:
    """How many times as fast each model is on the fused route as on the stock one."""
    names = model_names(result)
    for stock, fused in itertools.pairwise(result.rows):
        if fused.route == "fused":  # which follows the stock one
            pairs = zip(stock.timings, fused.timings, strict=True)
            told = ", ".join(f"{two.speedup / one.speedup:.2f}x for {two.shape.name}" for one, two in pairs)
            yield f"{names[fused.model]}: fused against stock {told}"


def operator_lines(result: Benchmark) -> Iterator[str]:
    """What the operators of each model run by, and why."""
    names = model_names(result)
    for model, uses in result.operators.items():
        if not uses:
            yield f"{names[model]}: no nodes of ai.zq2onnx, nothing to fuse"
        for use in uses:
            yield f"{names[model]}: {_use(use)}"
        if uses and not any(use.fused for use in uses):
            yield f"{names[model]}: nothing is fused; --ops all tries every kernel"
    if result.device != "cpu":
        yield f"on {result.device}, onnxruntime {result.onnxruntime}"
    if result.kernels:
        yield f"kernels of the operator library here, best first: {' '.join(result.kernels)}"


def model_names(result: Benchmark) -> dict[str, str]:
    """File names by path; the paths where two are of one name."""
    paths = list(dict.fromkeys(row.model for row in result.rows))
    names = [Path(path).name for path in paths]
    return dict(zip(paths, names if len(set(names)) == len(names) else paths, strict=True))


def _use(use: OperatorUse) -> str:
    nodes = f"{use.nodes} node{'' if use.nodes == 1 else 's'} of {use.name}"
    if use.fused:
        return f"{nodes} by the library ({use.why})"
    return f"{nodes} by {'its' if use.nodes == 1 else 'their'} function, on stock kernels ({use.why})"


def _numbers(timing: Timing) -> tuple[str, ...]:
    return (
        milliseconds(timing.median_ms),
        f"{milliseconds(timing.p10_ms)} - {milliseconds(timing.p90_ms)}",
        f"{timing.rate:.0f}" if timing.rate >= 100 else f"{timing.rate:.1f}",
        f"{timing.speedup:.2f}x",
        str(timing.runs),
    )


def milliseconds(value: float) -> str:
    """
    >>> milliseconds(0.01234), milliseconds(1.234), milliseconds(123.4), milliseconds(12345.6)
    ('0.012', '1.23', '123', '12346')
    """
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if value < 1 else f"{value:.3g}"
