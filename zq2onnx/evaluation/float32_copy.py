"""Casts a bfloat16 model to float32 on disk, so that providers without bfloat16 kernels can run it.

ONNX Runtime's CPU provider has no bfloat16 MatMul, Gemm or arithmetic. float32 holds every bfloat16
number exactly, so the copy computes what the model means, less the rounding of its intermediates.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.evaluation.model_file import all_nodes, initialized_values, read_model

# The attributes by which operators name an element type: Cast, EyeLike and the random ones,
# DequantizeLinear, LayerNormalization, Attention.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")
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
    if not _widen_model(model):
        yield path
        return
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


def _widen_model(model: ir.Model) -> bool:
    """Turn bfloat16 to float32 everywhere, lazily for tensors; whether there was any."""
    changed = False
    for value in _values(model):
        changed |= _widen_type(value.type)
    for node in all_nodes(model):
        for attribute in list(node.attributes.values()):
            if not attribute.is_ref():
                changed |= _widen_attribute(node, attribute)
    for value in initialized_values(model):
        if value.const_value is not None:
            changed |= value.const_value.dtype is ir.DataType.BFLOAT16
            value.const_value = _deferred(value.const_value)
    return changed


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value of the model that may carry a type."""
    yield from initialized_values(model)
    for graph in model.graphs():
        yield from graph.inputs
    for function in model.functions.values():
        yield from function.inputs
        for graph in function.subgraphs():
            yield from graph.inputs
    for node in all_nodes(model):
        yield from node.outputs


def _widen_type(type_: ir.TypeProtocol | None) -> bool:
    """Widen a type in place: a tensor's, or that of a sequence's or an optional's elements."""
    if type_ is None or type_.dtype is not ir.DataType.BFLOAT16:
        return False
    type_.dtype = ir.DataType.FLOAT
    return True


def _widen_attribute(node: ir.Node, attribute: ir.Attr) -> bool:
    """Widen a tensor, a type or the name of a type; whether it was bfloat16."""
    name, kind = attribute.name, attribute.type
    if kind is ir.AttributeType.INT and name in _TYPE_ATTRIBUTES:
        if attribute.value != ir.DataType.BFLOAT16:
            return False
        node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT.value)
        return True
    if kind is ir.AttributeType.TENSOR:
        node.attributes[name] = ir.AttrTensor(name, _deferred(attribute.value))
        return attribute.value.dtype is ir.DataType.BFLOAT16
    if kind is ir.AttributeType.TENSORS:
        node.attributes[name] = ir.AttrTensors(name, [_deferred(tensor) for tensor in attribute.value])
        return any(tensor.dtype is ir.DataType.BFLOAT16 for tensor in attribute.value)
    if kind is ir.AttributeType.TYPE_PROTO:
        return _widen_type(attribute.value.type)
    return False


def _deferred(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor as the copy holds it, read when it is written and forgotten after that."""
    widen = tensor.dtype is ir.DataType.BFLOAT16
    if not widen and not isinstance(tensor, ir.ExternalTensor):
        return tensor
    dtype = ir.DataType.FLOAT if widen else tensor.dtype
    return ir.LazyTensor(_reader(tensor, widen), dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _reader(tensor: ir.TensorProtocol, widen: bool) -> Callable[[], ir.TensorProtocol]:
    """What reads a tensor anew at each call, by a mapping of its own that is dropped with the result."""

    def read() -> ir.TensorProtocol:
        source = _fresh(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor
        if not widen:
            return source
        return ir.Tensor(source.numpy().astype(np.float32), name=tensor.name)

    return read


def _fresh(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=tensor.base_dir,
    )
