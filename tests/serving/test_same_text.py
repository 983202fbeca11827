"""The same text from transformers, from `Generator` and from onnxruntime-genai, quantized or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import zq2onnx
from tests import zoo
from tests.runtime.fused import needs_library
from tests.serving.engines import (
    PROMPTS,
    Texts,
    alike,
    as_batch,
    by_genai,
    by_genai_as_batch,
    by_generator,
    by_torch,
    cached_model,
    chosen_by_torch,
    encoded,
    logits_of,
    logits_of_genai,
    packaged,
    perplexity,
)
from zq2onnx.runtime.serving import Generator

COUNT = 64


@dataclass(frozen=True)
class Case:
    """A model, prompts, and how `Generator` goes on with each."""

    checkpoint: Path
    model: Path
    prompts: Texts
    generator: Generator
    texts: Texts


@pytest.fixture(scope="module", params=["bloom", "llama", "opt-17m"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name = request.param
    if name == "opt-17m":
        checkpoint, model, prompts = zoo.opt_17m(), zoo.model("opt-17m-cache"), PROMPTS[:4]
    else:
        checkpoint, prompts = zoo.checkpoint(name), PROMPTS
        model = cached_model(name, tmp_path_factory.mktemp("serving") / name)
    ids, generator = encoded(checkpoint, prompts), Generator(model, threads=1)
    return Case(checkpoint, model, ids, generator, by_generator(generator, ids, COUNT))


def test_generator_writes_what_transformers_writes(case: Case) -> None:
    assert chosen_by_torch(case.checkpoint, case.prompts, case.texts) == case.texts
    assert by_torch(case.checkpoint, case.prompts[:2], 16) == [text[:16] for text in case.texts[:2]]
    assert max(map(len, case.texts)) == COUNT
    assert len(set(map(tuple, case.texts))) > len(case.texts) // 2


def test_genai_writes_what_transformers_writes(case: Case, tmp_path: Path) -> None:
    folder = packaged(case.model, tmp_path / "genai")
    assert alike(by_genai(folder, case.prompts, COUNT), case.texts) == len(case.texts)


def test_a_batch_of_different_lengths_is_the_same_text(case: Case) -> None:
    prompts, texts = case.prompts[:4], case.texts[:4]
    assert len(set(map(len, prompts))) == 4
    assert as_batch(case.generator, prompts, COUNT) == texts


def test_genai_takes_such_a_batch_filled_up_on_the_right(case: Case, tmp_path: Path) -> None:
    folder = packaged(case.model, tmp_path / "genai")
    written = by_genai_as_batch(folder, case.prompts[:4], COUNT)
    assert alike(written, case.texts[:4]) == 4


def test_logits_of_whole_texts_choose_the_same_tokens(case: Case) -> None:
    whole = [prompt + text for prompt, text in zip(case.prompts[:2], case.texts[:2], strict=True)]
    logits = case.generator.logits(whole)
    assert logits.shape[:2] == (2, max(map(len, whole)))
    for row, text in zip(logits, case.texts[:2], strict=True):
        assert row[-len(text) - 1 : -1].argmax(axis=-1).tolist() == text


def test_streams_do_not_disturb_each_other(case: Case) -> None:
    streams = [case.generator.stream([prompt], 8) for prompt in case.prompts[:3]]
    steps = list(zip(*streams, strict=True))
    for index, text in enumerate(case.texts[:3]):
        assert [step[index][0] for step in steps] == text[:8]


@needs_library
def test_quantized_it_is_the_same_by_all_routes(case: Case, tmp_path: Path) -> None:
    quantized = tmp_path / "w4.onnx"
    zq2onnx.convert(case.model, quantized, scheme="w4a16", group_size=32, lorc_rank=8, check="none")
    stock, fused = (Generator(quantized, fused=wish, threads=1) for wish in (False, True))
    routes = {"fused": (by_generator(fused, case.prompts, COUNT), logits_of(fused))}
    for kind in ("portable", "with library"):
        folder = packaged(quantized, tmp_path / kind, fused=kind != "portable")
        routes[kind] = (by_genai(folder, case.prompts, COUNT), logits_of_genai(folder))
    expected = by_generator(stock, case.prompts, COUNT)
    assert expected != case.texts  # quantizing shows, or nothing was quantized
    whole = [prompt + text for prompt, text in zip(case.prompts[:4], case.texts[:4], strict=True)]
    reference = perplexity(logits_of(stock), whole)
    for written, logits in routes.values():
        assert alike(written, expected) >= len(expected) - 1
        assert perplexity(logits, whole) == pytest.approx(reference, rel=2e-4)
    assert abs(perplexity(logits_of(case.generator), whole) / reference - 1) > 2e-4
