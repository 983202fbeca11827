"""Arrays on disk, and a disk that is full."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from zq2onnx.errors import UserError
from zq2onnx.storage.array_store import ArrayStore


def test_arrays_are_found_by_label_and_node() -> None:
    one, other = (np.full((3, 2), value, np.float32) for value in (1, 2))
    with ArrayStore() as store:
        store.save(("w3", "a/b"), one, "one")
        store.save(("w2", "a/b"), other, "other")

        np.testing.assert_array_equal(store.load(("w3", "a/b")), one)
        np.testing.assert_array_equal(store.load(("w2", "a/b")), other)


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with (
        ArrayStore() as store,
        pytest.raises(
            UserError, match="no space left on device while .* of the quantized layer 'fc1'.*TMPDIR"
        ),
    ):
        store.save("fc1", np.zeros((2, 2), np.float32), "the quantized layer 'fc1'")


def test_nothing_is_left_of_a_closed_store() -> None:
    store = ArrayStore()
    store.save("a", np.ones(3, np.float32), "a")
    file = store.load("a")
    assert "a" in store and "b" not in store
    del file

    store.close()
    store.close()

    with pytest.raises(ValueError, match="the store was closed"):
        store.load("a")
