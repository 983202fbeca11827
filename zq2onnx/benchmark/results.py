"""What a benchmark found, as data."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import asdict, dataclass

from zq2onnx.benchmark.shapes import Shape


class Route(enum.StrEnum):
    """What runs a model's `ai.zq2onnx` nodes."""

    STOCK = "stock"
    FUSED = "fused"


@dataclass(frozen=True)
class OperatorUse:
    """An operator of the domain `ai.zq2onnx` in a model.

    Attributes:
        name: of the operator.
        nodes: how many of the model's nodes it is.
        fused: whether the library registers it; else it runs by its function, on stock kernels.
        why: the reason.
    """

    name: str
    nodes: int
    fused: bool
    why: str


@dataclass(frozen=True)
class Timing:
    """How long one shape took.

    Attributes:
        shape: what is run.
        runs: how many were timed.
        median_ms, p10_ms, p90_ms: of one run, in milliseconds: the middle, and what 10% and 90% stay below.
        rate: tokens (or samples) per second, by the median.
        speedup: how many times as fast as the first row: the median over turns of the quotient of the medians
            within each.
    """

    shape: Shape
    runs: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    rate: float
    speedup: float


@dataclass(frozen=True)
class Row:
    """A model on one route, in a process of its own.

    Attributes:
        model: the file, as it was given.
        route: what ran it.
        bytes: the file's size with all external data.
        load_seconds: from file to session, its bytes in the system's cache.
        load_peak_bytes: the most memory the process had held when the model was loaded.
        peak_bytes: the same after all runs.
        timings: by shape.
    """

    model: str
    route: Route
    bytes: int
    load_seconds: float
    load_peak_bytes: int
    peak_bytes: int
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class Agreement:
    """How far a model's outputs on the two routes are from each other.

    Attributes:
        model: the file, as it was given.
        shape: what was run.
        output: name of the output that differs most.
        difference: the largest difference of two numbers, as a part of the largest on the stock route;
            infinite where one route has a number and the other has none.
        tolerance: what it may be.
    """

    model: str
    shape: Shape
    output: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Benchmark:
    """What was measured.

    Attributes:
        rows: the first is what the others are compared with.
        operators: by model, what each of its operators runs by.
        agreements: by model that has both routes, and shape.
        threads: of ONNX Runtime; None: as many as it chose.
        device: what sessions ran on: `cpu`, or the GPU's name.
        kernels: the library's sets of kernels that this processor can run, best first; () where nothing was
            fused.
        onnxruntime: its version.
    """

    rows: tuple[Row, ...]
    operators: dict[str, tuple[OperatorUse, ...]]
    agreements: tuple[Agreement, ...]
    threads: int | None
    device: str
    kernels: tuple[str, ...]
    onnxruntime: str

    def to_json(self) -> str:
        """All of it, indented; a number that is not finite is null."""
        return json.dumps(_finite(asdict(self)), indent=2, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    """
    >>> _finite({"a": (1.0, math.inf)})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
