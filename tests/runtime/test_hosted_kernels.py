"""The operator library in a host that is not ONNX Runtime: on processors that only an emulator has.

`host/host.cc` runs single nodes and compares them with the oracle's results, which the cases hold. Its arrays
end where no memory is: a kernel that reads or writes beyond them ends it.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from tests.operator_model import Array, operator_layout, random_constants
from tests.runtime.fused import activations, needs_library, tolerance
from zq2onnx.opset import OPERATORS, Operator, node_attributes
from zq2onnx.runtime import reference
from zq2onnx.runtime.library import LIBRARY_VARIABLE, get_library_path

pytestmark = pytest.mark.skipif(LIBRARY_VARIABLE in os.environ, reason="another build than the installed one")

SOURCES = Path(__file__).resolve().parents[2] / "runtime" / "csrc"
HOST = Path(__file__).resolve().parent / "host"
COMPILE = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024, "row")
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def tool(name: str) -> str:
    """The path of a program; skips where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def packed(array: Array | None) -> bytes:
    """An array with its type and shape, as the host reads it."""
    if array is None:
        return struct.pack("<q", 0)
    head = (helper.np_dtype_to_tensor_dtype(array.dtype), array.ndim, *array.shape)
    return struct.pack(f"<{len(head)}q", *head) + array.tobytes()


def text(value: str) -> bytes:
    """Its length and its bytes."""
    return struct.pack("<q", len(value)) + value.encode()


def numbers(values: Array) -> bytes:
    """How many, and float64."""
    return struct.pack("<q", values.size) + values.astype(np.float64).tobytes()


def case(operator: Operator, k: int, group_size: str | int, tokens: int, dtype: type, at: int) -> bytes:
    """One node: its attributes, its inputs, what it must return and how far off that may be."""
    rng = np.random.default_rng(at)
    layout = operator_layout(operator, k, 18, group_size)
    contents = {"bias": at % 3 > 0, "rank": (5, 16, 24)[at % 3], "int8_factors": at % 2 == 0}
    constants = random_constants(operator, layout, rng, dtype=dtype, **contents)
    inputs = {"A": activations(rng, (tokens, k), dtype), **constants}
    attributes = node_attributes(layout)
    expected, slack = reference.matmul_with_slack(operator, attributes, inputs)
    allowed = slack + tolerance(dtype, k) * np.abs(expected).max()
    named = b"".join(text(name) + struct.pack("<q", value) for name, value in attributes.items())
    arrays = b"".join(packed(inputs.get(name)) for name in operator.inputs)
    counts = [struct.pack("<q", len(items)) for items in (attributes, operator.inputs)]
    return text(operator.name) + counts[0] + named + counts[1] + arrays + numbers(expected) + numbers(allowed)


def cross(operators: Sequence[Operator], group_sizes: Sequence[str | int]) -> Iterator[bytes]:
    """Operators, group sizes and numbers of tokens; float types and lengths in turns."""
    for at, operator in enumerate(operators):
        for group_at, group_size in enumerate(group_sizes):
            for token_at, tokens in enumerate((1, 3, 8, 9, 33)):
                turn = at + group_at + token_at
                k = 1050 if group_size in (512, 1024) else (100, 323, 531)[turn % 3]
                yield case(operator, k, group_size, tokens, DTYPES[(turn + at) % 3], turn)


@pytest.fixture(scope="module")
def all_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "all"
    path.write_bytes(b"".join(cross(list(OPERATORS.values()), GROUP_SIZES)))
    return path


@pytest.fixture(scope="module")
def few_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "few"
    path.write_bytes(b"".join(cross(list(OPERATORS.values()), (32, "row"))))
    return path


def compiled(compiler: str, to: Path, *arguments: str | Path) -> Path:
    """Compile the host, with all warnings as errors."""
    command = [tool(compiler), *COMPILE, HOST / "host.cc", *arguments, "-o", to]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return to


def run_host(command: Sequence[str | Path], *, kernels: str) -> None:
    """Run the host, and require these kernels to be found and to pass."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout}{done.stderr}"
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert lines["kernels"].split() == kernels.split()
    assert all(int(lines[name].split()[0]) > 0 for name in kernels.split())


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host with the library that is built."""
    library = Path(get_library_path())
    to = tmp_path_factory.mktemp("native") / "host"
    return compiled("c++", to, library, f"-Wl,-rpath,{library.parent}")


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host with the whole library, for AArch64."""
    sources = sorted(SOURCES.rglob("*.cc"))
    return compiled("aarch64-linux-gnu-g++", tmp_path_factory.mktemp("aarch64") / "host", *sources, "-static")


@needs_library
def test_every_kernel_stays_within_its_arrays(native: Path, all_cases: Path) -> None:
    names = subprocess.run([native], capture_output=True, text=True, check=True).stdout
    run_host([native, all_cases], kernels=names.split("kernels:")[1])


@needs_library
def test_a_result_that_is_off_is_found(native: Path, tmp_path: Path) -> None:
    right = case(OPERATORS["MatMulW4A16"], 100, 32, 3, np.float32, 1)
    expected = np.frombuffer(right[-2 * 8 * 54 - 8 : -8 * 54 - 8], np.float64)
    wrong = right[: -2 * 8 * 54 - 8] + (expected + 0.01).tobytes() + right[-8 * 54 - 8 :]
    (tmp_path / "wrong").write_bytes(right + wrong)
    done = subprocess.run([native, tmp_path / "wrong"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: MatMulW4A16 with K=100 N=18 block_size=32" in done.stdout
    assert "element 0 is" in done.stdout


@needs_library
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs a library for x86-64")
@pytest.mark.parametrize(("processor", "kernels"), [("Haswell", "avx2 generic"), ("Nehalem", "generic")])
def test_no_processor_is_given_instructions_that_it_lacks(
    processor: str, kernels: str, native: Path, few_cases: Path
) -> None:
    run_host([tool("qemu-x86_64"), "-cpu", processor, native, few_cases, "64"], kernels=kernels)


def has_avx512_vnni() -> bool:
    information = Path("/proc/cpuinfo")
    return information.is_file() and "avx512_vnni" in information.read_text()


@pytest.mark.skipif(not has_avx512_vnni(), reason="needs a processor with AVX-512 VNNI")
def test_avx_vnni_in_another_encoding(few_cases: Path, tmp_path: Path) -> None:
    """No emulator knows AVX-VNNI; AVX-512 has the same instruction."""
    left_out = {"avx512.cc", "avx2.cc"}
    sources = [path for path in sorted(SOURCES.rglob("*.cc")) if path.name not in left_out]
    # -O0: this is about which bytes are multiplied, and soon compiled.
    arguments = [*sources, HOST / "avx_vnni.cc", "-include", HOST / "avx_vnni.h", "-O0"]
    host = compiled("c++", tmp_path / "host", *arguments)
    # AVX-512 and AVX2 are found, and have no kernels.
    run_host([host, few_cases], kernels="avx512 avx2_vnni avx2 generic")


@pytest.mark.parametrize(
    ("processor", "kernels", "cases"),
    [("max", "neon_dotprod neon generic", "all_cases"), ("cortex-a57", "neon generic", "few_cases")],
)
def test_aarch64(
    processor: str, kernels: str, cases: str, aarch64: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(cases)
    run_host([tool("qemu-aarch64"), "-cpu", processor, aarch64, path], kernels=kernels)
