"""What a journal holds, and what it takes over."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from zq2onnx.storage.journal import Entry, Journal

HEADER = {"options": {"bits": 4, "only": ("a",)}, "input": "abc"}


def entry(number: int) -> Entry:
    return Entry(f"weight.{number}", "source", "output", {"weight_error": 0.1, "dropped": "ä\n\u2028"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.onnx.journal"


def write(path: Path, count: int) -> None:
    journal = Journal(path, HEADER)
    journal.open()
    for number in range(count):
        journal.record(entry(number))
    journal.close()


def test_entries_are_taken_over(path: Path) -> None:
    write(path, 3)
    journal = Journal(path, HEADER)
    assert journal.resume()
    assert journal.entries == {entry(i).name: entry(i) for i in range(3)}
    journal.open()
    journal.record(entry(3))
    journal.close()
    again = Journal(path, HEADER)
    assert again.resume() and len(again.entries) == 4


def test_no_journal_and_one_of_another_header(path: Path) -> None:
    assert not Journal(path, HEADER).resume()
    write(path, 3)
    other = Journal(path, {**HEADER, "input": "other"})
    assert not other.resume() and other.entries == {}


def test_opening_without_resuming_starts_anew(path: Path) -> None:
    write(path, 3)
    write(path, 0)
    journal = Journal(path, HEADER)
    assert journal.resume() and journal.entries == {}


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_torn_line_is_ignored_wherever_it_is_torn(path: Path, cut: int) -> None:
    write(path, 2)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, HEADER)
    assert journal.resume()
    assert set(journal.entries) == ({"weight.0", "weight.1"} if cut == 1 else {"weight.0"})


def test_the_last_of_two_entries_counts(path: Path) -> None:
    write(path, 1)
    with path.open("a") as file:
        file.write(json.dumps({**vars(entry(0)), "output": "newer"}) + "\n")
    journal = Journal(path, HEADER)
    assert journal.resume() and journal.entries["weight.0"].output == "newer"


def test_lines_of_threads_do_not_mix(path: Path) -> None:
    journal = Journal(path, HEADER)
    journal.open()
    starts = range(0, 400, 100)
    threads = [
        threading.Thread(target=lambda a=start: [journal.record(entry(a + i)) for i in range(100)])
        for start in starts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    again = Journal(path, HEADER)
    assert again.resume() and len(again.entries) == 400


def test_knows_the_model_it_wrote(path: Path) -> None:
    model = path.with_name("q.onnx")
    journal = Journal(path, HEADER)
    journal.open()
    journal.record_model(b"model")
    journal.close()
    again = Journal(path, HEADER)
    assert again.resume() and not again.wrote(model)
    model.write_bytes(b"model")
    assert again.wrote(model) and not Journal(path, HEADER).wrote(model)
    model.write_bytes(b"another")
    assert not again.wrote(model)
