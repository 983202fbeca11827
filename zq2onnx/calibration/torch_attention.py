"""ONNX's `Attention` and `RotaryEmbedding` (opset 23 to 25) over torch, as exporters emit them."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
from torch.nn import functional

from zq2onnx.calibration.torch_operators import Inputs, Tensor, need

_UNSUPPORTED = ("left_window_size", "right_window_size")


def attention(node: ir.Node, inputs: Inputs) -> tuple[Tensor, ...]:
    """`softmax(scale · QKᵀ + mask) V`, with grouped heads, a cache and a soft cap.

    Args:
        node: 3-D inputs need `q_num_heads` and `kv_num_heads`.
        inputs: Q, K, V, mask, past key, past value; 3-D `[batch, tokens, heads * size]` or 4-D
            `[batch, heads, tokens, size]`.

    Returns:
        Y as Q's rank, and the keys and values of all tokens, 4-D.

    Raises:
        ValueError: a window, lengths of an external cache, or the fourth output is asked for.
    """
    q, k, v, mask, past_k, past_v, lengths = (*inputs, *[None] * 7)[:7]
    _check(node, lengths)
    q, k, v = need(q), need(k), need(v)
    flat = q.ndim == 3
    if flat:
        q = _split_heads(q, node.attributes["q_num_heads"].as_int())
        k, v = (_split_heads(x, node.attributes["kv_num_heads"].as_int()) for x in (k, v))
    k = k if past_k is None else torch.cat([past_k, k], 2)
    v = v if past_v is None else torch.cat([past_v, v], 2)
    weights = _attended(_scores(node, q, k), _bias(node, q, k, mask))
    y = weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return (y.transpose(1, 2).flatten(2) if flat else y), k, v


def _check(node: ir.Node, lengths: Tensor | None) -> None:
    for name in _UNSUPPORTED:
        if node.attributes.get_int(name, -1) >= 0:
            raise ValueError(f"Attention with {name}")
    if lengths is not None:
        raise ValueError("Attention with nonpad_kv_seqlen")
    if len(node.outputs) > 3 and node.outputs[3].uses():
        raise ValueError("Attention with qk_matmul_output")


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _scores(node: ir.Node, q: Tensor, k: Tensor) -> Tensor:
    """`scale · QKᵀ` with the soft cap, `[batch, heads, queries, keys]`."""
    scale = node.attributes.get_float("scale", 1 / math.sqrt(q.shape[-1]))
    scores = scale * (q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3))
    cap = node.attributes.get_float("softcap", 0.0)
    return cap * torch.tanh(scores / cap) if cap else scores


def _bias(node: ir.Node, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
    """What is added to the scores; None for nothing."""
    queries, keys = q.shape[2], k.shape[2]
    bias = None
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
        bias = functional.pad(mask, (0, keys - mask.shape[-1]), value=-math.inf)
    if node.attributes.get_int("is_causal", 0):
        past = keys - queries if (*node.inputs, *[None] * 5)[4] is not None else 0
        causal = torch.full((queries, keys), -math.inf).triu(past + 1)
        bias = causal if bias is None else bias + causal
    return bias


def _attended(scores: Tensor, bias: Tensor | None) -> Tensor:
    """The softmax; a query that may attend to nothing has zeros."""
    if bias is None:
        return torch.softmax(scores, -1)
    # Such a row would be NaN, and so would its gradient: it gets finite scores and is cleared afterwards.
    empty = (bias == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(scores + bias.masked_fill(empty, 0.0), -1)
    return weights.masked_fill(empty, 0.0)


def rotary_embedding(node: ir.Node, inputs: Inputs) -> Tensor:
    """Rotates pairs of channels by the angles of their positions (Su et al. 2021).

    Args:
        node: `interleaved` pairs neighbours, else halves; 3-D inputs need `num_heads`.
        inputs: x `[batch, tokens, heads * size]` or `[batch, heads, tokens, size]`; cosines and sines
            `[batch, tokens, size / 2]`, or with positions `[batch, tokens]` given, of all positions.
    """
    x, cos, sin = (need(value) for value in inputs[:3])
    positions = (*inputs, None)[3]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    heads = x if x.ndim == 4 else _split_heads(x, node.attributes["num_heads"].as_int())
    width = node.attributes.get_int("rotary_embedding_dim", 0) or heads.shape[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if node.attributes.get_int("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    y = torch.cat([turned, rest], -1)
    return y if x.ndim == 4 else y.transpose(1, 2).flatten(2)
