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


def write_model(path: Path, layers: int, width: int, seed: int = 0) -> int:
    """Write `path` and `path.data`; returns the number of parameters.

    Weights are Gaussian with a spread of their own for every input channel, as trained ones have.
    """
    rng = np.random.default_rng(seed)
    nodes, initializers = [], []
    offset = 0
    value = "x"
    with Path(f"{path}.data").open("wb") as data:
        for layer in range(layers):
            residual = value
            for name, (k, n) in shapes(width).items():
                weight = rng.standard_normal((k, n), np.float32)
                weight *= rng.lognormal(-4, 0.5, (k, 1)).astype(np.float32)
                data.write(weight.data)
                tensor = TensorProto(name=f"layers.{layer}.{name}.weight", data_type=TensorProto.FLOAT)
                tensor.dims.extend((k, n))
                tensor.data_location = TensorProto.EXTERNAL
                place = {"location": f"{path.name}.data", "offset": offset, "length": weight.nbytes}
                for key, entry in place.items():
                    tensor.external_data.add(key=key, value=str(entry))
                offset += weight.nbytes
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
    return offset // 4
