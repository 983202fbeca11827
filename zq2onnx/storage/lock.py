"""One process at a time writes an output."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.storage.output import OutputFiles

with contextlib.suppress(ImportError):  # not on Windows: who writes where is the user's own care there
    import fcntl

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def locked(files: OutputFiles) -> Iterator[None]:
    """Hold the output's lock, a file beside it; makes the output's folder where that is missing.

    Where no lock can be had (no such folder, no right to write, a file system without locks) there is
    none: `OutputFiles.check` says what is wrong with the folder.

    Raises:
        UserError: another process holds it.
    """
    descriptor = _acquire(files)
    try:
        yield
    finally:
        if descriptor is not None:
            files.lock.unlink(missing_ok=True)  # first: who waits for the name finds it gone or held
            os.close(descriptor)
            files.leave_folder()


def _acquire(files: OutputFiles) -> int | None:
    """Descriptor of the lock file that has the name and is locked."""
    if "fcntl" not in globals():
        return None
    while True:
        try:
            files.make_folder()
            descriptor = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            if files.model.parent.parent.is_dir() and not os.path.lexists(files.model.parent):
                continue  # another conversion took its folder away in between
            return None
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                return None
            if isinstance(error, BlockingIOError):
                raise _taken(files) from None
            raise
        if _is_at(descriptor, files.lock):
            return descriptor
        os.close(descriptor)  # its holder unlinked it when it was done; the name is free or another's


def _taken(files: OutputFiles) -> UserError:
    return UserError(
        f"{files.model} is being written by another process",
        "one at a time",
        "wait for it, or choose another output with -o",
    )


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False
