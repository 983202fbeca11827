"""Prompts of different lengths as one batch: filled up on the left, so that all go on at the same place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def pad_left(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Ids, Ids]:
    """Tokens `[batch, length]`, and a mask of that shape with 0 for what fills up.

    >>> ids, mask = pad_left([[5, 6, 7], [8]], pad=1)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [1, 1, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    length = max(map(len, prompts))
    ids = np.full((len(prompts), length), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def positions(mask: Ids, count: int) -> Ids:
    """Positions `[batch, count]` of the last tokens under a mask: they count what is attended to.

    >>> positions(np.array([[1, 1, 1], [0, 0, 1]]), 3).tolist(), positions(np.array([[0, 1, 1]]), 1).tolist()
    ([[0, 1, 2], [0, 0, 0]], [[1]])
    """
    counted = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return counted[:, counted.shape[1] - count :]
