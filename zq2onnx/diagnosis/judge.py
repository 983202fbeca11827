"""Decides which layers to look into, and what to say of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zq2onnx.diagnosis.causes import explain, explain_rows
from zq2onnx.diagnosis.examination import Examination, examine
from zq2onnx.diagnosis.findings import Cause, Finding
from zq2onnx.diagnosis.jump import Jump, LayerError, find_jump, stands_out, usual_error
from zq2onnx.diagnosis.matching import Layer
from zq2onnx.diagnosis.measure import Energies, Feeds
from zq2onnx.diagnosis.running import Opened
from zq2onnx.diagnosis.weight_rules import not_finite

MOST_LAYERS = 4
"""Layers that are looked into at most, besides those with bad rows."""

_BAD = 0.7
"""Relative error of a row's output from which on its weights are looked at; that of a dead row is 1, less
what its bias makes of its output."""
_BAD_BESIDE = 0.4
"""The same of the median row, at most: where all rows are bad, none stands out."""
_OWN = 0.5
"""An accumulated error is the layer's own if this share of it would be there without any before."""
_AMPLIFIES = 2.0
"""What lies between two layers amplifies if it makes this many times the largest error before."""


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a pair of models.

    Attributes:
        usual: the usual own error of a quantized layer.
        jump: where the error jumps first; None where it does not.
        findings: what ails layers, that of `jump` first.
    """

    usual: float
    jump: Jump | None
    findings: tuple[Finding, ...]


def judge(
    layers: Sequence[Layer],
    errors: Sequence[LayerError],
    energies: Sequence[Energies],
    of_float: Opened,
    quantized: Opened,
    feeds: Feeds,
) -> Verdict:
    """Find the jump, its cause, and other layers that something ails.

    Args:
        layers: in the models' order.
        errors: one for each.
        energies: one for each.
        of_float: the float model.
        quantized: the other.
        feeds: the samples.

    Raises:
        UserError: ONNX Runtime cannot load or run one of the models.
    """
    usual = usual_error(errors)
    found = find_jump(errors, usual)
    first = [] if found is None else [found[0]]
    outstanding = [
        index for index, each in enumerate(errors) if stands_out(each, usual) and index not in first
    ]
    outstanding.sort(key=lambda index: -np.nan_to_num(errors[index].own or 0.0, nan=np.inf))
    chosen = [*first, *outstanding[: MOST_LAYERS - len(first)]]
    suspects = [index for index, each in enumerate(energies) if _has_bad_rows(each)][:MOST_LAYERS]
    wanted = dict.fromkeys([*chosen, *suspects])
    seen = examine([layers[index] for index in wanted], of_float, quantized, feeds)
    findings = [_explain_jump(first[0], errors, energies, seen)] if first else []
    findings += [
        explain(seen[errors[index].name]) for index in chosen[len(first) :] if errors[index].name in seen
    ]
    told = {(each.layer, each.cause) for each in findings}
    for name in (errors[index].name for index in wanted):
        found_rows = explain_rows(seen[name]) if name in seen else None
        if found_rows is not None and (name, found_rows.cause) not in told:
            findings.append(found_rows)
    return Verdict(usual, None if found is None else found[1], tuple(findings))


def _has_bad_rows(sums: Energies) -> bool:
    alive = sums.rows > 0
    if sums.own_rows.shape != sums.rows.shape or not alive.any():
        return False
    errors = np.sqrt(sums.own_rows[alive] / sums.rows[alive])
    return bool(np.median(errors) <= _BAD_BESIDE and errors.max() > _BAD)


def _explain_jump(
    index: int, errors: Sequence[LayerError], energies: Sequence[Energies], seen: dict[str, Examination]
) -> Finding:
    """The cause of the first jump."""
    error = errors[index]
    if error.broken:
        return _explain_broken(error, energies[index], seen.get(error.name))
    if error.own is None:
        return Finding(error.name, Cause.NONE, f"its cause cannot be told: {error.note}")
    if error.own**2 < _OWN * error.accumulated**2:
        return _explain_inherited(error, errors[:index])
    if error.name in seen:
        return explain(seen[error.name])
    return Finding(
        error.name,
        Cause.NONE,
        "the error is its own; its cause cannot be told: its weights cannot be read off",
    )


def _explain_broken(error: LayerError, sums: Energies, seen: Examination | None) -> Finding:
    """The first layer with NaN or infinity: its weights, its product, or what comes before it."""
    said = f"{sums.broken} of {sums.numbers} numbers of its output are NaN or infinite"
    if sums.broken_input:
        sentence = f"{said}, and so are {sums.broken_input} of its input: the fault lies before it"
        return Finding(error.name, Cause.NOT_FINITE, sentence)
    weights = None if seen is None else not_finite(seen)
    if weights is not None:
        return Finding(error.name, Cause.NOT_FINITE, f"{said}: {weights.sentence}", 1.0, weights.indices)
    sentence = f"{said}; its input and its weights are finite: its product overflows"
    return Finding(error.name, Cause.NOT_FINITE, sentence)


def _explain_inherited(error: LayerError, before: Sequence[LayerError]) -> Finding:
    """A layer that adds little itself."""
    inherited, own = error.inherited or 0.0, error.own or 0.0
    largest = max((each.accumulated for each in before), default=0.0)
    sources = [each for each in before if each.own]
    source = max(sources, key=lambda each: each.own or 0.0, default=None)
    comes_from = ""
    if source is not None:
        comes_from = f"; of the layers before it, {source.name} has the largest own error ({source.own:.3g})"
    if inherited > _AMPLIFIES * largest:
        times = f"{inherited / largest:.1f} times" if largest else "from nothing"
        sentence = (
            f"its input already is off by {inherited:.3g}, and no layer before it by more than {largest:.3g}:"
            " what lies between (a softmax, a norm or a sum that cancels) amplifies the error"
            f" {times}{comes_from}"
        )
        return Finding(error.name, Cause.AMPLIFIED, sentence)
    gain = error.accumulated / inherited if inherited else math.inf
    sentence = (
        f"its own error is {own:.3g}; that of its input, {inherited:.3g}, becomes {error.accumulated:.3g} "
        f"({gain:.1f} times) in its product{comes_from}"
    )
    return Finding(error.name, Cause.INHERITED, sentence)
