"""Walked piece by piece, a model shows what it shows when it is run at once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests import zoo
from tests.calibration.walking import (
    activations,
    changed,
    joined,
    made_up,
    normalized,
    run_whole,
    samples_for,
    second_moment,
    walk_of,
)
from zq2onnx.calibration import Samples, Step, Walk
from zq2onnx.calibration.piece_session import PieceSession
from zq2onnx.errors import UserError
from zq2onnx.passes.widen import WidenToFloat32Pass

ARCHITECTURES = ("opt", "llama", "bert", "gpt2")


def assert_moments(step: Step, samples: Samples, path: Path, weights: dict[str, np.ndarray]) -> None:
    """Compare what a step observes with the whole model, run with other weights."""
    reads = activations(step)
    found = step.observe(step.linears())
    assert set(found) == set(reads)
    whole = [run_whole(path, joined(samples, out), [*reads.values()], weights) for out in (False, True)]
    for name, value in reads.items():
        moments, scale = found[name], np.abs(whole[0][value]).max() ** 2
        np.testing.assert_allclose(moments.fitted, second_moment(whole[0][value]), rtol=0, atol=2e-5 * scale)
        np.testing.assert_allclose(
            moments.held_out, second_moment(whole[1][value]), rtol=0, atol=2e-5 * scale
        )
        peaks = [np.abs(values[value]).reshape(-1, values[value].shape[-1]).max(axis=0) for values in whole]
        np.testing.assert_allclose(moments.peak, np.maximum(*peaks), rtol=1e-3, atol=1e-4)
        assert moments.tokens == (36, 18)


@pytest.mark.parametrize("quantized_inputs", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moments_are_those_of_the_whole_float_model(name: str, quantized_inputs: bool) -> None:
    path = zoo.model(name)
    seen = 0
    with walk_of(name, quantized_inputs=quantized_inputs) as walk:
        for step in walk.steps():
            assert_moments(step, walk.samples, path, {})
            seen += len(step.linears())
        assert len(walk.pieces) >= 4
        assert walk.obstacle == ""
    assert seen >= 8


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_a_piece_reads_what_earlier_pieces_make_with_other_weights(name: str) -> None:
    path = zoo.model(name)
    weights: dict[str, np.ndarray] = {}
    with walk_of(name) as walk:
        for step in walk.steps():
            assert_moments(step, walk.samples, path, weights)
            new = changed(step)
            step.advance(new)
            weights |= new


def test_of_the_float_stream_other_weights_are_of_no_concern() -> None:
    path = zoo.model("opt")
    with walk_of("opt", quantized_inputs=False) as walk:
        for step in walk.steps():
            if step.index != 1:  # a piece that is not observed is run all the same
                assert_moments(step, walk.samples, path, {})
            step.advance(changed(step))


def test_only_some_weights_may_change() -> None:
    path = zoo.model("llama")
    weights: dict[str, np.ndarray] = {}
    with walk_of("llama") as walk:
        for step in walk.steps():
            if step.index == 2:
                assert_moments(step, walk.samples, path, weights)
            name, weight = next(iter(changed(step).items()))
            step.advance({name: weight})
            weights[name] = weight


def test_spilling_changes_nothing_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def observed(budget: int) -> Iterator[tuple[str, bytes]]:
        with walk_of("opt", budget=budget) as walk:
            for step in walk.steps():
                for name, moments in step.observe(step.linears()).items():
                    yield name, moments.second.tobytes() + moments.peak.tobytes()
                assert (walk._runner.cache.spilled_bytes > 0) == (budget == 0)
                assert walk._runner.cache.held_bytes <= budget
                assert list(tmp_path.iterdir()) == []
                step.advance(changed(step))

    assert dict(observed(0)) == dict(observed(1 << 30))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["opt-fp16", "opt-bf16"])
def test_narrow_floats_are_walked_in_float32(name: str, tmp_path: Path) -> None:
    path = zoo.model(name)
    WidenToFloat32Pass()(wide := normalized(path))
    ir.save(wide, tmp_path / "wide.onnx")
    samples = samples_for(path)
    with Walk(normalized(path), path, samples, threads=1) as walk:
        for step in walk.steps():
            assert_moments(step, samples, tmp_path / "wide.onnx", {})


def test_linears_that_read_one_value_share_its_moments() -> None:
    with walk_of("opt") as walk:
        step = next(walk.steps())
        query, key, value, out = step.linears()
        found = step.observe([query, key, value, out])
        assert found[query] is found[key] is found[value]
        assert found[out] is not found[query]


def test_only_what_is_asked_for_is_observed() -> None:
    with walk_of("opt") as walk:
        step = next(walk.steps())
        assert set(step.observe(step.linears()[3:])) == {step.linears()[3]}
        assert step.observe([]) == {}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which piece was run, batch by batch."""
    ran: list[str] = []
    run = PieceSession.run

    def counted(self: PieceSession, where: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ran.append(where.partition(": block ")[2][0])
        return run(self, where, inputs)

    monkeypatch.setattr(PieceSession, "run", counted)
    return ran


def test_what_follows_the_last_observed_piece_is_not_run(runs: list[str]) -> None:
    with walk_of("opt") as walk:
        for step in walk.steps():
            step.linears()
            if step.index == 0:
                step.observe(step.linears())
            step.advance({})
    assert runs == ["0"] * 3


def test_the_last_piece_is_not_run_for_its_outputs(runs: list[str]) -> None:
    with walk_of("opt") as walk:
        for step in walk.steps():
            if step.index < len(walk.pieces) - 1:
                step.observe(step.linears())
            step.advance(changed(step))
    # Three batches, observed and advanced. Piece 3, too: the weights given to piece 4 make room for its own.
    assert [runs.count(str(index)) for index in range(5)] == [6, 6, 6, 6, 0]


def test_of_the_float_stream_every_piece_is_run_once(runs: list[str]) -> None:
    with walk_of("opt", quantized_inputs=False) as walk:
        for step in walk.steps():
            step.observe(step.linears())
            step.advance(changed(step))
    # The last piece's activation is its input: nothing of it needs to be run.
    assert [runs.count(str(index)) for index in range(5)] == [3, 3, 3, 3, 0]


def test_what_no_later_piece_reads_is_forgotten() -> None:
    with walk_of("opt") as walk:
        for step in walk.steps():
            step.observe(step.linears())
            if step.index == len(walk.pieces) - 1:
                (hidden,) = step.piece.inputs
                held = {value for _, value, _ in walk._runner.cache._entries}  # type: ignore[misc]
                assert held == {hidden.name}


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_activations_that_are_not_finite_name_their_block(poison: float) -> None:
    path = zoo.model("opt")
    model = normalized(path)
    node = next(node for node in model.graph if node.name == "model.decoder.layers.1.fc1")
    bias = node.inputs[2] if len(node.inputs) > 2 else node.outputs[0].consumers()[0].inputs[1]
    assert bias is not None and bias.const_value is not None
    poisoned = bias.const_value.numpy().copy()
    poisoned[3] = poison
    bias.const_value = ir.tensor(poisoned)
    message = r"model.onnx: block 3 of 5 \(from node '.*' on\): the input of node '.*fc2' is NaN or infinite"
    with Walk(model, path, samples_for(path), threads=1) as walk, pytest.raises(UserError, match=message):
        for step in walk.steps():
            step.observe(step.linears())


def test_samples_that_the_model_cannot_run_on_name_the_block() -> None:
    path = zoo.model("opt")
    feeds = zoo.feeds(path, batch=1, length=5)
    feeds["input_ids"][0, 0] = 10**6
    with Walk(normalized(path), path, made_up([feeds]), threads=1) as walk:
        step = next(walk.steps())
        with pytest.raises(UserError, match=r"block 0 of 5 .*: onnxruntime fails on calibration samples"):
            step.observe(step.linears())
