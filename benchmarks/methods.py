"""The methods of ZeroQuant-V2 beside each other, without and with a low-rank branch.

    python benchmarks/methods.py                       the bundled model: half an hour on two cores
    python benchmarks/methods.py --model MODEL.onnx --calib TEXT --text TEXT --length 256

Per-row weights, asymmetric. A cell is mean KL as a part of round-to-nearest's without branch, and perplexity
above float. By default the first half of the bundled held-out text calibrates, and the second half measures.
Needs torch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import zq2onnx
from zq2onnx.evaluation import evaluate

TINY = Path(__file__).resolve().parents[1] / "models" / "tiny"
METHODS = ("rtn", "gptq", "zq-local", "zq-global")
SCHEMES = ("w4a16", "w3a16", "w2a16", "w4a8")
BRANCHES: dict[str, dict[str, Any]] = {
    "none": {"lorc_rank": 0},
    "plain 8": {"lorc_rank": 8, "lorc": "plain"},
    "exact 8": {"lorc_rank": 8, "lorc": "exact"},
}


def halves(text: Path, folder: Path) -> tuple[Path, Path]:
    """A text in two files."""
    content = text.read_text(encoding="utf-8")
    paths = folder / "first.txt", folder / "second.txt"
    for path, part in zip(paths, (content[: len(content) // 2], content[len(content) // 2 :]), strict=True):
        path.write_text(part, encoding="utf-8")
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=TINY / "model.onnx", help="its tokenizer beside it")
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--text", type=Path, action="append", help="repeatable")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=40, help="of each text")
    parser.add_argument("--scheme", action="append", choices=SCHEMES, help="repeatable")
    parser.add_argument("--method", action="append", choices=METHODS, help="beside rtn; repeatable")
    parser.add_argument("--branch", action="append", choices=BRANCHES, help="beside none; repeatable")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zq2onnx-") as scratch:
        folder = Path(scratch)
        calib, text = halves(TINY / "heldout.txt", folder)
        calib, texts = given.calib or calib, given.text or [text]
        methods = dict.fromkeys(("rtn", *(given.method or METHODS)))
        branches = {name: BRANCHES[name] for name in dict.fromkeys(("none", *(given.branch or BRANCHES)))}
        for scheme in given.scheme or SCHEMES:
            paths = {}
            for method in methods:
                for branch, options in branches.items():
                    path = paths[method, branch] = folder / f"{scheme}-{method}-{branch}.onnx"
                    started = time.monotonic()
                    zq2onnx.convert(
                        given.model,
                        path,
                        scheme=scheme,
                        group_size="row",
                        method=method,
                        check="none",
                        calib=calib,
                        tokenizer=given.model.parent,
                        calib_samples=given.samples,
                        calib_length=given.length,
                        **options,
                    )
                    print(f"# {path.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            show(scheme, given.model, paths, texts, given.length, given.windows)
    return 0


def show(
    scheme: str, model: Path, paths: dict[tuple[str, str], Path], texts: list[Path], length: int, windows: int
) -> None:
    """Measure and print a scheme's part of the table."""
    scores = evaluate([model, *paths.values()], texts, model.parent, length=length, windows=windows).models
    cells = dict(zip(paths, scores[1:], strict=True))
    base = cells["rtn", "none"].kl
    print(f"\n{scheme}: KL {base:.5f}, perplexity {scores[0].mean:.3f} of the float model")
    methods, branches = (dict.fromkeys(pair[side] for pair in paths) for side in (0, 1))
    print("".join([f"{'':12}", *(f"{branch:>18}" for branch in branches)]))
    for method in methods:
        row = [
            f"{cells[method, branch].kl / base:8.3f} {cells[method, branch].gap:+9.3f}" for branch in branches
        ]
        print("".join([f"{method:12}", *row]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
