"""Activations rounded to int8 as the quantized model rounds them, for training: gradients pass through."""

from __future__ import annotations

import torch
from torch.nn import functional

from zq2onnx.layout import packed_layout
from zq2onnx.scheme import ActGranularity, Scheme

LEVELS = 127


def fake_int8(x: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Symmetric int8 per token, or per token and stored block; scales are constants to gradients.

    Static scales (`ActGranularity.TENSOR`) are not known to training: `x` stays as it is.

    Args:
        x: float32 `[.., K]`.
        scheme: says what shares a scale.

    Returns:
        The rounded values, float32 `[.., K]`.
    """
    match scheme.act_granularity:
        case ActGranularity.TENSOR:
            return x
        case ActGranularity.TOKEN:
            return _rounded(x)
        case ActGranularity.BLOCK:
            k = x.shape[-1]
            layout = packed_layout(k, 1, scheme.bits, scheme.granularity)
            filled = functional.pad(x, (0, layout.k_blocks * layout.block_size - k))
            return _rounded(filled.unflatten(-1, (layout.k_blocks, layout.block_size))).flatten(-2)[..., :k]


def _rounded(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scale = x.abs().amax(-1, keepdim=True) / LEVELS
        scale = torch.where(scale > 0, scale, 1.0)
        change = torch.round(x / scale) * scale - x
    return x + change
