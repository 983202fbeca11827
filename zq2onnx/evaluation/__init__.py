"""Perplexity and agreement of models, measured through ONNX Runtime."""

from __future__ import annotations

from zq2onnx.evaluation.comparison import Evaluation, ModelScore, Plan, evaluate, plan_evaluation
from zq2onnx.evaluation.float32_copy import float32_copy

__all__ = ["Evaluation", "ModelScore", "Plan", "evaluate", "float32_copy", "plan_evaluation"]
