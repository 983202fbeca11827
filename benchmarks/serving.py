"""The same text from transformers, from plain ONNX Runtime and from onnxruntime-genai: all of it.

    python benchmarks/serving.py        minutes; needs ../shared, and pip install --no-deps onnxruntime-genai

The trained OPT of 17 M parameters, and a BLOOM and a Llama with random weights: 64 greedy tokens of 20
prompts each. In float32, text must be that of transformers' `generate`, token for token, and a batch of four
prompts that of the prompts alone. In 4 bits (groups of 32, a branch of rank 8), onnxruntime-genai and plain
ONNX Runtime, both by the functions and by the operator library, must write the same text of 19 prompts, and
their perplexities, over windows of 128 tokens, must be within 0.02%. Exits with 1 where one of these does not
hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import zq2onnx
from tests import zoo
from tests.serving.engines import (
    PROMPTS,
    alike,
    as_batch,
    by_genai,
    by_generator,
    by_torch,
    cached_model,
    encoded,
    logits_of,
    logits_of_genai,
    packaged,
    perplexity,
    tokenizer,
)
from zq2onnx.runtime.serving import Generator

TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "wikitext2-test.txt"
COUNT = 64
BATCH = 4
WINDOW = 128
ENOUGH = 19
TOLERANCE = 2e-4


def windows(folder: Path, count: int) -> list[list[int]]:
    """Consecutive windows of the text's tokens."""
    ids = tokenizer(folder).encode(TEXT.read_text(encoding="utf-8")[: 40 * WINDOW * count]).ids
    return [ids[start : start + WINDOW] for start in range(0, WINDOW * count, WINDOW)]


def say(what: str, held: bool) -> int:
    """One line of the result; returns how many of it failed."""
    print(f"  {what:70} {'held' if held else 'MISSED'}", flush=True)
    return not held


def check_float(checkpoint: Path, model: Path, folder: Path) -> int:
    """Text of the float32 model; returns how much failed."""
    prompts = encoded(checkpoint)
    expected = by_torch(checkpoint, prompts, COUNT)
    generator, total = Generator(model), len(prompts)
    begun = time.perf_counter()
    plain = alike(by_generator(generator, prompts, COUNT), expected)
    took = time.perf_counter() - begun
    genai = alike(by_genai(packaged(model, folder / "float"), prompts, COUNT), expected)
    batches = [slice(start, start + BATCH) for start in range(0, total, BATCH)]
    batched = sum(alike(as_batch(generator, prompts[some], COUNT), expected[some]) for some in batches)
    failed = say(
        f"float32, plain ONNX Runtime ({took:.1f} s): {plain} of {total} as transformers", plain == total
    )
    failed += say(f"float32, onnxruntime-genai: {genai} of {total}", genai == total)
    return failed + say(f"float32, in batches of {BATCH}: {batched} of {total}", batched == total)


def check_quantized(model: Path, folder: Path, count: int) -> int:
    """Text and perplexity of the 4-bit model by all routes; returns how much failed."""
    path, prompts, texts = folder / "w4.onnx", encoded(model.parent), windows(model.parent, count)
    zq2onnx.convert(model, path, scheme="w4a16", group_size=32, lorc_rank=8, check="none")
    stock = Generator(path, fused=False)
    expected, reference = by_generator(stock, prompts, COUNT), perplexity(logits_of(stock), texts)
    print(f"  W4 g32 LoRC 8, plain ONNX Runtime, portable: perplexity {reference:.4f}")
    fused = Generator(path, fused=True)
    found = {"plain ONNX Runtime, fused": (by_generator(fused, prompts, COUNT), logits_of(fused))}
    for kind in ("portable", "fused"):
        home = packaged(path, folder / kind, fused=kind == "fused")
        found[f"onnxruntime-genai, {kind}"] = (by_genai(home, prompts, COUNT), logits_of_genai(home))
    failed = 0
    for route, (written, logits) in found.items():
        same, value = alike(written, expected), perplexity(logits, texts)
        off = abs(value / reference - 1)
        failed += say(
            f"{route}: {same} of {len(prompts)}, perplexity {value:.4f} ({off:.0e})",
            same >= ENOUGH and off <= TOLERANCE,
        )
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--windows", type=int, default=40)
    arguments = parser.parse_args()
    failed = 0
    for name in ("opt-17m", "bloom", "llama"):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if name == "opt-17m":
                checkpoint, model = zoo.opt_17m(), zoo.model("opt-17m-cache")
            else:
                checkpoint, model = zoo.checkpoint(name), cached_model(name, folder / "model")
            print(f"{name}: {COUNT} tokens of {len(PROMPTS)} prompts", flush=True)
            failed += check_float(checkpoint, model, folder)
            failed += check_quantized(model, folder, arguments.windows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
