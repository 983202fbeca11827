"""Write the graph after each pass, for people to read and compare."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.printer
import onnx_ir as ir

from zq2onnx.passes.planned import PlannedTensor

STUB = "weights-are-not-in-dumps"
SHOWN_BYTES = 256
"""Tensors of up to this size are printed with their values."""


def graph_proto(model: ir.Model) -> onnx.ModelProto:
    """The model without the bytes of its larger tensors, planned ones included."""
    originals = []
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, PlannedTensor) or (tensor is not None and tensor.nbytes > SHOWN_BYTES):
                originals.append((value, tensor))
                value.const_value = ir.ExternalTensor(
                    STUB,
                    None,
                    None,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=value.name or "",
                )
    try:
        return ir.to_proto(model)
    finally:
        for value, tensor in originals:
            value.const_value = tensor


def dump(model: ir.Model, folder: Path, number: int, name: str) -> Path:
    """Write `NN-Name.onnxtxt`, the graph in ONNX's textual form."""
    path = folder / f"{number:02d}-{name}.onnxtxt"
    path.write_text(onnx.printer.to_text(graph_proto(model)) + "\n", encoding="utf-8")
    return path
