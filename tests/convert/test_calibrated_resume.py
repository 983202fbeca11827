"""A calibrated conversion ends in the same bytes, however many jobs, and however often interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zq2onnx
import zq2onnx.calibration.cache
from tests import zoo
from tests.convert import killing, linear_model
from tests.convert.calibrating import LENGTH, ROOT, SAMPLES, TEXT, calibrate
from tests.convert.converting import contents
from tests.convert.test_resume import weights_done
from zq2onnx.conversion.stream_calibrated import CalibratedWriter
from zq2onnx.storage.output import OutputFiles

CASES: dict[str, dict[str, Any]] = {
    "gptq": {"scheme": "w4a16"},
    "smooth": {"scheme": "w4a8", "target": "qdq", "act_granularity": "tensor"},
    "float factors": {"scheme": "w2a16", "lorc_dtype": "float", "symmetric": True, "target": "qdq"},
}


@pytest.fixture(scope="module")
def model() -> Path:
    return zoo.model("opt")


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The output of a case, converted once."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def get(case: str) -> Path:
        output = folder / case / "q.onnx"
        if not output.exists():
            calibrate(model, output, jobs=2, **CASES[case])
        return output

    return get


def interrupt(model: Path, output: Path, weights: int, **options: Any) -> OutputFiles:
    """A conversion that is stopped once so many weights are computed, embeddings and copies aside."""
    files = OutputFiles(output)

    def stop(done: int, total: int) -> None:
        if weights_done(files.journal) >= weights:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, output, jobs=1, progress=stop, **options)
    assert files.journal.exists() and files.partial_data.exists() and not output.exists()
    return files


@pytest.mark.parametrize("case", CASES)
def test_jobs_and_a_second_run_change_nothing(
    case: str, model: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    calibrate(model, tmp_path / "q.onnx", jobs=1, **CASES[case])
    assert contents(tmp_path / "q.onnx") == contents(undisturbed(case))


@pytest.mark.parametrize("case", CASES)
def test_interrupted_anywhere_and_resumed(
    case: str, model: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    """At the first weight, within a piece, between the halves of a block, between blocks, at the last."""
    for weights in (1, 4, 6, 12) if case == "gptq" else (3, 9):
        files = interrupt(model, tmp_path / str(weights) / "q.onnx", weights, **CASES[case])
        done = weights_done(files.journal)
        report = calibrate(model, files.model, jobs=2, resume=True, **CASES[case])
        assert report.reused_weights == done >= weights
        assert contents(files.model) == contents(undisturbed(case))
        assert sorted(path.name for path in files.model.parent.glob("q.*")) == ["q.onnx", "q.onnx.data"]


def test_interrupted_again_and_again(model: Path, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    files = OutputFiles(tmp_path / "q.onnx")
    for weights in (2, 5, 8):
        interrupt(model, files.model, weights, resume=True, **CASES["smooth"])
    report = calibrate(model, files.model, resume=True, **CASES["smooth"])
    assert report.reused_weights >= 8 and len(report.smoothed) == 4
    assert contents(files.model) == contents(undisturbed("smooth"))


def test_weights_that_are_gone_are_made_again(
    model: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    """The first weight of the first block is lost, what follows is there."""
    files = interrupt(model, tmp_path / "q.onnx", 8, **CASES["gptq"])
    lines = files.journal.read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines[1:], 1) if json.loads(line)["facts"])
    files.journal.write_text("".join(lines[:first] + lines[first + 1 :]))
    done = weights_done(files.journal)
    assert calibrate(model, files.model, resume=True, **CASES["gptq"]).reused_weights == done
    assert contents(files.model) == contents(undisturbed("gptq"))


def test_killed_and_resumed(model: Path, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    given = {"calib": TEXT, "tokenizer": model.parent, "calib_samples": SAMPLES, "calib_length": LENGTH}
    for number, weights in enumerate((1, 7)):
        files = OutputFiles(tmp_path / str(number) / "q.onnx")
        process = killing.start(model, files.model, pause=0.05, group_size=32, jobs=2, **given)
        while process.is_alive() and weights_done(files.journal) < weights:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL and not files.model.exists()
        done = weights_done(files.journal)
        assert calibrate(model, files.model, resume=True).reused_weights == done >= weights
        assert contents(files.model) == contents(undisturbed("gptq"))


@pytest.mark.parametrize(
    "change",
    [
        {"calib_samples": SAMPLES - 1},
        {"calib_length": LENGTH - 1},
        {"calib_inputs": "float"},
        {"smooth": "off"},
        {"objective": "model"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_calibration_options_start_anew(change: dict[str, Any], model: Path, tmp_path: Path) -> None:
    files = interrupt(model, tmp_path / "q.onnx", 4)
    assert calibrate(model, files.model, resume=True, **change).reused_weights == 0


def test_another_text_starts_anew(model: Path, tmp_path: Path) -> None:
    """Another beginning does; another end, behind the last sample, does not."""
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes()[:5000])
    files = interrupt(model, tmp_path / "q.onnx", 4, calib=text)
    done = weights_done(files.journal)
    journal, data, factors = (
        path.read_bytes() for path in (files.journal, files.partial_data, files.partial_factors)
    )
    text.write_bytes(b"Another " + TEXT.read_bytes()[:5000])
    assert calibrate(model, files.model, calib=text, resume=True).reused_weights == 0
    files.discard()
    for path, content in (
        (files.journal, journal),
        (files.partial_data, data),
        (files.partial_factors, factors),
    ):
        path.write_bytes(content)
    text.write_bytes(TEXT.read_bytes()[:5000] + b" and another end")
    assert calibrate(model, files.model, calib=text, resume=True, force=True).reused_weights == done


@pytest.mark.parametrize("what", ["cores", "onnxruntime"])
def test_other_arithmetic_starts_anew(
    what: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = interrupt(model, tmp_path / "q.onnx", 4)
    if what == "cores":
        monkeypatch.setattr("zq2onnx.conversion.identity.usable_cores", lambda: 99)
    else:
        monkeypatch.setattr("onnxruntime.__version__", "0.0")
    assert calibrate(model, files.model, resume=True).reused_weights == 0


def test_an_uncalibrated_journal_is_not_taken_over(model: Path, tmp_path: Path) -> None:
    files = OutputFiles(tmp_path / "q.onnx")

    def stop(done: int, total: int) -> None:
        if weights_done(files.journal) >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zq2onnx.convert(model, files.model, group_size=32, check="none", progress=stop)
    report = calibrate(model, files.model, method="rtn", lorc="plain", resume=True)
    assert report.reused_weights == 0


def test_ctrl_c_at_the_command_line(model: Path, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    files = OutputFiles(output)
    command = [sys.executable, "-m", "zq2onnx", "convert", str(model), "-o", str(output), "--check", "none"]
    command += ["--calib", str(TEXT), "--tokenizer", str(model.parent), "--group-size", "32"]
    command += ["--calib-samples", str(SAMPLES), "--calib-length", str(LENGTH)]
    process = subprocess.Popen([*command, "--jobs", "1"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while weights_done(files.journal) < 1 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate()
    assert (process.returncode, message) == (130, "interrupted; --resume goes on from here\n")
    done = weights_done(files.journal)
    resumed = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{done} weights were taken over" in resumed.stdout
    assert contents(output) == contents(undisturbed("gptq"))


def test_an_interrupted_walk_leaves_no_spilled_activations(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unnamed files are gone with the process; here none may stay open either."""
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spill))
    spilled = []
    store = zq2onnx.calibration.cache.ActivationCache._store

    def watch(cache: Any, entry: Any, array: np.ndarray) -> None:
        cache._budget = 0
        store(cache, entry, array)
        spilled.append(cache.spilled_bytes)

    monkeypatch.setattr("zq2onnx.calibration.cache.ActivationCache._store", watch)
    interrupt(model, tmp_path / "q.onnx", 7)
    calibrate(model, tmp_path / "whole.onnx")
    assert max(spilled) > 0
    assert open_files(spill) == [] == list(spill.iterdir())


def open_files(folder: Path) -> list[str]:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    found = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [name for name in found if name.startswith(str(folder))]


def test_an_error_in_the_walk_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of the program: no journal to resume, for it would come again."""
    step = CalibratedWriter._step

    def failing(self: CalibratedWriter, pool: Any, at: Any, chosen: Any) -> Any:
        if at.index == 2:
            raise RuntimeError("a defect")
        return step(self, pool, at, chosen)

    monkeypatch.setattr(CalibratedWriter, "_step", failing)
    with pytest.raises(RuntimeError, match="a defect"):
        calibrate(model, tmp_path / "out" / "q.onnx")
    assert linear_model.files(tmp_path) == {}


def test_lack_of_memory_keeps_the_journal(
    model: Path, undisturbed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CalibratedWriter._step

    def failing(self: CalibratedWriter, pool: Any, at: Any, chosen: Any) -> Any:
        if at.index == 2:
            raise MemoryError
        return step(self, pool, at, chosen)

    with monkeypatch.context() as patch:
        patch.setattr(CalibratedWriter, "_step", failing)
        with pytest.raises(MemoryError):
            calibrate(model, tmp_path / "q.onnx")
    assert calibrate(model, tmp_path / "q.onnx", resume=True).reused_weights == 6
    assert contents(tmp_path / "q.onnx") == contents(undisturbed("gptq"))
