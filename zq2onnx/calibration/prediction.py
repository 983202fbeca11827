"""Which of a model's outputs is what it predicts."""

from __future__ import annotations

import onnx_ir as ir

LOGITS = "logits"
"""The output whose last axis holds the logits of labels."""


def predicted(model: ir.Model) -> ir.Value | None:
    """What a model predicts: its output `logits`, else the first of a float type; None without one."""
    outputs = sorted(model.graph.outputs, key=lambda value: value.name != LOGITS)
    return next((value for value in outputs if is_float(value)), None)


def is_float(value: ir.Value) -> bool:
    """Whether a value is of a float type, as far as is known."""
    return value.dtype is None or value.dtype.is_floating_point()
