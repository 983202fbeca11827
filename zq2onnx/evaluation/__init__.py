"""Perplexity and agreement of models, measured through ONNX Runtime."""

from __future__ import annotations

from zq2onnx.evaluation.comparison import Evaluation, ModelScore, Plan, evaluate, plan_evaluation
from zq2onnx.evaluation.float32_copy import float32_copy
from zq2onnx.evaluation.matching import check_perplexity

__all__ = [
    "Evaluation",
    "ModelScore",
    "Plan",
    "check_perplexity",
    "evaluate",
    "float32_copy",
    "plan_evaluation",
]
