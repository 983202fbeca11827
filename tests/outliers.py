"""A model with activation outliers, planted so that what it computes stays the same.

    planted = plant_outliers(zoo.model("opt"), tmp_path / "model.onnx")

Large language models have such channels of themselves (Dettmers et al. 2022); small ones do not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from zq2onnx.storage.companions import copy_companions


def plant_outliers(
    model_path: Path, out_path: Path, channels: int = 6, factor: float = 30, seed: int = 0
) -> dict[str, np.ndarray]:
    """Multiply some channels of each LayerNormalization's output, and divide the weights behind.

    Only where MatMuls and Gemms alone read the output, each with a weight of its own that is stored as it
    is read; so not the one before a tied lm_head. Companion files come along.

    Returns:
        The channels, by the name of the LayerNormalization.

    Raises:
        ValueError: there is no such place.
    """
    model = onnx.load(model_path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in model.graph.output}
    rng = np.random.default_rng(seed)
    planted = {}
    for norm in model.graph.node:
        if norm.op_type != "LayerNormalization" or norm.output[0] in outputs:
            continue
        linears = readers.get(norm.output[0], [])
        if not linears or not all(_is_linear(node, norm.output[0], tensors, readers) for node in linears):
            continue
        width = tensors[norm.input[1]].dims[0]
        chosen = np.sort(rng.choice(width, channels, replace=False))
        scale = np.ones(width)
        scale[chosen] = factor
        for index in (1, 2):
            _replace(model, norm, index, scale)
        for node in linears:
            _replace(model, node, 1, 1 / scale if _transposed(node) else 1 / scale[:, None])
        planted[norm.name] = chosen
    if not planted:
        raise ValueError(f"{model_path} has no LayerNormalization that linears alone read")
    _save(model, out_path)
    if out_path.parent.resolve() != model_path.parent.resolve():
        copy_companions(model_path.parent, out_path.parent, force=True)
    return planted


def _is_linear(
    node: onnx.NodeProto,
    value: str,
    tensors: dict[str, onnx.TensorProto],
    readers: dict[str, list[onnx.NodeProto]],
) -> bool:
    return (
        node.op_type in ("MatMul", "Gemm")
        and node.input[0] == value
        and node.input[1] in tensors
        and len(readers[node.input[1]]) == 1
    )


def _transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _replace(model: onnx.ModelProto, node: onnx.NodeProto, index: int, scale: np.ndarray) -> None:
    """Give a node a constant of its own, `scale` times the old one."""
    old = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[index])
    values = numpy_helper.to_array(old)
    made = numpy_helper.from_array((values * scale).astype(values.dtype), f"{old.name}.of.{node.name}")
    model.graph.initializer.append(made)
    node.input[index] = made.name
    if not any(old.name in other.input for other in model.graph.node):
        model.graph.initializer.remove(old)


def _save(model: onnx.ModelProto, path: Path) -> None:
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx appends to what is there
    onnx.save(model, path, save_as_external_data=True, location=data.name, size_threshold=1024)
