"""Texts are encoded whole and cut into windows as the definition of perplexity says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from tests.evaluation.language import write_text, write_tokenizer
from zq2onnx.errors import UserError
from zq2onnx.text import cut_windows, load_tokenizer, read_lines, read_text


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json", 100)


def test_windows_follow_each_other_and_the_tail_is_dropped(tokenizer: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", list(range(11)))
    windows = cut_windows(text, load_tokenizer(tokenizer), 4)
    np.testing.assert_array_equal(windows.ids, [[0, 1, 2, 3], [4, 5, 6, 7]])
    assert windows.ids.dtype == np.int32
    assert windows.largest_id == 7


def test_the_first_windows_are_taken(tokenizer: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", list(range(12)))
    encode = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(cut_windows(text, encode, 4, 2).ids, [[0, 1, 2, 3], [4, 5, 6, 7]])
    assert cut_windows(text, encode, 4, 9).ids.shape == (3, 4)


@pytest.mark.parametrize(
    ("stride", "starts", "scored"),
    [(1, range(8), [3] + 7 * [1]), (3, [0, 3, 6], [3, 3, 3]), (4, [0, 4], [3, 3]), (None, [0, 4], [3, 3])],
)
def test_windows_may_overlap_and_every_token_is_scored_once(
    tokenizer: Path, tmp_path: Path, stride: int | None, starts: list[int], scored: list[int]
) -> None:
    text = write_text(tmp_path / "a.txt", list(range(11)))
    windows = cut_windows(text, load_tokenizer(tokenizer), 4, stride=stride)
    np.testing.assert_array_equal(windows.ids, [np.arange(start, start + 4) for start in starts])
    assert [windows.scored(index) for index in range(len(windows.ids))] == scored
    if stride in (1, 3):
        predicted = [token for i, ids in enumerate(windows.ids) for token in ids[-windows.scored(i) :]]
        assert predicted == list(range(1, len(predicted) + 1))


def test_a_text_is_read_no_further_than_its_windows(tokenizer: Path, tmp_path: Path) -> None:
    """Only what is used decides the largest id."""
    text = tmp_path / "a.txt"
    rng = np.random.default_rng(0)
    used = " ".join(f"w{token}" for token in rng.integers(0, 90, 60_000))
    text.write_bytes(f"{used} {'w99 ' * 90_000}".encode() + b"\xff")
    windows = cut_windows(text, load_tokenizer(tokenizer), 4, 3, stride=2)
    assert windows.ids.shape == (3, 4)
    assert windows.largest_id == windows.ids.max() < 90
    with pytest.raises(UserError, match="not UTF-8"):
        cut_windows(text, load_tokenizer(tokenizer), 4)


def test_a_long_text_has_the_tokens_of_the_whole(tiny_model: Path) -> None:
    text = tiny_model / "heldout.txt"
    whole = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode(text.read_text(encoding="utf-8"))
    assert text.stat().st_size > 100_000
    assert load_tokenizer(tiny_model).encode_file(text).tolist() == whole.ids


@pytest.mark.parametrize("content", ["é" * 40_000, "a" + "é" * 40_000, "x\r\n\r" * 30_000, "", "\n"])
def test_blocks_are_what_python_reads(tmp_path: Path, content: str) -> None:
    """Characters and line ends cut by a block's end are put together again."""
    text = tmp_path / "a.txt"
    text.write_bytes(content.encode())
    assert read_text(text) == text.read_text(encoding="utf-8")
    assert list(read_lines(text)) == text.read_text(encoding="utf-8").split("\n")


@pytest.mark.parametrize(
    ("content", "byte"),
    [
        (b"a" * 70_000 + b"\xff", 70_000),
        ("é".encode() * 40_001 + b"\xc3", 80_002),
        (b"a" * 65_535 + b"\xc3(", 65_535),
    ],
)
def test_a_byte_that_is_not_utf8_is_counted_from_the_beginning(
    tmp_path: Path, content: bytes, byte: int
) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(content)
    with pytest.raises(UserError, match=f"a.txt: byte {byte} is not UTF-8"):
        read_text(text)


def test_special_tokens_truncation_and_padding_of_the_file_are_off(tokenizer: Path, tmp_path: Path) -> None:
    changed = Tokenizer.from_file(str(tokenizer))
    changed.post_processor = processors.TemplateProcessing(single="w9 $A w9", special_tokens=[("w9", 9)])
    changed.enable_truncation(3)
    changed.enable_padding(length=64, pad_id=8)
    changed.save(str(tokenizer))
    text = write_text(tmp_path / "a.txt", [1, 2, 3, 4, 5, 6])
    assert changed.encode("w1 w2 w3").ids[:3] == [9, 1, 9]
    np.testing.assert_array_equal(
        cut_windows(text, load_tokenizer(tokenizer), 2).ids, [[1, 2], [3, 4], [5, 6]]
    )


@pytest.mark.parametrize(("tokens", "remedy"), [(3, "--length of at most 3"), (0, "a longer text")])
def test_a_text_shorter_than_a_window_says_how_many_tokens_it_has(
    tokenizer: Path, tmp_path: Path, tokens: int, remedy: str
) -> None:
    text = write_text(tmp_path / "short.txt", list(range(tokens)))
    with pytest.raises(UserError, match=rf"short.txt: {tokens} tokens; .*window of 4 tokens; .*{remedy}"):
        cut_windows(text, load_tokenizer(tokenizer), 4)


def test_a_text_that_is_not_utf8_names_the_byte(tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "latin.txt"
    text.write_bytes("déjà".encode("latin-1"))
    with pytest.raises(UserError, match="latin.txt: byte 1 is not UTF-8"):
        cut_windows(text, load_tokenizer(tokenizer), 2)


def test_missing_and_wrong_files_are_named(tokenizer: Path, tmp_path: Path) -> None:
    encode = load_tokenizer(tokenizer)
    with pytest.raises(UserError, match=r"none.txt: No such file"):
        cut_windows(tmp_path / "none.txt", encode, 2)
    with pytest.raises(UserError, match="a folder; .*a text file"):
        cut_windows(tmp_path, encode, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/tokenizer.json: no such file"):
        load_tokenizer(tmp_path / "empty")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(UserError, match=r"broken.json: not a tokenizer"):
        load_tokenizer(broken)
