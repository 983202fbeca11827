"""Peak memory of `export`, beside the size of what it writes.

    python benchmarks/export_memory.py [--layers 24] [--dtypes fp32,fp16,bf16]

Makes a Llama of random weights in fp32 (350 M parameters at 24 layers), exports it in a process of its own
for each type, and prints the peaks of all its memory and of that which is not mapped from files, over those
of a Llama of next to nothing. Reads /proc, so it runs on Linux alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def make(folder: Path, layers: int, width: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32 * width,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


class Peaks(threading.Thread):
    """Reads this process's memory every ten milliseconds, in kB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.all = 0

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
            self.anonymous = max(self.anonymous, sizes["RssAnon"])
            self.all = max(self.all, sizes["VmRSS"])
            time.sleep(0.01)


def work(source: Path, output: Path, dtype: str) -> None:
    """Export in this process, and print bytes written and both peaks in kB."""
    from zq2onnx.exporting import export

    peaks = Peaks()
    peaks.start()
    made = export(source, output, dtype=dtype, force=True)
    print(made.bytes, peaks.all, peaks.anonymous)


def measured(source: Path, output: Path, dtype: str) -> list[int]:
    command = [sys.executable, __file__, "--worker", str(source), str(output), dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()[-3:]]


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--dtypes", default="fp32,fp16,bf16")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zq2onnx-") as scratch:
        folder = Path(scratch)
        make(folder / "large", given.layers, 1024)
        make(folder / "small", 1, 16)
        print("type   file MB   peak MB   not mapped MB")
        for dtype in given.dtypes.split(","):
            size, *large = measured(folder / "large", folder / "out" / "model.onnx", dtype)
            _, *small = measured(folder / "small", folder / "none" / "model.onnx", dtype)
            peak, anonymous = ((a - b) / 1e3 for a, b in zip(large, small, strict=True))
            print(f"{dtype:5} {size / 1e6:9.1f} {peak:9.0f} {anonymous:15.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
