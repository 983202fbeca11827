"""Tensors of another float type than the one they are stored in, converted when they are read."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir


class RecastTensor(ir.LazyTensor):
    """A float tensor in another float type; no number of it is read until it is asked for, and none is kept.

    Numbers beyond the new type's range, its greatest among them, become `far` from 0: a mask of -3.4e38 must
    not become an infinity, nor be one when a score is added to it, for that makes a NaN of a row that is all
    masked. Infinities and NaN stay. A single number that would become
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
    beyond = np.abs(narrow) >= ml_dtypes.finfo(kind).max
    if beyond.any():
        beyond &= np.isfinite(array)
        narrow[beyond] = np.copysign(far(dtype), array[beyond]).astype(kind)
    if narrow.size == 1 and array.any() and not narrow.any():
        narrow[...] = np.copysign(float(ml_dtypes.finfo(kind).smallest_subnormal), array).astype(kind)
    return narrow


def far(dtype: ir.DataType) -> float:
    """What is far from 0 in a float type: half its greatest number.

    Its exponential is 0 as that of -3.4e38 is, and two of them can be added, or one and a score.

    >>> far(ir.DataType.FLOAT16)
    32752.0
    """
    return float(ml_dtypes.finfo(dtype.numpy()).max) / 2


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
