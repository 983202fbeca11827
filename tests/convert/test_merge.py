"""`convert --merge`: one node of those that read one input, whatever else is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import zoo
from tests.convert.calibrating import TEXT, calibrate
from tests.convert.converting import TARGETS, contents, convert
from zq2onnx.cli.app import main
from zq2onnx.conversion.stream import Writer

LAYER = "model.layers.0"
QKV = f"{LAYER}.self_attn.q_proj+k_proj+v_proj"
GROUP = {"group_size": 16}


def constants(path: Path) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["opt", "llama"])
def test_codes_are_those_of_each_alone(name: str, target: str, tmp_path: Path) -> None:
    """Without branch, a merged model is the other, to the rounding of its sums."""
    options = {"lorc_rank": 0, "target": target, **GROUP}
    plain = convert(zoo.model(name), tmp_path / "p.onnx", **options)
    report = convert(zoo.model(name), tmp_path / "m.onnx", merge=True, check="full", **options)
    assert report.check is not None and report.check.nodes_checked == len(report.quantized) == 8
    assert sum(len(node.merged) or 1 for node in report.quantized) == len(plain.quantized)
    assert report.not_merged == {} and report.bytes_after < plain.bytes_after
    feeds = zoo.feeds(zoo.model(name))
    (got,), (expected,) = (zoo.run(Path(each.output), feeds) for each in (report, plain))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if target == "portable" and name == "llama":
        stem = f"{LAYER}.self_attn"
        alone = constants(tmp_path / "p.onnx")
        parts = [alone[f"{stem}.{each}_proj.weight_Q4_codes"] for each in "qkv"]
        joined = constants(tmp_path / "m.onnx")[f"{stem}.q_proj.weight+k_proj.weight+v_proj.weight_Q4_codes"]
        np.testing.assert_array_equal(joined, np.concatenate(parts))


def test_one_branch_for_all_and_what_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output, file = zoo.model("llama"), tmp_path / "q.onnx", tmp_path / "r.json"
    arguments = [
        "--merge",
        "--exclude",
        r"layers\.1\.mlp\.up_proj",
        "--group-size",
        "16",
        "--report",
        str(file),
    ]
    assert main(["convert", str(model), "-o", str(output), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "merged 8 nodes that read the same inputs into 3" in lines
    why = "model.layers.1.mlp.up_proj reads the same input, and stays float"
    assert f"not merged: 1 nodes that read what others do ({why})" in lines
    said = json.loads(file.read_text())
    node = next(each for each in said["nodes"] if each["name"] == QKV)
    assert node["merged"] == [f"{LAYER}.self_attn.{each}_proj" for each in "qkv"]
    assert (node["shape"], node["rank"]) == ([64, 128], 8)
    assert len(said["not_merged"]) == 1 and said["scheme"]["merge"] is True
    nodes = [each for each in onnx.load(output).graph.node if each.domain == "ai.zq2onnx"]
    assert len(nodes) == len([each for each in said["nodes"] if each["status"] == "quantized"])


def test_a_table_for_one_of_them_parts_it_from_the_others(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'merge = true\n[[node]]\nmatch = "v_proj"\nscheme = "w8a16"\n'
        '[[node]]\nmatch = "gate_proj|up_proj"\nlorc-rank = 2\n'
    )
    report = convert(zoo.model("llama"), tmp_path / "q.onnx", recipe=recipe, **GROUP)
    by_name = {node.name: node for node in report.nodes}
    assert by_name[f"{LAYER}.self_attn.q_proj+k_proj"].bits == 4
    assert by_name[f"{LAYER}.self_attn.v_proj"].bits == 8
    assert by_name[f"{LAYER}.mlp.gate_proj+up_proj"].rank == 2
    assert set(report.not_merged) == {f"model.layers.{i}.self_attn.v_proj" for i in (0, 1)}


@pytest.mark.parametrize("options", [{}, {"dtype": "fp16"}, {"scheme": "w4a8", "act_granularity": "block"}])
def test_calibration_goes_with_it(options: dict[str, Any], tmp_path: Path) -> None:
    given = {"scheme": "w3a16", **options, "merge": True}
    report = calibrate(zoo.model("llama"), tmp_path / "q.onnx", check="full", **given)
    plain = calibrate(zoo.model("llama"), tmp_path / "rtn.onnx", method="rtn", lorc="plain", **given)
    pairs = list(zip(report.quantized, plain.quantized, strict=True))
    assert {len(node.merged) for node in report.quantized} == {0, 2, 3}
    assert all(new.output_error < old.output_error for new, old in pairs)  # type: ignore[operator]


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    model, output, compute, calls = zoo.model("llama"), tmp_path / "q.onnx", Writer._compute, []

    def fail_at_third(self: Writer, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, *arguments)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Writer, "_compute", fail_at_third)
        convert(model, output, jobs=1, merge=True, **GROUP)
    report = convert(model, output, resume=True, merge=True, **GROUP)
    assert 2 <= report.reused_weights < len(report.quantized)
    convert(model, tmp_path / "whole.onnx", merge=True, **GROUP)
    assert contents(output)[1] == contents(tmp_path / "whole.onnx")[1]


def test_a_budget_does_not_go_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.model("llama")
    arguments = ["--merge", "--budget", "3.5bits", "--calib", str(TEXT), "--tokenizer", str(model.parent)]
    assert main(["convert", str(model), "-o", str(tmp_path / "q.onnx"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: --budget 3.5bits with --merge; required: one of them;"
        " layers are planned each by itself, by their names\n"
    )
    assert list(tmp_path.iterdir()) == []
