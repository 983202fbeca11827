"""One layer changed at a time, against the whole model run with that change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import zoo
from tests.calibration.walking import Array, made_up, normalized, run_whole
from zq2onnx.calibration.linears import find_linears
from zq2onnx.planning.alone import divergences


def _batches(path: Path, count: int) -> list[dict[str, Array]]:
    return [zoo.feeds(path, batch=1, length=9, seed=seed) for seed in range(count)]


def _changed(path: Path) -> dict[str, Array]:
    """Every linear's weight with noise of a tenth of its size, `[N, K]`."""
    rng = np.random.default_rng(3)
    weights = {}
    for name, linear in find_linears(normalized(path)).items():
        weight = linear.stored_operand().reshape(linear.operand[-2:])
        if linear.node.op_type == "MatMul" or not linear.node.attributes.get_int("transB", 0):
            weight = weight.T
        noise = rng.standard_normal(weight.shape).astype(np.float32)
        weights[name] = weight + np.float32(0.1 * weight.std()) * noise
    return weights


def _divergence(logits: Array, others: Array) -> float:
    """Sum over rows of `KL(softmax(logits) ‖ softmax(others))`, in float64."""
    one, two = (each.astype(np.float64) - each.max(-1, keepdims=True) for each in (logits, others))
    one, two = (each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in (one, two))
    return float((np.exp(one) * (one - two)).sum())


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama"])
def test_divergence_is_that_of_the_whole_model_with_one_weight_changed(name: str) -> None:
    path = zoo.model(name)
    batches, changed = _batches(path, 2), _changed(path)

    found = divergences(
        normalized(path),
        path,
        made_up(batches),
        {node: lambda node=node: changed[node] for node in changed},
        threads=1,
    )

    assert found.keys() == changed.keys()
    assert all(value > 0 for value in found.values())
    for node in list(changed)[::3]:  # every third, for time
        total, positions = 0.0, 0
        for feeds in batches:
            plain = run_whole(path, feeds, ["logits"])["logits"][0, :-1]
            other = run_whole(path, feeds, ["logits"], {node: changed[node]})["logits"][0, :-1]
            total += _divergence(plain, other)
            positions += len(plain)
        assert found[node] == pytest.approx(total / positions, rel=2e-3, abs=1e-9), node


def test_an_encoder_is_measured_by_half_its_squared_error() -> None:
    path = zoo.model("bert")
    batches, changed = _batches(path, 1), _changed(path)
    node = next(iter(changed))

    found = divergences(normalized(path), path, made_up(batches), {node: lambda: changed[node]}, threads=1)

    name = "last_hidden_state"
    plain = run_whole(path, batches[0], [name])[name].astype(np.float64)
    other = run_whole(path, batches[0], [name], {node: changed[node]})[name]
    expected = 0.5 * float(((other - plain) ** 2).sum()) / plain.shape[1]
    assert found[node] == pytest.approx(expected, rel=1e-3)


def test_hidden_tokens_do_not_count() -> None:
    path = zoo.model("opt")
    changed = _changed(path)
    node, shown = next(iter(changed)), 6
    feeds = _batches(path, 1)[0]
    feeds["attention_mask"][:, shown:] = 0

    found = divergences(normalized(path), path, made_up([feeds]), {node: lambda: changed[node]}, threads=1)

    outputs = [
        run_whole(path, feeds, ["logits"], weights)["logits"] for weights in ({}, {node: changed[node]})
    ]
    assert found[node] == pytest.approx(_divergence(*(each[0, :shown] for each in outputs)) / shown, rel=2e-3)


def test_nothing_changed_costs_nothing() -> None:
    path = zoo.model("llama")
    linear = find_linears(normalized(path))
    node = next(iter(linear))

    found = divergences(
        normalized(path),
        path,
        made_up(_batches(path, 1)),
        {node: lambda: np.ascontiguousarray(linear[node].stored_operand().T)},
        threads=1,
    )

    assert found[node] == pytest.approx(0, abs=1e-9)
