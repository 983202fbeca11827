"""Keeps a float model's predictions on disk, so that many evaluations against it run it once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zq2onnx.errors import UserError
from zq2onnx.evaluation.metrics import Reference, Score
from zq2onnx.evaluation.model_file import model_files
from zq2onnx.runtime.providers import require_onnxruntime
from zq2onnx.text import Windows

MOST_BYTES = 8 << 30
"""What a folder holds at most. Never more than half of what its disk has free is added, either."""

_FORMAT = 1
_HEADER = "header.json"
_PROBABILITIES, _ROWS = "probabilities.npy", "rows.npz"

Predict = Callable[[Windows, int], tuple[Score, Reference]]


class ReferenceCache:
    """What one model predicts of texts, kept in a folder: exactly what scoring other models reads.

    An entry is the predictions of one text's first windows, as many as there is room for: their
    probabilities in the type that they are scored in, float32 as a rule, so that results are those
    without the cache, bit for bit. It is named by a digest of the model's bytes with all its external data,
    the tokens, how they are cut, and ONNX Runtime's version; nothing else is ever used in its place. Entries
    appear whole or not at all. A full disk ends the keeping and not the evaluation.

    Args:
        folder: is made; its parent must exist.
        model: the model's file.

    Raises:
        UserError: the folder cannot be made, or the model cannot be read.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder}: {error.strerror or error}", "a folder for the float model's predictions"
            ) from error
        self._folder = folder
        self._model = _fingerprint(model)

    def predictions(self, text: Windows, predict: Predict) -> Generator[tuple[Score, Reference]]:
        """Predictions of each window of a text, in order.

        Args:
            text: is read.
            predict: runs the model on one window of it.
        """
        header = self._header(text)
        name = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:32]
        entry = _Entry.find(self._folder / name, header)
        if entry is None:
            yield from self._record(text, predict, name, header)
            return
        for index in range(entry.windows):
            yield entry.read(index)
        for index in range(entry.windows, len(text.ids)):
            yield predict(text, index)

    def _header(self, text: Windows) -> dict[str, Any]:
        """All that predictions depend on."""
        tokens = hashlib.sha256()
        for window in text.ids:
            tokens.update(window.data)
        return {
            "format": _FORMAT,
            "model": self._model,
            "tokens": tokens.hexdigest(),
            "windows": list(text.ids.shape),
            "stride": text.stride,
            "onnxruntime": require_onnxruntime().__version__,
        }

    def _record(
        self, text: Windows, predict: Predict, name: str, header: dict[str, Any]
    ) -> Generator[tuple[Score, Reference]]:
        for abandoned in self._folder.glob(f".{name}.*"):  # by a process that was killed
            shutil.rmtree(abandoned, ignore_errors=True)
        with contextlib.ExitStack() as stack:
            recorder: _Recorder | None = None
            for index in range(len(text.ids)):
                score, reference = predict(text, index)
                if recorder is None:  # the first window is the largest
                    windows = min(self._room() // max(1, reference.probabilities.nbytes), len(text.ids))
                    recorder = stack.enter_context(_Recorder(self._folder, name, text, windows))
                recorder.add(score, reference)
                yield score, reference
            if recorder is not None:
                recorder.finish(header)

    def _room(self) -> int:
        """Bytes that may be added."""
        try:
            used = sum(file.stat().st_size for file in self._folder.glob("*/*"))
            return max(0, min(MOST_BYTES - used, shutil.disk_usage(self._folder).free // 2))
        except OSError:  # another process renames or removes what is counted here
            return 0


class _Entry:
    """An entry that can be read."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / _ROWS) as rows:
            self._best: npt.NDArray[np.intp] = rows["best"]
            self._negentropy: npt.NDArray[np.float64] = rows["negentropy"]
            self._surprise: npt.NDArray[np.float64] = rows["surprise"]
            self._ends: npt.NDArray[np.int64] = rows["ends"]
        self._probabilities = folder / _PROBABILITIES
        self.windows = len(self._surprise)
        if len(np.load(self._probabilities, mmap_mode="r")) != len(self._best):
            raise ValueError("of another length")

    @classmethod
    def find(cls, folder: Path, header: dict[str, Any]) -> _Entry | None:
        """The entry in a folder; None where there is none that is whole and of this header."""
        try:
            if json.loads((folder / _HEADER).read_text(encoding="utf-8")) != header:
                return None
            return cls(folder)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def read(self, index: int) -> tuple[Score, Reference]:
        """One window. It is mapped by itself: what was read of the file before is no longer in memory."""
        part = slice(self._ends[index - 1] if index else 0, self._ends[index])
        probabilities = np.load(self._probabilities, mmap_mode="r")[part]
        count = len(probabilities)
        score = Score(count, float(self._surprise[index]), count, 0.0)
        return score, Reference(probabilities, self._best[part], self._negentropy[part])


class _Recorder:
    """Writes an entry aside; on leaving, what was not finished is removed."""

    def __init__(self, folder: Path, name: str, text: Windows, windows: int) -> None:
        self._final = folder / name
        self._text = text
        self._windows = windows
        self._surprise: list[float] = []
        self._rows: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]] = []
        self._stack = contextlib.ExitStack()
        self._open = windows > 0
        if self._open:
            with self._giving_up():
                self._folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
                self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
                self._file = self._stack.enter_context((self._folder / _PROBABILITIES).open("wb"))

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """A disk that is full, or a folder that is gone, ends the keeping."""
        try:
            yield
        except OSError:
            self._open = False
            self._stack.close()

    def add(self, score: Score, reference: Reference) -> None:
        """Keep a window, if there is room for it."""
        if not self._open or len(self._surprise) == self._windows:
            return
        with self._giving_up():
            if not self._surprise:
                rows = sum(self._text.scored(index) for index in range(self._windows))
                shape = (rows, reference.probabilities.shape[1])
                described = {
                    "descr": np.lib.format.dtype_to_descr(reference.probabilities.dtype),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(self._file, described)
            self._file.write(np.ascontiguousarray(reference.probabilities).data)
            self._surprise.append(score.surprise)
            self._rows.append((reference.best, reference.negentropy))

    def finish(self, header: dict[str, Any]) -> None:
        """Give the entry its name. Where another process was first, its entry stays."""
        if not self._open:
            return
        with self._giving_up():
            self._file.close()
            best, negentropy = zip(*self._rows, strict=True)
            np.savez(
                self._folder / _ROWS,
                best=np.concatenate(best),
                negentropy=np.concatenate(negentropy),
                surprise=np.array(self._surprise),
                ends=np.cumsum([len(rows) for rows in best]),
            )
            (self._folder / _HEADER).write_text(json.dumps(header), encoding="utf-8")
            if _Entry.find(self._final, header) is None:
                shutil.rmtree(self._final, ignore_errors=True)
                os.rename(self._folder, self._final)


def _fingerprint(model: Path) -> str:
    """SHA-256 of a model's file and of every file that its weights are in."""
    digest = hashlib.sha256()
    for file in model_files(model):
        try:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise UserError(f"{model}: its file {file} cannot be read ({error.strerror})") from error
    return digest.hexdigest()
