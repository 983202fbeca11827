"""Parse a model file without taking the weights inside it into memory: they are left in the file."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

THRESHOLD = 1 << 16
"""Data of an initializer from this many bytes on stays in the file."""

_WINDOW = 1 << 13
_PIECE = 1 << 24
_GRAPH = 7  # of ModelProto
_INITIALIZER = 5  # of GraphProto
_RAW_DATA = 9  # of TensorProto


def parse_model(path: Path) -> tuple[onnx.ModelProto, str]:
    """Parse a model; large initializers of its main graph become external data in the file itself.

    Returns:
        The model, and the `location` that such initializers have. No other tensor's is the same.

    Raises:
        DecodeError: the file is no protobuf message of this kind.
    """
    location = uuid.uuid4().hex
    proto = onnx.ModelProto()
    with path.open("rb") as file:
        for piece in _model(_Bytes(file.fileno()), location):
            proto.MergeFromString(piece)  # which is to parse all of them joined
    return proto, location


class _Bytes:
    """A file's bytes, read in small pieces: a mapping would count as memory wherever it was touched."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.length = os.fstat(descriptor).st_size
        self.window = b""
        self.start = 0

    def byte(self, position: int) -> int:
        """One byte."""
        index = position - self.start
        if not 0 <= index < len(self.window):
            self.window = os.pread(self.descriptor, _WINDOW, position)
            self.start, index = position, 0
            if not self.window:
                raise DecodeError("the file became shorter")
        return self.window[index]

    def between(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`."""
        pieces = []
        while start < end:
            pieces.append(os.pread(self.descriptor, end - start, start))
            if not pieces[-1]:
                raise DecodeError("the file became shorter")
            start += len(pieces[-1])
        return b"".join(pieces)


def _model(view: _Bytes, location: str) -> Iterator[bytes]:
    """The message without the large data, in pieces that are messages themselves."""
    for field, start, body, end in _fields(view, 0, view.length):
        if field == _GRAPH and body != start:
            for piece in _graph(view, body, end, location):
                yield _header(_GRAPH, len(piece)) + piece
        else:
            yield view.between(start, end)


def _graph(view: _Bytes, start: int, end: int, location: str) -> Iterator[bytes]:
    kept = start  # what comes before this was given
    for field, first, body, last in _fields(view, start, end):
        tensor = None
        if field == _INITIALIZER and last - body >= THRESHOLD:
            tensor = _tensor(view, body, last, location)
        if tensor is not None:
            yield view.between(kept, first)
            yield _header(_INITIALIZER, len(tensor)) + tensor
            kept = last
        elif last - kept > _PIECE:
            yield view.between(kept, last)
            kept = last
    yield view.between(kept, end)


def _tensor(view: _Bytes, start: int, end: int, location: str) -> bytes | None:
    """The tensor with its place in the file instead of its data; None where that is not raw, or small."""
    fields = list(_fields(view, start, end))
    raw = [field for field in fields if field[0] == _RAW_DATA]
    if len(raw) != 1 or raw[0][3] - raw[0][2] < THRESHOLD:
        return None
    _, first, body, last = raw[0]
    place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(body)), ("length", str(last - body))):
        place.external_data.add(key=key, value=value)
    return view.between(start, first) + view.between(last, end) + place.SerializeToString()


def _fields(view: _Bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Every field of a message: its number, where it starts, where its content does, and its end.

    The content of a field that is not bytes starts where the field does.
    """
    while start < end:
        tag, position = _varint(view, start, end)
        body = start
        match tag & 7:
            case 0:
                _, position = _varint(view, position, end)
            case 1:
                position += 8
            case 2:
                length, body = _varint(view, position, end)
                position = body + length
            case 5:
                position += 4
            case kind:
                raise DecodeError(f"wire type {kind}")
        if position > end:
            raise DecodeError("a field goes beyond its message")
        yield tag >> 3, start, body, position
        start = position


def _varint(view: _Bytes, position: int, end: int) -> tuple[int, int]:
    """A number and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = view.byte(position)
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise DecodeError("a number goes beyond its message")


def _header(field: int, length: int) -> bytes:
    """Tag and length of a field of bytes."""
    header = bytearray([field << 3 | 2])
    while length > 127:
        header.append(length & 127 | 128)
        length >>= 7
    return bytes([*header, length])
