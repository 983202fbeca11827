"""Greedy continuations of the same prompts by transformers, by `Generator` and by onnxruntime-genai.

Each takes a folder and prompts, and gives for each prompt the new ids, at most `count`, up to the one that
ends the text.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests import zoo
from zq2onnx.packaging.package import package
from zq2onnx.packaging.target import Target
from zq2onnx.runtime.serving import Generator, read_settings

Texts = list[list[int]]
Logits = Callable[[list[int]], np.ndarray]
"""The logits `[length, vocabulary]` of a text."""

CONTEXT = 128
END = 2
"""The id by which all of these models end a text."""
SENTENCES = (
    "The first test of the day",
    "Files are kept in the temporary folder",
    "a",
    "def model(name: str) -> Path:",
    "Random weights, small models; 20 prompts.",
    "It is 7 o'clock",
    "in the",
    "Where torch is missing, a test is skipped",
    "import json",
    "Widths are no multiples",
)
PROMPTS = (*SENTENCES, *(sentence[::-1] for sentence in SENTENCES))
"""Of different lengths, at most 40 tokens."""


def tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encoded(folder: Path, prompts: Sequence[str] = PROMPTS) -> Texts:
    """The ids of prompts."""
    words = tokenizer(folder)
    return [words.encode(prompt).ids for prompt in prompts]


def cached_model(architecture: str, folder: Path) -> Path:
    """A copy of the zoo's model with KV cache; its files promise a context of `CONTEXT`."""
    source = zoo.model(f"{architecture}-cache").parent
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / "model.onnx"


def by_torch(checkpoint: Path, prompts: Texts, count: int) -> Texts:
    """transformers' own loop, in float32."""
    torch = pytest.importorskip("torch", reason="needs torch")
    model = _load(checkpoint)
    made = []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": count, "do_sample": False}
            made.append(model.generate(ids, **options)[0, len(prompt) :].tolist())
    return made


def chosen_by_torch(checkpoint: Path, prompts: Texts, texts: Texts) -> Texts:
    """What that loop would choose after each beginning of `texts`: the same texts, if they are its own.

    One run a text, in place of one a token.
    """
    torch = pytest.importorskip("torch", reason="needs torch")
    model = _load(checkpoint)
    made = []
    with torch.no_grad():
        for prompt, text in zip(prompts, texts, strict=True):
            logits = model(torch.tensor([prompt + text])).logits[0]
            made.append(logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist())
    return made


def _load(checkpoint: Path) -> Any:
    torch = pytest.importorskip("torch", reason="needs torch")
    from transformers import AutoModelForCausalLM

    from zq2onnx.models.checkpoint import silence

    with silence():
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def by_generator(generator: Generator, prompts: Texts, count: int) -> Texts:
    """One prompt after the other."""
    return [[token for (token,) in generator.stream([prompt], count)] for prompt in prompts]


def as_batch(generator: Generator, prompts: Texts, count: int) -> Texts:
    """All prompts at once."""
    columns = zip(*generator.stream(prompts, count), strict=True)
    return [[token for token in column if token is not None] for column in columns]


def by_genai(folder: Path, prompts: Texts, count: int) -> Texts:
    """onnxruntime-genai's loop, on a packaged folder."""
    genai = require_genai()
    model = genai.Model(str(folder))
    made = []
    for prompt in prompts:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt) + count)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        made.append([int(token) for token in generator.get_sequence(0)[len(prompt) :]])
    return made


def by_genai_as_batch(folder: Path, prompts: Texts, count: int) -> Texts:
    """All prompts at once in onnxruntime-genai, filled up on the right, which is the side it takes."""
    genai = require_genai()
    model, longest = genai.Model(str(folder)), max(map(len, prompts))
    filling = read_settings(folder).pad
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=longest + count, batch_size=len(prompts))
    generator = genai.Generator(model, parameters)
    rows = [prompt + [filling] * (longest - len(prompt)) for prompt in prompts]
    generator.append_tokens(np.array(rows, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    made = [generator.get_sequence(row)[longest:].tolist() for row in range(len(prompts))]
    return [text[: text.index(END)] if END in text else text for text in made]


def logits_of(generator: Generator) -> Logits:
    """What plain ONNX Runtime computes of a whole text."""
    return lambda ids: generator.logits([ids])[0]


def logits_of_genai(folder: Path) -> Logits:
    """What onnxruntime-genai computes of one."""
    genai = require_genai()
    model = genai.Model(str(folder))

    def run(ids: list[int]) -> np.ndarray:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=CONTEXT)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(ids)
        return np.array(generator.get_output("logits"))[0]

    return run


def perplexity(logits: Logits, texts: Texts) -> float:
    """Of every token but the first of each text."""
    losses = []
    for ids in texts:
        scores = logits(ids)[:-1].astype(np.float64)
        scores -= scores.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(scores, np.array(ids[1:])[:, None], axis=1)[:, 0]
        losses.append(np.log(np.exp(scores).sum(axis=-1)) - chosen)
    return math.exp(np.concatenate(losses).mean())


def require_genai() -> Any:
    """onnxruntime-genai; skips the calling test without."""
    return pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: pip install --no-deps")


def packaged(model: Path, folder: Path, fused: bool | None = None) -> Path:
    """A folder for onnxruntime-genai."""
    package(model, Target.GENAI, folder, fused=fused, link=True)
    return folder


def alike(found: Texts, expected: Texts) -> int:
    """How many texts are the same, token for token; genai leaves out the one that ends a text."""
    return sum(_unended(one) == _unended(other) for one, other in zip(found, expected, strict=True))


def _unended(text: list[int]) -> list[int]:
    return text[:-1] if text[-1:] == [END] else text
