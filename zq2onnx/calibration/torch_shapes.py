"""ONNX operators over torch: those that move values, or compute shapes and indices."""

from __future__ import annotations

import onnx_ir as ir
import torch

from zq2onnx.calibration.torch_operators import (
    Inputs,
    Operator,
    Outputs,
    Tensor,
    as_ints,
    given_axes,
    need,
    torch_dtype,
)


def _identity(node: ir.Node, inputs: Inputs) -> Tensor:
    return need(inputs[0])


def _shape(node: ir.Node, inputs: Inputs) -> Tensor:
    x = need(inputs[0])
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", x.ndim)
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _size(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.tensor(need(inputs[0]).numel())


def _reshape(node: ir.Node, inputs: Inputs) -> Tensor:
    x, shape = need(inputs[0]), as_ints(need(inputs[1])) or []
    if not node.attributes.get_int("allowzero", 0):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return torch.reshape(x, shape)


def _flatten(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axis = need(inputs[0]), node.attributes.get_int("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = int(torch.Size(x.shape[:axis]).numel())
    return x.reshape(rows, int(torch.Size(x.shape[axis:]).numel()))


def _transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    x = need(inputs[0])
    permutation = node.attributes.get_ints("perm")
    return x.permute(list(reversed(range(x.ndim))) if permutation is None else list(permutation))


def _squeeze(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axes = need(inputs[0]), given_axes(node, inputs)
    return x.squeeze() if axes is None else x.squeeze(axes)


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axes = need(inputs[0]), given_axes(node, inputs) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(node: ir.Node, inputs: Inputs) -> Tensor:
    x, shape = need(inputs[0]), as_ints(need(inputs[1])) or []
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


def _concat(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.cat([need(value) for value in inputs], node.attributes["axis"].as_int())


def _split(node: ir.Node, inputs: Inputs) -> Outputs:
    x, axis = need(inputs[0]), node.attributes.get_int("axis", 0)
    sizes = as_ints(inputs[1]) if len(inputs) > 1 else None
    if sizes is None:
        parts = node.attributes.get_int("num_outputs", len(node.outputs))
        width = -(-x.shape[axis] // parts)  # the last part may be narrower
        sizes = [min(width, x.shape[axis] - first * width) for first in range(parts)]
    return torch.split(x, sizes, axis)


def _slice(node: ir.Node, inputs: Inputs) -> Tensor:
    x = need(inputs[0])
    starts, ends, axes, steps = (as_ints(value) for value in (*inputs[1:], None, None)[:4])
    starts, ends = starts or [], ends or []
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        kept = range(x.shape[axis])[start:end:step]  # ONNX clamps as Python does
        if kept.step > 0:
            index: list[slice] = [slice(None)] * x.ndim
            index[axis] = slice(kept.start, kept.stop, kept.step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(kept), dtype=torch.int64))
    return x


def _gather(node: ir.Node, inputs: Inputs) -> Tensor:
    x, indices = need(inputs[0]), need(inputs[1])
    axis = node.attributes.get_int("axis", 0) % x.ndim
    picked = x.index_select(axis, _wrapped(indices, x.shape[axis]).reshape(-1))
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gather_elements(node: ir.Node, inputs: Inputs) -> Tensor:
    x, indices = need(inputs[0]), need(inputs[1])
    axis = node.attributes.get_int("axis", 0)
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


def _gather_nd(node: ir.Node, inputs: Inputs) -> Tensor:
    x, indices = need(inputs[0]), need(inputs[1])
    batch = node.attributes.get_int("batch_dims", 0)
    rank = indices.ndim - 1
    grids = [
        torch.arange(x.shape[axis]).reshape([-1 if axis == other else 1 for other in range(rank)])
        for axis in range(batch)
    ]
    return x[(*grids, *indices.to(torch.int64).unbind(-1))]


def _scatter_nd(node: ir.Node, inputs: Inputs) -> Tensor:
    x, indices, updates = need(inputs[0]), need(inputs[1]), need(inputs[2])
    reduction = node.attributes.get_string("reduction", "none")
    if reduction not in ("none", "add"):
        raise ValueError(f"ScatterND with reduction {reduction!r}")
    return x.index_put(indices.to(torch.int64).unbind(-1), updates, accumulate=reduction == "add")


def _wrapped(indices: Tensor, size: int) -> Tensor:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def _constant_of_shape(node: ir.Node, inputs: Inputs) -> Tensor:
    shape = as_ints(need(inputs[0])) or []
    if "value" not in node.attributes:
        return torch.zeros(shape)
    tensor = node.attributes["value"].as_tensor()
    return torch.full(shape, tensor.numpy().reshape(-1)[0].item(), dtype=torch_dtype(tensor.dtype))


def _range(node: ir.Node, inputs: Inputs) -> Tensor:
    start, limit, delta = (need(value) for value in inputs)
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _tile(node: ir.Node, inputs: Inputs) -> Tensor:
    return need(inputs[0]).repeat(as_ints(need(inputs[1])) or [])


def _trilu(node: ir.Node, inputs: Inputs) -> Tensor:
    offset = (*inputs, None)[1]
    diagonal = 0 if offset is None else int(offset)
    x = need(inputs[0])
    return x.triu(diagonal) if node.attributes.get_int("upper", 1) else x.tril(diagonal)


SHAPES: dict[str, Operator] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": _identity,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
