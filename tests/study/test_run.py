"""Whole studies of the bundled model: what they find, keep, take over and refuse."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import zq2onnx
from tests.study.running import GRID, LABELS, TINY, Conversions, request
from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.evaluation import Plan
from zq2onnx.storage.lock import locked
from zq2onnx.storage.output import OutputFiles
from zq2onnx.study import Cell, Grid, Step, Study, cells, run_study, sensitivity_step
from zq2onnx.study.records import from_json

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, list[Step]]:
    """A folder with a finished study in `out`, the study, and what it told meanwhile."""
    folder, steps = tmp_path_factory.mktemp("study"), []
    return folder, run_study(request(folder), steps.append), steps


@pytest.fixture
def copy(finished: tuple[Path, Study, list[Step]], tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> Conversions:
    watched = Conversions([])
    watched.watch(monkeypatch)
    return watched


def test_a_cell_is_what_convert_and_evaluate_say(
    finished: tuple[Path, Study, list[Step]], tmp_path: Path
) -> None:
    folder, study, _ = finished
    asked = request(folder)
    report = zq2onnx.convert(
        *(asked.model, tmp_path / "model.onnx"),
        **{"scheme": "w2a16", "group_size": 64, "method": "gptq", "lorc_rank": 0, "calib": asked.calib},
        **{"tokenizer": TINY, "calib_samples": 4, "calib_length": 16, "check": "none"},
    )
    evaluation = zq2onnx.evaluate(
        [asked.model, tmp_path / "model.onnx"], asked.texts, TINY, length=16, windows=3
    )
    score = evaluation.models[1]
    found = study.cells[3]
    assert found.cell == Cell("gptq", "w2a16", "64", 0)
    assert (found.perplexity, found.mean, found.gap) == (score.perplexity, score.mean, score.gap)
    assert (found.kl, found.top1, found.bytes) == (score.kl, score.top1, score.bytes)
    assert found.bits_per_weight == report.effective_bits
    errors = {node.name: node.output_error for node in report.quantized}
    assert {layer.node: layer.error for layer in found.layers} == errors
    assert (study.perplexity, study.mean) == (evaluation.models[0].perplexity, evaluation.models[0].mean)
    assert (study.positions, study.length, study.bytes) == (90, 16, evaluation.models[0].bytes)


def test_rtn_is_given_no_calibration(finished: tuple[Path, Study, list[Step]], tmp_path: Path) -> None:
    report = zq2onnx.convert(
        TINY / "model.onnx", tmp_path / "m.onnx", scheme="w2a16", group_size=64, lorc_rank=0, check="none"
    )
    rounded = finished[1].cells[1]
    assert {layer.node: layer.error for layer in rounded.layers} == {
        node.name: node.weight_error for node in report.quantized
    }


def test_results_are_written_and_models_are_gone(finished: tuple[Path, Study, list[Step]]) -> None:
    folder, study, _ = finished
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        *("cells", "study.csv", "study.json", "study.md"),
    ]
    assert all(path.suffix == ".json" for path in (folder / "out" / "cells").iterdir())
    assert from_json((folder / "out" / "study.json").read_text()) == study
    assert [result.cell.label for result in study.cells] == LABELS


def test_progress_tells_of_every_cell(finished: tuple[Path, Study, list[Step]]) -> None:
    steps = finished[2]
    told = {step.doing for step in steps}
    assert {"float model: evaluating", f"{LABELS[0]}: quantizing", f"{LABELS[2]}: calibrating"} <= told
    assert all(f"{label}: evaluating" in told for label in LABELS)
    assert {(step.cells, step.unit) for step in steps} == {(4, "windows"), (4, "params"), (4, "blocks")}
    assert [step.finished for step in steps] == sorted(step.finished for step in steps)
    last = {step.doing: step for step in steps}
    assert all(step.done == step.total > 0 for step in last.values())


def test_again_nothing_is_converted(
    copy: Path, finished: tuple[Path, Study, list[Step]], conversions: Conversions
) -> None:
    asked = dataclasses.replace(request(finished[0]), folder=copy / "out")
    assert run_study(asked) == finished[1]
    assert conversions.labels == []


def test_paths_may_be_written_otherwise(copy: Path, conversions: Conversions) -> None:
    """Contents decide, not names: texts and the model moved with the study."""
    study = run_study(request(copy))
    assert conversions.labels == []
    assert list(study.perplexity) == [str(copy / "first.txt"), str(copy / "second.txt")]
    assert all(result.perplexity.keys() == study.perplexity.keys() for result in study.cells)


def test_a_larger_grid_takes_over_what_is_known(copy: Path, conversions: Conversions) -> None:
    grid = Grid(schemes=("w4a16", "w3a16"), methods=("rtn",), group_sizes=("64",), lorc_ranks=(0,))
    study = run_study(request(copy, grid=grid))
    assert conversions.labels == ["w3a16 g64 rtn rank 0"]
    assert [result.cell.scheme for result in study.cells] == ["w4a16", "w3a16"]


def test_other_calibration_repeats_the_calibrated_cells_alone(copy: Path, conversions: Conversions) -> None:
    grid = dataclasses.replace(GRID, schemes=("w4a16",))
    run_study(request(copy, grid=grid, calib_samples=3))
    assert conversions.labels == LABELS[2:3]


def test_a_torn_or_edited_record_is_made_anew(copy: Path, conversions: Conversions) -> None:
    (copy / "out" / "cells" / "w4a16-g64-rtn-r0.json").write_text('{"header": ')
    other = copy / "out" / "cells" / "w2a16-g64-rtn-r0.json"
    record = json.loads(other.read_text())
    record["header"]["zq2onnx"] = "0.0.1"
    other.write_text(json.dumps(record))
    run_study(request(copy))
    assert conversions.labels == LABELS[:2]


def test_models_are_kept_where_asked(copy: Path, conversions: Conversions) -> None:
    grid = dataclasses.replace(GRID, methods=("rtn",))
    study = run_study(request(copy, grid=grid, keep_models=True))
    assert conversions.labels == LABELS[:2], "finished cells have no model to keep: they are made again"
    for result in study.cells:
        kept = copy / "out" / "cells" / result.cell.name
        assert (kept / "model.onnx").stat().st_size + (
            kept / "model.onnx.data"
        ).stat().st_size == result.bytes
    run_study(request(copy, grid=grid, keep_models=True))
    assert len(conversions.labels) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"length": 12}, "differs in its --length;"),
        ({"windows": 2}, "differs in its --windows;"),
        ({"length": 8, "windows": 2}, "differs in its --length, --windows;"),
    ],
)
def test_another_study_is_refused(
    copy: Path, conversions: Conversions, changes: dict[str, int], words: str
) -> None:
    before = sorted(copy.rglob("*"))
    with pytest.raises(UserError) as caught:
        run_study(request(copy, **changes))
    assert words in str(caught.value) and "--force" in str(caught.value)
    assert conversions.labels == [] and sorted(copy.rglob("*")) == before


def test_other_texts_need_force_and_lose_the_old_cells(copy: Path, conversions: Conversions) -> None:
    (copy / "first.txt").write_text((copy / "second.txt").read_text()[::-1] * 2, encoding="utf-8")
    grid = dataclasses.replace(GRID, methods=("rtn",))
    with pytest.raises(UserError, match="holds a study that differs in its texts"):
        run_study(request(copy, grid=grid))
    run_study(request(copy, grid=grid, force=True))
    assert conversions.labels == LABELS[:2]
    assert not (copy / "out" / "cells" / "w2a16-g64-gptq-r0.json").exists()


def test_with_nothing_measured_it_may_be_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Plan, "run", interrupt)
        run_study(request(tmp_path))
    grid = dataclasses.replace(GRID, methods=("rtn",), schemes=("w4a16",))
    assert run_study(request(tmp_path, grid=grid, windows=2)).windows == 2


def test_somebody_elses_files_are_not_touched(tmp_path: Path, conversions: Conversions) -> None:
    (tmp_path / "out" / "cells" / "biology").mkdir(parents=True)
    (tmp_path / "out" / "cells" / "notes.json").write_text("{}")
    (tmp_path / "out" / "study.csv").write_text("mine")
    asked = request(tmp_path, grid=dataclasses.replace(GRID, methods=("rtn",), schemes=("w4a16",)))
    with pytest.raises(UserError, match=r"study\.csv exists, and is not of a study that can go on"):
        run_study(asked)
    assert (tmp_path / "out" / "study.csv").read_text() == "mine" and conversions.labels == []
    run_study(dataclasses.replace(asked, force=True))
    assert (tmp_path / "out" / "cells" / "notes.json").read_text() == "{}"
    assert (tmp_path / "out" / "cells" / "biology").is_dir()


def test_a_folder_is_one_studys_at_a_time(copy: Path, conversions: Conversions) -> None:
    with locked(OutputFiles(copy / "out" / "study")), pytest.raises(UserError, match="another process"):
        run_study(request(copy))


def test_a_cell_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(label: str) -> None:
        if label == LABELS[1]:
            raise UserError("out: 3 MB free", "4 MB for the output")

    grid = dataclasses.replace(GRID, methods=("rtn",), schemes=("w4a16", "w2a16", "w3a16"))
    with monkeypatch.context() as patched:
        Conversions([]).watch(patched, fail)
        study = run_study(request(tmp_path, grid=grid))
    assert [result.cell.scheme for result in study.cells] == ["w4a16", "w3a16"]
    ((cell, reason),) = [(each.cell, each.reason) for each in study.failures]
    assert (cell.label, reason) == (LABELS[1], "out: 3 MB free; required: 4 MB for the output")
    assert "failed: out: 3 MB free" in (tmp_path / "out" / "study.md").read_text()
    again = Conversions([])
    again.watch(monkeypatch)
    assert run_study(request(tmp_path, grid=grid)).failures == ()
    assert again.labels == [LABELS[1]], "what failed is tried again, and nothing else"


def test_a_model_whose_numbers_explode_fails_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*arguments: object) -> None:
        raise CheckFailed("its perplexity is nan")

    monkeypatch.setattr(cells, "_measure", explode)
    study = run_study(request(tmp_path, grid=dataclasses.replace(GRID, methods=("rtn",))))
    assert study.cells == () and {each.reason for each in study.failures} == {"its perplexity is nan"}
    assert not list((tmp_path / "out" / "cells").glob("*-rtn-*"))


def test_an_interrupt_ends_the_study_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(label: str) -> None:
        if label == LABELS[1]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        Conversions([]).watch(patched, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_study(request(tmp_path))
    kept = sorted(path.name for path in (tmp_path / "out" / "cells").iterdir())
    assert kept == ["float.json", "study.json", "w4a16-g64-rtn-r0.json"]
    assert not (tmp_path / "out" / "study.md").exists()


def test_layers_are_measured_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(
        copy, sensitivity=True, grid=dataclasses.replace(GRID, methods=("rtn",), schemes=("w4a16",))
    )
    study = run_study(asked)
    assert [each.label.split()[0] for each in study.sensitivity] == ["w4a16"]
    assert all(layer.kl is not None for each in study.sensitivity for layer in each.layers)
    monkeypatch.delattr(sensitivity_step, "measure_sensitivity")
    assert run_study(asked) == study


def test_layers_are_measured_once_for_each_number_of_bits(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        sensitivity_step, "measure_sensitivity", lambda *_, schemes, **__: asked.extend(schemes) or ()
    )
    grid = Grid(schemes=("w4a8", "w4a16", "w2a16"), methods=("rtn",), group_sizes=("64",), lorc_ranks=(0,))
    run_study(request(copy, sensitivity=True, grid=grid))
    assert asked == ["w4a16", "w2a16"]


def test_layers_that_cannot_be_measured_cost_a_warning(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise UserError("no blocks")

    monkeypatch.setattr(sensitivity_step, "measure_sensitivity", refuse)
    study = run_study(request(copy, sensitivity=True))
    assert study.sensitivity == () and len(study.cells) == 4
    assert study.warnings[-1] == "the sensitivity of layers was not measured: no blocks"
