"""A text file is whole, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from zq2onnx.storage.text_file import write_whole


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_whole(tmp_path / "ä.md", "één\r\n\n")
    assert (tmp_path / "ä.md").read_bytes() == "één\r\n\n".encode()


def test_writing_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "study.md"
    write_whole(file, "old\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "new, and longer\n")
    assert file.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [file]
