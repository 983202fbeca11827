"""Read a model's graph; its weights stay on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import google.protobuf.message
import onnx
import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.storage import mapped


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
    def files(self) -> list[Path]:
        """Everything that belongs to the model."""
        return [self.path, *self.data]

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in self.files)


def load(path: Path) -> Source:
    """Load a model without its external data.

    Raises:
        UserError: no such file, not an ONNX model, or its external data is not whole.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file", "an ONNX model")
    content = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
    except google.protobuf.message.DecodeError:
        raise UserError(f"{path} is not an ONNX file, or is truncated", "a model saved as .onnx") from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise UserError(f"{path} is not an ONNX model: it has no graph or opset", "a model saved as .onnx")
    digest = hashlib.sha256(content).hexdigest()
    del content
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir wraps what it meets in errors of many types
        raise UserError(f"{path} is malformed: {str(error).splitlines()[0]}", "a valid ONNX model") from error
    folder = path.parent
    tensors = []
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value.base_dir = folder
                tensors.append(value.const_value)
    data = mapped.check_external_data(path, tensors)
    return Source(path, model, digest, data)
