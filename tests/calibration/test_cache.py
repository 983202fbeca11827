"""Activations come back as they went in, from memory or from disk, and are stored once."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import numpy as np
import pytest

from zq2onnx.calibration.cache import ActivationCache
from zq2onnx.errors import UserError

ARRAYS = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.array([[True, False]]),
    np.array([1, -2, 3]),
    np.float32(5.0).reshape(()),
    np.zeros((2, 0, 4), np.float32),
    np.array([np.nan, -np.inf, -0.0], np.float32),
    np.arange(24, dtype=np.float32).reshape(4, 6).T,
]


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_arrays_come_back_as_they_went_in(budget: int) -> None:
    with ActivationCache(budget) as cache:
        for index, array in enumerate(ARRAYS):
            cache.put(index, array)
        for index, array in enumerate(ARRAYS):
            found = cache.get(index)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
        assert (cache.spilled_bytes > 0) == (budget == 0)


def test_the_budget_is_kept_and_given_back() -> None:
    with ActivationCache(1000) as cache:
        for index in range(10):
            cache.put(index, np.full(100, index, np.float32))
        assert cache.held_bytes == 800
        spilled = cache.spilled_bytes
        assert spilled > 0
        cache.drop(0)
        assert cache.held_bytes == 400
        cache.put(0, np.full(100, 77, np.float32))
        assert (cache.held_bytes, cache.spilled_bytes) == (800, spilled)
        assert [cache.get(index)[0] for index in range(10)] == [77, *range(1, 10)]


def test_what_was_given_up_on_disk_is_written_again() -> None:
    with ActivationCache(0) as cache:
        for index in range(20):
            cache.put("key", np.full(5000, index, np.float32))
            if index == 0:
                spilled = cache.spilled_bytes
        assert cache.get("key")[0] == 19
        assert cache.spilled_bytes == spilled


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_equal_arrays_are_stored_once(budget: int) -> None:
    mask = np.ones((4, 1000), np.float32)
    with ActivationCache(budget) as cache:
        cache.put("a", mask)
        size = cache.held_bytes, cache.spilled_bytes
        cache.put("b", mask.copy())
        assert (cache.held_bytes, cache.spilled_bytes) == size
        cache.drop("a")
        assert "a" not in cache
        np.testing.assert_array_equal(cache.get("b"), mask)
        cache.drop("b")
        assert cache.held_bytes == 0


def test_arrays_that_differ_anywhere_are_told_apart() -> None:
    with ActivationCache(1 << 20) as cache:
        array = np.zeros(1000, np.float32)
        cache.put("zeros", array)
        for index in range(1000):
            other = array.copy()
            other[index] = 1
            cache.put("other", other)
            assert cache.get("other")[index] == 1
        assert not cache.get("zeros").any()
        cache.put("integers", np.zeros(1000, np.int32))
        assert cache.get("integers").dtype == np.int32


def test_a_key_holds_its_last_array() -> None:
    with ActivationCache(1 << 20) as cache:
        cache.put("key", np.zeros(3))
        cache.put("key", np.ones(3))
        assert cache.get("key")[0] == 1
        assert cache.held_bytes == 24


def test_an_unknown_key_is_an_error_to_get_and_none_to_drop() -> None:
    with ActivationCache(0) as cache:
        cache.drop("none")
        with pytest.raises(KeyError):
            cache.get("none")


def test_no_file_is_seen_and_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = ActivationCache(0)
    cache.put("key", np.ones(10))
    assert list(tmp_path.iterdir()) == []
    cache.close()
    cache.close()
    assert "key" not in cache
    assert cache.spilled_bytes == 0


def test_a_full_disk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with ActivationCache(0) as cache, pytest.raises(UserError, match="no space left .*; .*TMPDIR"):
        cache.put("key", np.ones(10))
