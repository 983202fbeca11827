"""Quantized layers on disk, and a disk that is full."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from zq2onnx.errors import UserError
from zq2onnx.planning.weight_store import WeightStore


def test_weights_are_found_by_label_and_node() -> None:
    one, other = (np.full((3, 2), value, np.float32) for value in (1, 2))
    with WeightStore() as store:
        store.save("w3", "a/b", one)
        store.save("w2", "a/b", other)

        np.testing.assert_array_equal(store.load("w3", "a/b"), one)
        np.testing.assert_array_equal(store.load("w2", "a/b"), other)


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with (
        WeightStore() as store,
        pytest.raises(
            UserError, match="no space left on device while .* of the quantized layer 'fc1'.*TMPDIR"
        ),
    ):
        store.save("w3", "fc1", np.zeros((2, 2), np.float32))
