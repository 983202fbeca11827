"""The self-check of a written model: nodes against the NumPy oracle, and ONNX Runtime's optimized graph."""

from zq2onnx.verify.optimized import Finding, Violation, findings, optimized_graph, violations
from zq2onnx.verify.selfcheck import check

__all__ = ["Finding", "Violation", "check", "findings", "optimized_graph", "violations"]
