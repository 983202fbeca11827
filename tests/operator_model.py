"""One `ai.zq2onnx` node as a model of its own, with random contents: what the operator tests run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from zq2onnx.layout import PackedLayout, packed_layout
from zq2onnx.opset import (
    DOMAIN,
    DOMAIN_VERSION,
    GROUP_KEY,
    MICROSOFT,
    Operator,
    function_proto,
    node_attributes,
)
from zq2onnx.scheme import parse_granularity

Array = np.ndarray[Any, Any]


def operator_layout(operator: Operator, k: int, n: int, group_size: str | int) -> PackedLayout:
    """The layout of an operator's weight."""
    granularity = parse_granularity(group_size)
    return packed_layout(k, n, operator.bits, granularity, whole_bytes=operator.whole_bytes)


def random_constants(
    operator: Operator,
    layout: PackedLayout,
    rng: np.random.Generator,
    *,
    dtype: type[np.floating[Any]] = np.float32,
    bias: bool = True,
    rank: int = 8,
    int8_factors: bool = True,
) -> dict[str, Array]:
    """Every constant input of a node. All bytes are drawn, the padding's too: any byte is a code."""
    k, n = layout.k, layout.n
    constants: dict[str, Array] = {
        "B": rng.integers(0, 256, layout.codes_shape, np.uint8),
        "scales": rng.uniform(0.01, 0.02, layout.scales_shape).astype(dtype),
        "zero_points": random_zero_points(layout, rng),
    }
    if bias:
        constants["bias"] = rng.standard_normal(n).astype(dtype)
    if bias and operator.half_bytes:
        constants["bias"] = np.concatenate([constants["bias"], np.zeros(n, dtype)])
    if operator.lorc and int8_factors:
        constants["U"] = rng.integers(-127, 128, (k, rank), np.int8)
        constants["V"] = rng.integers(-127, 128, (rank, n), np.int8)
        constants["U_scales"] = rng.uniform(0.001, 0.002, (1, rank)).astype(dtype)
        constants["V_scales"] = rng.uniform(0.001, 0.002, (rank, 1)).astype(dtype)
    elif operator.lorc:
        constants["U"] = (0.1 * rng.standard_normal((k, rank))).astype(dtype)
        constants["V"] = (0.1 * rng.standard_normal((rank, n))).astype(dtype)
        constants["U_scales"] = np.ones((1, rank), dtype)
        constants["V_scales"] = np.ones((rank, 1), dtype)
    return constants


def random_zero_points(layout: PackedLayout, rng: np.random.Generator) -> Array:
    """Zero points' bytes; where a scale is repeated, both nibbles of a byte are the same."""
    if layout.repeat == 1 or layout.whole_bytes:
        return rng.integers(0, 256, layout.zero_points_shape, np.uint8)
    return rng.integers(0, 16, layout.zero_points_shape, np.uint8) * np.uint8(17)


def operator_model(
    operator: Operator,
    layout: PackedLayout,
    constants: dict[str, Array],
    *,
    opset: int = 21,
    name: str = "layer/MatMul",
    leading: int = 1,
) -> onnx.ModelProto:
    """A model that is one node: input `A` with `leading` dimensions before K, output `Y`."""
    element = helper.np_dtype_to_tensor_dtype(constants["scales"].dtype)
    present = {"A", *constants}
    node = helper.make_node(
        operator.name,
        [item if item in present else "" for item in operator.inputs],
        ["Y"],
        name=name,
        domain=DOMAIN,
        **node_attributes(layout),
    )
    node.metadata_props.add(key=GROUP_KEY, value=name)
    free = [f"batch_{axis}" for axis in range(leading)]
    graph = helper.make_graph(
        [node],
        "one_operator",
        [helper.make_tensor_value_info("A", element, [*free, layout.k])],
        [helper.make_tensor_value_info("Y", element, [*free, layout.n])],
        [numpy_helper.from_array(array, item) for item, array in constants.items()],
    )
    imports = [("", opset), (DOMAIN, DOMAIN_VERSION), (MICROSOFT, 1)]
    return helper.make_model(
        graph,
        ir_version=10,
        opset_imports=[helper.make_opsetid(*item) for item in imports],
        functions=[function_proto(operator, opset)],
    )
