"""Texts are encoded whole and cut into windows as the definition of perplexity says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from tests.evaluation.language import write_text, write_tokenizer
from zq2onnx.errors import UserError
from zq2onnx.text import cut_windows, load_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json", 100)


def test_windows_follow_each_other_and_the_tail_is_dropped(tokenizer: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", list(range(11)))
    windows = cut_windows(text, load_tokenizer(tokenizer), 4)
    np.testing.assert_array_equal(windows.ids, [[0, 1, 2, 3], [4, 5, 6, 7]])
    assert windows.ids.dtype == np.int64
    assert windows.largest_id == 10


def test_the_first_windows_are_taken(tokenizer: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", list(range(12)))
    encode = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(cut_windows(text, encode, 4, 2).ids, [[0, 1, 2, 3], [4, 5, 6, 7]])
    assert cut_windows(text, encode, 4, 9).ids.shape == (3, 4)


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
