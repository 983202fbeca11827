"""What the library says and does where GPU, driver or compiled kernels are not as they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.problems import make
from tests.runtime.cuda.stand_in import (
    Told,
    build_driver,
    build_host,
    case,
    environment,
    run_host,
    write_bundle,
)
from tests.runtime.fused import needs_library
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime.kernels.manifest import FORMAT
from zq2onnx.runtime.library import describe

pytestmark = needs_library

OPERATOR = "MatMulW4A8LoRC"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_host(tmp_path_factory.mktemp("host") / "host")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "one"
    path.write_bytes(case(*make(OPERATORS[OPERATOR], 3, 256, 32, 128, "fp16")))
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", "sm_90")
    return tmp_path / "bundle"


def reason(driver: Path | None, bundle: Path | None, **more: str) -> str:
    """Why no operator is registered for a GPU session, as `zq2onnx runtime info` says it."""
    command = [sys.executable, "-m", "zq2onnx", "runtime", "info"]
    seen = environment(driver, bundle, ZQ2ONNX_OPS="all", ZQ2ONNX_PROVIDER="cuda", **more)
    done = subprocess.run(command, capture_output=True, text=True, env=seen)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    return last.removeprefix("no operator is registered: ").removesuffix(": left to its function")


def test_without_a_driver(tmp_path: Path) -> None:
    assert reason(tmp_path, None) == "no libcuda.so.1 can be opened"


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"STAND_IN_VERSION": "11080"}, "the driver is of CUDA 11.8; required: 12.0 or later"),
        ({"STAND_IN_FAIL": "cuInit=100"}, "cuInit: unknown error (100)"),
        ({"STAND_IN_GPUS": ""}, "the driver sees no GPU"),
        ({"STAND_IN_FAIL": "cuDeviceGetCount=3"}, "cuDeviceGetCount: unknown error (3)"),
        ({"STAND_IN_FAIL": "cuDeviceGetName=3"}, "cuDeviceGetName: unknown error (3)"),
        ({"STAND_IN_FAIL": "cuDeviceGetAttribute=3"}, "cuDeviceGetAttribute: unknown error (3)"),
        (
            {"STAND_IN_GPUS": "H100:90,Tesla T4:75"},
            "no kernel for it is compiled for Tesla T4 (sm_75) in float16",
        ),
    ],
)
def test_drivers_and_gpus_that_will_not_do(
    seen: dict[str, str], said: str, driver: Path, bundle: Path
) -> None:
    assert reason(driver, bundle, **seen) == said


def test_a_driver_that_lacks_a_function(tmp_path: Path, bundle: Path) -> None:
    assert (
        reason(build_driver(tmp_path / "old", "-DOLD_DRIVER"), bundle)
        == "libcuda.so.1 has no cuLaunchKernelEx"
    )


def test_without_a_bundle(driver: Path, tmp_path: Path) -> None:
    assert reason(driver, tmp_path / "absent") == (
        f"{tmp_path}/absent holds no manifest.json; required: a bundle (zq2onnx kernels build)"
    )


def rewritten(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def set_to(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["kernels"][0].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest.update(format=FORMAT + 1), f"format is {FORMAT + 1}; required: {FORMAT}"),
        (
            lambda manifest: manifest["kernels"][0].pop("threads"),
            "there is no threads; required: an object that has it",
        ),
        (set_to("threads", 4096), "threads is 4096; required: 32 to 1024"),
        (set_to("threads", "128"), "threads is no integer"),
        (set_to("file", "../elsewhere.cubin"), "file ../elsewhere.cubin; required: a name without a folder"),
        (set_to("architecture", "gfx942"), "architecture gfx942; required: one as sm_90"),
        (set_to("dtype", "fp8"), "dtype fp8; required: fp16, bf16 or fp32"),
        (set_to("grid", [[["warps", 1]], [], []]), "size warps; required: one that this library knows"),
        (set_to("grid", [[["M", 0]], [], []]), "a tile is 0; required: 1 to 2147483647"),
        (
            set_to("hidden", [{"name": "global_scratch", "bytes": 16, "alignment": 1}]),
            "bytes of a hidden pointer is 16; required: 0",
        ),
        (
            set_to("arguments", [{"name": "A", "type": "*fp32", "multiple_of": 1}]),
            "argument A of type *fp32; required: one that this library passes",
        ),
    ],
)
def test_manifests_that_are_refused(
    change: Callable[[dict[str, Any]], None], said: str, driver: Path, bundle: Path
) -> None:
    rewritten(bundle, change)
    found = reason(driver, bundle)
    assert said in found
    assert found.startswith(f"{bundle}/manifest.json: ")
    assert found.endswith("an intact bundle (zq2onnx kernels build)")


def test_a_bundle_cut_short(driver: Path, bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "manifest.json" in reason(driver, bundle)
    write_bundle(bundle, "sm_90")
    gone = next(iter(sorted(bundle.glob("few_*.cubin"))))
    gone.write_bytes(gone.read_bytes()[:-1])
    assert f"{gone} is not there, or not of" in reason(driver, bundle)


def test_kernels_that_are_missing_leave_their_operators_out(driver: Path, bundle: Path) -> None:
    def without(manifest: dict[str, Any]) -> None:
        kept = [kernel for kernel in manifest["kernels"] if not kernel["name"].startswith("any_w3_bf16")]
        assert len(kept) < len(manifest["kernels"])
        manifest["kernels"] = kept

    rewritten(bundle, without)
    seen = environment(driver, bundle, ZQ2ONNX_OPS="all", ZQ2ONNX_PROVIDER="cuda")
    command = [sys.executable, "-m", "zq2onnx", "runtime", "info"]
    printed = subprocess.run(command, capture_output=True, text=True, env=seen, check=True).stdout
    verdicts = {line.split()[0]: line for line in printed.splitlines() if line.startswith("MatMul")}
    assert "no kernel for it is compiled for Stand-in (sm_90) in bfloat16" in verdicts["MatMulW3A8"]
    assert {name for name, line in verdicts.items() if line.split()[1] == "no"} == {
        name for name in OPERATORS if name.startswith("MatMulW3")
    }


@pytest.mark.parametrize("gpus", ["H100:90", "Tesla T4:75", "H100:90,Tesla T4:75"])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_registered_unasked(
    gpus: str, there: bool, host: Path, driver: Path, bundle: Path, cases: Path
) -> None:
    """No kernel is measured on a GPU yet; and a GPU session must not be given kernels of the CPU's."""
    seen = environment(driver, bundle if there else bundle / "absent", STAND_IN_GPUS=gpus)
    found = run_host(host, cases, seen, 256, 0, "ask")
    assert found.registered == ()
    assert found.created == ["absent"]


def test_without_a_gpu_a_host_that_says_nothing_runs_on_the_cpu(
    host: Path, driver: Path, bundle: Path, cases: Path
) -> None:
    on_cpu = {choice.name for choice in describe("", "cpu").operators if choice.registered}
    found = run_host(host, cases, environment(driver, bundle, STAND_IN_GPUS=""), 256, 0, "ask")
    assert set(found.registered) == on_cpu


def tell(host: Path, cases: Path, driver: Path, bundle: Path, **more: str) -> Told:
    found = run_host(host, cases, environment(driver, bundle, **more))
    assert found.registered
    assert found.count("load") == found.count("unload")
    assert found.count("retain") == found.count("release")
    assert found.count("push") == found.count("pop")
    return found


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        ("cuDevicePrimaryCtxRetain", 2, "cuDevicePrimaryCtxRetain: unknown error (2)"),
        ("cuModuleLoadData", 209, "no kernel image is available for execution on the device (209)"),
        ("cuModuleGetFunction", 500, "cuModuleGetFunction: unknown error (500)"),
        ("cuFuncSetAttribute", 1, "cuFuncSetAttribute: unknown error (1)"),
        ("cuFuncSetCacheConfig", 1, "cuFuncSetCacheConfig: unknown error (1)"),
        ("cuCtxPushCurrent", 4, "cuCtxPushCurrent: unknown error (4)"),
        ("cuCtxGetCurrent", 4, "cuCtxGetCurrent: unknown error (4)"),
        ("cuFuncLoad", 2, "cuFuncLoad: unknown error (2)"),
    ],
)
def test_an_error_at_creation_names_call_and_node(
    call: str, code: int, said: str, host: Path, driver: Path, bundle: Path, cases: Path
) -> None:
    found = tell(host, cases, driver, bundle, STAND_IN_FAIL=f"{call}={code}")
    (error,) = found.created
    assert error.startswith(f"{OPERATOR} '{OPERATOR}': ") and said in error
    assert not found.runs


def test_an_error_at_a_run_names_call_and_node(host: Path, driver: Path, bundle: Path, cases: Path) -> None:
    found = tell(host, cases, driver, bundle, STAND_IN_FAIL="cuLaunchKernelEx=719")
    assert found.created == [""]
    assert [run.failed for run in found.runs] == [
        f"{OPERATOR} '{OPERATOR}': cuLaunchKernelEx: unknown error (719)"
    ] * 2
    assert all(run.scratch for run in found.runs)


def test_a_full_gpu_fails_the_run(host: Path, driver: Path, bundle: Path, cases: Path) -> None:
    found = run_host(host, cases, environment(driver, bundle), 256, 0, "full")
    assert [run.failed for run in found.runs] == ["Failed to allocate memory for requested buffer"] * 2
    assert not any(run.launches for run in found.runs)


def test_a_kernel_that_was_changed_is_not_loaded(host: Path, driver: Path, bundle: Path, cases: Path) -> None:
    for file in bundle.glob("prologue_token_*fp16*.cubin"):
        file.write_bytes(file.read_bytes().replace(b"prologue ", b"prelude  "))
    (error,) = tell(host, cases, driver, bundle).created
    assert "is not the file that its manifest names" in error


def test_no_tokens_and_no_rank_launch_nothing(host: Path, driver: Path, bundle: Path, tmp_path: Path) -> None:
    problem, inputs = make(OPERATORS["MatMulW4A16LoRC"], 3, 256, 32, 128, "fp16")
    inputs["U"] = np.zeros((256, 0), np.int8)
    inputs["V"] = np.zeros((0, 32), np.int8)
    inputs["U_scales"], inputs["V_scales"] = np.zeros((1, 0), np.float16), np.zeros((0, 1), np.float16)
    inputs["A"] = np.zeros((0, 256), np.float16)
    (tmp_path / "cases").write_bytes(case(problem, inputs))
    found = tell(host, tmp_path / "cases", driver, bundle)
    assert [(run.failed, run.launches) for run in found.runs] == [("", [])] * 2


DAMAGE = """
import json, os, random, sys
from pathlib import Path
from zq2onnx.runtime.library import describe
bundle, text, seed = Path(sys.argv[1]), Path(sys.argv[1], "manifest.json").read_bytes(), random.Random(7)
refused = 0
for turn in range(300):
    damaged = bytearray(text)
    kind, at = turn % 3, seed.randrange(len(text))
    if kind == 0:
        del damaged[at:]
    elif kind == 1:
        damaged[at] = seed.randrange(256)
    else:
        del damaged[at : at + seed.randrange(1, 40)]
    (bundle / "manifest.json").write_bytes(damaged)
    os.environ["ZQ2ONNX_KERNELS"] = f"{bundle}{'/.' * turn}"  # read anew
    found = describe("all", "cuda").cuda
    assert "\\n" not in found.why_no_kernels
    refused += bool(found.why_no_kernels)
print(refused)
"""


def test_damaged_manifests_are_refused_in_a_line(driver: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", "sm_90")
    path = tmp_path / "bundle" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["kernels"] = manifest["kernels"][::16]
    path.write_text(json.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(tmp_path / "bundle")],
        capture_output=True, text=True, env=environment(driver, tmp_path / "bundle"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150  # of the others the damage lies in what the library does not read
