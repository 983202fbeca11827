"""Models as `convert` writes them, made by hand: no pass and no packer takes part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.operator_model import Array, operator_layout, operator_model, random_constants
from zq2onnx.opset import GROUP_KEY, MICROSOFT, OPERATORS

QDQ_TYPES = {8: np.dtype(np.uint8), 4: np.dtype(ml_dtypes.uint4), 2: np.dtype(ml_dtypes.uint2)}


def save(model: onnx.ModelProto, path: Path, *, external: bool = True) -> Path:
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location=path.name + ".data",
        size_threshold=0,
        convert_attribute=False,
    )
    return path


def portable_model(
    names: dict[str, str],
    *,
    k: int = 96,
    dtype: Any = np.float32,
    group_size: str | int = 32,
    bias: bool = True,
) -> onnx.ModelProto:
    """A chain of square operators, `{node name: operator name}`."""
    rng = np.random.default_rng(4)
    merged: onnx.ModelProto | None = None
    for at, (name, operator_name) in enumerate(names.items()):
        operator = OPERATORS[operator_name]
        layout = operator_layout(operator, k, k, group_size)
        constants = random_constants(operator, layout, rng, dtype=dtype, bias=bias)
        one = operator_model(operator, layout, constants, name=name, leading=2)
        rename = {item: f"{at}_{item}" for item in constants} | {"A": f"x{at}", "Y": f"x{at + 1}"}
        for tensor in one.graph.initializer:
            tensor.name = rename[tensor.name]
        node = one.graph.node[0]
        node.input[:] = [rename.get(item, item) for item in node.input]
        node.output[:] = [rename["Y"]]
        if merged is None:
            one.graph.input[0].name = "x0"
            merged = one
        else:
            merged.graph.node.append(node)
            merged.graph.initializer.extend(one.graph.initializer)
            if operator_name not in {function.name for function in merged.functions}:
                merged.functions.extend(one.functions)
    assert merged is not None
    merged.graph.output[0].name = f"x{len(names)}"
    return merged


def grouped(op_type: str, inputs: list[str], output: str, name: str, **attributes: Any) -> onnx.NodeProto:
    node = helper.make_node(op_type, inputs, [output], name=f"{name}/{output}", **attributes)
    node.metadata_props.add(key=GROUP_KEY, value=name)
    return node


def qdq_model(
    *,
    bits: int = 4,
    k: int = 96,
    n: int = 64,
    block: int | None = 32,
    lorc: bool = True,
    bias: bool = True,
    dtype: Any = np.float32,
    name: str = "layer/MatMul",
) -> onnx.ModelProto:
    """One group of standard nodes: DequantizeLinear, MatMul, branch and bias; `block` None is per row."""
    rng = np.random.default_rng(5)
    integer = QDQ_TYPES[bits]
    scales_shape = (n,) if block is None else (-(-k // block), n)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = {
        "codes": rng.integers(0, 1 << bits, (k, n)).astype(np.uint8).astype(integer),
        "scales": rng.uniform(0.01, 0.02, scales_shape).astype(dtype),
        "zero_points": rng.integers(0, 1 << bits, scales_shape).astype(np.uint8).astype(integer),
    }
    how = {"axis": 1} if block is None else {"axis": 0, "block_size": block}
    nodes = [
        grouped("DequantizeLinear", ["codes", "scales", "zero_points"], "weight", name, **how),
        grouped("MatMul", ["A", "weight"], "product", name),
    ]
    last = "product"
    if lorc:
        constants["U"] = rng.integers(-127, 128, (k, 8), np.int8)
        constants["V"] = rng.integers(-127, 128, (8, n), np.int8)
        constants["U_scales"] = rng.uniform(0.001, 0.002, (1, 8)).astype(dtype)
        constants["V_scales"] = rng.uniform(0.001, 0.002, (8, 1)).astype(dtype)
        for factor in "UV":
            nodes.append(grouped("Cast", [factor], f"{factor}_cast", name, to=element))
            nodes.append(grouped("Mul", [f"{factor}_cast", f"{factor}_scales"], f"{factor}_float", name))
        nodes.append(grouped("MatMul", ["A", "U_float"], "down", name))
        nodes.append(grouped("MatMul", ["down", "V_float"], "up", name))
        nodes.append(grouped("Add", ["product", "up"], "lorc", name))
        last = "lorc"
    if bias:
        constants["bias"] = rng.standard_normal(n).astype(dtype)
        nodes.append(grouped("Add", [last, "bias"], "biased", name))
        last = "biased"
    return single_graph(nodes, constants, ("A", element, ["batch", "sequence", k]), (last, element))


def embedding_model(target: str, bits: int, *, dtype: Any = np.float32, block: int = 32) -> onnx.ModelProto:
    """A table of 50 rows of 100, as each target has it."""
    rng = np.random.default_rng(6)
    integer = QDQ_TYPES[bits]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    groups = -(-100 // block)
    constants = {
        "codes": rng.integers(0, 1 << bits, (50, 100)).astype(np.uint8).astype(integer),
        "scales": rng.uniform(0.01, 0.02, (50, groups)).astype(dtype),
        "zero_points": rng.integers(0, 1 << bits, (50, groups)).astype(np.uint8).astype(integer),
    }
    if target == "portable":
        attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": block}
        attributes |= {"bits": 8} if bits == 8 else {}
        inputs = ["codes", "input_ids", "scales", "zero_points"]
        nodes = [grouped("GatherBlockQuantized", inputs, "Y", "embed", domain=MICROSOFT, **attributes)]
    else:
        # Gather takes no 4-bit types: Cast first, which folds.
        nodes, tables = [], {item: item for item in constants}
        for item in ("codes", "zero_points") if bits == 4 else ():
            tables[item] = f"{item}_bytes"
            nodes.append(grouped("Cast", [item], tables[item], "embed", to=TensorProto.UINT8))
        rows = [f"{item}_rows" for item in constants]
        for item, output in zip(tables.values(), rows, strict=True):
            nodes.append(grouped("Gather", [item, "input_ids"], output, "embed", axis=0))
        nodes.append(grouped("DequantizeLinear", rows, "Y", "embed", axis=-1, block_size=block))
    ids = ("input_ids", TensorProto.INT64, ["batch", "sequence"])
    return single_graph(nodes, constants, ids, ("Y", element))


def single_graph(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    read: tuple[str, int, list[str | int]],
    written: tuple[str, int],
) -> onnx.ModelProto:
    opset = 25 if any(array.dtype == ml_dtypes.uint2 for array in constants.values()) else 21
    graph = helper.make_graph(
        nodes,
        "hand_made",
        [helper.make_tensor_value_info(*read)],
        [helper.make_tensor_value_info(*written, ["batch", "sequence", None])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, ir_version=10 if opset == 21 else 13, opset_imports=imports)
