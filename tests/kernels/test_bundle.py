"""Building a bundle, a small one: `zq2onnx kernels build` in a process of its own."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zq2onnx.errors import UserError
from zq2onnx.runtime.kernels.assembly import file_name
from zq2onnx.runtime.kernels.configurations import configurations
from zq2onnx.runtime.kernels.manifest import FORMAT, read_manifest

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
SMALL = ("--only", "^any_w4_fp(16|32)")


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zq2onnx", "kernels", *map(str, arguments)],
        env=ENVIRONMENT | environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "kernels"
    done = command("build", "--arch", "sm_80", "--arch", "sm_86", *SMALL, "-o", folder)
    assert done.returncode == 0, done.stderr
    assert "6 files, 6 of them new" in done.stdout
    return folder


def test_a_bundle_is_files_and_a_manifest(built: Path) -> None:
    manifest = read_manifest(built)
    names = {path.name for path in built.iterdir()}
    assert names == {kernel.file for kernel in manifest.kernels} | {"manifest.json"}
    assert manifest.architectures == ("sm_80", "sm_86")
    order = [made for made in configurations("sm_80") if made.name.startswith("any_w4_fp")]
    assert [kernel.configuration for kernel in manifest.kernels[:2]] == order
    assert {kernel.form for kernel in manifest.kernels[4:]} == {"ptx"}
    assert "sm_80 and later" in command("info", ZQ2ONNX_KERNELS=str(built)).stdout


def test_what_is_there_is_kept(built: Path) -> None:
    (gone,) = built.glob("any_w4_fp16_u16.sm_86.*.cubin")
    (damaged,) = built.glob("any_w4_fp32_u16.sm_80.*.cubin")
    content = {path.name: path.read_bytes() for path in built.iterdir()}
    gone.unlink()
    damaged.write_bytes(bytes(len(content[damaged.name])))
    with pytest.raises(UserError, match="lacks 2 of 6 kernels"):
        read_manifest(built)
    again = command("build", "--arch", "sm_80", "--arch", "sm_86", *SMALL, "-o", built)
    assert "6 files, 2 of them new" in again.stdout
    unchanged = command("build", "--arch", "sm_80", "--arch", "sm_86", *SMALL, "-o", built)
    assert "6 files, 0 of them new" in unchanged.stdout
    assert content == {path.name: path.read_bytes() for path in built.iterdir()}


def test_a_bundle_holds_what_was_asked_for_and_what_is_not_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    assert command("build", "--arch", "sm_90", *SMALL, "-o", folder).returncode == 0
    (folder / "mine.cubin").write_text("mine")
    for left in (".manifest.json.123", "few_w4_fp16_u128_m8_p4.sm_80.0123abcd.cubin"):
        (folder / left).write_text("of a build that was killed")
    kept = command("build", "--arch", "sm_90", "--only", "^any_w4_fp16", "-o", folder)
    assert "1 files, 0 of them new" in kept.stdout
    (file,) = (kernel.file for kernel in read_manifest(folder).kernels)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "mine.cubin", file}


def test_a_file_is_named_by_all_that_it_depends_on() -> None:
    made = configurations("sm_80")[0]
    versions = ("3.9.0", "12.9.86")
    name = file_name(made, "sm_80", "cubin", versions)
    changed = (
        file_name(dataclasses.replace(made, stages=made.stages + 1), "sm_80", "cubin", versions),
        file_name(made, "sm_80", "cubin", ("3.9.1", "12.9.86")),
        file_name(made, "sm_80", "cubin", ("3.9.0", "13.0")),
        file_name(made, "sm_86", "cubin", versions),
    )
    keys = {one.split(".")[2] for one in (name, *changed)}
    assert len(keys) == 5 and name.startswith(f"{made.name}.sm_80.")


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    arguments = ["build", "--arch", "sm_90", "--only", "^any_w[48]_", "--jobs", "1", "-o", str(folder)]
    running = subprocess.Popen(
        [sys.executable, "-m", "zq2onnx", "kernels", *arguments],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.cubin")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130 and said.strip() == "interrupted; the same command goes on from here"
    assert not (folder / "manifest.json").exists()
    made = len(read_manifest(folder, "unfinished.json").kernels)
    again = command(*arguments)
    total = len([made for made in configurations("sm_90") if made.name.startswith(("any_w4_", "any_w8_"))])
    assert f"{total} files, {total - made} of them new" in again.stdout
    assert not (folder / "unfinished.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arch", "sm_75"), "error: architecture 'sm_75'; required: of sm_80, sm_86"),
        (("--only", "w5"), "error: no kernel's name matches 'w5'"),
        (("--only", "("), "error: '(' is no regular expression: missing )"),
        (("-o", "no/such/folder"), "no such file or directory"),
    ],
)
def test_one_line_says_what_is_wrong(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    where = () if "-o" in arguments else ("-o", tmp_path / "kernels")
    done = command("build", *arguments, *where)
    assert done.returncode == 2 and said in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout
    assert not (tmp_path / "kernels").exists()


def test_a_part_does_not_replace_the_installed_bundle(tmp_path: Path) -> None:
    done = command("build", *SMALL, ZQ2ONNX_KERNELS=str(tmp_path / "kernels"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: --only without -o; required: another folder")
    assert not (tmp_path / "kernels").exists()


def test_an_assembler_that_fails_is_told_of(tmp_path: Path) -> None:
    from triton import knobs

    tool = tmp_path / "ptxas"
    # The first call, Triton's own, succeeds; ours has -v first.
    tool.write_text(
        f'#!/bin/sh\ncase "$1" in -v) echo "ptxas fatal: out of luck" >&2; exit 255;; esac\n'
        f'exec {knobs.nvidia.ptxas.path} "$@"\n'
    )
    tool.chmod(0o755)
    done = command(
        "build", "--arch", "sm_86", *SMALL, "-o", tmp_path / "kernels", TRITON_PTXAS_PATH=str(tool)
    )
    assert done.returncode == 1 and "for sm_86: ptxas fatal: out of luck" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_triton_the_extra_is_named(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "from zq2onnx.cli.app import main\n"
        f"sys.exit(main(['kernels', 'build', '-o', {str(tmp_path / 'kernels')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        "triton is not installed; this command needs it" in done.stderr and "zq2onnx[kernels]" in done.stderr
    )
    assert not (tmp_path / "kernels").exists()


def test_a_host_needs_neither_triton_nor_torch(built: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('triton', 'torch', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "import zq2onnx.runtime\n"
        "from zq2onnx.runtime.kernels import choice, launches, manifest\n"
        f"print(len(manifest.read_manifest(Path({str(built)!r})).kernels))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "6", done.stderr


def test_another_format_is_refused(built: Path, tmp_path: Path) -> None:
    text = (built / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with pytest.raises(UserError, match=f"is of format {FORMAT + 1}; required: format {FORMAT}"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match=r"holds no manifest.json"):
        read_manifest(tmp_path / "nothing")
    for broken in ("[]", "{}", '{"format": 1, "kernels": [{}]}'):
        (tmp_path / "manifest.json").write_text(broken)
        with pytest.raises(UserError, match="is no manifest"):
            read_manifest(tmp_path)
