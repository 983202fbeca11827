"""What a conversion says about itself, as data: the `--report` file and the API's result."""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass, field
from pathlib import Path


class Status(enum.Enum):
    """What became of a node that could carry a weight."""

    QUANTIZED = "quantized"
    SKIPPED = "skipped"


@dataclass
class NodeReport:
    """One MatMul, Gemm, Gather, or node like them.

    Attributes:
        name: the node's name, as in the input.
        op: its operator type in the input.
        shape: `[K, N]` of its weight; `[rows, width]` of an embedding; None where there is none.
        status: what became of it.
        reason: why it was skipped, or what is noteworthy; "" otherwise.
        bits, group_size, rank: what was written; None where skipped.
        weight_error: `‖W - Ŵ - UV‖_F / ‖W‖_F`.
        weight_error_without_lorc: `‖W - Ŵ‖_F / ‖W‖_F`.
        output_error, output_error_without_lorc: `(E‖(W - Ŵ - UV) x‖² / E‖W x‖²)^½` over calibration data, and
            the same without the branch; None without calibration.
        merged: names of the input's nodes that it was merged of (`--merge`).
    """

    name: str
    op: str
    shape: list[int] | None
    status: Status
    reason: str = ""
    bits: int | None = None
    group_size: str | None = None
    rank: int | None = None
    weight_error: float | None = None
    weight_error_without_lorc: float | None = None
    output_error: float | None = None
    output_error_without_lorc: float | None = None
    merged: list[str] = field(default_factory=list)


@dataclass
class Requirements:
    """The least that runs the file."""

    onnxruntime: str
    opset: dict[str, int]
    ir_version: int
    providers: list[str]
    session_config: dict[str, str] = field(default_factory=dict)


@dataclass
class ProfileReport:
    """What a profile decided.

    Attributes:
        name: its name.
        chosen: values of options that it chose, by their names; what was said otherwise is not among them.
        why: in a few words.
    """

    name: str
    chosen: dict[str, object]
    why: str

    def __str__(self) -> str:
        """One line.

        >>> str(ProfileReport("ort-cuda", {"dtype": "fp16", "symmetric": True}, "what its kernels take"))
        'profile ort-cuda: dtype fp16, symmetric (what its kernels take)'
        """
        words = []
        for option, value in self.chosen.items():
            words.append(
                option if value is True else f"no {option}" if value is False else f"{option} {value}"
            )
        return f"profile {self.name}: {', '.join(words) or 'all it would choose was said'} ({self.why})"


@dataclass
class CheckReport:
    """What the self-check saw."""

    mode: str
    nodes_checked: int = 0
    worst_error: float = 0.0
    worst_node: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """The whole conversion.

    Attributes:
        scheme: options that chose the bytes, as `Scheme.describe` names them.
        output: the file that was written, as it was named.
        requires: what the file needs to run.
        profile: what the profile decided; None without one.
        seconds: wall time.
        peak_rss_bytes: the process's greatest resident memory.
        bytes_before, bytes_after: the whole model with its external data.
        effective_bits: bits per rewritten weight: codes, scales, zero points and factors.
        load_bytes: memory that stock ONNX Runtime needs for the rewritten weights while it loads; None
            where that is not known: for qdq, and for a model whose embeddings are quantized.
        reused_weights: weights taken over from an interrupted run by `--resume`.
        smoothed: normalizations, and nodes like them, whose outliers were moved into the weights behind.
        not_smoothed: by node with int8 activations, why nothing was moved into its weight.
        not_merged: why a node with siblings, that read its input too, is merged with none of them.
        warnings: one line each.
    """

    scheme: dict[str, object]
    requires: Requirements
    output: str = ""
    target: str = "portable"
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    effective_bits: float | None = None
    load_bytes: int | None = None
    reused_weights: int = 0
    nodes: list[NodeReport] = field(default_factory=list)
    check: CheckReport | None = None
    smoothed: list[str] = field(default_factory=list)
    not_smoothed: dict[str, str] = field(default_factory=dict)
    not_merged: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    profile: ProfileReport | None = None

    @property
    def quantized(self) -> list[NodeReport]:
        """The nodes that were rewritten."""
        return [node for node in self.nodes if node.status is Status.QUANTIZED]

    @property
    def skipped(self) -> list[NodeReport]:
        """The nodes that were left float."""
        return [node for node in self.nodes if node.status is Status.SKIPPED]

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=lambda value: value.value) + "\n"

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(self.to_json(), encoding="utf-8")
