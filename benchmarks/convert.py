"""`make bench-convert`: speed and memory of `convert` beside ONNX Runtime's own quantizer.

A synthetic model of 302 M float32 parameters (24 layers of width 1024, six MatMuls each, 1.2 GB of
external data) is quantized by each contender in a process of its own, in turns. A time is what the
process spends reading, quantizing and writing, imports left out; memory is the greatest resident
set, summed over the process and its children.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.synthetic import write_model  # noqa: E402

BARS = {"rss": 500e6, "depth": 0.15, "rate": 60e6, "energy": 0.99}


def run_ort(model: Path, output: Path) -> None:
    """ONNX Runtime's RTN: 4 bits, blocks of 128, asymmetric."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    started = time.perf_counter()
    config = DefaultWeightOnlyQuantConfig(block_size=128, is_symmetric=False)
    quantizer = MatMulNBitsQuantizer(onnx.load(model), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(output), use_external_data_format=True)
    _print(started)


def run_zq2onnx(model: Path, output: Path, rank: int, jobs: int | None) -> None:
    """RTN with a low-rank branch of the given rank, same bits and blocks."""
    import zq2onnx
    import zq2onnx.pipeline  # the names of zq2onnx are loaded when first asked for

    started = time.perf_counter()
    zq2onnx.convert(model, output, lorc_rank=rank, jobs=jobs, check="none", force=True)
    _print(started)


def _print(started: float) -> None:
    seconds = time.perf_counter() - started
    # Not this process's ru_maxrss, which begins with the parent's.
    status = Path("/proc/self/status").read_text()
    own = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    peak = int(own) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"seconds": seconds, "rss": peak * 1024}))


def measure(contender: str, model: Path, folder: Path, *options: str) -> dict[str, float]:
    """One run in a process of its own."""
    output = folder / f"{contender}.onnx"
    command = [sys.executable, __file__, "--run", contender, str(model), str(output), *options]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def captured_energy(model: Path, output: Path, count: int = 3) -> list[float]:
    """Energy that the written branch takes from the error, relative to the exact SVD's, of some weights."""
    import onnx
    from onnx import numpy_helper

    from zq2onnx.opset import OPERATORS
    from zq2onnx.runtime.reference import unpack_weight

    before = {t.name: t for t in onnx.load(model, load_external_data=False).graph.initializer}
    after = onnx.load(output, load_external_data=False)
    tensors = {t.name: t for t in after.graph.initializer}
    ratios = []
    for node in [n for n in after.graph.node if n.op_type in OPERATORS][:count]:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        inputs = {
            name: numpy_helper.to_array(tensors[value], str(output.parent))
            for name, value in zip(OPERATORS[node.op_type].inputs, node.input, strict=False)
            if value in tensors
        }
        weight = numpy_helper.to_array(before[f"{node.name}.weight"], str(model.parent)).T
        quantized = unpack_weight(
            OPERATORS[node.op_type],
            **attributes,
            B=inputs["B"],
            scales=inputs["scales"],
            zero_points=inputs["zero_points"],
        )
        error = weight - quantized
        u = inputs["U"] * inputs["U_scales"]
        v = inputs["V"] * inputs["V_scales"]
        taken = np.sum(error**2) - np.sum((error - (u @ v).T) ** 2)
        exact = np.sum(np.linalg.svd(error, compute_uv=False)[: u.shape[1]] ** 2)
        ratios.append(float(taken / exact))
    return ratios


def main() -> int:
    """Print the table; exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-deep", action="store_true", help="leave out the model four times as deep")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        contender, model, output = options.run
        if contender == "ort":
            run_ort(Path(model), Path(output))
        else:
            run_zq2onnx(Path(model), Path(output), options.rank, None)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), options)


def compare(folder: Path, options: argparse.Namespace) -> int:
    """Measure all contenders in turns."""
    model = folder / "model.onnx"
    parameters = write_model(model, options.layers, options.width)
    contenders = {"ort": (), "rtn": ("--rank", "0"), "lorc": ("--rank", "8")}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(options.runs):
        for name, extra in contenders.items():
            runs[name].append(measure(name, model, folder, *extra))
    median = {
        name: {key: statistics.median(run[key] for run in of) for key in ("seconds", "rss")}
        for name, of in runs.items()
    }
    print(f"{parameters / 1e6:.0f} M parameters, medians of {options.runs} runs in turns")
    for name, row in median.items():
        rate = parameters / row["seconds"]
        print(f"{name:5} {row['seconds']:7.2f} s {rate / 1e6:7.1f} M/s  peak {row['rss'] / 1e6:6.0f} MB")
    energy = min(captured_energy(model, folder / "lorc.onnx"))
    print(f"energy captured of the exact SVD's at rank 8, factors as stored: {energy:.4f}")
    held = {
        "RTN no slower than ONNX Runtime": median["rtn"]["seconds"] <= median["ort"]["seconds"],
        "RTN + LoRC at least 60 M/s": parameters / median["lorc"]["seconds"] >= BARS["rate"],
        "energy at least 0.99": energy >= BARS["energy"],
        "peak under 500 MB": max(median["rtn"]["rss"], median["lorc"]["rss"]) < BARS["rss"],
    }
    if not options.no_deep:
        deep = folder / "deep.onnx"
        write_model(deep, 4 * options.layers, options.width)
        peak = measure("lorc", deep, folder, "--rank", "8")["rss"]
        growth = peak / median["lorc"]["rss"] - 1
        print(f"four times as deep: peak {peak / 1e6:.0f} MB ({growth:+.1%})")
        held["peak within 15% at four times the depth"] = abs(growth) <= BARS["depth"]
    for bar, holds in held.items():
        print(f"{'held  ' if holds else 'MISSED'} {bar}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
