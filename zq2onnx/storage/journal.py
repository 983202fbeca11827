"""What an interrupted conversion had done: one JSON line for each finished weight."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


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


class Journal:
    """An append-only file beside the output; its first line says what it is a journal of.

    Lines are written whole and flushed, so a kill leaves at most one torn line, which is ignored.
    Several threads may record.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header
        self.entries: dict[str, Entry] = {}
        self._file: IO[str] | None = None
        self._lock = threading.Lock()

    def resume(self) -> bool:
        """Take over the entries of an earlier run of the same header; False if there is none."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        records = [record for line in lines if (record := _parse(line)) is not None]
        if not records or records[0] != json.loads(json.dumps(self.header)):
            return False
        for record in records[1:]:
            if set(record) == {"name", "source", "output", "facts"}:
                self.entries[record["name"]] = Entry(**record)
        return True

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
        assert self._file is not None
        with self._lock:
            self.entries[entry.name] = entry
            self._file.write(json.dumps(vars(entry)) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None
