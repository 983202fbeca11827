"""The linear layers of a graph, as calibration meets them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from zq2onnx.numerics.grid import Float32Array
from zq2onnx.passes.candidates import find_candidates
from zq2onnx.passes.planned import WeightView
from zq2onnx.passes.trace_weights import trace_constant
from zq2onnx.storage.mapped import tensor_array


@dataclass(frozen=True, eq=False)
class Linear:
    """A MatMul or Gemm that reads a constant weight.

    Attributes:
        node: the node.
        view: its weight, as `y = x · view`.
        operand: shape of its second input; more than two dimensions only with leading ones.
    """

    node: ir.Node
    view: WeightView
    operand: tuple[int, ...]

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name or ""

    @property
    def activation(self) -> ir.Value:
        """What the weight multiplies: `[.., K]`, or `[K, tokens]` if `across`."""
        value = self.node.inputs[0]
        assert value is not None  # a MatMul without it is no MatMul
        return value

    @property
    def across(self) -> bool:
        """Whether the activation is read transposed (Gemm's transA)."""
        return self.node.op_type == "Gemm" and self.node.attributes.get_int("transA", 0) != 0

    def stored_operand(self) -> Float32Array:
        """The weight in the shape and orientation that the node reads; the mapped bytes where they are so."""
        view = self.view
        stored = tensor_array(view.tensor)
        matrix = stored.reshape(view.n, view.k).T if view.transposed else stored.reshape(view.k, view.n)
        return self._as_read(matrix)

    def effective_operand(self, weight: Float32Array) -> Float32Array:
        """The same of a weight `[N, K]` that is to take its place as `y = x Wᵀ`, Gemm's alpha included."""
        scale = self.view.scale  # with an alpha of 0 the weight is of no concern
        return self._as_read(weight.T if scale in (0.0, 1.0) else weight.T / np.float32(scale))

    def _as_read(self, matrix: np.ndarray) -> Float32Array:
        """Lay out a matrix `[K, N]`."""
        if self.node.op_type == "Gemm" and self.node.attributes.get_int("transB", 0) != 0:
            matrix = matrix.T
        return np.require(matrix, np.float32, ["C", "A"]).reshape(self.operand)


def find_linears(model: ir.Model) -> dict[str, Linear]:
    """The linears of the main graph by name, which must be their own; those in subgraphs are left out."""
    found = {}
    for candidate in find_candidates(model):
        node, view = candidate.node, candidate.view
        if node.op_type not in ("MatMul", "Gemm") or isinstance(view, str) or node.graph is not model.graph:
            continue
        operand = trace_constant(node.inputs[1])
        if not isinstance(operand, str):
            found[node.name or ""] = Linear(node, view, operand.shape)
    return found
