"""Tensors of another float type than the one they are stored in, converted when they are read."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir


class RecastTensor(ir.LazyTensor):
    """A float tensor in another float type; no number of it is read until it is asked for, and none is kept.

    Numbers beyond the new type's range become its greatest: a mask of -3.4e38 must not become an infinity,
    which makes a NaN of a row that is all masked. Infinities and NaN stay. A single number that would become
    0, say an epsilon, becomes the least that does not.

    Attributes:
        source: the tensor as it is stored; a quantized weight is made of that one.
    """

    def __init__(self, source: ir.TensorProtocol, dtype: ir.DataType) -> None:
        super().__init__(self._read, dtype=dtype, shape=ir.Shape(source.shape.numpy()), name=source.name)
        self.source = source

    def _read(self) -> ir.TensorProtocol:
        source = read_anew(self.source) if isinstance(self.source, ir.ExternalTensor) else self.source
        return ir.Tensor(recast_array(source.numpy(), self.dtype), dtype=self.dtype, name=self.name)


def recast(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    """The tensor in another float type, always of what is stored: none is rounded twice."""
    source = tensor.source if isinstance(tensor, RecastTensor) else tensor
    return source if source.dtype == dtype else RecastTensor(source, dtype)


def recast_array(array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """The numbers as `RecastTensor` has them."""
    kind = dtype.numpy()
    if dtype is ir.DataType.FLOAT:  # holds every number of the others
        return array.astype(kind)
    with np.errstate(over="ignore"):
        narrow = np.asarray(array.astype(kind))
    beyond = np.isinf(narrow)
    if beyond.any():
        beyond &= np.isfinite(array)
        narrow[beyond] = np.copysign(float(ml_dtypes.finfo(kind).max), array[beyond]).astype(kind)
    if narrow.size == 1 and array.any() and not narrow.any():
        narrow[...] = np.copysign(float(ml_dtypes.finfo(kind).smallest_subnormal), array).astype(kind)
    return narrow


def read_anew(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """The same region of the same file by a mapping of its own, which is dropped with the result."""
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=tensor.base_dir,
    )
