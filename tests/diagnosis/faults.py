"""Plants a fault in one layer of a quantized model, or of the float one that it is to be made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

BLOCK = "model.decoder.layers"


def change_constant(
    source: Path, target: Path, node: str, index: int, change: Callable[[np.ndarray], np.ndarray]
) -> Path:
    """Copy a model with the constant that a node reads at an input replaced by what `change` makes of it."""
    model = onnx.load(source)
    reader = next(each for each in model.graph.node if each.name == node)
    makers = {each.output[0]: each for each in model.graph.node}
    name = reader.input[index]
    while name in makers:  # a Transpose or the like of the weight
        name = makers[name].input[0]
    tensor = next(each for each in model.graph.initializer if each.name == name)
    array = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(array), array.dtype), name))
    onnx.save(model, target)
    return target


def times(factor: float, rows: slice | list[int]) -> Callable[[np.ndarray], np.ndarray]:
    """Multiplies rows of an array `[N, ..]`."""

    def change(array: np.ndarray) -> np.ndarray:
        array[rows] = array[rows] * np.array(factor, array.dtype)
        return array

    return change
