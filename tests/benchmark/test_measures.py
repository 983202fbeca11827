"""The numbers: of turns, of differences, of memory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import zq2onnx
from tests.convert import linear_model
from tests.runtime.fused import needs_library
from zq2onnx.benchmark import Benchmark, Route, Shape, plan_benchmark
from zq2onnx.benchmark.agreement import largest_difference
from zq2onnx.benchmark.operators import operator_uses
from zq2onnx.benchmark.timing import Effort, split_runs, summarize
from zq2onnx.errors import UserError
from zq2onnx.evaluation.model_file import read_model

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def test_a_timing_is_of_all_runs_and_the_speedup_of_turns() -> None:
    first = [[0.4, 0.4], [4.0], [0.4]]
    turns = [[0.1, 0.3], [4.0], [0.2]]  # the second turn is disturbed, for both
    timing = summarize(Shape(2, 50), turns, first)
    assert timing.runs == 4
    assert timing.median_ms == pytest.approx(250.0)
    assert timing.p10_ms == pytest.approx(130.0) and timing.p90_ms == pytest.approx(2890.0)
    assert timing.rate == pytest.approx(400.0)
    assert timing.speedup == pytest.approx(2.0)
    assert summarize(Shape(1, 1), first, first).speedup == 1.0


@pytest.mark.parametrize("runs", [1, 9, 10, 11, 97])
def test_counted_runs_are_all_made(runs: int) -> None:
    assert sum(split_runs(runs)) == runs and min(split_runs(runs)) > 0


@pytest.mark.parametrize(
    ("effort", "message"),
    [
        ({"runs": 0}, "--runs 0; required: at least 1"),
        ({"seconds": 0.0}, "--seconds 0.0; required: more than 0"),
        ({"seconds": math.nan}, "--seconds nan"),
    ],
)
def test_no_effort_is_refused(effort: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Effort(**effort)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([0.0, 0.0], [0.0, 1e-9], math.inf),
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([1.0, math.nan], [1.0, 2.0], math.inf),
        ([1.0, 2.0], [1.0, math.nan], math.inf),
        ([2.0, -math.inf], [3.0, -math.inf], 0.5),
        ([2.0, math.inf], [2.0, -math.inf], math.inf),
        ([], [], 0.0),
    ],
)
def test_largest_difference(expected: list[float], found: list[float], difference: float) -> None:
    one, other = (np.asarray(values, np.float32) for values in (expected, found))
    assert largest_difference(one, other) == difference


def test_a_difference_beyond_the_first_piece_is_found() -> None:
    expected = np.ones((3, 1 << 20), np.float16)
    found = expected.copy()
    found[2, 5] = 0.5
    assert largest_difference(expected, found) == 0.5


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    linear_model.write(folder / "float.onnx")
    zq2onnx.convert(folder / "float.onnx", folder / "w4.onnx", scheme="w4a16", lorc_rank=4, check="none")
    x = np.random.default_rng(0).standard_normal((4, linear_model.WIDTH)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    return folder


def measure(folder: Path, name: str, **options: object) -> Benchmark:
    given = {"npz": folder / "x.npz", "runs": 2, "threads": 1, **options}
    return plan_benchmark(folder / name, **given).run()  # type: ignore[arg-type]


@needs_library
def test_rows_of_every_model_and_route(chain: Path) -> None:
    done: list[float] = []
    options = {"npz": chain / "x.npz", "batch": 3, "runs": 12, "threads": 1}
    plan = plan_benchmark(chain / "w4.onnx", against=chain / "float.onnx", ops="all", **options)  # type: ignore[arg-type]
    result = plan.run(done.append)
    routes = [(Path(row.model).name, row.route) for row in result.rows]
    assert routes == [("float.onnx", Route.STOCK), ("w4.onnx", Route.STOCK), ("w4.onnx", Route.FUSED)]
    for row in result.rows:
        (timing,) = row.timings
        assert timing.shape == Shape(3, None) and timing.runs == 12
        assert timing.p10_ms <= timing.median_ms <= timing.p90_ms
        assert timing.rate == pytest.approx(3e3 / timing.median_ms)
    assert result.rows[0].timings[0].speedup == 1.0
    assert sum(done) == plan.work == 36
    assert result.operators[str(chain / "float.onnx")] == ()
    (use,) = result.operators[str(chain / "w4.onnx")]
    assert (use.name, use.nodes, use.fused, use.why) == ("MatMulW4A16LoRC", 3, True, "asked for")
    (agreement,) = result.agreements
    assert agreement.holds and 0 <= agreement.difference < 1e-5 and agreement.output == "y"


def test_memory_is_the_process_own(chain: Path) -> None:
    ballast = np.ones(400 << 20, np.uint8)  # of this process, which must not count
    (row,) = measure(chain, "float.onnx").rows
    assert 20e6 < row.load_peak_bytes <= row.peak_bytes < ballast.nbytes
    total = sum((chain / name).stat().st_size for name in ("float.onnx", "float.onnx.data"))
    assert row.bytes == total


def test_memory_grows_with_the_model(chain: Path, tmp_path: Path) -> None:
    wide = linear_model.weights(layers=1, width=64)
    square = np.random.default_rng(0).standard_normal((64, 300_000)).astype(np.float32)
    matrices = {"a.weight": square, "b.weight": np.ascontiguousarray(square.T)}
    linear_model.write(tmp_path / "small.onnx", wide)
    _write_wide(tmp_path / "large.onnx", matrices)
    np.savez(tmp_path / "x.npz", x=np.ones((1, 64), np.float32))
    (small,) = measure(tmp_path, "small.onnx").rows
    (large,) = measure(tmp_path, "large.onnx").rows
    assert large.load_peak_bytes > small.load_peak_bytes + 150e6  # two weights of 76.8 MB


def _write_wide(path: Path, matrices: dict[str, np.ndarray]) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["h"]),
        helper.make_node("MatMul", ["h", "b.weight"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 64]) for name in ("x", "y")]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in matrices.items()]
    graph = helper.make_graph(nodes, "wide", ends[:1], ends[1:], tensors)
    onnx.save_model(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]),
        path,
        save_as_external_data=True,
        location=f"{path.name}.data",
    )


def test_operators_that_run_by_function_say_why(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(chain / "w4.onnx")
    monkeypatch.setattr("zq2onnx.benchmark.operators.library_file", lambda: None)
    monkeypatch.setattr("zq2onnx.runtime.library.library_file", lambda: None)
    for ops in (None, "none", []):
        (use,) = operator_uses(model, ops)
        assert not use.fused and "not built" in use.why
    with pytest.raises(UserError, match="the operator library is not built"):
        operator_uses(model, "all")
    with pytest.raises(UserError, match="operator 'MatMulW5A16'; required: all, none, or of MatMulW8A16"):
        operator_uses(model, ["MatMulW4A16", "MatMulW5A16"])


@needs_library
def test_an_operator_that_is_not_in_the_model_fuses_nothing(chain: Path) -> None:
    result = measure(chain, "w4.onnx", ops=["MatMulW4A16"])
    assert [row.route for row in result.rows] == [Route.STOCK]
    (use,) = result.operators[str(chain / "w4.onnx")]
    assert (use.fused, use.why) == (False, "not asked for")
    assert result.agreements == () and result.kernels == ()
