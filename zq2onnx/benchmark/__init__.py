"""How fast models run, on stock ONNX Runtime and by the operator library, and in how much memory.

    from zq2onnx.benchmark import plan_benchmark

    result = plan_benchmark("model.w4a16.onnx", against="model.onnx", ops="all").run()
    for row in result.rows:
        print(row.model, row.route, row.peak_bytes, [timing.median_ms for timing in row.timings])

The names below are loaded when first asked for: the processes that models are timed in load this package
too, and are to hold little beside the model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zq2onnx.benchmark.plan import BenchmarkPlan, plan_benchmark
    from zq2onnx.benchmark.results import Agreement, Benchmark, OperatorUse, Route, Row, Timing
    from zq2onnx.benchmark.shapes import Shape

__all__ = [
    "Agreement",
    "Benchmark",
    "BenchmarkPlan",
    "OperatorUse",
    "Route",
    "Row",
    "Shape",
    "Timing",
    "plan_benchmark",
]

_HOMES = {
    "Agreement": "zq2onnx.benchmark.results",
    "Benchmark": "zq2onnx.benchmark.results",
    "BenchmarkPlan": "zq2onnx.benchmark.plan",
    "OperatorUse": "zq2onnx.benchmark.results",
    "Route": "zq2onnx.benchmark.results",
    "Row": "zq2onnx.benchmark.results",
    "Shape": "zq2onnx.benchmark.shapes",
    "Timing": "zq2onnx.benchmark.results",
    "plan_benchmark": "zq2onnx.benchmark.plan",
}
"""Where each public name lives (PEP 562)."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
