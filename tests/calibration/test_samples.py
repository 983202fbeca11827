"""Texts become batches of the graph's inputs, or one clear line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.calibration.desk import IDS, WORDS, Desk, fed, language_model
from tests.evaluation.language import write_text, write_tokenizer
from zq2onnx.calibration.samples import BATCH_TOKENS
from zq2onnx.errors import UserError


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_the_first_windows_of_a_text_in_order(desk: Desk) -> None:
    samples = desk.load(samples=3)
    np.testing.assert_array_equal(fed(samples), np.arange(12).reshape(3, 4))
    assert samples.tokens == 12
    assert samples.warnings == ()


def test_fewer_windows_than_asked_for_are_taken_with_a_warning(desk: Desk) -> None:
    samples = desk.load(samples=100)
    assert fed(samples).shape == (12, 4)
    assert samples.warnings == (f"{desk.text}: 12 samples, fewer than the 100 asked for",)


@pytest.mark.parametrize(("count", "held"), [(1, 0), (2, 1), (7, 1), (16, 2), (23, 2), (24, 3)])
def test_the_last_eighth_is_held_out_in_batches_of_its_own(desk: Desk, count: int, held: int) -> None:
    samples = desk.load(samples=count, length=2)
    sizes = [
        (len(batch["input_ids"]), out) for batch, out in zip(samples.batches, samples.held_out, strict=True)
    ]
    assert sum(size for size, out in sizes if out) == held
    assert sum(size for size, out in sizes if not out) == count - held
    assert list(samples.held_out) == sorted(samples.held_out)
    np.testing.assert_array_equal(fed(samples), np.arange(2 * count).reshape(count, 2))


@pytest.mark.parametrize(("length", "most"), [(256, 8), (1000, 2), (2048, 1), (5000, 1)])
def test_a_batch_holds_whole_samples_of_so_many_tokens(desk: Desk, length: int, most: int) -> None:
    archive = desk.archive(input_ids=np.zeros((20, length), np.int64))
    samples = desk.load(calib=archive)
    assert {len(batch["input_ids"]) for batch in samples.batches[:-1]} <= {most, 18 % most}
    assert most == max(1, BATCH_TOKENS // length)
    assert samples.tokens == 20 * length


def test_documents_are_encoded_one_by_one_and_joined(desk: Desk) -> None:
    lines = ['{"text": "w1 w2 w3", "source": "w9"}', "", '{"id": 7, "body": "w4"}', '{"text": "w5 w6"}']
    (desk.folder / "a.jsonl").write_text("\n".join(lines))
    np.testing.assert_array_equal(
        fed(desk.load(calib=desk.folder / "a.jsonl", length=3)), [[1, 2, 3], [4, 5, 6]]
    )


def test_documents_that_are_not_needed_are_not_read(desk: Desk) -> None:
    (desk.folder / "a.jsonl").write_text('{"text": "w1 w2 w3 w4"}\nnothing')
    assert fed(desk.load(calib=desk.folder / "a.jsonl", samples=1)).shape == (1, 4)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("nothing", "is not JSON"),
        ("[1]", "is a list"),
        ('{"a": "w1", "b": "w2"}', "has the fields a, b, and no text"),
        ('{"text": 3}', "has the fields text, and no text"),
        ("{}", "has the fields none"),
    ],
)
def test_a_line_without_a_document_is_named(desk: Desk, line: str, found: str) -> None:
    (desk.folder / "a.jsonl").write_text('{"text": "w1"}\n' + line)
    with pytest.raises(UserError, match=f"a.jsonl: line 2 {found}.*; required: a JSON object") as error:
        desk.load(calib=desk.folder / "a.jsonl")
    assert "\n" not in str(error.value)


def test_every_input_is_made_of_the_text(desk: Desk) -> None:
    desk.config(num_attention_heads=6, num_key_value_heads=2, hidden_size=30)
    inputs = f"""{IDS}, int32[b, s] attention_mask, int64[b, s] position_ids, int64[b, s] token_type_ids,
        float16[b, 3, p, 7] past_key_values_0_key, float[b, h, p, d] past_key_values_0_value"""
    batch = desk.load(language_model(inputs), samples=1).batches[0]
    np.testing.assert_array_equal(batch["attention_mask"], np.ones((1, 4)))
    assert batch["attention_mask"].dtype == np.int32
    np.testing.assert_array_equal(batch["position_ids"], [[0, 1, 2, 3]])
    np.testing.assert_array_equal(batch["token_type_ids"], np.zeros((1, 4)))
    key, value = batch["past_key_values_0_key"], batch["past_key_values_0_value"]
    assert (key.shape, key.dtype) == ((1, 3, 0, 7), np.float16)
    assert value.shape == (1, 2, 0, 5)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("float[b, 3, n, n] pixel_values", "input pixel_values"),
        ("float[b, h, p, 8] past_0", "heads that neither"),
        ("float[b, 2, 64, 8] past_0", "a past of 64"),
        ("int64[b, 1, s, s] attention_mask", "input attention_mask"),
    ],
)
def test_an_input_that_text_cannot_give_is_named(desk: Desk, name: str, found: str) -> None:
    with pytest.raises(UserError, match=rf"model.onnx: input .*{found}.*--calib FILE.npz|{found}.*npz"):
        desk.load(language_model(f"{IDS}, {name}"))


def test_a_cache_of_keys_and_values_in_one_is_named(desk: Desk) -> None:
    with pytest.raises(UserError, match=r"model.onnx: input past_0 holds keys and values") as error:
        desk.load(language_model(f"{IDS}, float[2, b, 3, p, 8] past_0"))
    assert "\n" not in str(error.value)


def test_a_sample_is_no_longer_than_the_context(desk: Desk) -> None:
    desk.config(n_positions=3)
    assert fed(desk.load(length=2048)).shape == (16, 3)
    assert fed(desk.load(length=2)).shape == (25, 2)


def test_what_the_graph_fixes_is_respected(desk: Desk) -> None:
    samples = desk.load(language_model("int64[2, 5] input_ids"), length=2048)
    assert [batch["input_ids"].shape for batch in samples.batches] == [(2, 5)] * 5
    assert samples.held_out == (False,) * 4 + (True,)
    assert fed(desk.load(language_model("int64[b, 5] input_ids"), length=2)).shape == (10, 5)
    assert desk.load(language_model("int64[4, 10] input_ids")).warnings
    with pytest.raises(UserError, match="a.txt: 5 samples; required: at least the 8 that the graph"):
        desk.load(language_model("int64[8, 10] input_ids"))


def test_the_digest_tells_samples_apart(desk: Desk) -> None:
    first = desk.load(samples=4)
    assert first.digest == desk.load(samples=4).digest
    others = [desk.load(samples=5), desk.load(samples=4, length=3)]
    others.append(desk.load(language_model("int32[b, s] input_ids"), samples=4))
    assert len({first.digest, *(other.digest for other in others)}) == 4


def test_a_text_shorter_than_a_sample_says_so(desk: Desk) -> None:
    with pytest.raises(UserError, match=r"a.txt: 50 tokens; .* 64 tokens; .*--calib-length of at most 50"):
        desk.load(length=64)


def test_ids_beyond_the_vocabulary_are_refused(desk: Desk) -> None:
    tokenizer = write_tokenizer(desk.folder / "other.json", 90)
    desk.tokenizer.unlink()
    text = write_text(desk.folder / "b.txt", [3, 88, 5, 6])
    with pytest.raises(UserError, match=rf"other.json: .* up to 88, and .*model.onnx knows {WORDS} tokens"):
        desk.load(calib=text, tokenizer=tokenizer)


def test_another_models_tokenizer_is_refused(desk: Desk) -> None:
    tokenizer = write_tokenizer(desk.folder / "other.json", WORDS - 1)
    with pytest.raises(UserError, match=r"other.json: its 49 tokens are not the 50 of"):
        desk.load(tokenizer=tokenizer)


def test_a_text_needs_a_tokenizer(desk: Desk) -> None:
    with pytest.raises(UserError, match=r"a.txt: a text, without a tokenizer; .*--tokenizer .*/tokenizer"):
        desk.load(tokenizer=None)


def test_a_model_that_reads_no_text_needs_arrays(desk: Desk) -> None:
    with pytest.raises(UserError, match=r"no input named input_ids, and .*a.txt is a text; .*FILE.npz"):
        desk.load(language_model("float[b, s, 4] x", "e = Relu(x)"))


@pytest.mark.parametrize(("option", "least"), [("samples", 1), ("length", 2)])
def test_there_is_at_least_one_sample_of_two_tokens(desk: Desk, option: str, least: int) -> None:
    with pytest.raises(UserError, match=f"--calib-{option} {least - 1}; required: at least {least}"):
        desk.load(**{option: least - 1})
    assert desk.load(**{option: least}).tokens > 0


def test_a_missing_file_and_an_unknown_kind_are_named(desk: Desk) -> None:
    for name in ("none.txt", "none.jsonl", "none.npz"):
        with pytest.raises(UserError, match=f"{name}: (N|n)o such file"):
            desk.load(calib=desk.folder / name)
    shutil.copy(desk.text, desk.folder / "a.csv")
    with pytest.raises(UserError, match=r"a.csv: .*unknown kind; required: a .txt, .jsonl or .npz"):
        desk.load(calib=desk.folder / "a.csv")
