"""Opens model files for reading: the graph alone, weights left on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError

from zq2onnx.errors import UserError


def read_model(path: Path) -> ir.Model:
    """Read a model's graph; external data is only named, by absolute paths.

    Raises:
        UserError: there is no such file, or it is not an ONNX model.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file", "an ONNX model")
    try:
        model = ir.load(path.absolute(), format="protobuf")  # whatever its name
    except (DecodeError, ir.serde.SerdeError, ValueError) as error:
        raise UserError(f"{path}: not an ONNX model ({_first_line(error)})", "an ONNX file") from error
    if not model.graph.outputs:
        raise UserError(f"{path}: not an ONNX model (a graph without outputs)", "an ONNX file")
    for tensor in external_tensors(model):
        tensor.base_dir = path.absolute().parent
    return model


def model_files(path: Path) -> list[Path]:
    """A model's file, and every file that its weights are in, in a fixed order.

    Raises:
        UserError: there is no such file, or it is not an ONNX model.
    """
    return [path, *sorted({Path(tensor.path) for tensor in external_tensors(read_model(path))})]


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor of the model whose bytes are in another file, in subgraphs and functions too."""
    for value in initialized_values(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value
    for node in all_nodes(model):
        for attribute in node.attributes.values():
            if not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor):
                yield attribute.value


def initialized_values(model: ir.Model) -> Iterator[ir.Value]:
    """The initializers of the main graph and of every subgraph, functions' too."""
    for graph in model.graphs():
        yield from graph.initializers.values()
    for function in model.functions.values():
        for graph in function.subgraphs():
            yield from graph.initializers.values()


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the main graph, of subgraphs and of functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
