"""Random inputs on a device, and what a node must compute from them, in float64 by torch.

`unpack_rows` reads packed weights by the words of `zq2onnx.layout`, a few rows at a time; small weights are
read by `zq2onnx.runtime.reference` instead, which also tells whether it does so rightly.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cuda.plan import Case
from zq2onnx.layout import PackedLayout
from zq2onnx.opset import node_attributes
from zq2onnx.runtime import reference
from zq2onnx.runtime.kernels.problem import Problem

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "i8": torch.int8}
STORED = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}
"""What storing a result may round off, as a part of it."""

INNER = {"fp16": 2.0**-12, "bf16": 2.0**-9, "fp32": 2.0**-22}
"""What one product may be off by: a scaled weight, or a rounded activation, is of the activations' type."""

BRANCH = {"fp16": 2.0**-10, "bf16": 2.0**-10, "fp32": 2.0**-22}
"""What the branch may be off by; its second product is tf32's, which has the bits of float16."""

ADDED = 2.0**-22
"""What adding a bias in float32 may be off by, as a part of it: the sum may be much smaller."""

SMALL = 1 << 20
"""Weights up to here are unpacked by `reference`."""

CHUNK = 1 << 25
"""Weights that are unpacked at once."""


def random_inputs(case: Case, device: torch.device | str) -> dict[str, Tensor]:
    """Every input of a node, by name, the same whenever it is asked for. Any byte is a code."""
    problem = case.problem
    layout, dtype = problem.layout, TORCH[case.dtype]
    generator = torch.Generator(device).manual_seed(zlib.crc32(repr(case).encode()))
    made: dict[str, Any] = {"generator": generator, "device": device}

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(shape, **made)).to(dtype)

    def codes(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, dtype=torch.int8, **made)

    def normal(scale: float, *shape: int) -> Tensor:
        return (scale * torch.randn(shape, **made)).to(dtype)

    inputs = {
        "A": _placed(normal(1.0, case.tokens, case.k), case.aligned),
        "B": _placed(torch.randint(0, 256, layout.codes_shape, dtype=torch.uint8, **made), case.aligned),
        "scales": uniform(0.01, 0.02, *layout.scales_shape),
        "zero_points": _zero_points(layout, generator, device),
    }
    if case.bias:
        halves = [normal(1.0, case.n), torch.zeros(case.n, dtype=dtype, device=device)]
        inputs["bias"] = torch.cat(halves[: 1 + problem.operator.half_bytes])
    if case.rank and case.int8_factors:
        inputs |= {"U": codes(case.k, case.rank), "U_scales": uniform(0.001, 0.002, 1, case.rank)}
        inputs |= {"V": codes(case.rank, case.n), "V_scales": uniform(0.001, 0.002, case.rank, 1)}
    elif case.rank:
        inputs |= {"U": normal(0.1, case.k, case.rank), "U_scales": uniform(1, 1, 1, case.rank)}
        inputs |= {"V": normal(0.1, case.rank, case.n), "V_scales": uniform(1, 1, case.rank, 1)}
    return inputs


def _placed(values: Tensor, aligned: bool) -> Tensor:
    """The same values; unaligned: one item behind a multiple of 16 bytes."""
    if aligned:
        return values
    longer = values.new_empty(values.numel() + 1)
    return longer[1:].copy_(values.flatten()).view(values.shape)


def _zero_points(layout: PackedLayout, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Zero points' bytes; where a scale is repeated, both nibbles of a byte are the same."""
    each = layout.repeat == 1 or layout.whole_bytes
    shape, end = layout.zero_points_shape, 256 if each else 16
    drawn = torch.randint(end, shape, dtype=torch.uint8, generator=generator, device=device)
    return drawn if each else drawn * 17


def nibbles(packed: Tensor) -> Tensor:
    """Bytes [.., n] to nibbles [.., 2n], low first."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def unpack_codes(layout: PackedLayout, packed: Tensor, high: Tensor) -> Tensor:
    """Codes of some rows, uint8 [rows, k_blocks * block_size].

    Args:
        packed: uint8 [rows, k_blocks, bytes].
        high: the same of high half bytes; read where 8 bits are stored so.
    """
    if layout.whole_bytes:
        return packed.flatten(1)
    if layout.half_bytes:
        return (nibbles(packed) | nibbles(high) << 4).flatten(1)
    if layout.bits == 4:
        return nibbles(packed).flatten(1)
    if layout.bits == 2:
        both = nibbles(packed)
        return torch.cat((both & 3, both >> 2), dim=-1).flatten(1)
    first, second, third = (nibbles(plane) for plane in packed.chunk(3, dim=-1))
    last = (first >> 3) | (second >> 3) << 1 | (third >> 3) << 2
    return torch.cat((first & 7, second & 7, third & 7, last), dim=-1).flatten(1)


def unpack_zeros(layout: PackedLayout, packed: Tensor, high: Tensor) -> Tensor:
    """Zero points of some rows, uint8 [rows, groups]."""
    if layout.whole_bytes:
        return packed
    each = packed & 15 if layout.repeat > 1 else nibbles(packed)
    if layout.half_bytes:
        each = each | (high & 15 if layout.repeat > 1 else nibbles(high)) << 4
    return each[:, : layout.groups]


def unpack_rows(layout: PackedLayout, inputs: Mapping[str, Tensor], rows: slice) -> Tensor:
    """Rows of the float weight, float64 [rows, K]: `(code - zero point) * scale`."""
    higher = slice(rows.start + layout.n, rows.stop + layout.n)
    size = layout.block_size * layout.repeat

    def each(values: Tensor) -> Tensor:
        return values.double().repeat_interleave(size, dim=1)[:, : layout.k]

    stored, zeros = inputs["B"], inputs["zero_points"]
    codes = unpack_codes(layout, stored[rows], stored[higher])[:, : layout.k].double()
    return (codes - each(unpack_zeros(layout, zeros[rows], zeros[higher]))) * each(inputs["scales"][rows])


def reference_weight(problem: Problem, inputs: Mapping[str, Tensor]) -> Tensor:
    """The whole weight as the NumPy oracle reads it, float64 [N, K], where the inputs are."""
    arrays = {name: inputs[name].cpu().float().numpy() for name in ("B", "scales", "zero_points")}
    weight = reference.unpack_weight(
        problem.operator,
        **node_attributes(problem.layout),
        B=arrays["B"].astype(np.uint8),
        scales=arrays["scales"],
        zero_points=arrays["zero_points"].astype(np.uint8),
    )
    return torch.from_numpy(weight).to(inputs["B"].device)


def round_activations(a: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`reference.round_activations` by torch: the rounded values, and what a near tie leaves open."""
    tokens, k = a.shape
    blocks = -(-k // size)
    wide = a.float()
    filled = torch.zeros(tokens, blocks * size, device=a.device)
    filled[:, :k] = wide.abs()
    greatest = filled.view(tokens, blocks, size).amax(dim=2)
    scales = (greatest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    each = scales.repeat_interleave(size, dim=1)[:, :k].double()
    quotients = wide.double() / each
    middle = ((quotients - quotients.trunc()).abs() - 0.5).abs() < reference.NEAR_TIE
    return quotients.round() * each, torch.where(middle, each, 0.0)


def worst_error(case: Case, inputs: Mapping[str, Tensor], result: Tensor) -> float:
    """The greatest error of a result, as a part of what rounding inside and near ties may amount to.

    Allowed are six deviations of a sum of K products rounded each by itself, and a unit of the result.
    """
    problem = case.problem
    weight = _weight_reader(problem, inputs)
    a = inputs["A"].double()
    size = reference.rounding_size(problem.operator, node_attributes(problem.layout))
    multiplied, undecided = (a, None) if size is None else round_activations(inputs["A"], size)
    squares = (a * a).float()
    if case.rank:
        u = inputs["U"].double() * inputs["U_scales"].double()
        t, t_size = a @ u, a.abs() @ u.abs()
    worst = torch.zeros((), dtype=torch.float64, device=result.device)
    step = max(16, CHUNK // case.k)
    for start in range(0, case.n, step):
        rows = slice(start, min(start + step, case.n))
        w = weight(rows)
        expected = multiplied @ w.T
        allowed = 6 * INNER[case.dtype] * (squares @ (w * w).float().T).double().sqrt()
        if case.rank:
            v = inputs["V"][:, rows].double() * inputs["V_scales"].double()
            expected += t @ v
            allowed += BRANCH[case.dtype] * (t_size @ v.abs())
        if case.bias:
            bias = inputs["bias"][rows].double()
            expected += bias
            allowed += ADDED * bias.abs()
        allowed += STORED[case.dtype] * expected.abs() + 1e-30
        off = (result[:, rows].double() - expected).abs()
        if undecided is not None:
            off -= undecided @ w.abs().T
        worst = torch.maximum(worst, (off / allowed).nan_to_num(nan=torch.inf, posinf=torch.inf).amax())
    return float(worst)


def _weight_reader(problem: Problem, inputs: Mapping[str, Tensor]) -> Callable[[slice], Tensor]:
    """Rows of the weight: by `reference` where it is small."""
    layout = problem.layout
    if layout.k * layout.n > SMALL:
        return lambda rows: unpack_rows(layout, inputs, rows)
    whole = reference_weight(problem, inputs)
    return lambda rows: whole[rows]


STORAGES = tuple(
    Case(name, k, 6, group, 1, 0, timed=False)
    for name in ("W2A16", "W3A16", "W4A16", "W8A16", "W8A8Block")
    for k, group in ((300, "32"), (520, "16"), (1100, "512"), (300, "row"))
)
"""One case for every way in which a weight is stored."""


def check_unpacking(device: torch.device | str) -> None:
    """Compare `unpack_rows` with `reference`, bit by bit.

    Raises:
        RuntimeError: they differ, so that `worst_error` means nothing for large weights.
    """
    for case in STORAGES:
        inputs = random_inputs(case, device)
        parts = [unpack_rows(case.problem.layout, inputs, rows) for rows in (slice(0, 4), slice(4, 6))]
        if not torch.equal(torch.cat(parts), reference_weight(case.problem, inputs)):
            raise RuntimeError(f"{case.label} is unpacked wrongly by torch on {device}")
