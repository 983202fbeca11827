"""A chain of MatMuls, for what happens around the passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH = 64
LAYERS = 3


def weights(layers: int = LAYERS, width: int = WIDTH, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights by name, each `[width, width]`."""
    rng = np.random.default_rng(seed)
    return {
        f"layers.{i}.weight": rng.standard_normal((width, width), np.float32) / width for i in range(layers)
    }


def write(
    path: Path,
    matrices: Mapping[str, NDArray[np.float32]] | None = None,
    *,
    external: bool = True,
    opset: int = 21,
    extra: Iterable[onnx.NodeProto] = (),
) -> Path:
    """Write a model whose nodes `layers.0`, `layers.1` and so on multiply by the matrices in turn.

    The result is `path`; weights, and biases of the same width, go to `path.data` if `external`.
    """
    matrices = weights() if matrices is None else matrices
    nodes, value = [], "x"
    bias = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    for name in matrices:
        layer = name.removesuffix(".weight")
        nodes.append(helper.make_node("MatMul", [value, name], [f"{layer}.product"], name=layer))
        nodes.append(
            helper.make_node("Add", [f"{layer}.product", "bias"], [f"{layer}.out"], name=f"{layer}.add")
        )
        value = f"{layer}.out"
    nodes.append(helper.make_node("Identity", [value], ["y"], name="last"))
    graph = helper.make_graph(
        [*nodes, *extra],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in {**matrices, "bias": bias}.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])
    Path(f"{path}.data").unlink(missing_ok=True)  # save_model would append to it
    onnx.save_model(
        model,
        path,
        save_as_external_data=external,
        location=f"{path.name}.data",
        size_threshold=0,
    )
    return path


def edit(path: Path, name: str, **entries: str) -> None:
    """Change entries of a tensor's external data."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    for entry in tensor.external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and every folder, with contents."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
    }
