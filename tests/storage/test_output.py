"""Room is taken before it is needed, and names are given at the end."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from zq2onnx.errors import UserError
from zq2onnx.storage import output
from zq2onnx.storage.failures import no_space_is_told
from zq2onnx.storage.output import OutputFiles, write_region
from zq2onnx.storage.paths import check_folder
from zq2onnx.storage.plan import PAGE, PAGE_THRESHOLD, Region, Section


@pytest.fixture
def files(tmp_path: Path) -> OutputFiles:
    return OutputFiles(tmp_path / "out" / "q.onnx")


def test_small_tensors_start_on_a_cache_line_and_large_ones_on_a_page() -> None:
    section = Section()
    lengths = [1, 63, PAGE_THRESHOLD, 64, PAGE_THRESHOLD + 1]
    regions = [section.place(str(i), length) for i, length in enumerate(lengths)]
    assert [region.offset % 64 for region in regions] == [0] * 5
    assert [region.offset % PAGE for region in regions if region.length >= PAGE_THRESHOLD] == [0, 0]
    assert all(a.offset + a.length <= b.offset for a, b in itertools.pairwise(regions))
    assert section.size == regions[-1].offset + regions[-1].length


def test_a_name_is_placed_once() -> None:
    section = Section()
    section.place("a", 10)
    with pytest.raises(ValueError, match="'a' is placed twice"):
        section.place("a", 20)
    assert section.regions == {"a": Region(0, 10)} and section.size == 10


def test_reserved_room_is_taken(files: OutputFiles) -> None:
    files.reserve(10**6, 10**5, keep=False)
    assert files.made_folder
    taken = [path.stat().st_blocks * 512 for path in (files.partial_data, files.partial_factors)]
    assert taken[0] >= 10**6 + 10**5 and taken[1] >= 10**5


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_that_cannot_allocate(
    files: OutputFiles, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(output.os, "posix_fallocate", refuse, raising=False)
    files.reserve(1000, 0, keep=False)
    assert files.partial_data.stat().st_size == 1000


def test_keeping_empties_what_lies_behind_the_data(files: OutputFiles) -> None:
    files.make_folder()
    files.partial_data.write_bytes(b"d" * 100 + b"f" * 9000)
    files.reserve(100, 50, keep=True)
    content = files.partial_data.read_bytes()
    assert content[:100] == b"d" * 100 and not any(content[100:])
    files.reserve(100, 50, keep=False)
    assert not any(files.partial_data.read_bytes())


def test_reserving_counts_what_is_there(files: OutputFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.reserve(10**6, 10**5, keep=False)
    usage = output.shutil.disk_usage(files.model.parent)._replace(free=0)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage)
    files.reserve(10**6, 10**5, keep=True)
    with pytest.raises(UserError, match="0 MB free; required: 2 MB for the output"):
        files.reserve(3 * 10**6, 10**5, keep=True)


def test_factors_that_stay_follow_the_data(files: OutputFiles) -> None:
    files.reserve(10, 300, keep=False)
    files.partial_data.write_bytes(b"0123456789" + bytes(300))
    files.partial_factors.write_bytes(b"a" * 100 + b"b" * 100 + b"c" * 100)
    moves = [(Region(200, 100), Region(64, 100)), (Region(0, 3), Region(192, 3))]
    for _ in range(2):
        files.append_factors(10, moves)
        expected = b"0123456789" + bytes(54) + b"c" * 100 + bytes(28) + b"aaa"
        assert files.partial_data.read_bytes() == expected


def test_without_factors_the_data_ends_where_it_ends(files: OutputFiles) -> None:
    files.reserve(10, 0, keep=False)
    files.append_factors(10, [])
    assert files.partial_data.read_bytes() == bytes(10)


def test_published_files_have_their_names(files: OutputFiles) -> None:
    files.reserve(10, 0, keep=False)
    files.append_factors(10, [])
    files.publish(b"model")
    files.discard()
    assert sorted(path.name for path in files.model.parent.iterdir()) == ["q.onnx", "q.onnx.data"]
    assert files.model.read_bytes() == b"model" and files.nbytes == 15


def test_discarding_takes_away_the_folder_that_it_made(files: OutputFiles) -> None:
    files.reserve(10, 10, keep=False)
    files.discard()
    assert not files.model.parent.exists()


def test_discarding_leaves_what_was_there(files: OutputFiles) -> None:
    files.model.parent.mkdir()
    files.reserve(10, 10, keep=False)
    files.discard()
    assert list(files.model.parent.iterdir()) == []


def test_regions_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(output.os, "pwrite", lambda fd, content, offset: pwrite(fd, content[:7], offset))
    path = tmp_path / "file"
    with path.open("wb") as file:
        write_region(file.fileno(), Region(3, 26), memoryview(b"abcdefghijklmnopqrstuvwxyz"))
        with pytest.raises(ValueError, match="4 bytes for a region of 5"):
            write_region(file.fileno(), Region(0, 5), memoryview(b"four"))
    assert path.read_bytes() == bytes(3) + b"abcdefghijklmnopqrstuvwxyz"


def test_other_system_errors_are_not_told_as_full(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), no_space_is_told(tmp_path):
        raise PermissionError(errno.EACCES, "denied")
    with pytest.raises(UserError, match="quota"), no_space_is_told(tmp_path):
        raise OSError(errno.EDQUOT, "quota")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_folder(tmp_path / "new.onnx")
    check_folder(tmp_path / "new" / "new.onnx")
    for path in (tmp_path / "file" / "x", tmp_path / "a" / "b" / "x"):
        with pytest.raises(UserError, match="no folder"):
            check_folder(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no folder"):
        check_folder(tmp_path / "dangling" / "x")
