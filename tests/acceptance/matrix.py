"""One conversion of the acceptance matrix: a model, a scheme, a target; and what came of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import zq2onnx
from tests import zoo
from tests.acceptance.oracle import write_reference
from zq2onnx.evaluation.float32_copy import float32_copy
from zq2onnx.passes.measure_sizes import file_bytes
from zq2onnx.report import Report

SCHEMES = ("w8a16", "w4a16", "w3a16", "w2a16")
TARGETS = ("portable", "qdq")
MODELS = (
    "opt-17m",
    "bloom",
    "gpt2",
    "llama",
    "bert",
    "minilm",
    "opt-torchscript-13",
    "opt-torchscript-17",
    "opt-fp16",
    "opt-bf16",
)

NODE_TOLERANCE = 1e-5
"""In float32; in float16 it is the check itself that knows what a node may lose."""

LOGITS_TOLERANCE = {"float32": 1e-4, "float16": 1e-2}
"""Greatest difference of the first output from the oracle's, as a part of the greatest value.

float16: activations are rounded to 11 bits after every operator, in both models and in places that
differ, and rounding grows from layer to layer.
"""


@dataclass(frozen=True)
class Cell:
    """What is converted, and how; `more` are further options of `convert`."""

    model: str
    scheme: str = "w4a16"
    target: str = "portable"
    group: str | int = 64
    rank: int = 8
    more: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        extra = "".join(f"-{key}={value}" for key, value in self.more.items())
        return f"{self.model}-{self.scheme}-{self.target}-{self.group}-r{self.rank}{extra}"


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        report: the conversion's, with the check of every node.
        logits_error: of the first output, as a part of the oracle's greatest value.
        logits_type: element type of the first output.
        replaced: weights that the oracle took from the file.
        overhead: bytes above codes, scales, zero points, factors and what stayed float, as a part of these.
    """

    report: Report
    logits_error: float
    logits_type: str
    replaced: int
    overhead: float

    def faults(self) -> Iterator[str]:
        """What does not hold, in words."""
        check = self.report.check
        if check is None or check.nodes_checked != len(self.report.quantized):
            yield f"{check and check.nodes_checked} of {len(self.report.quantized)} nodes checked"
        elif not check.worst_error <= NODE_TOLERANCE and self.logits_type == "float32":
            yield f"node {check.worst_node} off by {check.worst_error:.1e}"
        for note in check.notes if check is not None else ():
            if "not run" in note and "bfloat16" not in note:
                yield f"check: {note}"
        if self.replaced != len(self.report.quantized):
            yield f"{self.replaced} weights found of {len(self.report.quantized)} nodes"
        if not self.logits_error <= LOGITS_TOLERANCE[self.logits_type]:
            yield f"logits off by {self.logits_error:.1e}"


def cells(model: str) -> Iterator[Cell]:
    """Every scheme, target, group size and rank of one model."""
    group = 64 if model in zoo.TRAINED else 32  # the others' rows are hardly longer than 64
    for scheme, target, rank in itertools.product(SCHEMES, TARGETS, (0, 8)):
        yield Cell(model, scheme, target, "row", rank)
        yield Cell(model, scheme, target, group, rank)
    for target in TARGETS:
        yield Cell(model, "w4a16", target, group, 4, {"symmetric": True, "lorc_dtype": "float"})
        yield Cell(model, "w4a16", target, group, 8, {"embedding_bits": 8})
        yield Cell(model, "w4a16", target, group, 8, {"embedding_bits": 4})
    if model not in ("bert", "minilm"):
        yield Cell(model, "w4a16", "portable", group, 8, {"include": ["lm_head"]})


def measure(cell: Cell, folder: Path, *, source: Path | None = None, check: str = "full") -> Outcome:
    """Convert, check every node and the graph, and compare the first output with the oracle's.

    bfloat16 models are compared as their float32 copies, which hold the same numbers.

    Args:
        cell: what to do.
        folder: where the output goes.
        source: the float model; None for the zoo's of that name.
        check: of `convert`.
    """
    path = zoo.model(cell.model) if source is None else source
    output = folder / "converted.onnx"
    report = zq2onnx.convert(
        path,
        output,
        scheme=cell.scheme,
        target=cell.target,
        group_size=cell.group,
        lorc_rank=cell.rank,
        check=check,
        force=True,
        **cell.more,
    )
    feeds = feeds_of(path)
    with float32_copy(path) as runnable, float32_copy(output) as converted:
        replaced = write_reference(runnable, converted, folder / "oracle.onnx")
        result = zoo.run(converted, feeds)[0]
    expected = zoo.run(folder / "oracle.onnx", feeds)[0]
    return Outcome(
        report, relative_error(result, expected), str(result.dtype), replaced, overhead(path, output, report)
    )


def feeds_of(path: Path) -> dict[str, np.ndarray]:
    """The zoo's inputs, the end of one sequence masked."""
    feeds = zoo.feeds(path, batch=2, length=24)
    feeds["attention_mask"][1, -3:] = 0
    return feeds


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """The greatest difference as a part of the greatest expected value; infinite if one is not finite."""
    difference = np.abs(result.astype(np.float64) - expected.astype(np.float64)).max()
    error = float(difference / np.abs(expected.astype(np.float64)).max())
    return error if np.isfinite(error) else np.inf


def overhead(float_model: Path, converted: Path, report: Report) -> float:
    """Bytes of the whole output above what the scheme needs, as a part of that.

    What it needs is counted from the report and the float model, not from the output: for a weight
    of a matrix, bits for every weight, a scale and a zero point of as many bits for every group (in
    qdq, 3-bit codes are UINT4 by design), factors with a scale for every component.
    """
    model = onnx.load(float_model, load_external_data=False)
    shapes = {tensor.name: (tuple(tensor.dims), tensor.data_type) for tensor in model.graph.initializer}
    sizes = {name: int(np.prod(dims)) * _bytes(kind) for name, (dims, kind) in shapes.items()}
    scale = min(_bytes(kind) for dims, kind in shapes.values() if len(dims) == 2)
    rewritten = {node.name: node for node in report.quantized}
    still_read = {
        name
        for node in model.graph.node
        for at, name in enumerate(node.input)
        if not (node.name in rewritten and at == (0 if node.op_type == "Gather" else 1))
    }
    stored = float(sum(sizes[name] for name in sizes.keys() & still_read))
    for node in rewritten.values():
        assert node.shape is not None and node.bits is not None and node.rank is not None
        k, n = node.shape
        if node.op == "Gather":
            k, n = n, k
        groups = 1 if node.group_size == "row" else -(-k // int(node.group_size or k))
        bits = 4 if report.target == "qdq" and node.bits == 3 else node.bits
        stored += k * n * bits / 8 + n * groups * (scale + bits / 8)
        factor = scale if report.scheme["lorc-dtype"] == "float" else 1
        stored += node.rank * ((k + n) * factor + 2 * scale)
    return file_bytes(converted) / stored - 1


def _bytes(kind: int) -> int:
    return onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
