"""`zq2onnx bench` on the command line: what it prints, writes, refuses and leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import zq2onnx
from tests import zoo
from tests.convert import linear_model
from tests.runtime.fused import needs_library
from zq2onnx.benchmark import Route
from zq2onnx.benchmark.process import ModelProcess
from zq2onnx.cli.app import main
from zq2onnx.errors import CheckFailed, UserError

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

ROOT = Path(__file__).parents[2]
OPERATOR = "MatMulW4A16LoRC"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZQ2ONNX_OPS", raising=False)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    linear_model.write(folder / "float.onnx")
    zq2onnx.convert(folder / "float.onnx", folder / "w4.onnx", scheme="w4a16", check="none")
    x = np.random.default_rng(0).standard_normal((4, linear_model.WIDTH)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    return folder


def run(*arguments: object) -> int:
    return main(["bench", *map(str, arguments)])


def rows(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


@needs_library
def test_a_causal_model_against_the_float_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = zoo.model("opt")
    quantized = tmp_path / "opt.w4a16.onnx"
    zq2onnx.convert(source, quantized, scheme="w4a16", check="none")
    file = tmp_path / "results" / "speed.json"
    options = ("--ops", OPERATOR, "--prompt", 9, "--prompt", 33, "--runs", 2, "--threads", 1, "--json", file)
    assert run(quantized, "--against", source, *options) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    table = rows(printed.out)
    names = [("model.onnx", "stock"), ("opt.w4a16.onnx", "stock"), ("opt.w4a16.onnx", "fused")]
    shapes = ["9 tokens", "", "", "33 tokens", "", "", "1 token", "", ""]
    assert [row[0] for row in table[:9]] == shapes
    assert [tuple(row[1:3]) for row in table[:9]] == names * 3
    assert [row[-2] for row in table[:9:3]] == ["1.00x"] * 3
    assert [tuple(row[:2]) for row in table[9:]] == names
    assert f"opt.w4a16.onnx: 12 nodes of {OPERATOR} by the library (asked for)" in printed.out
    assert "model.onnx: no nodes of ai.zq2onnx, nothing to fuse" in printed.out
    assert "opt.w4a16.onnx: fused against stock " in printed.out
    assert "fused and stock outputs differ by " in printed.out and "(logits, " in printed.out
    said = json.loads(file.read_text())
    assert [row["route"] for row in said["rows"]] == ["stock", "stock", "fused"]
    assert said["rows"][2]["timings"][1]["shape"] == {"batch": 1, "tokens": 33, "past": 0}
    assert said["threads"] == 1 and len(said["agreements"]) == 3


@needs_library
def test_a_kv_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantized = tmp_path / "model.onnx"
    zq2onnx.convert(zoo.model("llama-cache"), quantized, scheme="w3a16", lorc_rank=0, check="none")
    assert run(quantized, "--past", 5, "--batch", 2, "--ops", "all", "--runs", 1, "--threads", 1) == 0
    table = rows(capsys.readouterr().out)
    assert [row[0] for row in table[:4]] == ["2 x 64 tokens", "", "2 x 1 token after 5", ""]


def test_models_with_nothing_to_fuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(zoo.model("bert"), "--prompt", 4, "--runs", 1) == 0
    printed = capsys.readouterr().out
    assert [row[0] for row in rows(printed)[:2]] == ["4 tokens", "1 token"]
    assert "nothing to fuse" in printed and "differ" not in printed
    assert run(zoo.model("opt-bf16"), "--prompt", 4, "--runs", 1, "--ops", "all", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


@needs_library
def test_what_is_not_registered_says_why(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(chain / "w4.onnx", "--npz", chain / "x.npz", "--runs", 1, "--ops", "none") == 0
    printed = capsys.readouterr().out
    assert [row[:3] for row in rows(printed)[:1]] == [["1 sample", "w4.onnx", "stock"]]
    assert f"3 nodes of {OPERATOR} by their function, on stock kernels (not asked for)" in printed
    assert "nothing is fused; --ops all tries every kernel" in printed


@needs_library
def test_a_kernel_that_computes_something_else_is_found(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(chain / "w4.onnx")
    (function,) = (each for each in model.functions if each.name == OPERATOR)
    function.node[-1].output[0] = "Y_half"
    function.node.append(onnx.helper.make_node("Add", ["Y_half", "Y_half"], ["Y"]))
    onnx.save_model(model, tmp_path / "other.onnx")
    file = tmp_path / "speed.json"
    options = ("--npz", chain / "x.npz", "--runs", 1, "--ops", "all", "--json", file)
    assert run(tmp_path / "other.onnx", *options) == 1
    printed = capsys.readouterr()
    assert len(rows(printed.out)) == 4  # what was measured is shown all the same
    assert "other.onnx: fused and stock outputs differ by " in printed.err
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert json.loads(file.read_text())["agreements"][0]["difference"] > 0.1


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a refusal consists of."""
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


def test_what_cannot_be_done_is_refused(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fed = (chain / "w4.onnx", "--npz", chain / "x.npz")
    (chain / "no.onnx").write_bytes(b"no model")
    for arguments, message in (
        ((chain / "absent.onnx",), "absent.onnx: no such file"),
        ((chain / "no.onnx",), "no.onnx: not an ONNX model"),
        ((chain / "w4.onnx",), "w4.onnx: input x of shape"),
        ((chain / "w4.onnx",), "--npz FILE with the model's own inputs"),
        ((chain / "w4.onnx", "--npz", chain / "absent.npz"), "absent.npz: no such file"),
        ((*fed, "--against", zoo.model("opt")), "models with the same inputs; leave out --against"),
        ((*fed, "--against", chain / "absent.onnx"), "absent.onnx: no such file"),
        ((*fed, "--ops", "MatMulW5A16"), "operator 'MatMulW5A16'; required: all, none, or of "),
        ((*fed, "--prompt", 8), "--prompt with --npz"),
        ((*fed, "--past", 8), "--past with --npz"),
        ((*fed, "--batch", 5), "x.npz: 4 samples; required: 5"),
        ((*fed, "--threads", 0), "--threads 0; required: at least 1"),
        ((*fed, "--runs", 0), "--runs 0; required: at least 1"),
        ((*fed, "--seconds", 0), "--seconds 0.0; required: more than 0"),
        ((*fed, "--seconds", 1, "--runs", 1), "--seconds and --runs together"),
        ((*fed, "--json", chain / "w4.onnx.data"), "it is one of the inputs"),
        ((*fed, "--json", chain), "a folder; required: a file name"),
        ((*fed, "--json", chain / "a" / "b" / "c.json"), "an existing one"),
        ((zoo.model("opt"), "--prompt", 0), "--prompt 0; required: at least 1"),
        ((zoo.model("opt"), "--prompt", 65), "65 tokens; required: at most 64 in all"),
        ((zoo.model("opt"), "--past", 5), "has no KV cache"),
        ((*fed, "--wrong"), "No such option"),
    ):
        assert message in refused(capsys, *arguments)


def test_what_onnxruntime_refuses_is_one_line(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(chain / "w4.onnx", tmp_path)
    assert "w4.onnx.data" in refused(capsys, tmp_path / "w4.onnx", "--npz", chain / "x.npz")
    model = onnx.load(chain / "float.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save_model(model, tmp_path / "odd.onnx")
    message = refused(capsys, tmp_path / "odd.onnx", "--npz", chain / "x.npz", "--runs", 1)
    assert "odd.onnx: onnxruntime " in message and "cannot load it" in message


def children_of(process: int) -> list[int]:
    """Processes that one has started and that live."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == process and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_nothing_is_left_behind(number: signal.Signals, code: int, chain: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zq2onnx", "bench", chain / "float.onnx", "--npz", chain / "x.npz"]
    process = subprocess.Popen(
        [*map(str, command), "--seconds", "300"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not (inputs := list(tmp_path.glob("zq2onnx-bench-*/inputs-*.npz"))):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        (child,) = children_of(process.pid)
        os.killpg(process.pid, number)
        printed, errors = process.communicate(timeout=60)
        assert process.returncode == code
        for _ in range(1000):  # the system may take a moment
            if alive(child):
                time.sleep(0.02)
        assert not alive(child)
        if number is signal.SIGINT:
            assert (printed, errors) == ("", "interrupted\n")
            assert not inputs[0].exists() and not list(tmp_path.glob("zq2onnx*"))
    finally:
        process.kill()
        process.communicate()


def test_a_process_that_fails_or_dies_is_told(chain: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "narrow.npz", x=np.ones((1, 3), np.float32))
    for route, error in ((Route.STOCK, UserError), (Route.FUSED, CheckFailed)):
        with ModelProcess(chain / "float.onnx", route, tmp_path / "log") as process:
            process.load(chain / "float.onnx", (), 1)
            with pytest.raises(error, match=r"float.onnx: .*onnxruntime .* cannot run it \(.*invalid dim"):
                process.time(tmp_path / "narrow.npz", 1)
            os.kill(process._process.pid, signal.SIGKILL)
            with pytest.raises(
                CheckFailed, match=rf"that ran it \({route}\) died: killed by SIGKILL, as the"
            ):
                process.peak_bytes()
