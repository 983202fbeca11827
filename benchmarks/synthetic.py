"""A transformer-shaped float model of any depth, with external data, for timing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSET = 21


def shapes(width: int) -> dict[str, tuple[int, int]]:
    """The six MatMuls of a layer, `[K, N]`."""
    return {
        "q_proj": (width, width),
        "k_proj": (width, width),
        "v_proj": (width, width),
        "out_proj": (width, width),
        "fc1": (width, 4 * width),
        "fc2": (4 * width, width),
    }


def write_model(path: Path, layers: int, width: int, seed: int = 0, *, split: bool = False) -> int:
    """Write `path` and `path.data`; returns the number of parameters.

    Weights are Gaussian with a spread of their own for every input channel, as trained ones have.

    Args:
        path: the model file.
        layers: six MatMuls each.
        width: of the hidden state.
        seed: of the weights.
        split: one data file for every layer, `path.0.data` and so on.
    """
    rng = np.random.default_rng(seed)
    nodes, initializers = [], []
    parameters = 0
    value = "x"
    for layer in range(layers):
        data = path.with_name(f"{path.name}.{layer}.data" if split else f"{path.name}.data")
        if split or layer == 0:
            data.write_bytes(b"")
        residual = value
        for name, (k, n) in shapes(width).items():
            weight = rng.standard_normal((k, n), np.float32)
            weight *= rng.lognormal(-4, 0.5, (k, 1)).astype(np.float32)
            parameters += weight.size
            tensor = TensorProto(name=f"layers.{layer}.{name}.weight", data_type=TensorProto.FLOAT)
            tensor.dims.extend((k, n))
            _append(tensor, weight, data)
            initializers.append(tensor)
            out = f"layers.{layer}.{name}.out"
            nodes.append(
                helper.make_node("MatMul", [value, tensor.name], [out], name=f"layers.{layer}.{name}")
            )
            value = out
        out = f"layers.{layer}.out"
        nodes.append(helper.make_node("Add", [residual, value], [out], name=f"layers.{layer}.add"))
        value = out
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "synthetic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10
    onnx.save_model(model, path)
    return parameters


def _append(tensor: TensorProto, weight: np.ndarray, data: Path) -> None:
    """Put the weight's bytes at the end of a data file, and their place in the tensor."""
    offset = data.stat().st_size
    with data.open("ab") as file:
        file.write(weight.data)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": data.name, "offset": offset, "length": weight.nbytes}
    for key, entry in place.items():
        tensor.external_data.add(key=key, value=str(entry))
