"""Perplexity, similarity of embeddings and error of outputs, measured through ONNX Runtime."""

from __future__ import annotations

from zq2onnx.evaluation.comparison import Plan, evaluate, plan_evaluation
from zq2onnx.evaluation.embedding import EmbeddingPlan, plan_embedding
from zq2onnx.evaluation.float32_copy import float32_copy
from zq2onnx.evaluation.matching import check_perplexity
from zq2onnx.evaluation.model_file import model_files
from zq2onnx.evaluation.outputs import OutputPlan, plan_outputs
from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.evaluation.results import (
    EmbeddingEvaluation,
    EmbeddingScore,
    Evaluation,
    ModelScore,
    OutputEvaluation,
    OutputScore,
)

__all__ = [
    "EmbeddingEvaluation",
    "EmbeddingPlan",
    "EmbeddingScore",
    "Evaluation",
    "ModelScore",
    "OutputEvaluation",
    "OutputPlan",
    "OutputScore",
    "PaperClass",
    "Plan",
    "check_perplexity",
    "evaluate",
    "float32_copy",
    "model_files",
    "plan_embedding",
    "plan_evaluation",
    "plan_outputs",
]
