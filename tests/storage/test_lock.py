"""One conversion at a time writes an output."""

from __future__ import annotations

import errno
import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from zq2onnx.errors import UserError
from zq2onnx.storage import lock
from zq2onnx.storage.lock import locked
from zq2onnx.storage.output import OutputFiles

CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "out" / "q.onnx"


def hold(model: Path, held: Event, enough: Event) -> None:
    with locked(OutputFiles(model)):
        held.set()
        enough.wait(60)


def test_another_process_is_kept_out(model: Path) -> None:
    held, enough = CONTEXT.Event(), CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(model, held, enough))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(UserError, match=r"q\.onnx is being written by another process"):
            locked(OutputFiles(model)).__enter__()
        with locked(OutputFiles(model.with_name("r.onnx"))):
            pass
    finally:
        enough.set()
        process.join()
    with locked(OutputFiles(model)):
        pass


def test_a_lock_file_that_a_kill_left_is_nobodys(model: Path) -> None:
    files = OutputFiles(model)
    model.parent.mkdir()
    files.lock.touch()
    with locked(files):
        assert files.lock.exists()
    assert not files.lock.exists() and model.parent.exists()


def test_nothing_is_left(model: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(OutputFiles(model)):
        raise ZeroDivisionError
    assert not model.parent.exists()


def test_the_name_must_be_that_of_the_locked_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder unlinks the file between this one's opening and locking it."""
    files = OutputFiles(model)
    flock, calls = lock.fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not calls:
            files.lock.unlink()
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with locked(files):
        assert len(calls) == 2 and files.lock.exists()
        with pytest.raises(UserError):
            locked(OutputFiles(model)).__enter__()


def test_file_systems_without_locks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with locked(OutputFiles(model)), locked(OutputFiles(model)):
        pass


def test_without_fcntl(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(lock, "fcntl")
    with locked(OutputFiles(model)), locked(OutputFiles(model)):
        assert not model.parent.exists()


def test_folders_that_cannot_be_are_left_to_the_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "a" / "b" / "q.onnx", tmp_path / "file" / "q.onnx"):
        with locked(OutputFiles(path)):
            assert not path.parent.is_dir()
