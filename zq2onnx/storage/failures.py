"""What a conversion leaves behind when it fails."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.storage.journal import Journal
from zq2onnx.storage.output import OutputFiles

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def no_space_is_told(folder: Path) -> Iterator[None]:
    """Turn a full disk into a line that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise UserError(
            f"{folder}: {os.strerror(error.errno).lower()}",
            "room for the output",
            "free some, or choose another folder with -o",
        ) from error


@contextlib.contextmanager
def keeping_the_journal(files: OutputFiles, journal: Journal) -> Iterator[None]:
    """Leave behind what --resume can go on from, and nothing else.

    A kill, Ctrl-C, an error of the disk or the network and a lack of memory are of the moment: what
    was done stays. What the user has to mend, and a defect of the program, would come again.
    """
    try:
        with no_space_is_told(files.model.parent):
            yield
    except (OSError, MemoryError):
        raise
    except Exception:
        journal.close()
        files.discard()
        raise
    finally:
        journal.close()
