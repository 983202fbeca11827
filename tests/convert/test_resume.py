"""Killed and resumed, a conversion ends in the same bytes, and does not do its work twice."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zq2onnx
from benchmarks.synthetic import write_model
from tests.convert import killing, linear_model
from zq2onnx.conversion.compute import compute_weight
from zq2onnx.errors import UserError
from zq2onnx.storage.output import OutputFiles

ROOT = Path(__file__).resolve().parents[2]
LAYERS, WIDTH = 6, 320
KILLS = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "m.onnx"
    write_model(path, LAYERS, WIDTH)
    return path


@pytest.fixture(scope="module")
def undisturbed(model: Path) -> Path:
    output = model.parent / "undisturbed" / "q.onnx"
    zq2onnx.convert(model, output, check="none")
    return output


def contents(output: Path) -> list[bytes]:
    return [output.read_bytes(), *(path.read_bytes() for path in [Path(f"{output}.data")] if path.exists())]


def entries(journal: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal, its header left out."""
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text().split("\n")[1:-1]]


def weights_done(journal: Path) -> int:
    return sum(bool(entry.get("facts")) for entry in entries(journal))


def resume(model: Path, output: Path, **options: Any) -> zq2onnx.Report:
    return zq2onnx.convert(model, output, check="none", resume=True, **options)


def interrupt(model: Path, output: Path, **options: Any) -> OutputFiles:
    """A conversion that is stopped when half of it is done."""
    seen = 0

    def stop(done: int, total: int) -> None:
        nonlocal seen
        seen += done
        if seen > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zq2onnx.convert(model, output, check="none", progress=stop, **options)
    files = OutputFiles(output)
    assert files.journal.exists() and files.partial_data.exists()
    return files


def kill_when(process: ForkServerProcess, journal: Path, weights: int, delay: float) -> None:
    """Kill a conversion so many seconds after so many weights are done."""
    while process.is_alive() and weights_done(journal) < weights:
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()


def test_killed_at_random_and_resumed(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The conversion waits a little after each weight, so that no kill comes too late."""
    rng = random.Random(0)
    for number in range(KILLS):
        output = tmp_path / str(number) / "q.onnx"
        files = OutputFiles(output)
        process = killing.start(model, output, jobs=1 + number % 2, pause=0.02)
        kill_when(process, files.journal, 3 * number + rng.randrange(4), 0.01 * rng.random())
        done = weights_done(files.journal)
        assert process.exitcode == -signal.SIGKILL and not output.exists()
        report = resume(model, output)
        assert contents(output) == contents(undisturbed)
        assert report.reused_weights == done >= 3 * number
        assert sorted(linear_model.files(output.parent)) == ["q.onnx", "q.onnx.data"]


@pytest.mark.parametrize("single_file", [False, True])
def test_killed_at_every_step_that_names_a_file(tmp_path: Path, single_file: bool) -> None:
    """From the reservation to the last clean-up; an older output is there, and is to be overwritten."""
    model = linear_model.write(tmp_path / "m.onnx")
    output, before, new = (tmp_path / name / "q.onnx" for name in ("out", "before", "new"))
    zq2onnx.convert(model, before, check="none", scheme="w8a16", single_file=single_file)
    zq2onnx.convert(model, new, check="none", single_file=single_file)
    files = OutputFiles(output, single_file)
    states, reused = [], []
    for step in range(100):
        shutil.rmtree(output.parent, ignore_errors=True)
        shutil.copytree(before.parent, output.parent)
        process = killing.start(model, output, force=True, single_file=single_file, die_at=step)
        process.join()
        if process.exitcode == 0:
            break
        state = "none"
        if output.exists():  # the model file is the old one or the new one, with its own data
            state = "old" if output.read_bytes() == before.read_bytes() else "new"
            assert contents(output) == contents(before if state == "old" else new)
        states.append(state)
        if not files.journal.exists():
            continue
        done = weights_done(files.journal)
        report = resume(model, output, force=state == "old", single_file=single_file)
        assert contents(output) == contents(new)
        assert linear_model.files(output.parent) == linear_model.files(new.parent)
        # Only the last clean-up, of an output that is whole, takes away what there is to reuse.
        assert report.reused_weights == done or state == "new"
        reused.append((state, report.reused_weights))
    assert process.exitcode == 0
    assert states == sorted(states, key=["old", "none", "new"].index)
    assert set(states) == ({"old", "new"} if single_file else {"old", "none", "new"})
    assert set(states) <= {state for state, count in reused if count == 3}


def test_ctrl_c_at_the_command_line(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "q.onnx", tmp_path / "r.json"
    command = [sys.executable, "-m", "zq2onnx", "convert", str(model), "-o", str(output), "--check", "none"]
    files = OutputFiles(output)
    process = subprocess.Popen([*command, "--jobs", "1"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while weights_done(files.journal) < 2 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate()
    assert (process.returncode, message) == (130, "interrupted; --resume goes on from here\n")
    assert not output.exists()
    done = weights_done(files.journal)
    resumed = subprocess.run(
        [*command, "--resume", "--report", str(report)], cwd=ROOT, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f"{done} weights were taken over" in resumed.stdout
    assert json.loads(report.read_text())["reused_weights"] == done >= 2
    assert contents(output) == contents(undisturbed)


def test_resume_without_a_journal_starts_anew(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert resume(model, tmp_path / "q.onnx").reused_weights == 0
    assert contents(tmp_path / "q.onnx") == contents(undisturbed)


def test_without_resume_all_is_done_again(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    files = interrupt(model, tmp_path / "q.onnx")
    assert zq2onnx.convert(model, files.model, check="none").reused_weights == 0
    assert contents(files.model) == contents(undisturbed)


def test_other_options_start_anew(model: Path, tmp_path: Path) -> None:
    files = interrupt(model, tmp_path / "q.onnx")
    assert resume(model, files.model, scheme="w3a16").reused_weights == 0
    zq2onnx.convert(model, tmp_path / "plain.onnx", check="none", scheme="w3a16")
    assert contents(files.model)[1] == contents(tmp_path / "plain.onnx")[1]


def test_other_jobs_and_report_do_not(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    files = interrupt(model, tmp_path / "q.onnx", jobs=2)
    done = weights_done(files.journal)
    report = resume(model, files.model, jobs=1, report=tmp_path / "r.json", dump_passes=tmp_path / "dumps")
    assert report.reused_weights == done > 0
    assert contents(files.model) == contents(undisturbed)


def test_another_version_starts_anew(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = interrupt(model, tmp_path / "q.onnx")
    monkeypatch.setattr("zq2onnx.conversion.identity.__version__", "99")
    assert resume(model, files.model).reused_weights == 0


def test_another_kind_of_processor_starts_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = interrupt(model, tmp_path / "q.onnx")
    monkeypatch.setattr("zq2onnx.conversion.identity.blas_architectures", lambda: ["Other"])
    assert resume(model, files.model).reused_weights == 0


def fail_at_the_second_weight(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    calls = []

    def compute(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 2:
            raise error
        return compute_weight(*arguments)

    monkeypatch.setattr("zq2onnx.conversion.stream.compute_weight", compute)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), MemoryError()])
def test_what_may_pass_can_be_resumed(
    model: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        fail_at_the_second_weight(patch, error)
        with pytest.raises(type(error)):
            zq2onnx.convert(model, tmp_path / "q.onnx", check="none", jobs=1)
    assert resume(model, tmp_path / "q.onnx").reused_weights == 2
    assert contents(tmp_path / "q.onnx") == contents(undisturbed)


def test_a_defect_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at_the_second_weight(monkeypatch, ValueError("a defect"))
    with pytest.raises(ValueError, match="a defect"):
        zq2onnx.convert(model, tmp_path / "new" / "q.onnx", check="none", jobs=1)
    assert linear_model.files(tmp_path) == {}


@pytest.mark.parametrize("unnoticed", [False, True])
def test_changed_input_is_computed_again(tmp_path: Path, unnoticed: bool) -> None:
    """By size and time of the file; where these are as before, by what is in it."""
    matrices = linear_model.weights(layers=6)
    model = linear_model.write(tmp_path / "m.onnx", matrices)
    data = Path(f"{model}.data")
    times = data.stat()
    files = interrupt(model, tmp_path / "q.onnx", jobs=1)
    matrices["layers.0.weight"][0, 0] += 1
    linear_model.write(model, matrices)
    os.utime(data, ns=(times.st_atime_ns, times.st_mtime_ns + (not unnoticed)))
    done = weights_done(files.journal)
    assert resume(model, files.model).reused_weights == (done - 1 if unnoticed else 0)
    zq2onnx.convert(model, tmp_path / "plain.onnx", check="none")
    assert contents(files.model)[1] == contents(tmp_path / "plain.onnx")[1]


def test_damaged_data_is_computed_again(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    files = interrupt(model, tmp_path / "q.onnx", jobs=1)
    done = weights_done(files.journal)
    with files.partial_data.open("r+b") as file:
        file.write(b"damaged!")
    assert resume(model, files.model).reused_weights == done - 1
    assert contents(files.model) == contents(undisturbed)


@pytest.mark.parametrize("kind", ["partial_data", "partial_factors"])
def test_partial_file_that_is_gone_is_made_again(
    model: Path, undisturbed: Path, tmp_path: Path, kind: str
) -> None:
    files = interrupt(model, tmp_path / "q.onnx")
    getattr(files, kind).unlink()
    assert resume(model, files.model).reused_weights == 0
    assert contents(files.model) == contents(undisturbed)


def test_torn_and_foreign_lines_are_ignored(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    files = interrupt(model, tmp_path / "q.onnx")
    done = weights_done(files.journal)
    with files.journal.open("a") as file:
        file.write('[1]\n"text"\n{"name": 7, "source": 1, "output": 2, "facts": []}\n{"name": "layers.0.q_pr')
    assert resume(model, files.model).reused_weights == done
    assert contents(files.model) == contents(undisturbed)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"{}\n", b"null\n", b'{"zq2onnx": "0.1.0"'])
def test_journal_that_is_none_starts_anew(
    model: Path, undisturbed: Path, tmp_path: Path, content: bytes
) -> None:
    files = interrupt(model, tmp_path / "q.onnx")
    files.journal.write_bytes(content)
    assert resume(model, files.model).reused_weights == 0
    assert contents(files.model) == contents(undisturbed)


def test_output_that_is_not_the_journals_needs_force(model: Path, tmp_path: Path) -> None:
    """--resume goes on with what it began; it does not overwrite what was there before."""
    output = tmp_path / "q.onnx"
    zq2onnx.convert(model, output, check="none", scheme="w2a16")
    before = contents(output)
    interrupt(model, output, force=True)
    assert contents(output) == before
    with pytest.raises(UserError, match="exists"):
        resume(model, output)
    assert resume(model, output, force=True).reused_weights > 0


def test_bad_weight_found_when_resuming_leaves_nothing(tmp_path: Path) -> None:
    matrices = linear_model.weights(layers=6)
    matrices["layers.5.weight"][0, 0] = np.nan
    model = linear_model.write(tmp_path / "m.onnx", matrices)
    files = interrupt(model, tmp_path / "out" / "q.onnx", jobs=1)
    assert weights_done(files.journal) >= 2
    with pytest.raises(UserError, match=r"layers\.5"):
        resume(model, files.model)
    assert linear_model.files(tmp_path / "out") == {}


def test_dropped_branches_are_remembered(tmp_path: Path) -> None:
    """A weight that 8 bits hold exactly has no branch; what is resumed must know it."""
    exact = {name: np.sign(matrix) for name, matrix in linear_model.weights(layers=6).items()}
    model = linear_model.write(tmp_path / "m.onnx", exact)
    zq2onnx.convert(model, tmp_path / "plain.onnx", check="none", symmetric=True)
    files = interrupt(model, tmp_path / "q.onnx", symmetric=True)
    report = resume(model, files.model, symmetric=True)
    assert report.reused_weights > 0 and all(node.rank == 0 and node.reason for node in report.quantized)
    assert contents(files.model)[1] == contents(tmp_path / "plain.onnx")[1]


def test_moved_with_its_model_it_goes_on(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    files = interrupt(model, tmp_path / "a" / "q.onnx")
    done = weights_done(files.journal)
    shutil.move(tmp_path / "a", tmp_path / "b")
    report = resume(model, tmp_path / "b" / "q.onnx")
    assert report.reused_weights == done
    assert contents(tmp_path / "b" / "q.onnx") == contents(undisturbed)
