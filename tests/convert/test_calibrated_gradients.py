"""Methods that need torch, from the command's options to the written file."""

from __future__ import annotations

import contextlib
import functools
import importlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import zoo
from tests.calibration.walking import normalized, run_whole
from tests.convert.calibrating import TEXT, all_feeds, calibrate, means, written_weights
from tests.convert.converting import contents
from tests.convert.test_calibrated_resume import interrupt
from zq2onnx.calibration.walk import Step
from zq2onnx.cli.app import main
from zq2onnx.errors import UserError
from zq2onnx.passes.partition import Piece, blocks, partition
from zq2onnx.passes.planned import QuantizedWeight

pytest.importorskip("torch", reason="needs torch")

from zq2onnx.conversion.global_block import choose_block

PLAIN: dict[str, Any] = {"scheme": "w2a16", "lorc_rank": 0, "target": "qdq"}


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is of no concern how good the codes are."""
    for place, name in (("conversion.global_block", "zq_global"), ("numerics.distill", "zq_local")):
        module = importlib.import_module(f"zq2onnx.{place}")
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), steps=10))


def block_error(model: Path, path: Path) -> float:
    """Relative distance of the first block's output, its weights as written, on all samples."""
    group = blocks(partition(normalized(model)))[0]
    inside = {node for piece in group for node in piece.nodes}
    [output] = [
        str(value.name)
        for value in group[-1].outputs
        if any(reader not in inside for reader in value.consumers())
        and value.dtype is not None
        and value.dtype.is_floating_point()
    ]
    names = {node.name for node in inside}
    weights = {
        name: weight.astype(np.float32) for name, weight in written_weights(path).items() if name in names
    }
    assert weights
    exact, found = (run_whole(model, all_feeds(model), [output], given)[output] for given in (None, weights))
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("name", ["opt", "llama"])
@pytest.mark.parametrize("method", ["zq-local", "zq-global"])
def test_a_block_computes_better_than_rounded(method: str, name: str, tmp_path: Path) -> None:
    model = zoo.model(name)
    first = {**PLAIN, "only": ["layers.0"]}
    report = calibrate(model, tmp_path / "q.onnx", method=method, check="full", **first)
    plain = calibrate(model, tmp_path / "p.onnx", method="rtn", **first)
    assert report.check is not None and report.check.nodes_checked == len(report.quantized)
    assert block_error(model, tmp_path / "q.onnx") < 0.9 * block_error(model, tmp_path / "p.onnx")
    assert means(report) < means(plain)
    assert {node.reason for node in report.quantized} == {""}


def test_blocks_chosen_together_beside_other_methods(tmp_path: Path, few_steps: None) -> None:
    """int8 activations, an exact branch, half the layers by other methods, in the portable form."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'method = "zq-global"\nscheme = "w4a8"\n[[node]]\nmatch = "v_proj|layers.1.fc"\nmethod = "gptq"\n'
        '[[node]]\nmatch = "layers.0.fc1"\nkeep-float = true\n'
    )
    report = calibrate(zoo.model("opt"), tmp_path / "q.onnx", recipe=recipe, check="full")
    assert len(report.quantized) == 11
    by_block = "method zq-global chooses the codes of"
    rough = {name for name, why in report.not_smoothed.items() if why.startswith(by_block)}
    assert {name.rpartition(".")[2] for name in rough} == {"q_proj", "k_proj", "v_proj"}
    assert [name.rpartition(".")[2] for name in report.smoothed] == ["final_layer_norm"]


@pytest.mark.parametrize("name", ["opt", "bert"])
def test_the_models_objective(name: str, tmp_path: Path) -> None:
    model = zoo.model(name)
    layer = calibrate(model, tmp_path / "layer.onnx", **PLAIN)
    whole = calibrate(model, tmp_path / "model.onnx", objective="model", check="full", **PLAIN)
    assert whole.check is not None and whole.check.nodes_checked == len(whole.quantized)
    assert whole.warnings == []
    one, other = (written_weights(tmp_path / f"{kind}.onnx") for kind in ("layer", "model"))
    assert sum(not np.array_equal(one[key], other[key]) for key in one) > 0.9 * len(one)
    assert means(layer) < means(whole) < 2 * means(layer)  # each is best at what it is asked for


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fc2.weight", r"layers.0.fc2': 1 of the \d+ numbers of its weight .* are NaN or infinite"),
        ("fc1.weight", r"layers.0.fc1': 1 of the \d+ numbers of its weight .* are NaN or infinite"),
        ("fc1.bias", "the input of node '.*layers.0.fc2' is NaN or infinite"),
    ],
)
def test_what_is_not_finite_is_named(tmp_path: Path, name: str, message: str) -> None:
    """Before training starts."""
    model = tmp_path / "m" / "model.onnx"
    shutil.copytree(zoo.model("opt").parent, model.parent)
    proto = onnx.load(model)
    [spoilt] = [tensor for tensor in proto.graph.initializer if f"layers.0.{name}" in tensor.name]
    values = numpy_helper.to_array(spoilt).copy()
    values.flat[0] = np.nan
    spoilt.CopyFrom(numpy_helper.from_array(values, spoilt.name))
    onnx.save(proto, model)
    with pytest.raises(UserError, match=message):
        calibrate(model, tmp_path / "q.onnx", method="zq-global", only=["layers.0"])


def test_gathering_gradients_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the blocks, in steps of its own: a piece forwards or back."""
    shown: list[str] = []

    @contextlib.contextmanager
    def bar(
        description: str, total: float | None, quiet: bool, unit: str
    ) -> Iterator[Callable[[float], None]]:
        advanced: list[float] = []
        yield advanced.append
        assert sum(advanced) == total or description == "quantizing"
        shown.append(description)

    monkeypatch.setattr("zq2onnx.cli.bars.console.progress", bar)
    model = zoo.model("opt")
    command = ["convert", model, "-o", tmp_path / "q.onnx", "--calib", TEXT, "--tokenizer", model.parent]
    command += ["--calib-samples", 4, "--calib-length", 16, "--quiet", "--objective", "model"]
    assert main([*map(str, command)]) == 0
    assert shown == ["quantizing", "gathering gradients", "calibrating", "checking"]


CASES: dict[str, dict[str, Any]] = {
    "zq-local": {"method": "zq-local", "only": ["layers.0.self_attn"]},
    "zq-global": {"method": "zq-global", "only": ["layers.0"]},
    "objective": {"objective": "model"},
}


@pytest.mark.parametrize("case", CASES)
def test_interrupted_and_resumed(case: str, tmp_path: Path, few_steps: None) -> None:
    """Within a block too: what is left of it is chosen together with what is there."""
    calibrate(zoo.model("opt"), tmp_path / "q.onnx", jobs=2, **CASES[case])
    for weights in (2, 5) if case == "zq-global" else (2,):
        files = interrupt(zoo.model("opt"), tmp_path / str(weights) / "q.onnx", weights, **CASES[case])
        report = calibrate(zoo.model("opt"), files.model, resume=True, jobs=2, **CASES[case])
        assert report.reused_weights >= weights
        assert contents(files.model) == contents(tmp_path / "q.onnx")


def test_a_block_that_is_half_done_is_chosen_whole(
    tmp_path: Path, few_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen of it before depended on what is left: only together do they come out the same."""
    asked: list[list[str]] = []

    def watched(step: Step, group: Sequence[Piece], linears: Mapping[str, QuantizedWeight]) -> Any:
        asked.append([*linears])
        return choose_block(step, group, linears)

    monkeypatch.setattr("zq2onnx.conversion.global_block.choose_block", watched)
    files = interrupt(zoo.model("opt"), tmp_path / "q.onnx", 3, **CASES["zq-global"])
    calibrate(zoo.model("opt"), files.model, resume=True, **CASES["zq-global"])
    assert len(asked) == 2 and asked[0] == asked[1] and len(asked[0]) == 6
