"""Every scheme, target, group size and rank of every model, checked whole on stock ONNX Runtime.

    python benchmarks/acceptance.py                      all models: about 300 conversions, ten minutes
    python benchmarks/acceptance.py --models opt-17m     one of them

For each conversion: every rewritten node against its dequantized oracle (`--check full`), and the
first output (logits, or hidden states) of the whole model against the float model with its weights
replaced by what the file stores. Prints the worst of each model and scheme, then every fault; exits
with 1 if there is one. Models of which the weights are not at hand are named and left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest

from tests import zoo
from tests.acceptance.matrix import MODELS, Outcome, cells, measure
from zq2onnx.errors import Zq2onnxError

SIZE_OVERHEAD = 0.03
SIZED = ("opt-17m",)
"""Models so large that their graph is small beside their weights."""


def run_model(model: str, folder: Path, faults: list[str]) -> dict[tuple[str, str], list[Outcome]]:
    """Run all cells of one model; outcomes by target and scheme."""
    outcomes = defaultdict(list)
    for cell in cells(model):
        try:
            outcome = measure(cell, folder)
        except Zq2onnxError as error:
            faults.append(f"{cell}: {error}")
            continue
        faults += [f"{cell}: {fault}" for fault in outcome.faults()]
        if model in SIZED and outcome.overhead > SIZE_OVERHEAD:
            faults.append(f"{cell}: {outcome.overhead:.1%} above what it stores")
        outcomes[cell.target, cell.scheme].append(outcome)
    return outcomes


def show(model: str, outcomes: dict[tuple[str, str], list[Outcome]]) -> None:
    """A line for every target and scheme."""
    for (target, scheme), of in outcomes.items():
        checks = [outcome.report.check for outcome in of]
        node = max(check.worst_error for check in checks if check is not None)
        logits = max(outcome.logits_error for outcome in of)
        size = max(outcome.overhead for outcome in of)
        print(f"{model:18} {target:8} {scheme:5} {len(of):5} {node:10.1e} {logits:10.1e} {size:+9.2%}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated names")
    faults: list[str] = []
    started = time.monotonic()
    print(f"{'model':18} {'target':8} {'':5} {'cells':>5} {'node':>10} {'logits':>10} {'size':>9}")
    for model in parser.parse_args().models.split(","):
        try:
            zoo.model(model)
        except pytest.skip.Exception as missing:
            print(f"{model:18} left out: {missing}")
            continue
        with tempfile.TemporaryDirectory(prefix="zq2onnx-") as folder:
            show(model, run_model(model, Path(folder), faults))
        sys.stdout.flush()
    print(*faults, f"{len(faults)} faults in {time.monotonic() - started:.0f} s", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
