"""Takes gradients through one piece of a float model, from its outputs to its linears and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from zq2onnx.calibration.linears import Linear
from zq2onnx.calibration.prediction import is_float
from zq2onnx.calibration.torch_piece import TorchPiece
from zq2onnx.passes.partition import Piece
from zq2onnx.passes.trace_weights import is_standard
from zq2onnx.storage.mapped import tensor_array

Tensor = torch.Tensor


class PieceGradients:
    """A piece, as it is differentiated: weights are frozen.

    Args:
        piece: the piece.
        outputs: values made in it, whose gradients are known.
        linears: nodes of it, at whose outputs gradients are wanted.
        moved: what `descend` returned, for the linears of all pieces.

    Attributes:
        forward: those nodes that all of this needs.

    Raises:
        UserError: an operator is not known.
    """

    def __init__(
        self,
        piece: Piece,
        outputs: Sequence[ir.Value],
        linears: Sequence[Linear],
        moved: Collection[ir.Value],
    ) -> None:
        inner = [linear.node.outputs[0] for linear in linears]
        names = dict.fromkeys(value.name or "" for value in (*outputs, *inner))
        self.forward = TorchPiece(_needed_nodes(piece, [*outputs, *inner]), [*names])
        self._outputs = [value.name or "" for value in outputs]
        self._inputs = [
            value.name or "" for value in piece.inputs if value in moved and value.name in self.forward.inputs
        ]
        self._linears = {linear.name: linear.node.outputs[0].name or "" for linear in linears}
        # Nothing before these linears requires a gradient, so that their weights must for their outputs to.
        self._anchors = {
            linear.name: _weight(linear).requires_grad_()
            for linear in linears
            if linear.activation not in moved
        }

    def run(
        self, feeds: Mapping[str, npt.NDArray[np.generic]], gradient: Callable[[str, Tensor], Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Differentiate the piece at one batch.

        Args:
            feeds: its inputs by name.
            gradient: makes of an output's name and the output its gradient.

        Returns:
            Gradients of inputs that descend from linears of pieces before, by name of the value, and of
            the linears' outputs, by name of the node. What does not matter to the outputs has none.

        Raises:
            UserError: an operator is used in a way that is not known.
        """
        tensors = {name: torch.tensor(feeds[name]) for name in self.forward.inputs}
        leaves = {name: tensors[name] for name in self._inputs if tensors[name].is_floating_point()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        made = self.forward.run(tensors, self._anchors)
        ends = {name: made[name] for name in self._outputs if made[name].requires_grad}
        inner = {name: made[output] for name, output in self._linears.items() if made[output].requires_grad}
        if not ends or not (leaves or inner):
            return {}, {}
        gradients = torch.autograd.grad(
            list(ends.values()),
            [*leaves.values(), *inner.values()],
            [gradient(name, output).to(output.dtype) for name, output in ends.items()],
            allow_unused=True,
        )
        return _kept(leaves, gradients[: len(leaves)]), _kept(inner, gradients[len(leaves) :])


def descend(pieces: Sequence[Piece], linears: Collection[Linear]) -> set[ir.Value]:
    """The float values that the outputs of these linears have a part in, themselves included."""
    sources = {linear.node for linear in linears}
    moved: set[ir.Value] = set()
    for piece in pieces:
        for node in piece.nodes:
            if node in sources or (
                not moved.isdisjoint(node.inputs) and not is_standard(node, "Shape", "Size")
            ):
                moved.update(value for value in node.outputs if is_float(value))
    return moved


def _needed_nodes(piece: Piece, values: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes of a piece that make some of its values, in graph order."""
    needed: set[ir.Value | None] = {*values}
    nodes = []
    for node in reversed(piece.nodes):
        if not needed.isdisjoint(node.outputs):
            needed.update(node.inputs)
            nodes.append(node)
    return nodes[::-1]


def _weight(linear: Linear) -> Tensor:
    """`[N, K]`, as in `y = x Wᵀ`, alpha included."""
    view = linear.view
    stored = tensor_array(view.tensor)
    matrix = stored.reshape(view.n, view.k) if view.transposed else stored.reshape(view.k, view.n).T
    return torch.tensor(matrix.astype(np.float32) * np.float32(view.scale))


def _kept(values: Mapping[str, Tensor], gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
    pairs = zip(values, gradients, strict=True)
    return {name: gradient.detach() for name, gradient in pairs if gradient is not None}
