"""The loss whose gradients tell how much each value of a model matters to what it predicts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from zq2onnx.calibration.prediction import LOGITS

Tensor = torch.Tensor

_DRAWN_ROWS = 256
"""Rows of logits whose labels are drawn at once: their probabilities are summed up in float64."""


def sample_labels(logits: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw a label for each row from the softmax over the last axis: `[.., V]` to int64 `[..]`."""
    rows = logits.detach().reshape(-1, logits.shape[-1])
    draws = torch.from_numpy(rng.random((len(rows), 1)))
    labels = torch.empty((len(rows), 1), dtype=torch.int64)
    for first in range(0, len(rows), _DRAWN_ROWS):
        part = slice(first, first + _DRAWN_ROWS)
        cumulative = torch.softmax(rows[part].double(), -1).cumsum(-1)
        labels[part] = torch.searchsorted(cumulative, draws[part] * cumulative[:, -1:], right=True)
    return labels.clamp_(max=logits.shape[-1] - 1).reshape(logits.shape[:-1])


def loss_gradient(output: Tensor, name: str, shown: Tensor | None, rng: np.random.Generator) -> Tensor:
    """The gradient of `-Σ log p(label)` with respect to logits; of `<y, ε>` for any other output.

    Args:
        output: `[.., V]`, as the model makes it.
        name: of the output; labels are drawn of it if it is `logits`, else it is taken for the mean of
            a Gaussian of unit variance, and ε is drawn of `N(0, 1)`.
        shown: what `shown_tokens` returned: the others have no loss.
        rng: what labels, or ε, are drawn with.
    """
    output = output.detach()
    if name == LOGITS:
        gradient = torch.softmax(output, -1)
        labels = sample_labels(output, rng).unsqueeze(-1)
        gradient.scatter_add_(-1, labels, torch.full(labels.shape, -1.0))
    else:
        gradient = torch.from_numpy(rng.standard_normal(tuple(output.shape), np.float32))
    return gradient if shown is None else gradient.mul_(shown.unsqueeze(-1))


def shown_tokens(output: Tensor, mask: npt.NDArray[np.generic] | None) -> Tensor | None:
    """Which tokens of an output an attention mask does not hide; None where it is not about them.

    Args:
        output: the mask is about it if it is `[batch, tokens, V]`.
        mask: `[batch, past + tokens]`, not zero for what is shown.

    Returns:
        bool `[batch, tokens]`.
    """
    if mask is None or mask.ndim != 2 or output.ndim != 3:
        return None
    batch, tokens = output.shape[:2]
    if mask.shape[0] != batch or mask.shape[1] < tokens:
        return None
    return torch.from_numpy(mask[:, mask.shape[1] - tokens :] != 0)
