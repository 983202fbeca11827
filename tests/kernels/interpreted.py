"""Kernels run by Triton's interpreter on the CPU, as `launches.plan` says, and compared with the oracle.

`tests/conftest.py` has set TRITON_INTERPRET for the whole process. The interpreter keeps bfloat16 as bare
uint16 and computes with those, so that NumPy's bfloat16 (ml_dtypes) is put in its place.
"""

from __future__ import annotations

import functools
from typing import Any

import ml_dtypes
import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from tests.operator_model import Array
from zq2onnx.layout import PackedLayout
from zq2onnx.opset import Operator, node_attributes
from zq2onnx.runtime import reference
from zq2onnx.runtime.kernels.compilation import KERNELS, constants_of
from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.launches import Launch, Plan, plan
from zq2onnx.runtime.kernels.problem import Problem

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NUMPY = {
    "fp16": np.dtype(np.float16),
    "bf16": BFLOAT16,
    "fp32": np.dtype(np.float32),
    "i8": np.dtype(np.int8),
}
TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "i8": torch.int8}
UNITS = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}
"""What storing a result may round off, as a part of it."""

INNER = {"fp16": 2.0**-12, "bf16": 2.0**-9, "fp32": 2.0**-22}
"""What one product may be off by: a scaled weight, or a rounded activation, is of the activations' type."""


def teach_bfloat16() -> None:
    """Let the interpreter compute with bfloat16."""
    builder, original = interpreter.InterpreterBuilder, interpreter._get_np_dtype
    load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot
    handle = interpreter.TensorHandle

    def dtype_of(kind: Any) -> np.dtype[Any]:
        element = kind.element_ty if isinstance(kind, tl.block_type) else kind
        return BFLOAT16 if element == tl.bfloat16 else original(kind)

    def cast(self: Any, source: Any, kind: Any, *_: Any) -> Any:
        return handle(source.data.astype(dtype_of(kind.scalar)), kind.scalar)

    def bits(value: Any) -> Any:
        return handle(value.data.view(np.uint16), tl.uint16) if value.data.dtype == BFLOAT16 else value

    def widened(value: Any) -> Any:
        narrow = value.data.dtype == BFLOAT16
        return handle(value.data.astype(np.float32), tl.float32) if narrow else value

    def masked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        if pointers.get_element_ty() != tl.bfloat16:
            return load(self, pointers, mask, other, *rest)
        zeros = np.zeros(pointers.data.shape, np.uint16) if other is None else bits(other).data
        found = interpreter._interpreter.load(pointers.data, mask.data, zeros, np.dtype(np.uint16))
        return handle(found.view(BFLOAT16), tl.bfloat16)

    def masked_store(self: Any, pointers: Any, value: Any, *rest: Any) -> Any:
        return store(self, pointers, bits(value), *rest)

    def product(self: Any, a: Any, b: Any, total: Any, *rest: Any) -> Any:
        wide = [
            handle(x.data.astype(np.float32), tl.float32) if x.data.dtype == BFLOAT16 else x for x in (a, b)
        ]
        return dot(self, *wide, total, *rest)

    interpreter._get_np_dtype = dtype_of
    builder.cast_impl = cast
    builder.create_fp_to_fp = cast
    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.create_dot = product


@functools.cache
def taught() -> None:
    """Have it compute with bfloat16."""
    teach_bfloat16()


def tensor(array: Array) -> torch.Tensor:
    """A copy of an array as torch has it."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def run(problem: Problem, inputs: dict[str, Array], product: Configuration | None = None) -> Array:
    """Run a problem's launches, or those with another product, with poisoned results and scratch.

    Returns:
        `Y`, float32 [tokens, N].
    """
    taught()
    planned = plan(problem, "sm_90", product=product)
    arrays = {name: tensor(array) for name, array in inputs.items()}
    for name, (kind, shape) in planned.scratch.items():
        arrays[name] = _poisoned(kind, shape)
    arrays["Y"] = _poisoned(problem.dtype, (problem.tokens, problem.layout.n))
    for launch in planned.launches:
        _launch(launch, arrays)
    return arrays["Y"].float().numpy()


def _poisoned(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    if kind == "i8":
        return torch.full(shape, 77, dtype=torch.int8)
    return torch.full(shape, torch.nan, dtype=TORCH[kind])


def _launch(launch: Launch, arrays: dict[str, torch.Tensor]) -> None:
    made = launch.configuration
    absent = torch.zeros(1, dtype=torch.uint8)
    pointers = {name: arrays.get(source, absent) for name, source in launch.pointers.items()}
    KERNELS[made.kernel][launch.grid](**pointers, **launch.integers, **constants_of(made, "interpreter"))


def kernels_of(planned: Plan) -> list[str]:
    """Names of what a plan launches."""
    return [launch.configuration.name for launch in planned.launches]


def compare(problem: Problem, inputs: dict[str, Array]) -> None:
    """Run a problem, and compare its result with the oracle."""
    check(problem, inputs, run(problem, inputs))


def check(
    problem: Problem, inputs: dict[str, Array], result: Array, product: Configuration | None = None
) -> None:
    """Compare a result with the oracle; of the product that was taken instead of the chosen one."""
    operator, layout = problem.operator, problem.layout
    expected, slack = reference.matmul_with_slack(operator, node_attributes(layout), inputs)
    excess = np.abs(result.astype(np.float64) - expected) - slack
    assert result.shape == expected.shape
    assert not np.isnan(excess).any()
    bias = np.abs(inputs.get("bias", np.zeros(expected.shape[1]))[: expected.shape[1]].astype(np.float64))
    allowed = tolerance(problem, inputs) + UNITS[problem.dtype] * (np.abs(expected) + bias)
    worst = np.unravel_index((excess - allowed).argmax(), excess.shape)
    assert (excess <= allowed).all(), (
        f"{kernels_of(plan(problem, 'sm_90', product=product))}: at {worst} {result[worst]}, "
        f"oracle {expected[worst]}, allowed {allowed[worst]} and {slack[worst]}"
    )


def tolerance(problem: Problem, inputs: dict[str, Array]) -> Array:
    """What rounding inside may amount to: six deviations of a sum of K products rounded each by itself."""
    operator: Operator = problem.operator
    layout: PackedLayout = problem.layout
    weight = reference.unpack_weight(
        operator, **node_attributes(layout), B=inputs["B"], scales=inputs["scales"],
        zero_points=inputs["zero_points"],
    )  # fmt: skip
    a = inputs["A"].astype(np.float64)
    squares = a**2 @ (weight**2).T
    inner = INNER[problem.dtype] * np.sqrt(squares)
    if operator.lorc:
        u = np.abs(inputs["U"].astype(np.float64) * inputs["U_scales"])
        v = np.abs(inputs["V"].astype(np.float64) * inputs["V_scales"])
        branch = UNITS["fp16" if problem.dtype != "fp32" else "fp32"] * 2
        inner = inner + branch * (np.abs(a) @ u @ v) / 6
    return 6 * inner + 1e-30
