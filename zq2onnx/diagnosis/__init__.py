"""Where a quantized model departs from the float one: layer by layer, on real activations."""

from __future__ import annotations

from zq2onnx.diagnosis.comparison import Comparison, Plan, compare, plan_comparison
from zq2onnx.diagnosis.findings import Cause, Finding
from zq2onnx.diagnosis.jump import Jump, LayerError

__all__ = ["Cause", "Comparison", "Finding", "Jump", "LayerError", "Plan", "compare", "plan_comparison"]
