"""Peak memory does not grow with the text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.language import write_bigram, write_text, write_tokenizer

pytest.importorskip("onnxruntime", reason="needs onnxruntime")
if not Path("/proc/self/status").exists():
    pytest.skip("reads the peak of its memory from /proc", allow_module_level=True)

# In an interpreter of its own; the peak is the address space's, which resource.getrusage would mix with
# that of the process it was forked from.
PEAK = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from zq2onnx.evaluation import evaluate
folder, text = Path(sys.argv[2]), Path(sys.argv[3])
evaluate([folder / "model.onnx"], [text], folder, length=2048)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


def peak(folder: Path, text: Path) -> int:
    """Bytes at most in memory while a text is evaluated."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", PEAK, *map(str, (root, folder, text))]
    return 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_ten_times_the_text_takes_the_same_memory(tmp_path: Path) -> None:
    write_bigram(tmp_path / "model.onnx", np.zeros((20, 20), np.float32))
    write_tokenizer(tmp_path / "tokenizer.json", 20)
    tokens = np.random.default_rng(0).integers(0, 20, 1_000_000)
    long = write_text(tmp_path / "long.txt", tokens)
    short = write_text(tmp_path / "short.txt", tokens[:100_000])
    once, ten_times = peak(tmp_path, short), peak(tmp_path, long)
    assert long.stat().st_size > 3_000_000
    assert abs(ten_times - once) < 0.1 * once, f"{once / 1e6:.0f} MB, then {ten_times / 1e6:.0f} MB"
