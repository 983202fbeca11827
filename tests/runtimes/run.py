"""One file, many runtimes: the same results on old and current releases of ONNX Runtime.

    python tests/runtimes/run.py                  converts the bundled model with every scheme
    python tests/runtimes/run.py A.onnx B.onnx    takes these files

Makes an environment for each release (kept in --folder), runs every model in each on the same
inputs, and compares the first output with that of the newest release. Where a report lies beside a
model (`MODEL.report.json`), what it says of the release required must be what was found. bfloat16
models are loaded alone, for no CPU provider runs them: a release that only lacks a kernel there has
understood the graph. Not part of the suite: it needs a package index and minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from packaging.version import Version

from zq2onnx.opset import DOMAIN, FLOAT_ACTIVATIONS
from zq2onnx.verify.feeds import made_up_feeds

ROOT = Path(__file__).resolve().parent.parent.parent
CURRENT = "current"
QDQ_SCHEMES = ("w8a16", "w4a16", "w3a16", "w2a16")
RELEASES = ("1.20.1", "1.22.1", "1.23.2", "1.24.4", CURRENT)
NEWEST_PYTHON = {"1.20.1": (3, 12), "1.22.1": (3, 13)}
"""The newest Python for which a release has wheels, where it is not this one."""

TOLERANCE = {"float32": 1e-4, "float16": 2e-3}
"""Greatest difference between releases, as a part of the greatest result."""


@dataclass
class Outcome:
    """What became of one model: results and reasons by release, and what its report requires.

    A model that was loaded alone has results of no elements.
    """

    model: Path
    results: dict[Version, np.ndarray] = field(default_factory=dict)
    failures: dict[Version, str] = field(default_factory=dict)

    @property
    def required(self) -> Version | None:
        report = self.model.with_suffix(".report.json")
        return Version(json.loads(report.read_text())["requires"]["onnxruntime"]) if report.exists() else None

    def difference(self, release: Version) -> float:
        expected = self.results[max(self.results)].astype(np.float64)
        greatest = np.abs(expected).max(initial=0.0) or 1.0
        return float(np.abs(self.results[release] - expected).max(initial=0.0) / greatest)

    def faults(self) -> Iterator[str]:
        for release, result in self.results.items():
            if not self.difference(release) <= TOLERANCE[str(result.dtype)]:
                yield f"{release} differs by {self.difference(release):.1e}"
        required = self.required
        for release, reason in self.failures.items():
            if required is None or release >= required:
                yield f"{release} does not run it: {reason}"
        for release in self.results:
            if required is not None and release < required:
                yield f"{release} runs it, though its report requires {required}"


def interpreter(release: str) -> str:
    """A Python that has wheels of the release.

    Raises:
        SystemExit: there is none.
    """
    newest = NEWEST_PYTHON.get(release, (sys.version_info.major, sys.version_info.minor))
    if sys.version_info[:2] <= newest:
        return sys.executable
    found = shutil.which(f"python{newest[0]}.{newest[1]}")
    if found is None:
        raise SystemExit(
            f"error: onnxruntime {release} has no wheels for Python {sys.version_info.major}."
            f"{sys.version_info.minor}; needs python{newest[0]}.{newest[1]} on the path;"
            f" or leave the release out with --releases"
        )
    return found


def environment(folder: Path, release: str) -> Path:
    """The Python of an environment with one release of ONNX Runtime and NumPy; made where it is missing."""
    python = folder / release / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter(release), "-m", "venv", python.parent.parent], check=True)
    if release == CURRENT or not any(python.parent.parent.glob("lib/*/site-packages/onnxruntime")):
        package = "onnxruntime" if release == CURRENT else f"onnxruntime=={release}"
        subprocess.run([python, "-m", "pip", "install", "-q", "-U", package, "numpy"], check=True)
    return python


def retyped(path: Path, output: Path, dtype: Any) -> Path:
    """A copy of a float16 model in another type.

    float32, for even the float model's last place differs between releases; bfloat16.
    """
    model = onnx.load(path)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def retype(tensor: TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))

    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = element
    for tensor in model.graph.initializer:
        retype(tensor)
    for attribute in (attribute for node in model.graph.node for attribute in node.attribute):
        if attribute.HasField("t"):
            retype(attribute.t)
        if attribute.name in {"to", "dtype"} and attribute.i == TensorProto.FLOAT16:
            attribute.i = element
    onnx.save(model, output)
    return output


def job(path: Path) -> dict[str, Any]:
    """How a model is to be run: with which session configuration, and whether it can be."""
    model = onnx.load(path, load_external_data=False)
    is_portable = any(node.domain == DOMAIN for node in model.graph.node)
    is_bfloat16 = any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer)
    return {
        "model": str(path),
        "config": {} if is_portable else FLOAT_ACTIVATIONS,
        "load_only": is_bfloat16,
    }


def converted(folder: Path) -> Iterator[Path]:
    """The bundled model in float32 with every scheme, with and without branch, per row and in groups.

    Also with 8- and 4-bit embeddings, as qdq, with every scheme in the float16 that it comes in, and
    in bfloat16.
    """
    import zq2onnx

    half = ROOT / "models/tiny/model.onnx"
    model = retyped(half, folder / "float32.onnx", np.float32)
    brain = retyped(half, folder / "bfloat16.onnx", ml_dtypes.bfloat16)
    schemes = ("w8a16", "w4a16", "w3a16", "w2a16")
    wanted = [
        (model, {"scheme": scheme, "lorc_rank": rank, "group_size": group})
        for scheme, rank, group in itertools.product(schemes, (0, 8), ("row", 64))
    ]
    wanted += [(model, {"scheme": "w4a16", "embedding_bits": bits}) for bits in (8, 4)]
    wanted += [(model, {"scheme": scheme, "target": "qdq"}) for scheme in QDQ_SCHEMES]
    wanted += [(half, {"scheme": scheme}) for scheme in schemes]
    wanted += [(brain, {"scheme": scheme}) for scheme in schemes]
    for source, options in wanted:
        name = " ".join(f"{key}={value}" for key, value in options.items())
        output = folder / f"{'float16' if source == half else source.stem} {name}.onnx"
        report = output.with_suffix(".report.json")
        zq2onnx.convert(source, output, check="none", report=report, **options)
        yield output


def run_all(models: Sequence[Path], folder: Path, releases: Sequence[str]) -> list[Outcome]:
    """Run every model on every release, on the same inputs."""
    outcomes = [Outcome(model) for model in models]
    with tempfile.TemporaryDirectory(prefix="zq2onnx-runtimes-") as scratch:
        jobs = []
        for at, model in enumerate(models):
            feeds = Path(scratch) / f"{at}.npz"
            np.savez(feeds, **made_up_feeds(onnx.load(model, load_external_data=False).graph))
            jobs.append(job(model) | {"feeds": str(feeds)})
        for release in releases:
            for at, one in enumerate(jobs):
                one["result"] = f"{scratch}/{release}-{at}"
            (Path(scratch) / "jobs.json").write_text(json.dumps(jobs))
            worker = [environment(folder, release), ROOT / "tests/runtimes/worker.py", f"{scratch}/jobs.json"]
            answer = subprocess.run(worker, check=True, capture_output=True, text=True).stdout
            version = Version(answer.splitlines()[-1])
            for outcome, one in zip(outcomes, jobs, strict=True):
                if Path(one["result"] + ".npy").exists():
                    outcome.results[version] = np.load(one["result"] + ".npy")
                else:
                    outcome.failures[version] = Path(one["result"] + ".txt").read_text()
    return outcomes


def show(outcomes: Sequence[Outcome]) -> int:
    """Print the table and every fault; returns how many there are."""
    versions = sorted({version for outcome in outcomes for version in (*outcome.results, *outcome.failures)})
    width = max(len(outcome.model.stem) for outcome in outcomes)
    print(f"{'model':{width}}", *(f"{version!s:>9}" for version in versions), "requires", sep="  ")
    for outcome in outcomes:
        cells = [
            f"{outcome.difference(version):9.1e}" if version in outcome.results else f"{'no':>9}"
            for version in versions
        ]
        print(f"{outcome.model.stem:{width}}", *cells, outcome.required or "", sep="  ")
    faults = [f"{outcome.model.stem}: {fault}" for outcome in outcomes for fault in outcome.faults()]
    print(*faults, sep="\n", end="\n" if faults else "")
    return len(faults)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="converted files; default: the bundled model's")
    parser.add_argument("--folder", type=Path, default=ROOT / ".runtimes", help="where environments are kept")
    parser.add_argument("--releases", default=",".join(RELEASES), help="releases of onnxruntime")
    given = parser.parse_args()
    if not given.folder.exists():
        given.folder.mkdir()
        (given.folder / ".gitignore").write_text("*\n")
    with tempfile.TemporaryDirectory(prefix="zq2onnx-runtimes-") as folder:
        models = given.models or list(converted(Path(folder)))
        faults = show(run_all(models, given.folder, given.releases.split(",")))
    print(f"{faults} faults" if faults else "the same on every release")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
