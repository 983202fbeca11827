"""Casts a bfloat16 model to float32 on disk, so that providers without bfloat16 kernels can run it.

ONNX Runtime's CPU provider has no bfloat16 MatMul, Gemm or arithmetic. float32 holds every bfloat16
number exactly, so the copy computes what the model means, less the rounding of its intermediates.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.evaluation.model_file import all_nodes, initialized_values, read_model
from zq2onnx.passes.recast import read_anew
from zq2onnx.passes.widen import WidenToFloat32Pass

_INLINE_BYTES = 1024


@contextlib.contextmanager
def float32_copy(path: Path) -> Iterator[Path]:
    """Give a file that means the same as `path` and holds no bfloat16.

    That is `path` itself where it holds none. Else it is a copy in a temporary folder, removed on
    exit: bfloat16 initializers, constants, inputs, outputs, casts and value types of the graph, its
    subgraphs and local functions become float32; all other tensors (codes, zero points, int8
    factors) keep their bytes. Weights are cast and written one at a time.

    Raises:
        UserError: the file is missing or no ONNX model, its external data cannot be read, or the
            temporary folder has no room.
    """
    model = read_model(path)
    if not WidenToFloat32Pass((ir.DataType.BFLOAT16,))(model).modified:
        yield path
        return
    _defer_reading(model)
    with tempfile.TemporaryDirectory(prefix="zq2onnx-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / path.with_suffix(".onnx").name
        try:
            ir.save(model, copy, external_data=f"{copy.name}.data", size_threshold_bytes=_INLINE_BYTES)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: no float32 copy of it can be made in {folder} ({error})",
                "whole external data and room for twice the bfloat16 weights",
                "set TMPDIR to a folder on a larger disk if room is what is missing",
            ) from error
        yield copy


def _defer_reading(model: ir.Model) -> None:
    """Let tensors that stay as they are be read when they are written, and forgotten after that."""
    for value in initialized_values(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _deferred(value.const_value)
    for node in all_nodes(model):
        for name, attribute in list(node.attributes.items()):
            if not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, _deferred(attribute.value))


def _deferred(tensor: ir.ExternalTensor) -> ir.LazyTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(lambda: read_anew(tensor), tensor.dtype, shape, name=tensor.name)
