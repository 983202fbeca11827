"""Reads the documents of a JSON Lines file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.text import Encode, read_text

FIELD = "text"


def read_documents(path: Path, encode: Encode, enough: int) -> list[int]:
    """Encode the documents of a `.jsonl` file one by one and join their tokens.

    Args:
        path: one JSON object a line; its document is the field `text`, or its only string.
        encode: what `text.load_tokenizer` returned.
        enough: stop reading once there are this many tokens.

    Raises:
        UserError: the file cannot be read, or a line of it is no such object.
    """
    ids: list[int] = []
    for document in _documents(path):
        ids += encode(document)
        if len(ids) >= enough:
            break
    return ids


def _documents(path: Path) -> Iterator[str]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield _document(f"{path}: line {number}", line)


def _document(where: str, line: str) -> str:
    required = f'a JSON object with a field "{FIELD}"'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error})", required) from None
    if not isinstance(record, dict):
        raise UserError(f"{where} is a {type(record).__name__}", required)
    strings = [value for value in record.values() if isinstance(value, str)]
    document = record.get(FIELD, strings[0] if len(strings) == 1 else None)
    if not isinstance(document, str):
        raise UserError(
            f'{where} has the fields {", ".join(record) or "none"}, and no text in "{FIELD}"', required
        )
    return document
