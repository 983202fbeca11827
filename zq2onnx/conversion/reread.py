"""What a written weight stands for: for a run that goes on where another stopped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from zq2onnx.conversion.compute import NARROW_BITS, SIGNED
from zq2onnx.numerics import packing
from zq2onnx.numerics.grid import Float32Array, Quantized, UInt8Array, dequantize
from zq2onnx.passes.planned import FACTORS, Form, Part, PlannedTensor

Read = Callable[[PlannedTensor], bytes]


def reread(parts: list[PlannedTensor], read: Read, branch: bool) -> Float32Array:
    """The weight `Ŵ + (UV)ᵀ`, float32 `[N, K]`, from the bytes of its parts.

    Args:
        parts: of one weight, in portable or qdq form.
        read: gives a part's bytes.
        branch: whether its low-rank branch stayed.
    """
    by_part = {part.part: part for part in parts}
    weight = parts[0].weight
    scales = _array(by_part[Part.SCALES], read)
    if by_part[Part.CODES].form is Form.QDQ:
        scales = scales.T if weight.blocked else scales[:, None]
    quantized = Quantized(
        _codes(by_part[Part.CODES], read), np.ascontiguousarray(scales), _zero_points(by_part, read)
    )
    values = dequantize(quantized, weight.scheme.granularity)
    if branch and Part.U in by_part:
        values += _branch(by_part, read)
    return values


def _array(part: PlannedTensor, read: Read) -> np.ndarray:
    """A part whose values are whole bytes."""
    shape = tuple(int(dim) for dim in part.shape.numpy())
    return np.frombuffer(read(part), part.dtype.numpy()).reshape(shape)


def _codes(part: PlannedTensor, read: Read) -> UInt8Array:
    """uint8 `[N, K]`."""
    layout = part.weight.layout
    if part.form is Form.PORTABLE:
        return packing.unpack_codes(np.frombuffer(read(part), np.uint8).reshape(layout.codes_shape), layout)
    return _unsigned(part, read).reshape(layout.k, layout.n).T


def _zero_points(by_part: dict[Part, PlannedTensor], read: Read) -> UInt8Array:
    """uint8 `[N, G]`; symmetric qdq stores none."""
    codes = by_part[Part.CODES]
    weight, part = codes.weight, by_part.get(Part.ZERO_POINTS)
    if part is None:
        return np.full((weight.view.n, weight.groups), weight.scheme.midpoint, np.uint8)
    if part.form is Form.PORTABLE:
        packed = np.frombuffer(read(part), np.uint8).reshape(weight.layout.zero_points_shape)
        return packing.unpack_zero_points(packed, weight.layout)
    return _unsigned(part, read).reshape(weight.groups, weight.view.n).T


def _unsigned(part: PlannedTensor, read: Read) -> UInt8Array:
    """The integers of a qdq tensor, as unsigned codes, in row-major order."""
    bits = NARROW_BITS.get(part.dtype, 8)
    raw = np.frombuffer(read(part), np.uint8)
    size = int(np.prod(part.shape.numpy()))
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = ((raw[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)[:size]
    if part.dtype in SIGNED:
        values = (values + np.uint8(part.weight.scheme.midpoint)) & np.uint8((1 << bits) - 1)
    return values


def _branch(by_part: dict[Part, PlannedTensor], read: Read) -> Float32Array:
    """`(UV)ᵀ`, `[N, K]`."""
    u, v = (_array(by_part[part], read).astype(np.float32) for part in FACTORS[:2])
    if Part.U_SCALES in by_part:
        u = u * _array(by_part[Part.U_SCALES], read).astype(np.float32)
        v = v * _array(by_part[Part.V_SCALES], read).astype(np.float32)
    return (u @ v).T
