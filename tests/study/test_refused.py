"""What a study refuses before any of its work is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.study.running import GRID, TINY, Conversions, request
from zq2onnx.errors import UserError
from zq2onnx.evaluation import Plan
from zq2onnx.study import Grid, run_study

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be converted or evaluated."""

    def work(*arguments: object, **options: object) -> None:
        raise AssertionError("work was done before the refusal")

    Conversions([]).watch(monkeypatch, work)
    monkeypatch.setattr(Plan, "run", work)


def refusal(root: Path, **changes: Any) -> str:
    """The one line that a request is refused with; nothing is left behind."""
    asked = request(root, **changes)
    with pytest.raises(UserError) as caught:
        run_study(asked)
    assert not asked.folder.exists()
    return str(caught.value)


@pytest.mark.parametrize("method", ["gptq", "zq-local", "zq-global"])
def test_calibrated_methods_need_data(tmp_path: Path, method: str) -> None:
    grid = dataclasses.replace(GRID, methods=("rtn", method))
    assert refusal(tmp_path, grid=grid, calib=None, calib_samples=None, calib_length=None) == (
        f"method {method}; required: calibration data; give --calib FILE.txt --tokenizer DIR, or FILE.npz"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"calib_samples": 4}, "--calib-samples 4; required: calibration data"),
        ({"calib_length": 8}, "--calib-length 8; required: calibration data"),
        ({"sensitivity": True}, "--sensitivity; required: calibration data"),
    ],
)
def test_what_speaks_of_calibration_needs_data(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    none = {"calib": None, "calib_samples": None, "calib_length": None, "sensitivity": None}
    assert said in refusal(
        tmp_path, **{**none, **changes, "grid": dataclasses.replace(GRID, methods=("rtn",))}
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schemes": ("w4a16", "w5a16")}, "unknown scheme 'w5a16'; required: one of w8a16"),
        ({"methods": ("rtn", "awq")}, "unknown method 'awq'; required: one of rtn, gptq"),
        ({"group_sizes": ("64", "48")}, "group size 48"),
        ({"group_sizes": ("rows",)}, "group size 'rows'"),
        ({"lorc_ranks": (0, 129)}, "rank 129; required: 0 to 128"),
        ({"schemes": ()}, "--schemes names nothing"),
        ({"methods": ()}, "--methods names nothing"),
    ],
)
def test_an_unknown_choice_in_the_last_cell(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, grid=dataclasses.replace(GRID, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": Path("absent.onnx")}, "absent.onnx: no such file"),
        ({"model": TINY / "tokenizer.json"}, "is not an ONNX"),
        ({"texts": (Path("absent.txt"),)}, "absent.txt"),
        ({"texts": ()}, "at least one of each"),
        ({"tokenizer": Path("absent")}, "absent: no such file"),
        ({"calib": Path("absent.txt")}, "absent.txt"),
        ({"length": 1}, "--length 1"),
        ({"length": 100_000}, "at least one window of 100000 tokens"),
        ({"windows": 0}, "--windows 0"),
        ({"calib_samples": 0}, "--calib-samples 0"),
        ({"calib_length": 1}, "--calib-length 1"),
        ({"folder": Path("absent/out")}, "there is no folder absent"),
    ],
)
def test_files_and_numbers(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, **changes)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        run_study(request(tmp_path))


def test_a_grid_names_every_cell_once() -> None:
    grid = Grid(schemes=("W4A16", "w4a16"), methods=("rtn", "RTN"), group_sizes=("64",), lorc_ranks=(0, 8, 0))
    assert [cell.name for cell in grid.cells(calibrated=False)] == ["w4a16-g64-rtn-r0", "w4a16-g64-rtn-r8"]


@pytest.mark.parametrize(("calibrated", "methods"), [(False, {"rtn"}), (True, {"rtn", "gptq"})])
def test_methods_by_default(calibrated: bool, methods: set[str]) -> None:
    assert {cell.method for cell in Grid().cells(calibrated)} == methods
