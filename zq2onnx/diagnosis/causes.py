"""Names the likely cause of a layer's own error, in words and numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from zq2onnx.diagnosis.activation_rules import (
    clipped_activations,
    outlier_of_activations,
    outlier_of_weights,
)
from zq2onnx.diagnosis.examination import Examination
from zq2onnx.diagnosis.findings import Cause, Finding, number
from zq2onnx.diagnosis.weight_rules import (
    clipped_range,
    dead_rows,
    few_rows,
    not_finite,
    unrelated,
    wrong_scale,
)

MOST = 0.5
"""A cause explains an error if this share of its energy is due to it."""

Rule = Callable[[Examination], Finding | None]

_OF_WEIGHTS: tuple[Rule, ...] = (
    not_finite,
    dead_rows,
    clipped_range,
    wrong_scale,
    unrelated,
    outlier_of_weights,
    few_rows,
)
"""From the most special to the most general."""

_OF_ROWS: tuple[Rule, ...] = (clipped_range, wrong_scale, unrelated)

_OF_ACTIVATIONS: tuple[Rule, ...] = (clipped_activations, outlier_of_activations)


def explain(seen: Examination) -> Finding:
    """The first cause that explains most of a layer's own error; `Cause.NONE` where none does."""
    by_activations = seen.by_activations > seen.by_weight
    for rule in _OF_ACTIVATIONS if by_activations else _OF_WEIGHTS:
        finding = rule(seen)
        if finding is not None and finding.share >= MOST:
            return finding
    if by_activations:
        sentence = "no single cause found: the rounding of its input makes most of it, in no few channels"
    else:
        norm = max(float(np.linalg.norm(seen.weight)), 1e-30)
        relative = number(float(np.linalg.norm(seen.rounded - seen.weight)) / norm)
        sentence = (
            f"no single cause found: the rounding error of its weights ({relative} of their norm) is spread"
            " over rows and channels"
        )
    return Finding(seen.layer.name, Cause.NONE, sentence)


def explain_rows(seen: Examination) -> Finding | None:
    """What ails single rows of a layer whose error as a whole is nothing to look for a cause of."""
    dead = dead_rows(seen)
    if dead is not None:
        return dead
    findings = (rule(seen) for rule in _OF_ROWS)
    return next((found for found in findings if found is not None and found.share >= MOST), None)
