"""Fill the report from what was planned and what was written."""

from __future__ import annotations

import resource
import sys
from collections.abc import Container, Mapping
from pathlib import Path

import onnx_ir as ir

from zq2onnx import opset
from zq2onnx.conversion.calibration import Calibration
from zq2onnx.conversion.compute import Facts
from zq2onnx.conversion.placement import Compute, Plan
from zq2onnx.passes.planned import FACTORS, Form, PlannedTensor, QuantizedWeight
from zq2onnx.passes.select_nodes import Selection
from zq2onnx.report import Report, Requirements, Status
from zq2onnx.scheme import ActGranularity, Activation, Scheme

OLDEST_RUNTIME = "1.20"
RUNTIME_BY_OPSET = {21: "1.20", 22: "1.22", 23: "1.23", 24: "1.24", 25: "1.24"}
"""The oldest ONNX Runtime of those tried that loads a model of the opset; 25 has the 2-bit types."""
RUNTIME_OF_BYTE_GATHER = "1.23"
"""The oldest that knows GatherBlockQuantized's `bits`."""
RUNTIME_OF_BFLOAT16 = "1.23"
"""The oldest whose MatMulNBits takes bfloat16; 1.20.1 and 1.22.1 fail on it at load."""
RUNTIME_OF_EIGHT_BITS = "1.22"
"""The oldest of those tried whose MatMulNBits takes 8 bits; 1.20.1 takes 4 alone."""
LOAD_BYTES_PER_WEIGHT = {8: 1.2, 4: 0.6, 3: 2.5, 2: 1.4}
"""Peak memory of stock ONNX Runtime's constant folding, measured (benchmarks/bodies.py)."""
LOAD_BYTES_OF_INT8_PRODUCT = {8: 1.3, 4: 0.7, 3: 2.6, 2: 1.6}
"""The same of operators whose product is int8 by block."""


NO_DATA = "there is no calibration data"
UNREACHED = "calibration does not reach it"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def requirements(model: ir.Model) -> Requirements:
    """The least that runs the model, from its opset, operators and types."""
    version = model.opset_imports.get("", 0)
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    imports = dict(model.opset_imports)
    for function in model.functions.values():
        imports |= {
            domain: imports.get(domain, version) for domain, version in function.opset_imports.items()
        }
    types = {tensor.dtype for tensor in tensors if tensor is not None}
    versions = [RUNTIME_BY_OPSET.get(version, OLDEST_RUNTIME)]
    if any(node.op_type == "GatherBlockQuantized" and "bits" in node.attributes for node in nodes):
        versions.append(RUNTIME_OF_BYTE_GATHER)
    operators = [opset.OPERATORS.get(node.op_type) for node in nodes if node.domain == opset.DOMAIN]
    if any(operator is not None and operator.whole_bytes for operator in operators):
        versions.append(RUNTIME_OF_EIGHT_BITS)
    if ir.DataType.BFLOAT16 in types and any(node.domain == opset.DOMAIN for node in nodes):
        versions.append(RUNTIME_OF_BFLOAT16)
    providers = ["CUDAExecutionProvider"]
    if ir.DataType.BFLOAT16 not in types:
        providers.insert(0, "CPUExecutionProvider")
    qdq = any(node.op_type == "DequantizeLinear" for node in nodes)
    return Requirements(
        onnxruntime=max(versions, key=_version),
        opset=imports,
        ir_version=model.ir_version,
        providers=providers,
        session_config=dict(opset.FLOAT_ACTIVATIONS) if qdq else {},
    )


def fill_nodes(report: Report, selection: Selection, facts: Mapping[QuantizedWeight, Facts]) -> None:
    """Copy what became of each weight into its nodes' reports."""
    for node in report.nodes:
        weight = selection.weights.get(node.name)
        if node.status is not Status.QUANTIZED or weight is None:
            continue
        known = facts[weight]
        node.rank = 0 if known.dropped else weight.rank
        dropped = known.dropped and f"low-rank branch dropped: {known.dropped}"
        node.reason = "; ".join(text for text in (known.note, dropped) if text)
        node.weight_error = known.weight_error
        node.weight_error_without_lorc = known.weight_error_without_lorc
        node.output_error = known.output_error
        node.output_error_without_lorc = known.output_error_without_lorc


def fill_smoothing(
    report: Report, selection: Selection, calibration: Calibration | None, smoothed: Container[str]
) -> None:
    """Say where outliers of int8 activations were moved into the weights, and why not elsewhere."""
    sites = () if calibration is None else calibration.sites
    report.smoothed = [site.norm for site in sites if site.norm in smoothed]
    done = {name for site in sites if site.norm in smoothed for name in site.linears}
    for name, weight in selection.weights.items():
        if weight.scheme.activation is Activation.A8 and not weight.table and name not in done:
            why = NO_DATA if calibration is None else calibration.rough.get(name, UNREACHED)
            report.not_smoothed[name] = why


def fill_sizes(report: Report, plan: Plan, facts: Mapping[QuantizedWeight, Facts]) -> None:
    """Effective bits per rewritten weight, and what stock ONNX Runtime needs to load them.

    The latter was measured of the portable operators alone: with any other form in the file it is
    unknown.
    """
    stored = weights = 0
    loading: float | None = 0.0
    for task in plan.tasks:
        if not isinstance(task, Compute):
            continue
        kept = [part for part in task.parts if not (facts[task.weight].dropped and part.part in FACTORS)]
        stored += sum(part.nbytes for part in kept)
        count = task.weight.view.k * task.weight.view.n
        weights += count
        if loading is not None:
            peak = _load_bytes(task.weight.scheme) * count
            loading = loading + peak if _portable(kept) else None
    report.effective_bits = 8 * stored / weights if weights else None
    report.load_bytes = None if loading is None else int(loading)


def _load_bytes(scheme: Scheme) -> float:
    """Peak memory of loading one weight of a portable operator."""
    int8 = scheme.activation is Activation.A8 and scheme.act_granularity is ActGranularity.BLOCK
    return (LOAD_BYTES_OF_INT8_PRODUCT if int8 else LOAD_BYTES_PER_WEIGHT)[scheme.bits]


def _portable(parts: list[PlannedTensor]) -> bool:
    return any(part.form is Form.PORTABLE for part in parts)


def peak_rss_bytes() -> int:
    """The greatest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would begin with the parent's peak
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
