"""A budget spent layer by layer against the same bytes spent evenly: `convert --budget`.

    python benchmarks/budget.py                  opt-17m at the bytes of W3 g64 and W2 g64, GPTQ
    python benchmarks/budget.py --rank 8         with a low-rank branch

Rows are a uniform conversion and the plan at its bytes: size, mean KL, and the latter's KL as a part of
the former's.
Exits with 1 where that is above the bar, or where the plan's file is larger.
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
from zq2onnx.conversion.choices import Choices
from zq2onnx.evaluation import evaluate
from zq2onnx.planning.budget import Bytes
from zq2onnx.planning.planner import Planner
from zq2onnx.planning.survey import Steps

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BAR = 0.8


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="its tokenizer beside it; opt-17m by default")
    parser.add_argument("--calib", type=Path, default=DATA / "calibration.txt")
    parser.add_argument("--text", type=Path, action="append", help="repeatable")
    parser.add_argument("--scheme", action="append", help="of the uniform conversions: w3a16, w2a16")
    parser.add_argument("--group-size", default="64", help="of the uniform conversions")
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--objective", default="layer")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--windows", type=int, default=80)
    parser.add_argument("--keep", type=Path, help="a folder for the files; a temporary one by default")
    given = parser.parse_args()
    model = given.model or zoo.model("opt-17m")
    texts = given.text or [DATA / name for name in ("wikitext2-test.txt", "news.txt", "web.txt")]
    common = {
        "method": given.method,
        "objective": given.objective,
        "lorc_rank": given.rank,
        "calib_samples": given.samples,
        "calib_length": 256,
    }
    files = {"calib": given.calib, "tokenizer": model.parent}
    with tempfile.TemporaryDirectory(prefix="zq2onnx-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        started = time.monotonic()
        planned = folder / "planned.onnx"
        planner = Planner(model, Choices(**common), files["calib"], files["tokenizer"], None, planned)
        planner.size_up(Steps())
        print(f"sized up in {time.monotonic() - started:.0f} s", flush=True)
        held = True
        for scheme in given.scheme or ("w3a16", "w2a16"):
            uniform = folder / f"{scheme}.onnx"
            report = zq2onnx.convert(
                model,
                uniform,
                scheme=scheme,
                group_size=given.group_size,
                force=True,
                check="none",
                **files,
                **common,
            )
            plan = planner.plan(Bytes(report.bytes_after))
            plan.save(folder / f"{scheme}.toml")
            spent = zq2onnx.convert(
                model, planned, recipe=folder / f"{scheme}.toml", force=True, check="none", **files
            )
            scores = evaluate(
                [model, uniform, planned], texts, model.parent, length=256, windows=given.windows
            )
            even, mixed = scores.models[1:]
            part = mixed.kl / even.kl
            held &= part <= BAR and spent.bytes_after <= report.bytes_after
            for name, score, bits in (
                ("uniform", even, report.effective_bits),
                ("planned", mixed, spent.effective_bits),
            ):
                print(
                    f"{scheme} {name}: {score.bytes:,} bytes, {bits:.3f} bits, gap {score.gap:+.3f},"
                    f" KL {score.kl:.5f}",
                    flush=True,
                )
            print(
                f"{scheme}: {part:.3f} of the uniform KL; foreseen {plan.bytes:,} bytes, KL {plan.cost:.5f}"
            )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
