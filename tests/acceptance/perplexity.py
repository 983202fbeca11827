"""What rounding costs the trained OPT, beside what an implementation of its own in torch measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zq2onnx
from zq2onnx.evaluation import evaluate

Setting = tuple[str, str]
"""Scheme and group size; RTN, no clip, no branch."""

TEXTS = ("news.txt", "web.txt", "wikitext2-test.txt")
CHARACTERS = 400_000
"""Of each text, from its start."""

LENGTH = 256
WINDOWS = 80
FLOAT = 110.53
GAPS = {("w4a16", "row"): 0.42, ("w3a16", "row"): 2.51, ("w3a16", "64"): 1.27, ("w2a16", "64"): 9.98}
"""Mean perplexity above float on `WINDOWS` of each text."""

TOLERANCE = 0.1
"""Of a gap."""


@dataclass(frozen=True)
class Gaps:
    """Mean perplexity of the float model, and how far above it each setting is."""

    float_mean: float
    gaps: dict[Setting, float]


def write_texts(data: Path, folder: Path) -> list[Path]:
    """Copies of the texts' first `CHARACTERS`."""
    folder.mkdir(exist_ok=True)
    copies = []
    for name in TEXTS:
        copy = folder / name
        with (data / name).open(encoding="utf-8", newline="") as text:
            copy.write_text(text.read(CHARACTERS), encoding="utf-8", newline="")
        copies.append(copy)
    return copies


def gaps(model: Path, texts: list[Path], folder: Path, settings: Iterable[Setting], windows: int) -> Gaps:
    """Convert with every setting, and evaluate all on the first windows of the texts.

    Args:
        model: the float model, its tokenizer beside it.
        texts: of `write_texts`.
        folder: where the converted models go.
        settings: what to measure.
        windows: of each text.
    """
    paths = {setting: folder / f"{'-'.join(setting)}.onnx" for setting in settings}
    for (scheme, group), path in paths.items():
        zq2onnx.convert(model, path, scheme=scheme, group_size=group, lorc_rank=0, check="none")
    result = evaluate([model, *paths.values()], texts, model.parent, length=LENGTH, windows=windows)
    first, *others = result.models
    return Gaps(first.mean, {setting: of.gap for setting, of in zip(paths, others, strict=True)})
