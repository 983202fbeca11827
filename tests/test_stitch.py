"""Chunks joined have the tokens of the whole text, whatever cuts it into tokens."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests import zoo
from zq2onnx.stitch import Encoded, encode_in_chunks

CHUNK, OVERLAPS = 1021, (256, 384, 510)
PROSE = Path(zoo.__file__).read_text(encoding="utf-8")
TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"


def trained(tokenizer: Tokenizer, trainer: object) -> Tokenizer:
    tokenizer.train_from_iterator([PROSE, "déjà vu – 東京タワー 😀😀   " * 9, "=" * 40, " " * 40], trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(
        tokenizer, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    )


def sentence_piece_bpe() -> Tokenizer:
    """As Llama 2's: no words, the whole text is one; what is unknown goes byte by byte."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    return trained(
        tokenizer,
        trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *bytes_], show_progress=False),
    )


def metaspace_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return trained(
        tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    )


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return trained(
        tokenizer,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        ),
    )


def byte_level(*, digits: bool = False) -> Tokenizer:
    """As GPT-2's; or, with digits by three from the left, as Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(
        tokenizer, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )


def bundled() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def opt() -> Tokenizer:
    return Tokenizer.from_file(str(zoo.opt_17m() / "tokenizer.json"))


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "bundled": bundled,
    "opt-17m": opt,
    "word piece": word_piece,
    "sentence piece": sentence_piece_bpe,
    "metaspace": metaspace_bpe,
    "unigram": unigram,
    "byte level": byte_level,
    "digits by three": functools.partial(byte_level, digits=True),
}


@functools.cache
def made(name: str) -> Tokenizer:
    return MAKERS[name]()


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def in_blocks(text: str, size: int = 100) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def stitched(tokenizer: Tokenizer, text: str, enough: int | None = None) -> np.ndarray | None:
    def encode(part: str) -> Encoded:
        encoding = tokenizer.encode(part, add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    return encode_in_chunks(encode, in_blocks(text), enough, chunk=CHUNK, overlaps=OVERLAPS)


@pytest.mark.parametrize("name", MAKERS)
def test_prose_is_joined_without_a_seam(name: str) -> None:
    tokenizer = made(name)
    text = (TINY / "heldout.txt").read_text(encoding="utf-8")[:30_000]
    found = stitched(tokenizer, text)
    assert found is not None
    assert found.dtype == np.int32
    assert found.tolist() == whole(tokenizer, text)


WORDS = [
    *"aeiou",
    "the ",
    "of ",
    "\n",
    "déjà vu ",
    "東京",
    "タワー",
    "😀",
    "👩‍👩‍👧",
    "e\u0301",
    "12345 ",
    "(x)",
    "\r\n",
    "\t",
]
RUNS = [" ", "\n", "=", "a", "7", "ab", "東", "\u3000", " \n", "e\u0301"]


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Words and long runs of one thing, longer than an overlap or a chunk."""
    rng = random.Random(draw(st.integers(0, 10**9)))
    parts = []
    while sum(map(len, parts)) < 5 * CHUNK:
        if rng.random() < 0.03:
            parts.append(rng.choice(RUNS) * rng.randrange(2, 3 * CHUNK))
        else:
            start = rng.randrange(len(PROSE) - 60)
            parts.append(rng.choice([rng.choice(WORDS), PROSE[start : start + rng.randrange(60)]]))
    return "".join(parts)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25)
@given(text=texts())
def test_any_text_has_the_tokens_of_the_whole_or_is_given_up(name: str, text: str) -> None:
    tokenizer = made(name)
    found, expected = stitched(tokenizer, text), whole(tokenizer, text)
    if name == "unigram" and found is not None:  # which of two equally probable splits is taken is chance
        assert sorted(found.tolist()) == sorted(expected)
        assert tokenizer.decode(found.tolist()) == tokenizer.decode(expected)
    else:
        assert found is None or found.tolist() == expected


@pytest.mark.parametrize("name", MAKERS)
def test_a_beginning_is_that_of_the_whole(name: str) -> None:
    tokenizer = made(name)
    text = PROSE[:9_000]
    expected = whole(tokenizer, text)
    found = stitched(tokenizer, text, enough=300)
    assert found is not None
    assert 300 <= len(found) < len(expected)
    assert found.tolist() == expected[: len(found)]


def test_no_more_is_read_than_is_wanted() -> None:
    read = 0

    def blocks() -> Iterator[str]:
        nonlocal read
        for block in in_blocks(PROSE * 20):
            read += len(block)
            yield block

    tokenizer = made("byte level")

    def encode(part: str) -> Encoded:
        encoding = tokenizer.encode(part, add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    assert encode_in_chunks(encode, blocks(), 100, chunk=CHUNK, overlaps=OVERLAPS) is not None
    assert read <= 2 * CHUNK + 200 < len(PROSE)


def characters(ids: Callable[[int], range]) -> Callable[[str], Encoded]:
    return lambda part: Encoded(ids(len(part)), [(i, i + 1) for i in range(len(part))])


def test_chunks_that_never_agree_grow_to_the_whole() -> None:
    """Ids that count from the beginning: no chunk but the first knows where it is."""
    found = encode_in_chunks(characters(range), in_blocks("x" * 5000), chunk=CHUNK, overlaps=OVERLAPS)
    assert found is not None
    assert found.tolist() == list(range(5000))


def test_a_text_whose_end_decides_its_beginning_is_given_up() -> None:
    backwards = characters(lambda count: range(count, 0, -1))
    assert encode_in_chunks(backwards, in_blocks("x" * 5000), chunk=CHUNK, overlaps=OVERLAPS) is None


def test_a_long_run_of_one_thing_is_no_evidence() -> None:
    """Two by two from the end: chunks that end within the run are alike, and yet both may be wrong."""

    def encode(part: str) -> Encoded:
        starts = [0] * (len(part) % 2) + [*range(len(part) % 2, len(part), 2)]
        return Encoded([7] * len(starts), [(start, start + 2) for start in starts])

    text = "=" * (4 * CHUNK + 1)
    found = encode_in_chunks(encode, in_blocks(text), chunk=CHUNK - 1, overlaps=OVERLAPS)
    assert found is None or len(found) == len(encode(text).ids)


@pytest.mark.parametrize("text", ["", "a", "a" * CHUNK, "a b " * 300])
def test_short_texts(text: str) -> None:
    tokenizer = made("byte level")
    found = stitched(tokenizer, text)
    assert found is not None
    assert found.tolist() == whole(tokenizer, text)
