"""The model that is packaged: its graph, read without weights, and the files that it consists of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.evaluation.model_file import all_nodes, external_tensors, read_model
from zq2onnx.opset import DOMAIN
from zq2onnx.runtime.serving.signature import Signature, read_signature

_TYPES = {
    ir.DataType.FLOAT: "float",
    ir.DataType.DOUBLE: "double",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
"""ONNX Runtime's names of types, where they are not those of ONNX in small letters."""


@dataclass(frozen=True)
class Value:
    """An input or output of the graph, as ONNX Runtime describes it.

    Attributes:
        name: of the value.
        dtype: of its elements.
        shape: its dimensions; those that are free have a name, or none.
    """

    name: str
    dtype: ir.DataType
    shape: tuple[int | str | None, ...]

    @property
    def type(self) -> str:
        """As `tensor(int64)`."""
        return f"tensor({_TYPES.get(self.dtype, self.dtype.name.lower())})"


@dataclass(frozen=True)
class Source:
    """A model that is packaged.

    Attributes:
        model: its file.
        data: the files that its weights are in, relative to its folder.
        inputs, outputs: of its graph; inputs with a default are left out.
        operators: whether it has nodes that the operator library can run.
        qdq: whether it has DequantizeLinear nodes, by which `FLOAT_ACTIVATIONS` matters.
    """

    model: Path
    data: tuple[Path, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operators: bool
    qdq: bool

    @property
    def folder(self) -> Path:
        """Where the model is, and what it needs beside it."""
        return self.model.parent

    def signature(self) -> Signature:
        """Its tokens and cache.

        Raises:
            UserError: it is no causal language model with a KV cache.
        """
        return read_signature(self.model, self.inputs, self.outputs)


def read_source(path: Path) -> Source:
    """Look at a model and its files.

    Raises:
        UserError: it is no ONNX model, or not whole, or its data is outside its folder.
    """
    model = read_model(path)
    nodes = list(all_nodes(model))
    data = sorted({Path(tensor.location) for tensor in external_tensors(model)})
    for location in data:
        if location.is_absolute() or ".." in location.parts:
            raise UserError(f"{path}: its weights are in {location}", "data in the model's own folder")
        if not (path.parent / location).is_file():
            raise UserError(f"{path}: its weights in {location} are missing", "the model with its data")
    return Source(
        model=path,
        data=tuple(data),
        inputs=tuple(_value(path, value) for value in model.graph.inputs if value.const_value is None),
        outputs=tuple(_value(path, value) for value in model.graph.outputs),
        operators=any(node.domain == DOMAIN for node in nodes),
        qdq=any(node.op_type == "DequantizeLinear" for node in nodes),
    )


def _value(path: Path, value: ir.Value) -> Value:
    if value.shape is None or value.dtype is None:
        raise UserError(f"{path}: {value.name} has no shape or type", "a graph that states both")
    dims = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return Value(value.name or "", value.dtype, tuple(dims))
