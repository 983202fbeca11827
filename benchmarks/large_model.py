"""A model of more than 2 GB, its weights in one file and in many, through `zq2onnx convert` and ORT.

    python benchmarks/large_model.py            2.4 GB, deleted afterwards; two minutes

The command line converts it and checks every node; stock ONNX Runtime then runs the output, each in
a process of its own, of which the peak memory is printed. Exits with 1 where a node was not checked
or the two outputs differ in a byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.synthetic import write_model

LIMIT = 1 << 31
"""Bytes that no protobuf message reaches."""

RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shape = 3, int(sys.argv[2])
result = session.run(None, {"x": numpy.random.default_rng(0).standard_normal(shape, numpy.float32)})[0]
assert result.shape == shape and numpy.isfinite(result).all()
"""
CONVERT = """
import sys
from zq2onnx.cli.app import main
try:
    main()
except SystemExit as finished:
    if finished.code:
        raise
"""
PEAK = """
import re
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
"""Not `ru_maxrss`, which begins with the parent's."""


def measured(code: str, *arguments: str) -> int:
    """Run code in a process of its own; its peak of resident memory in bytes."""
    command = [sys.executable, "-c", code + PEAK, *arguments]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(finished.stdout.splitlines()[-1]) * 1024


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(folder: Path, layers: int, width: int, split: bool) -> tuple[str, bool]:
    """Write, convert and run one form; returns the digest of the data and whether all held."""
    model, output, report = folder / "model.onnx", folder / "out/model.onnx", folder / "report.json"
    parameters = write_model(model, layers, width, split=split)
    sizes = [path.stat().st_size for path in folder.glob("model.onnx*data")]
    options = ["--report", str(report), "--check", "full", "--quiet"]
    converting = measured(CONVERT, "convert", str(model), "-o", str(output), *options)
    running = measured(RUN, str(output), str(width))
    said = json.loads(report.read_text(encoding="utf-8"))
    checked = said["check"]["nodes_checked"]
    print(
        f"{sum(sizes) / 1e9:.2f} GB in {len(sizes)} files, {parameters / 1e6:.0f} M parameters:"
        f" converted and {checked} nodes checked in {said['seconds']:.1f} s and {converting / 1e6:.0f} MB,"
        f" the worst {said['check']['worst_error']:.1e} off;"
        f" {said['bytes_after'] / 1e6:.0f} MB, loaded and run in {running / 1e6:.0f} MB"
    )
    return digest(output.with_name("model.onnx.data")), sum(sizes) > LIMIT and checked == 6 * layers


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=2048)
    given = parser.parse_args()
    digests, held = set(), True
    for split in (False, True):
        with tempfile.TemporaryDirectory(prefix="zq2onnx-") as folder:
            data, right = measure(Path(folder), given.layers, given.width, split)
        digests.add(data)
        held &= right
    print("the same bytes from one file and from many" if len(digests) == 1 else "MISSED: the bytes differ")
    return 0 if held and len(digests) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
