"""Choose the codes of a transformer block's layers together (ZQ-Global). Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from zq2onnx.calibration.torch_piece import TorchPiece, check_reproduces
from zq2onnx.calibration.walk import Step
from zq2onnx.conversion.compute import float_matrix
from zq2onnx.numerics.distill_block import BlockLinear, zq_global
from zq2onnx.numerics.grid import Quantized
from zq2onnx.numerics.rtn import quantize_rtn
from zq2onnx.passes.partition import Piece
from zq2onnx.passes.planned import QuantizedWeight


def choose_block(
    step: Step, group: Sequence[Piece], linears: Mapping[str, QuantizedWeight]
) -> dict[str, Quantized]:
    """The codes of a block's layers, by node name.

    Args:
        step: the walk, at the first piece of the block; it keeps the teacher's inputs.
        group: the pieces of the block.
        linears: the layers to choose for, by node name.

    Raises:
        UserError: an operator is unknown to torch's counterpart, or it does not compute what ONNX Runtime
            does.
    """
    if not linears:
        return {}
    halves = [TorchPiece(piece.nodes) for piece in group]
    output = _hidden_output(group)
    feeds, expected = step.reference(group[1:])
    for half in halves:
        check_reproduces(half, feeds | expected, {name: expected[name] for name in half.outputs})
    given = {}
    for name, weight in linears.items():
        matrix = np.ascontiguousarray(float_matrix(weight), np.float32)
        start = quantize_rtn(matrix, weight.scheme, weight.view.dtype.numpy())
        given[name] = BlockLinear(matrix, weight.scheme, start)
    dtype = next(iter(linears.values())).view.dtype.numpy()
    return zq_global(halves, given, lambda: step.batches(group[1:]), output, dtype)


def _hidden_output(group: Sequence[Piece]) -> str:
    """What the blocks that follow read of this one; of the last block, its first output."""
    inside = {node for piece in group for node in piece.nodes}
    handed_on = [
        value for value in group[-1].outputs if any(reader not in inside for reader in value.consumers())
    ]
    return str((handed_on or list(group[-1].outputs))[0].name)
