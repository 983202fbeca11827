"""Perplexity of the trained OPT in few bits, beside the figures of an implementation in torch.

    python benchmarks/perplexity.py                       RTN without branch: minutes
    python benchmarks/perplexity.py --branch --windows 20      what a branch of rank 8 wins back

Mean over the three texts of `../shared/data` (the first 400,000 characters of each), windows of 256
tokens, 80 of each text. Exits with 1 where a gap to float is off the reference by more than a tenth.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import zq2onnx
from tests import zoo
from tests.acceptance.perplexity import FLOAT, GAPS, LENGTH, TOLERANCE, WINDOWS, gaps, write_texts
from zq2onnx.evaluation import evaluate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def compare_with_reference(texts: list[Path], folder: Path) -> int:
    """The four settings of the reference; returns how many are off."""
    model = zoo.model("opt-17m")
    found = gaps(model, texts, folder, GAPS, WINDOWS)
    off = 0
    for name, reference, value, allowed in [
        ("float", FLOAT, found.float_mean, 0.01),
        *((f"{key[0]} {key[1]}", GAPS[key], gap, TOLERANCE * GAPS[key]) for key, gap in found.gaps.items()),
    ]:
        held = abs(value - reference) <= allowed
        off += not held
        print(f"{name:10} {value:8.3f}  reference {reference:7.2f}  {'held' if held else 'MISSED'}")
    return off


def show_branch(texts: list[Path], folder: Path, windows: int) -> int:
    """Gaps with and without a branch; returns how many branches lose."""
    model = zoo.model("opt-17m")
    lost = 0
    print(f"{'':12}{'rank 0':>10}{'rank 8':>10}{'bits':>12}")
    for scheme, group in itertools.product(("w4a16", "w3a16", "w2a16"), ("64", "row")):
        paths = [folder / f"{scheme}-{group}-{rank}.onnx" for rank in (0, 8)]
        for path, rank in zip(paths, (0, 8), strict=True):
            zq2onnx.convert(model, path, scheme=scheme, group_size=group, lorc_rank=rank, check="none")
        result = evaluate([model, *paths], texts, model.parent, length=LENGTH, windows=windows)
        without, branch = result.models[1:]
        lost += branch.gap > without.gap
        bits = f"{without.bits_per_weight:.2f} {branch.bits_per_weight:.2f}"
        print(f"{scheme} {group:>4}  {without.gap:+10.3f}{branch.gap:+10.3f}{bits:>12}", flush=True)
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--branch", action="store_true", help="rank 8 beside rank 0, in place of the reference"
    )
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of each text, with --branch")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zq2onnx-") as scratch:
        folder = Path(scratch)
        texts = write_texts(DATA, folder / "texts")
        bad = (
            show_branch(texts, folder, given.windows)
            if given.branch
            else compare_with_reference(texts, folder)
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
