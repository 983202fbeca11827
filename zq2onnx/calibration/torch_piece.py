"""Evaluates a piece of a float model in torch, so that its weights can be trained.

The piece's nodes run as they stand in the graph. Weights of MatMuls and Gemms can be replaced by
tensors that gradients flow to. Only distillation needs this; everything else runs in ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from zq2onnx.calibration.torch_attention import attention, rotary_embedding
from zq2onnx.calibration.torch_operators import (
    ARITHMETIC,
    Inputs,
    Operator,
    Outputs,
    Tensor,
    gemm_bias,
    gemm_left,
    need,
    torch_dtype,
)
from zq2onnx.calibration.torch_shapes import SHAPES
from zq2onnx.errors import UserError
from zq2onnx.passes.trace_weights import constant_tensor, is_standard
from zq2onnx.storage.mapped import tensor_array

OPERATORS: dict[str, Operator] = {
    **ARITHMETIC,
    **SHAPES,
    "Attention": attention,
    "RotaryEmbedding": rotary_embedding,
}
"""Operators of the ONNX domain that a piece may hold, besides Constant."""

REMEDY = "quantize with --method gptq, or leave its layer float with --exclude"

TOLERANCE = 1e-4
"""Greatest difference of an output, relative to its greatest value."""

ActivationHook = Callable[[str, Tensor], Tensor]
"""Makes of a node's name and its activation what the node multiplies."""


class TorchPiece:
    """A run of consecutive nodes, as a function of torch.

    Constants are read when they are first needed and kept in float32, or as the integers they are.

    Args:
        nodes: in graph order.
        outputs: names of the values that `run` returns; None for all that nodes outside read, and
            the outputs of the graph.

    Attributes:
        inputs: names of the values that the nodes read and do not make, constants left out.
        outputs: names of the values that `run` returns.

    Raises:
        UserError: an operator is not known.
    """

    def __init__(self, nodes: Sequence[ir.Node], outputs: Sequence[str] | None = None) -> None:
        self._nodes = [node for node in nodes if not is_standard(node, "Constant")]
        for node in self._nodes:
            if not is_standard(node, *OPERATORS):
                raise _cannot(node, "torch has no counterpart of it here")
        self._constants: dict[str, Tensor] = {}
        inside = set(map(id, nodes))
        made = [value for node in self._nodes for value in node.outputs if value.name]
        names = {value.name for value in made}
        reads = [value for node in self._nodes for value in node.inputs if value is not None and value.name]
        fed = [v.name for v in reads if v.name not in names and constant_tensor(v) is None]
        self.inputs = tuple(dict.fromkeys(str(name) for name in fed))
        leaving = [str(value.name) for value in made if _leaves(value, inside)]
        self.outputs = tuple(leaving if outputs is None else outputs)
        self._last_read = {value.name: node for node in self._nodes for value in node.inputs if value}

    def run(
        self,
        feeds: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None = None,
        activation: ActivationHook | None = None,
    ) -> dict[str, Tensor]:
        """Run the nodes.

        Args:
            feeds: values by name, at least `inputs`; float types are computed in float32.
            weights: by name of a MatMul or Gemm, `[N, K]` instead of its second operand: the product
                is `x Wᵀ`, alpha included. Names of other pieces' nodes are ignored.
            activation: what becomes of the first operand of those nodes.

        Returns:
            `outputs` by name.

        Raises:
            UserError: an operator is used in a way that is not known, or its inputs do not fit.
        """
        values = {name: x.float() if x.is_floating_point() else x for name, x in feeds.items()}
        for node in self._nodes:
            inputs = [self._read(value, values) for value in node.inputs]
            replaced = None if weights is None else weights.get(node.name or "")
            try:
                if replaced is not None:
                    result: Outputs = _product(node, inputs, replaced, activation)
                else:
                    result = OPERATORS[node.op_type](node, inputs)
            except (ValueError, RuntimeError, IndexError, KeyError) as error:
                raise _cannot(node, f"torch failed on it: {_first_line(error)}") from error
            made = result if isinstance(result, tuple) else (result,)
            for value, tensor in zip(node.outputs, made, strict=False):
                values[value.name or ""] = tensor
            self._forget(node, values)
        return {name: values[name] for name in self.outputs}

    def _read(self, value: ir.Value | None, values: Mapping[str, Tensor]) -> Tensor | None:
        if value is None or not value.name:
            return None
        if value.name in values:
            return values[value.name]
        if value.name not in self._constants:
            tensor = constant_tensor(value)
            if tensor is None:
                raise KeyError(f"no value is fed for {value.name}")
            self._constants[value.name] = _as_torch(tensor)
        return self._constants[value.name]

    def _forget(self, node: ir.Node, values: dict[str, Tensor]) -> None:
        """Drop what no later node reads."""
        for value in node.inputs:
            if value is not None and self._last_read[value.name] is node and value.name not in self.outputs:
                values.pop(value.name or "", None)


def check_reproduces(
    piece: TorchPiece,
    feeds: Mapping[str, npt.NDArray[np.generic]],
    expected: Mapping[str, npt.NDArray[np.generic]],
    tolerance: float = TOLERANCE,
) -> None:
    """Compare a piece with what ONNX Runtime made of the same inputs.

    Args:
        piece: the piece.
        feeds: its inputs, by name.
        expected: some or all of its outputs, by name.
        tolerance: greatest difference, relative to the output's greatest value.

    Raises:
        UserError: an output differs by more, or in shape.
    """
    with torch.no_grad():
        made = piece.run({name: torch.from_numpy(np.array(array)) for name, array in feeds.items()})
    for name, want in expected.items():
        got = made[name].numpy()
        if got.shape != want.shape:
            raise _off(name, f"of shape {list(got.shape)}, in ONNX Runtime {list(want.shape)}", tolerance)
        distance, largest = _greatest_difference(got, want)
        if not distance <= tolerance * largest:
            relative = distance / largest if largest > 0 else math.inf
            raise _off(
                name,
                f"off by {relative:.3g} of the greatest value of ONNX Runtime's, {largest:.4g}",
                tolerance,
            )


def _greatest_difference(got: npt.NDArray[np.generic], want: npt.NDArray[np.generic]) -> tuple[float, float]:
    """Greatest `|got - want|` and `|want|`; NaN where one alone is NaN or infinite."""
    a, b = got.astype(np.float64), want.astype(np.float64)
    both = np.isfinite(b)
    if not np.array_equal(a[~both], b[~both], equal_nan=True):
        return math.nan, math.nan
    return float(np.abs(a[both] - b[both]).max(initial=0)), float(np.abs(b[both]).max(initial=0))


def _product(node: ir.Node, inputs: Inputs, weight: Tensor, activation: ActivationHook | None) -> Tensor:
    x = need(inputs[0])
    x = gemm_left(node, x) if node.op_type == "Gemm" else x
    x = x if activation is None else activation(node.name or "", x)
    product = x @ weight.T
    return gemm_bias(node, product, inputs) if node.op_type == "Gemm" else product


def _leaves(value: ir.Value, inside: set[int]) -> bool:
    """Whether a value is read by other nodes than these, or is an output of the graph."""
    return value.is_graph_output() or any(id(node) not in inside for node in value.consumers())


def _as_torch(tensor: ir.TensorProtocol) -> Tensor:
    array = tensor_array(tensor)
    dtype = torch_dtype(tensor.dtype)
    return torch.from_numpy(array.astype(np.float32) if dtype == torch.float32 else np.array(array))


def _cannot(node: ir.Node, why: str) -> UserError:
    domain = f"{node.domain}::" if node.domain else ""
    return UserError(
        f"node {node.name!r} ({domain}{node.op_type}) cannot be differentiated: {why}", "", REMEDY
    )


def _off(name: str, found: str, allowed: float) -> UserError:
    return UserError(
        f"value {name!r} of the block, computed in torch, is {found}", f"at most {allowed:g}", REMEDY
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
