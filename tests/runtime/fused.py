"""Sessions that run nodes by the operator library, and how near to the oracle they must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.operator_model import Array, operator_layout, operator_model, random_constants
from zq2onnx.layout import PackedLayout
from zq2onnx.opset import DOMAIN, OPERATORS, Operator, function_proto, node_attributes
from zq2onnx.runtime import reference
from zq2onnx.runtime.library import library_file, register

needs_library = pytest.mark.skipif(
    library_file() is None, reason="the operator library is not built: pip install -e . with a C++17 compiler"
)

UNITS = {
    np.dtype(np.float32): 2.0**-24,
    np.dtype(np.float16): 2.0**-11,
    np.dtype(ml_dtypes.bfloat16): 2.0**-8,
}
"""What storing a result may round off, as a part of it."""


def tolerance(dtype: Any, length: int) -> float:
    """How far off a result may be, as a part of the greatest: float32 sums of `length` products."""
    return UNITS[np.dtype(dtype)] + 4 * length**0.5 * 2.0**-24


def options(ops: Sequence[str] | str | None = "all", threads: int = 1) -> ort.SessionOptions:
    """Session options with the library."""
    made = ort.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = 4  # errors are what some tests are about
    register(made, ops, "cpu")
    return made


def open_session(model: onnx.ModelProto, made: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """A session with the library, or with the options given."""
    return ort.InferenceSession(
        model.SerializeToString(), made or options(), providers=["CPUExecutionProvider"]
    )


def check(
    operator: Operator, layout: PackedLayout, inputs: dict[str, Array], result: Array, length: int = 0
) -> None:
    """Compare a node's result with the oracle."""
    expected, slack = reference.matmul_with_slack(operator, node_attributes(layout), inputs)
    assert result.shape == expected.shape
    excess = np.abs(result.astype(np.float64) - expected) - slack
    allowed = tolerance(inputs["A"].dtype, length or layout.k) * np.abs(expected).max(initial=0.0)
    assert not np.isnan(excess).any()
    worst = excess.max(initial=0.0)
    assert worst <= allowed, f"{operator.name} {layout}: off by {worst}, allowed {allowed}"


def activations(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Random, with one great value in the last token, and zeros in the first where there are several."""
    a = rng.standard_normal(shape).astype(dtype)
    if a.size:
        a[-1:, ..., 0] = 5.0
        a[:1] = 0 if shape[0] > 1 else a[:1]
    return a


def run_node(
    operator: Operator,
    k: int,
    n: int,
    group_size: str | int,
    leading: tuple[int, ...],
    *,
    dtype: Any = np.float32,
    threads: int = 1,
    **contents: Any,
) -> Array:
    """Run one node by the library, compare it with the oracle, and return its result."""
    rng = np.random.default_rng([k, n, len(leading)])
    layout = operator_layout(operator, k, n, group_size)
    constants = random_constants(operator, layout, rng, dtype=dtype, **contents)
    model = operator_model(operator, layout, constants, leading=len(leading))
    a = activations(rng, (*leading, k), dtype)
    if dtype == ml_dtypes.bfloat16:
        around_bfloat16(model)
    fed = a.astype(np.float32) if dtype == ml_dtypes.bfloat16 else a
    session = open_session(model, options([operator.name], threads))
    result = np.asarray(session.run(None, {"A": fed})[0])
    check(operator, layout, {"A": a, **constants}, result)
    return result


def around_bfloat16(model: onnx.ModelProto) -> None:
    """Let a bfloat16 model of one node take and return float32, as NumPy has no other."""
    graph = model.graph
    (node,) = graph.node
    node.input[0], node.output[0] = "A_narrow", "Y_narrow"
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    graph.node.insert(0, helper.make_node("Cast", ["A"], ["A_narrow"], to=TensorProto.BFLOAT16))
    graph.node.append(helper.make_node("Cast", ["Y_narrow"], ["Y"], to=TensorProto.FLOAT))


def model_of(parts: Sequence[tuple[Operator, PackedLayout, dict[str, Array]]]) -> onnx.ModelProto:
    """A model of several nodes beside each other: `A_i` to `Y_i`."""
    merged = operator_model(*parts[0])
    for field in (merged.graph.node, merged.graph.input, merged.graph.output, merged.graph.initializer):
        del field[:]
    for at, (operator, layout, constants) in enumerate(parts):
        graph = operator_model(operator, layout, constants, name=f"layer.{at}").graph
        (node,) = graph.node
        node.input[:] = [f"{name}_{at}" if name else "" for name in node.input]
        node.output[0] = f"Y_{at}"
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = f"{value.name}_{at}"
        merged.graph.node.extend(graph.node)
        merged.graph.input.extend(graph.input)
        merged.graph.output.extend(graph.output)
        merged.graph.initializer.extend(graph.initializer)
    del merged.functions[:]
    names = {operator.name for operator, _, _ in parts}
    merged.functions.extend(function_proto(OPERATORS[name]) for name in sorted(names))
    return merged


def with_fed_constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Make every constant of a model an input, and return what to feed."""
    fed = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    del model.graph.initializer[:]
    for name, array in fed.items():
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        shape = [f"{name}_{axis}" for axis in range(array.ndim)]
        model.graph.input.append(helper.make_tensor_value_info(name, element, shape))
    return fed


def node_types(path: str) -> list[str]:
    """Operators of a saved graph that are ours."""
    return [node.op_type for node in onnx.load(path).graph.node if node.domain == DOMAIN]
