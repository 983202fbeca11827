"""The study of 24 cells on the trained OPT: {rtn, gptq} x {w4, w3, w2} x {row, 64} x {rank 0, 8}.

    python benchmarks/study.py                    every cell, and each layer alone: ten minutes on two cores
    python benchmarks/study.py --folder study     go on in a folder, or see what is there

40 windows of 256 tokens of ../shared/data/{news,web}.txt are predicted; calibration is on 128 windows of 256
tokens of calibration.txt. Exits with 1 where the study, from nothing, took longer than its bar.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import zoo

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
BAR_SECONDS = 20 * 60


def command(model: Path, folder: Path) -> list[str]:
    """The command line of the study."""
    words = [sys.executable, "-m", "zq2onnx", "study", str(model), "--tokenizer", str(model.parent)]
    words += ["--text", str(DATA / "news.txt"), "--text", str(DATA / "web.txt")]
    words += ["--length", "256", "--windows", "40"]
    words += ["--calib", str(DATA / "calibration.txt"), "--calib-samples", "128", "--calib-length", "256"]
    words += ["--methods", "rtn,gptq", "--schemes", "w4a16,w3a16,w2a16"]
    words += ["--group-sizes", "row,64", "--lorc-ranks", "0,8"]
    return [*words, "-o", str(folder)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where results stay between runs")
    given = parser.parse_args()
    if not DATA.is_dir():
        print("needs ../shared beside the checkout")
        return 0
    model = zoo.model("opt-17m")
    with tempfile.TemporaryDirectory(prefix="zq2onnx-study-") as scratch:
        folder = given.folder or Path(scratch) / "study"
        fresh = not folder.exists()
        started = time.monotonic()
        code = subprocess.run(command(model, folder), cwd=ROOT, check=False).returncode
        seconds = time.monotonic() - started
    late = fresh and seconds > BAR_SECONDS
    print(f"{seconds:.0f} s, bar {BAR_SECONDS} s {'OVER' if late else ''}")
    return 1 if late else code


if __name__ == "__main__":
    sys.exit(main())
