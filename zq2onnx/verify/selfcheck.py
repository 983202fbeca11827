"""Checks a written model: rewritten nodes against the oracle, and what ONNX Runtime makes of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from zq2onnx.errors import CheckFailed
from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.report import CheckReport
from zq2onnx.scheme import CheckMode
from zq2onnx.verify.groups import Group, find_groups, group_model, load_constants
from zq2onnx.verify.optimized import Violation, findings, naming_failures, optimizing_session
from zq2onnx.verify.oracle import Expected, expected_output, random_activation
from zq2onnx.verify.whole import judge_whole_model, run_whole_model

Progress = Callable[[int, int], None]

_LARGEST_PROTOBUF = 2_000_000_000
_SEED = 20
_NO_INT8 = "this ONNX Runtime has no int8 product for some nodes: there it multiplies floats"


def check(
    model_path: Path,
    nodes: Sequence[str],
    mode: CheckMode | str,
    *,
    original: Path | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check a model that `convert` wrote, on ONNX Runtime's CPU provider.

    Args:
        model_path: the model, its external data beside it.
        nodes: original names of the rewritten nodes.
        mode: `sample`, one node of every kind (operators, shapes, types, attributes), and of a qdq
            model what ONNX Runtime makes of the whole; `full`, every node, then the whole model once.
        original: the float model that it was made from. The whole model's failing on made-up inputs
            is a failure only where this one runs on them.
        progress: called with the nodes done and the nodes to do.

    Raises:
        CheckFailed: a node is missing, computes something else than its dequantized weight, or does
            not run as its scheme says.
    """
    mode = CheckMode(mode)
    report = CheckReport(mode.value)
    if mode is CheckMode.NONE:
        return report
    model = onnx.load(model_path, load_external_data=False)
    chosen = _choose(find_groups(model), nodes, mode)
    unfused = []
    for done, group in enumerate(chosen, start=1):
        if not _check_group(group, model, model_path.parent, report):
            unfused.append(group.name)
        if progress is not None:
            progress(done, len(chosen))
    if unfused:
        report.notes.append(
            f"this ONNX Runtime leaves the DequantizeLinear of {len(unfused)} of {len(chosen)} nodes unfused"
            f" (the first is {unfused[0]!r})"
        )
    if mode is CheckMode.FULL:
        report.notes += run_whole_model(model_path, model, original)
    elif not all(group.is_portable for group in chosen if not group.is_embedding):
        # Alone, a group may fuse and in its place not: by a second reader, or a tied table.
        report.notes += judge_whole_model(model_path, model)
    return report


def _choose(groups: dict[str, Group], nodes: Sequence[str], mode: CheckMode) -> list[Group]:
    missing = [name for name in nodes if name not in groups]
    if missing:
        raise CheckFailed(f"node {missing[0]!r}: not in the written model (one of {len(missing)})")
    chosen = [groups[name] for name in nodes]
    if mode is CheckMode.FULL:
        return chosen
    kinds: dict[tuple[object, ...], Group] = {}
    for group in chosen:
        kinds.setdefault(group.kind, group)
    return list(kinds.values())


def _check_group(group: Group, model: onnx.ModelProto, folder: Path, report: CheckReport) -> bool:
    """Check one node; returns whether nothing of it is dequantized on every run."""
    is_bfloat16 = group.element_type == TensorProto.BFLOAT16
    constants = load_constants(group, folder, widen_bfloat16=is_bfloat16)
    if sum(tensor.ByteSize() for tensor in constants.values()) > _LARGEST_PROTOBUF:
        report.notes.append(f"node {group.name!r} not checked: it is larger than 2 GB")
        return True
    activation = random_activation(group, np.random.default_rng(_SEED), constants)
    alone = group_model(group, constants, model, activation).SerializeToString()
    # A portable file must be right as any session opens it; a qdq file's report asks for the key.
    with naming_failures(f"node {group.name!r}"):
        session, optimized = optimizing_session(alone, None if group.is_portable else FLOAT_ACTIVATIONS)
        result = session.run(None, {group.activation: activation})[0]
    is_fused = _judge_graph(group, optimized)
    error, is_rounded = _error(group, result, constants, activation)
    report.nodes_checked += 1
    if error >= report.worst_error:
        report.worst_error, report.worst_node = error, group.name
    for applies, note in (
        (is_bfloat16, "bfloat16 nodes were checked on float32 copies: the CPU provider has no bfloat16"),
        (
            not is_rounded,
            _NO_INT8,
        ),
        (group.computed_bias, f"node {group.name!r} was checked without its computed bias"),
    ):
        if applies and note not in report.notes:
            report.notes.append(note)
    return is_fused


def _error(
    group: Group, result: NDArray[np.floating], constants: dict[str, TensorProto], activation: NDArray
) -> tuple[float, bool]:
    """How far off a result is, and whether its activations were rounded.

    Level 4 is a permission: a processor or release without an int8 kernel multiplies floats, which is right
    and better. Anything between is neither.
    """
    expected = expected_output(group, constants, activation)
    try:
        return compare(group, result, expected), True
    except CheckFailed:
        if not (group.is_portable and group.may_multiply_int8):
            raise
        as_floats = expected_output(group, constants, activation, rounded=False)
        with contextlib.suppress(CheckFailed):
            return compare(group, result, as_floats), False
        raise


def tolerance(element_type: int, k: int) -> float:
    """Greatest difference from the oracle that a node may show, as a part of the greatest result.

    float32: 1e-5. float16: two units of its last place for what is rounded once (weights, factors,
    the result), and a quarter of one for each step of sqrt(K): partial sums of random products
    that a CPU may keep in float16 grow so.

    >>> tolerance(TensorProto.FLOAT, 4096)
    1e-05
    >>> round(tolerance(TensorProto.FLOAT16, 4096), 4)
    0.0176
    """
    if element_type != TensorProto.FLOAT16:
        return 1e-5
    return float(2.0**-10 * (2 + k**0.5 / 4))


def compare(group: Group, result: NDArray[np.floating], expected: Expected) -> float:
    """The greatest difference above the slack, as a part of the greatest expected value.

    Raises:
        CheckFailed: it is beyond `tolerance`; names the worst element.
    """
    values = expected.values
    greatest = float(np.abs(values).max(initial=0.0))
    difference = np.maximum(np.abs(result.astype(np.float64) - values) - expected.slack, 0.0)
    difference[~np.isfinite(difference)] = np.inf
    worst = np.unravel_index(int(difference.argmax()), values.shape)
    error = float(difference[worst]) / (greatest or 1.0) if np.isfinite(greatest) else np.inf
    allowed = tolerance(group.element_type, 1 if group.is_embedding else group.weight_shape[0])
    if error > allowed:
        raise CheckFailed(
            f"node {group.name!r}: off its dequantized oracle by {error:.2e} of the greatest value,"
            f" {allowed:.1e} allowed; worst at {tuple(map(int, worst))}: {float(result[worst]):.6g}"
            f" in place of {float(values[worst]):.6g}"
        )
    return error


def _judge_graph(group: Group, optimized: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime fused a qdq group's DequantizeLinear; a portable node never has one.

    Raises:
        CheckFailed: activations are rounded to int8 that should not be, or a portable node is unpacked at
            run time or to a float matrix.
    """
    found = [
        item
        for item in findings(optimized)
        if not (group.may_multiply_int8 and item.violation is Violation.INT8_ACTIVATIONS)
    ]
    unfused = [item for item in found if item.violation is Violation.DEQUANTIZED and not group.is_portable]
    for finding in found:
        if finding not in unfused:
            raise CheckFailed(f"node {group.name!r}: in ONNX Runtime's optimized graph, {finding}")
    # Codes that fold to a float matrix leave nothing to find, but for the product that is gone.
    has_product = any(node.op_type == "MatMulNBits" for node in optimized.graph.node)
    if group.is_portable and not has_product:
        raise CheckFailed(
            f"node {group.name!r}: ONNX Runtime's optimized graph holds no MatMulNBits for it;"
            " its weight was unpacked to a float matrix"
        )
    return not unfused
