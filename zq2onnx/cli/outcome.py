"""What `convert` prints when it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from zq2onnx.cli import console
from zq2onnx.report import CheckReport, NodeReport, Report

_CPU_PROVIDER = "CPUExecutionProvider"
_MUCH_TO_LOAD = 100_000_000
"""Bytes; less is not worth a line."""


def print_report(report: Report) -> None:
    """The conversion in a few lines."""
    for warning in report.warnings:
        console.stderr.print(f"warning: {warning}")
    if report.profile is not None:
        console.stdout.print(str(report.profile))
    quantized = report.quantized
    if not quantized:
        console.stdout.print(f"{report.output}: nothing to quantize, the input was written unchanged")
        console.stdout.print(f"left as they are: {_reasons(report)}")
        return
    ratio = report.bytes_before / report.bytes_after
    console.stdout.print(
        f"{report.output}: {report.bytes_before / 1e6:.2f} MB -> {report.bytes_after / 1e6:.2f} MB"
        f" ({ratio:.2f}x), {report.effective_bits:.2f} bits per quantized weight"
    )
    console.stdout.print(
        f"quantized {len(quantized)} nodes: {_mean_errors(quantized)}; left float: {_reasons(report)}"
    )
    for reason, count in _counted(quantized).items():
        console.stdout.print(f"of these, {count}: {reason}")
    _print_merging(report)
    _print_smoothing(report)
    console.stdout.print(f"took {report.seconds:.1f} s, peak memory {report.peak_rss_bytes / 1e6:.0f} MB")
    if report.reused_weights:
        console.stdout.print(f"{report.reused_weights} weights were taken over from the interrupted run")
    console.stdout.print(requirements(report))
    if report.load_bytes is not None and report.load_bytes >= _MUCH_TO_LOAD:
        console.stdout.print(
            f"stock ONNX Runtime needs about {report.load_bytes / 1e6:.0f} MB to load the rewritten weights"
        )
    if report.check is not None:
        _print_check(report.check)


def _print_merging(report: Report) -> None:
    """Which products of one input became one, if that was asked for."""
    merged = [node for node in report.quantized if node.merged]
    if merged:
        before = sum(len(node.merged) for node in merged)
        console.stdout.print(f"merged {before} nodes that read the same inputs into {len(merged)}")
    if report.not_merged:
        reasons = set(report.not_merged.values())
        why = reasons.pop() if len(reasons) == 1 else "--report FILE.json says why"
        console.stdout.print(f"not merged: {len(report.not_merged)} nodes that read what others do ({why})")


def _print_smoothing(report: Report) -> None:
    """Where outliers of int8 activations went, if there are such activations."""
    if report.smoothed:
        console.stdout.print(
            f"smoothed {len(report.smoothed)} normalizations: outliers moved into the weights behind them"
        )
    if report.not_smoothed:
        reasons = set(report.not_smoothed.values())
        why = reasons.pop() if len(reasons) == 1 else "--report FILE.json says why"
        console.stdout.print(f"not smoothed: the inputs of {len(report.not_smoothed)} nodes ({why})")


def _print_check(check: CheckReport) -> None:
    console.stdout.print(
        f"checked {check.nodes_checked} nodes in ONNX Runtime against the oracle:"
        f" largest error {check.worst_error:.1e} ({check.worst_node})"
    )
    if check.mode == "full" and not any(note.startswith("whole model not run") for note in check.notes):
        console.stdout.print("the whole model ran, and its outputs are finite")
    for note in check.notes:
        console.stdout.print(f"note: {note}")


def requirements(report: Report) -> str:
    """What it takes to run the file."""
    needs = [f"onnxruntime >= {report.requires.onnxruntime}"]
    if _CPU_PROVIDER not in report.requires.providers:
        needs.append(f"a GPU ({', '.join(report.requires.providers)})")
    text = f"needs {', '.join(needs)}"
    for key, value in report.requires.session_config.items():
        text += (
            f"; the session option {key}={value} keeps float activations float"
            " (without it ONNX Runtime rounds them to int8: faster, less exact)"
        )
    return text


def _mean_errors(nodes: list[NodeReport]) -> str:
    """Mean relative errors: of the weights, and of the outputs where calibration saw them."""
    weight = _mean([(node.weight_error, node.weight_error_without_lorc) for node in nodes])
    output = _mean([(node.output_error, node.output_error_without_lorc) for node in nodes])
    return f"weight error {weight or 'unknown'}" + (f", output error {output}" if output else "")


def _mean(errors: Sequence[tuple[float | None, float | None]]) -> str:
    """The mean with and without branch; "" where none is known."""
    known = [(error, plain) for error, plain in errors if error is not None and plain is not None]
    if not known:
        return ""
    mean, plain = (sum(values) / len(known) for values in zip(*known, strict=True))
    return f"{mean:.4f}" if mean == plain else f"{mean:.4f} (without low-rank branch {plain:.4f})"


def _reasons(report: Report) -> str:
    """How many nodes stayed float, by reason."""
    return "; ".join(f"{count} ({reason})" for reason, count in _counted(report.skipped).items()) or "none"


def _counted(nodes: Sequence[NodeReport]) -> Counter[str]:
    """How many nodes have a reason, by its words before the numbers."""
    return Counter(node.reason.partition(": ")[0] for node in nodes if node.reason)
