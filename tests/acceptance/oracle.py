"""The whole-model oracle: the float model, each rewritten weight replaced by what the file stores of it.

Shares nothing with the passes that wrote the file: operators of our domain are read by
`zq2onnx.runtime.reference`, standard nodes are run by onnx's reference evaluator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from zq2onnx.opset import DOMAIN, GROUP_KEY, OPERATORS
from zq2onnx.runtime import reference

Array = NDArray[Any]
Constants = Mapping[str, TensorProto]


def write_reference(float_model: Path, converted: Path, output: Path) -> int:
    """Write the float model with the weights of `converted`, its branches added in.

    Args:
        float_model: what was converted, at its own opset.
        converted: portable or qdq; every node it rewrote is found in `float_model` by name.
        output: a new file, its weights in `OUTPUT.data`.

    Returns:
        How many weights were replaced.
    """
    weights = dict(stored_weights(converted))
    model = onnx.load(float_model)
    nodes = {node.name: node for node in model.graph.node}
    for name, weight in weights.items():
        node = nodes[name]
        at = 0 if node.op_type == "Gather" else 1
        plain = [item for item in node.attribute if item.name not in ("alpha", "transB")]
        del node.attribute[:]
        node.attribute.extend(plain)
        dtype = _float_type(model)
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(dtype), f"{name}.stored"))
        node.input[at] = f"{name}.stored"
    _drop_unread(model.graph)
    onnx.save(model, output, save_as_external_data=True, location=f"{output.name}.data", size_threshold=1024)
    return len(weights)


def stored_weights(converted: Path) -> Iterator[tuple[str, Array]]:
    """Every rewritten node's name, as in the float model, and its weight: `[K, N]`, or a table."""
    model = onnx.load(converted)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for item in node.metadata_props:
            if item.key == GROUP_KEY:
                groups.setdefault(item.value, []).append(node)
    for name, nodes in groups.items():
        owned = next((node for node in nodes if node.domain), None)
        if owned is None:
            yield name, _standard_weight(nodes, constants, model.opset_import)
        elif owned.domain == DOMAIN:
            yield name, _operator_weight(owned, constants)
        else:
            yield name, _table(owned, constants)


def _operator_weight(node: onnx.NodeProto, constants: Constants) -> Array:
    operator = OPERATORS[node.op_type]
    inputs = {
        name: numpy_helper.to_array(constants[value])
        for name, value in zip(operator.inputs, node.input, strict=False)
        if value in constants
    }
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    attributes |= {name: inputs[name] for name in ("B", "scales", "zero_points")}
    weight = reference.unpack_weight(operator, **attributes).T
    return weight + reference.low_rank(inputs) if operator.lorc else weight


def _table(node: onnx.NodeProto, constants: Constants) -> Array:
    """The table of a GatherBlockQuantized, `(code - zero point) * scale`."""
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    codes, scales, zeros = (numpy_helper.to_array(constants[node.input[at]]) for at in (0, 2, 3))

    def each(values: Array) -> Array:
        return np.repeat(values.astype(np.float64), attributes["block_size"], -1)[:, : codes.shape[1]]

    return (codes.astype(np.float64) - each(zeros)) * each(scales)


def _standard_weight(nodes: list[onnx.NodeProto], constants: Constants, opsets: Any) -> Array:
    """What standard nodes make of unit vectors, less what they make of zero (a bias)."""
    own = {name: constants[name] for node in nodes for name in node.input if name in constants}
    made = {name for node in nodes for name in node.output}
    gather = next((node for node in nodes if node.op_type == "Gather"), None)
    if gather is not None:
        entry = gather.input[1]
    else:
        products = (node for node in nodes if node.op_type == "MatMul")
        entry = next(node.input[0] for node in products if node.input[0] not in made)
    known = {*own, entry, ""}
    kept = []
    for node in nodes:
        if known.issuperset(node.input):
            kept.append(node)
            known.update(node.output)
    read = {name for node in kept for name in node.input}
    exit_ = next(name for node in reversed(kept) for name in node.output if name not in read)
    graph = helper.make_graph(
        kept,
        "group",
        [helper.make_tensor_value_info(entry, TensorProto.INT64 if gather else TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(exit_, TensorProto.FLOAT, None)],
        list(own.values()),
    )
    group: Any = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets))
    shapes = [list(own[name].dims) for node in kept for name in node.input[:1] if name in own]
    rows = shapes[0][0]
    if gather is not None:
        return group.run(None, {entry: np.arange(rows)})[0].astype(np.float64)
    element = next(tensor for tensor in own.values() if tensor.data_type in _FLOATS)
    dtype = helper.tensor_dtype_to_np_dtype(element.data_type)
    answers = group.run(None, {entry: np.eye(rows + 1, rows, dtype=dtype)})[0].astype(np.float64)
    return answers[:-1] - answers[-1]


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def _float_type(model: onnx.ModelProto) -> Any:
    largest = max(
        (tensor for tensor in model.graph.initializer if tensor.data_type in _FLOATS),
        key=lambda tensor: int(np.prod(tensor.dims)),
    )
    return helper.tensor_dtype_to_np_dtype(largest.data_type)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
