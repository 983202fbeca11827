"""Holds what one piece of a model leaves for the next: in memory up to a budget, on disk beyond it."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from zq2onnx.errors import UserError

Array = npt.NDArray[Any]

_PROBE = 64
"""Elements, evenly spread, by which arrays are told apart before they are compared whole."""


@dataclass(eq=False)
class _Entry:
    """One array, under however many keys; in memory, or at an offset of the spill file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    mark: tuple[object, ...]
    array: Array | None = None
    offset: int = 0
    keys: int = 0

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def room(self) -> int:
        """Bytes taken in the spill file: mappings begin at multiples of this granularity."""
        return -(-self.nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


class ActivationCache:
    """Arrays by key. Equal arrays (masks, positions: the same for every batch) are stored once.

    What does not fit the budget goes to an unnamed temporary file, which is gone when the cache is
    closed or the process ends, however it ends.

    Args:
        budget: bytes to hold in memory.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held = 0
        self._entries: dict[Hashable, _Entry] = {}
        self._alike: dict[tuple[object, ...], list[_Entry]] = {}
        self._file: IO[bytes] | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes in memory, at most the budget."""
        return self._held

    @property
    def spilled_bytes(self) -> int:
        """Length of the spill file; regions that were given up are written again."""
        return self._end

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def put(self, key: Hashable, array: Array) -> None:
        """Store an array, which must not be changed from here on, in place of the key's last one.

        Raises:
            UserError: the disk is full.
        """
        self.drop(key)
        array = np.ascontiguousarray(array) if array.ndim else array
        mark = _mark(array)
        entry = next((other for other in self._alike.get(mark, []) if self._equal(other, array)), None)
        if entry is None:
            entry = _Entry(array.dtype, array.shape, mark)
            self._store(entry, array)
            self._alike.setdefault(mark, []).append(entry)
        entry.keys += 1
        self._entries[key] = entry

    def get(self, key: Hashable) -> Array:
        """The array of a key, not to be changed; its pages are mapped where it was spilled.

        Raises:
            KeyError: there is none.
        """
        return self._read(self._entries[key])

    def drop(self, key: Hashable) -> None:
        """Forget a key, and its array if no other key has the same. Unknown keys are no error."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        entry.keys -= 1
        if entry.keys:
            return
        alike = self._alike[entry.mark]
        alike.remove(entry)
        if not alike:
            del self._alike[entry.mark]
        if entry.array is None:
            self._free.setdefault(entry.room, []).append(entry.offset)
        else:
            self._held -= entry.nbytes

    def close(self) -> None:
        """Forget everything and give back the disk. May be called twice."""
        self._entries.clear()
        self._alike.clear()
        self._free.clear()
        self._held = self._end = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _equal(self, entry: _Entry, array: Array) -> bool:
        """Whether two arrays of one mark have the same bytes."""
        other = self._read(entry)
        return other is array or np.array_equal(_raw(other), _raw(array))

    def _store(self, entry: _Entry, array: Array) -> None:
        if entry.nbytes == 0 or self._held + entry.nbytes <= self._budget:
            entry.array = array
            self._held += entry.nbytes
            return
        free = self._free.get(entry.room)
        try:
            if self._file is None:  # close() closes it
                self._file = tempfile.TemporaryFile(prefix="zq2onnx-")  # noqa: SIM115
            entry.offset = free[-1] if free else self._end
            self._file.seek(entry.offset)
            self._file.write(_raw(array).data)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()}: {(error.strerror or str(error)).lower()} while"
                f" {(self._end + entry.room) / 1e6:.0f} MB of activations are kept there",
                "room for them",
                "set TMPDIR to a folder on a larger disk, or give fewer --calib-samples",
            ) from error
        if free:
            free.pop()
        else:
            self._end += entry.room

    def _read(self, entry: _Entry) -> Array:
        if entry.array is not None:
            return entry.array
        assert self._file is not None
        mapping = mmap.mmap(self._file.fileno(), entry.nbytes, access=mmap.ACCESS_READ, offset=entry.offset)
        return np.frombuffer(mapping, entry.dtype).reshape(entry.shape)


def _raw(array: Array) -> npt.NDArray[np.uint8]:
    """The bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8)


def _mark(array: Array) -> tuple[object, ...]:
    """Equal for equal arrays, and seldom for others; cheap for large ones."""
    flat = array.reshape(-1)
    return array.dtype.str, array.shape, flat[:: max(1, len(flat) // _PROBE)].tobytes()
