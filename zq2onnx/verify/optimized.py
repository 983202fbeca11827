"""Reads the graph that ONNX Runtime makes of a model: what it will really run.

A model can be right and still not be what its scheme says. ONNX Runtime may round the activations
of a weight-only product to int8 by itself, and what it cannot fold or fuse it unpacks on every run.
Neither shows in the results at a tolerance that a float product also needs.
"""

from __future__ import annotations

import contextlib
import enum
import tempfile
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from zq2onnx.errors import CheckFailed
from zq2onnx.opset import MICROSOFT
from zq2onnx.verify.walk import subgraphs

if TYPE_CHECKING:
    import onnxruntime

Model = Path | bytes

_EXTERNAL = {
    "session.optimized_model_external_initializers_file_name": "weights.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
_INT8_LEVEL = 4
_BITWISE = {"BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"}
_INT8_PRODUCTS = {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm"}


class Violation(enum.Enum):
    """What must not be found in the optimized graph of an A16 node."""

    INT8_ACTIVATIONS = "multiplies int8 activations"
    DEQUANTIZED = "dequantizes a constant weight on every run"
    UNPACKED = "unpacks constant codes on every run"


@dataclass(frozen=True)
class Finding:
    """One violation: which, and at which node of the optimized graph, which reads what."""

    violation: Violation
    node: str
    operator: str
    inputs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.operator} node {self.node!r} {self.violation.value}"


def optimizing_session(
    model: Model, config: Mapping[str, str] | None = None
) -> tuple[onnxruntime.InferenceSession, onnx.ModelProto]:
    """Open a model on the CPU provider and read the graph that the session runs.

    Args:
        model: the file, or a serialized model without external data.
        config: session configuration entries.

    Returns:
        The session, and its graph with initializers above 1 kB left without their bytes.
    """
    from zq2onnx.runtime.providers import require_onnxruntime

    ort = require_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="zq2onnx-") as folder:
        written = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(written)
        for key, value in {**_EXTERNAL, **(config or {})}.items():
            options.add_session_config_entry(key, value)
        session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
        )
        return session, onnx.load(written, load_external_data=False)


@contextlib.contextmanager
def naming_failures(what: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises, whose classes have no common root, into `CheckFailed`."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise CheckFailed(f"{what}: ONNX Runtime does not run it: {str(error).splitlines()[0]}") from error


def optimized_graph(model: Model, config: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """The model as ONNX Runtime's CPU provider runs it, without the bytes of large initializers.

    Args:
        model: the file, or a serialized model without external data.
        config: session configuration entries, such as `opset.FLOAT_ACTIVATIONS`.
    """
    return optimizing_session(model, config)[1]


def findings(optimized: onnx.ModelProto) -> list[Finding]:
    """Everything in an optimized graph that an A16 model must not hold, subgraphs included."""
    return list(_graph_findings(optimized.graph, ChainMap()))


def violations(optimized: onnx.ModelProto) -> list[str]:
    """`findings`, as sentences."""
    return [str(finding) for finding in findings(optimized)]


def _graph_findings(graph: onnx.GraphProto, outer: ChainMap[str, None]) -> Iterator[Finding]:
    """`outer`: names of the constants known around the graph."""
    constant = outer.new_child(dict.fromkeys(tensor.name for tensor in graph.initializer))
    for node in graph.node:
        of_constants = all(name in constant for name in node.input if name)
        if of_constants and (node.input or node.op_type == "Constant"):
            constant.update(dict.fromkeys(node.output))
        violation = _violation(node, of_constants)
        if violation is not None:
            yield Finding(violation, node.name, node.op_type, tuple(node.input))
        for subgraph in subgraphs(node):
            yield from _graph_findings(subgraph, constant)


def _violation(node: onnx.NodeProto, of_constants: bool) -> Violation | None:
    if node.op_type in _INT8_PRODUCTS:
        return Violation.INT8_ACTIVATIONS
    if node.domain == MICROSOFT and node.op_type == "MatMulNBits" and _accuracy_level(node) == _INT8_LEVEL:
        return Violation.INT8_ACTIVATIONS
    if of_constants and node.op_type == "DequantizeLinear":
        return Violation.DEQUANTIZED
    if of_constants and node.op_type in _BITWISE:
        return Violation.UNPACKED
    return None


def _accuracy_level(node: onnx.NodeProto) -> Any:
    return next((item.i for item in node.attribute if item.name == "accuracy_level"), 0)
