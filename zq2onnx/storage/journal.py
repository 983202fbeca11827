"""What an interrupted conversion had done: one JSON line for each finished weight."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from zq2onnx.storage.mapped import file_digest


@dataclass(frozen=True)
class Entry:
    """A finished weight.

    Attributes:
        name: the weight's name in the output.
        source: digest of the float bytes that were read.
        output: digest of the bytes that were written.
        facts: what the conversion wants to remember of it, as plain values.
    """

    name: str
    source: str
    output: str
    facts: dict[str, Any]


_FIELDS = {"name": str, "source": str, "output": str, "facts": dict}


class Journal:
    """An append-only file beside the output; its first line says what it is a journal of.

    Lines are written whole and flushed, so a kill leaves at most one torn line, which is ignored.
    Several threads may record.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header
        self.entries: dict[str, Entry] = {}
        self._model = ""
        self._file: IO[str] | None = None
        self._lock = threading.Lock()

    def resume(self) -> bool:
        """Take over the entries of an earlier run of the same header; False if there is none."""
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            return False
        if _parse(lines[0]) != json.loads(json.dumps(self.header)):
            return False
        for record in map(_parse, lines[1:]):
            if record.keys() == {"model"}:
                self._model = str(record["model"])
            elif all(isinstance(record.get(key), kind) for key, kind in _FIELDS.items()):
                self.entries[record["name"]] = Entry(*(record[key] for key in _FIELDS))
        return True

    def wrote(self, model: Path) -> bool:
        """Whether the run that was taken over had published `model`, and it is still that."""
        return bool(self._model) and model.is_file() and file_digest(model) == self._model

    def open(self) -> None:
        """Start the file anew with the header and the entries taken over."""
        temporary = self.path.with_name(self.path.name + ".new")
        with temporary.open("w", encoding="utf-8") as file:
            for record in (self.header, *(vars(entry) for entry in self.entries.values())):
                file.write(json.dumps(record) + "\n")
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def record(self, entry: Entry) -> None:
        """Append a finished weight."""
        with self._lock:
            self.entries[entry.name] = entry
            self._append(vars(entry))

    def record_model(self, content: bytes) -> None:
        """Append what the model file is about to be."""
        self._append({"model": hashlib.sha256(content).hexdigest()})

    def _append(self, record: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _parse(line: str) -> dict[str, Any]:
    """A line's record; empty where it is torn."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}
