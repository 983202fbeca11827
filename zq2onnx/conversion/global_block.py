"""Choose the codes of a transformer block's layers together (ZQ-Global). Imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from zq2onnx.calibration.torch_piece import ActivationHook, TorchPiece, check_reproduces
from zq2onnx.calibration.walk import Step
from zq2onnx.conversion.compute import float_matrix
from zq2onnx.errors import UserError
from zq2onnx.numerics.calibrated import Evidence, quantize_calibrated
from zq2onnx.numerics.distill_block import BlockLinear, zq_global
from zq2onnx.numerics.grid import Quantized
from zq2onnx.numerics.moments import MomentSum
from zq2onnx.passes.partition import Piece
from zq2onnx.passes.planned import QuantizedWeight
from zq2onnx.scheme import Clip, Method

START, START_CLIP = Method.GPTQ, Clip.AUTO
"""What training starts from."""


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
            does; or a layer's weight or input is not finite.
    """
    halves = [TorchPiece(piece.nodes) for piece in group]
    try:
        feeds, expected = step.reference(group[1:])
    except ValueError as error:
        raise UserError(
            "method zq-global: onnxruntime cannot load the block from node"
            f" {group[0].nodes[0].name!r} on ({error})",
            "operators that it knows",
            "use another method there",
        ) from error
    for half in halves:
        check_reproduces(half, feeds | expected, {name: expected[name] for name in half.outputs})
    output = _hidden_output(group, expected)
    given = _linears(step, group, halves, linears)
    dtype = next(iter(linears.values())).view.dtype.numpy()
    return zq_global(halves, given, lambda: step.batches(group[1:]), output, dtype)


def _linears(
    step: Step,
    group: Sequence[Piece],
    halves: Sequence[TorchPiece],
    linears: Mapping[str, QuantizedWeight],
) -> dict[str, BlockLinear]:
    """The layers with what training starts from: `START`, for the float block on the current inputs."""
    matrices = {
        name: np.array(float_matrix(weight), np.float32, order="C") for name, weight in linears.items()
    }
    weights = {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}
    sums = {name: MomentSum(weight.view.k) for name, weight in linears.items()}
    with torch.no_grad(), np.errstate(all="ignore"):  # what is not finite is told below
        for current, _, held_out in step.batches(group[1:]):
            values = {name: torch.from_numpy(np.array(array)) for name, array in current.items()}
            for half in halves:
                values |= half.run(values, weights, _observing(sums, held_out))
    given = {}
    for name, weight in linears.items():
        scheme = dataclasses.replace(weight.scheme, method=START, clip=START_CLIP, lorc_rank=0)
        moments = sums[name].result()
        if not moments.finite:
            raise UserError(
                f"method zq-global: the input of node {name!r} is NaN or infinite on calibration samples",
                "finite activations",
                "see whether the model or the samples are at fault",
            )
        dtype = weight.view.dtype.numpy()
        start = quantize_calibrated(matrices[name], scheme, dtype, Evidence(moments))
        given[name] = BlockLinear(matrices[name], weight.scheme, start.quantized)
    return given


def _observing(sums: Mapping[str, MomentSum], held_out: bool) -> ActivationHook:
    """Takes in what the layers read, as it is."""

    def observe(name: str, x: torch.Tensor) -> torch.Tensor:
        sums[name].add(x.numpy(), held_out)
        return x

    return observe


def _hidden_output(group: Sequence[Piece], made: Mapping[str, np.ndarray]) -> str:
    """What the blocks that follow read of this one; of the last block, its first output.

    Shapes and masks may be handed on too: they are no floats.
    """
    inside = {node for piece in group for node in piece.nodes}
    floats = [
        value for value in group[-1].outputs if np.issubdtype(made[value.name or ""].dtype, np.floating)
    ]
    handed_on = [value for value in floats if any(reader not in inside for reader in value.consumers())]
    return str((handed_on or floats)[0].name)
