"""Write the graph after each pass, for people to read and compare."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.printer
import onnx_ir as ir

from zq2onnx.passes.planned import PlannedTensor
from zq2onnx.passes.trace_weights import tensor_attributes

STUB = "weights-are-not-in-dumps"
SHOWN_BYTES = 256
"""Tensors of up to this size are printed with their values."""


def graph_proto(model: ir.Model) -> onnx.ModelProto:
    """The model without the bytes of its larger tensors, planned ones included."""
    values = []
    attributes = []
    try:
        for graph in model.graphs():
            for value in graph.initializers.values():
                if (tensor := value.const_value) is not None and _is_large(tensor):
                    values.append((value, tensor))
                    value.const_value = _stub(tensor, value.name)
        for node, attribute in tensor_attributes(model):
            single = attribute.type is ir.AttributeType.TENSOR
            if single and _is_large(constant := attribute.as_tensor()):
                attributes.append((node, attribute))
                stub = _stub(constant, constant.name)
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, stub)
        return ir.to_proto(model)
    finally:
        for value, tensor in values:
            value.const_value = tensor
        for node, attribute in attributes:
            node.attributes[attribute.name] = attribute


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, PlannedTensor) or tensor.nbytes > SHOWN_BYTES


def _stub(tensor: ir.TensorProtocol, name: str | None) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        STUB, None, None, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name or ""
    )


def dump(model: ir.Model, folder: Path, number: int, name: str) -> Path:
    """Write `NN-Name.onnxtxt`, the graph in ONNX's textual form."""
    path = folder / f"{number:02d}-{name}.onnxtxt"
    path.write_text(onnx.printer.to_text(graph_proto(model)) + "\n", encoding="utf-8")
    return path
