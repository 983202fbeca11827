"""The folder of a study: what lies where, and whose it is."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zq2onnx.errors import UserError
from zq2onnx.storage.lock import locked
from zq2onnx.storage.output import OutputFiles
from zq2onnx.storage.paths import check_folder
from zq2onnx.study.records import read_header, write_record
from zq2onnx.study.results import Cell

_CLAIM = "study"
"""The name of the record that says whose the folder is."""

_CELL_NAME = re.compile(r"w\d+a\d+-(row|g\d+)-[a-z-]+-r\d+")
"""`Cell.name`: folders of other names are somebody else's, and stay."""

_WORDS = {
    "model": "model",
    "data": "model",
    "texts": "texts",
    "tokenizer": "tokenizer",
    "length": "--length",
    "windows": "--windows",
}
"""What a study's identity consists of, in the user's words."""


class Folder:
    """A study's folder.

    Args:
        path: need not exist; its parent must.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def cells(self) -> Path:
        """Records, and models while they are measured."""
        return self.path / "cells"

    @property
    def reference(self) -> Path:
        """The float model's predictions; there only while a study is unfinished."""
        return self.path / "reference"

    @property
    def results(self) -> tuple[Path, ...]:
        """What the user reads."""
        return tuple(self.path / f"study.{kind}" for kind in ("md", "csv", "json", "html"))

    def record(self, name: str) -> Path:
        """The record of a cell, or of something else that was measured."""
        return self.cells / f"{name}.json"

    def model(self, cell: Cell) -> Path:
        """A cell's converted model."""
        return self.cells / cell.name / "model.onnx"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out; make the folder where it is missing.

        Raises:
            UserError: another process writes a study there, or there can be no such folder.
        """
        check_folder(self.path / "study")
        with locked(OutputFiles(self.path / "study")):
            yield

    def claim(self, identity: Mapping[str, Any], force: bool) -> None:
        """Make the folder this study's: refuse another's, clear away what a killed run left half done.

        Args:
            identity: of the study.
            force: take over a folder that is another study's, whose results are removed.

        Raises:
            UserError: it is another study's, or holds files of a study's names, and `force` is not said.
        """
        header = read_header(self.record(_CLAIM))
        if header != dict(identity):
            if not force and (header is None or self._holds_results()):
                self._refuse(header, identity)
            self._clear()
            self.cells.mkdir(exist_ok=True)
            write_record(self.record(_CLAIM), identity, None)
        for left in self._models():
            if not self.record(left.name).exists():
                shutil.rmtree(left)

    def _holds_results(self) -> bool:
        """Whether anything was measured."""
        return any(record != self.record(_CLAIM) for record in self.cells.glob("*.json"))

    def _models(self) -> list[Path]:
        """The folders of converted models."""
        found = self.cells.iterdir() if self.cells.is_dir() else ()
        return [path for path in found if path.is_dir() and _CELL_NAME.fullmatch(path.name)]

    def _clear(self) -> None:
        """Remove another study's records and models."""
        for record in self.cells.glob("*.json"):
            if read_header(record) is not None:
                record.unlink()
        for model in self._models():
            shutil.rmtree(model)

    def _refuse(self, found: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> None:
        """Refuse a folder that holds something else than this study."""
        remedy = "choose another folder with -o, or add --force to lose what is there"
        if isinstance(found, dict):
            differing = dict.fromkeys(_WORDS[key] for key in identity if found.get(key) != identity[key])
            raise UserError(
                f"{self.path} holds a study that differs in its {', '.join(differing)}",
                "a folder of this study, or an empty one",
                remedy,
            )
        for file in self.results:
            if os.path.lexists(file):
                raise UserError(f"{file} exists, and is not of a study that can go on", "a new path", remedy)

    def finish(self) -> None:
        """Remove what only an unfinished study needs."""
        shutil.rmtree(self.reference, ignore_errors=True)
