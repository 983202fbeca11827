"""Read a model's graph; its weights stay on disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google.protobuf.message
import numpy as np
import onnx_ir as ir

from zq2onnx.conversion.protos import check_length, check_protos
from zq2onnx.errors import UserError
from zq2onnx.storage import embedded, mapped

PROTOBUF_LIMIT = (1 << 31) - 1
"""No protobuf message is longer."""


@dataclass(frozen=True)
class Source:
    """A model as it was found.

    Attributes:
        path: the model file.
        model: its graph.
        digest: SHA-256 of the model file, and with it of every weight inside it.
        data: its external data files.
    """

    path: Path
    model: ir.Model
    digest: str
    data: list[Path]

    @property
    def folder(self) -> Path:
        """Where the model is."""
        return self.path.parent.resolve()

    @property
    def files(self) -> list[Path]:
        """Everything that belongs to the model."""
        return [self.path, *self.data]

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in self.files)


def load(path: Path) -> Source:
    """Load a model without its weights: external data and large initializers stay in their files.

    Raises:
        UserError: no such file, not an ONNX model, it has sparse initializers, or a tensor's data is
            not whole.
    """
    _check_file(path)
    try:
        proto, inside = embedded.parse_model(path)
    except google.protobuf.message.DecodeError:
        raise UserError(f"{path} is not an ONNX file, or is truncated", "a model saved as .onnx") from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise UserError(f"{path} is not an ONNX model: it has no graph or opset", "a model saved as .onnx")
    check_protos(path, proto)
    digest = mapped.file_digest(path)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir wraps what it meets in errors of many types
        raise UserError(f"{path} is malformed: {_first_cause(error)}", "a valid ONNX model") from error
    if "ai.onnx" in model.opset_imports:
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    placed = _place_embedded(model, path, inside)
    data = mapped.check_external_data(path, _place_external_data(model, path.parent, placed))
    lift_constants(model)
    _take_in(path, model)
    return Source(path, model, digest, data)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong with its graph or weights, where it is not there yet."""
    try:
        yield
    except UserError as error:
        if error.found.startswith(str(path)):
            raise
        raise UserError(f"{path}: {error.found}", error.required, error.remedy) from error


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder", "an ONNX model", "name the file in it")
    if not path.is_file():
        raise UserError(f"{path}: no such file", "an ONNX model")
    if path.stat().st_size > PROTOBUF_LIMIT:
        raise UserError(
            f"{path} is not an ONNX file: it has {path.stat().st_size / 1e6:.0f} MB",
            "less than 2 GiB, with weights in external data",
        )


def _first_cause(error: BaseException) -> str:
    """The first line of what went wrong at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__


def _place_embedded(model: ir.Model, path: Path, inside: str) -> set[int]:
    """Point the initializers that were left in the model file, under the location `inside`, at it.

    Returns:
        The `id` of each one's tensor.

    Raises:
        UserError: one has more or fewer bytes than its shape and type say.
    """
    placed = set()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or tensor.location != inside:
            continue
        check_length(path, tensor.name, tensor.length or 0, tensor.nbytes)
        # By an absolute path, without a folder to stay in: the file may be a link, and is the user's word.
        value.const_value = ir.ExternalTensor(
            os.path.abspath(path),
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
        )
        placed.add(id(value.const_value))
    return placed


def _place_external_data(model: ir.Model, folder: Path, placed: set[int]) -> list[ir.ExternalTensor]:
    """Tell every external tensor not yet `placed` where its file is: initializers' and attributes'."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    tensors += [attribute.as_tensor() for _, attribute in _tensor_attributes(model)]
    external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    external = [tensor for tensor in external if id(tensor) not in placed]
    for tensor in external:
        tensor.base_dir = folder
    return external


def _tensor_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Attr]]:
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in body.all_nodes():
            for attribute in list(node.attributes.values()):
                if attribute.type is ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield node, attribute


def lift_constants(model: ir.Model) -> None:
    """Make initializers of the graphs' Constant nodes with external data, which so stays in its file."""
    for node, attribute in _tensor_attributes(model):
        tensor, graph, output = attribute.as_tensor(), node.graph, node.outputs[0]
        if node.op_type != "Constant" or node.domain or not isinstance(tensor, ir.ExternalTensor):
            continue
        if not isinstance(graph, ir.Graph) or not output.name or output.is_graph_output():
            continue
        name, output.name = output.name, None
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        output.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)


def _take_in(path: Path, model: ir.Model) -> None:
    """Take external tensors into memory that the output cannot have outside: attributes', empty ones.

    Raises:
        UserError: an attribute's is too large for that.
    """
    for node, attribute in _tensor_attributes(model):
        tensor = attribute.as_tensor()
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if tensor.nbytes > mapped.CHUNK:
            raise UserError(
                f"{path}: node {node.name!r} holds {tensor.nbytes / 1e6:.0f} MB in its attribute"
                f" {attribute.name!r}",
                f"weights as initializers, or attributes of {mapped.CHUNK / 1e6:.0f} MB at most",
                "export the model again",
            )
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _in_memory(tensor))
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes == 0:
                value.const_value = _in_memory(value.const_value)


def _in_memory(tensor: ir.ExternalTensor) -> ir.Tensor:
    if tensor.nbytes == 0:
        array = np.empty(tuple(int(dim) for dim in tensor.shape.numpy()), tensor.dtype.numpy())
    else:
        array = tensor.numpy().copy()
        tensor.release()
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)
