"""A GPU that is not there: a libcuda that tells of its calls, a host that runs nodes, a bundle that it loads.

The bundle's manifest is of the kernels that are shipped. Its files hold no code but what the stand-in must
know: the sizes of the parameters.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.operator_model import Array
from tests.runtime.test_hosted_kernels import HOST, packed, text
from zq2onnx.opset import node_attributes
from zq2onnx.runtime.kernels.compilation import parameters_of
from zq2onnx.runtime.kernels.configurations import DEPENDENT_LAUNCH, configurations
from zq2onnx.runtime.kernels.manifest import Argument, Hidden, Kernel, Manifest, write_manifest
from zq2onnx.runtime.kernels.problem import Problem
from zq2onnx.runtime.library import get_library_path

STREAM = 0x57EA3
"""What the host says is the stream of a run."""

HIDDEN = (Hidden("global_scratch", 0, 1), Hidden("profile_scratch", 0, 1))
COMPILE = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")


def size_of(argument: Argument) -> int:
    """Bytes of an argument of a launch."""
    return 8 if argument.type.startswith("*") else 4


def kernels(architecture: str, form: str, folder: Path) -> Iterable[Kernel]:
    """The kernels of an architecture; writes their files."""
    for made in configurations(architecture):
        arguments, symbol = parameters_of(made), made.kernel
        sizes = [*map(size_of, arguments), *(8 for _ in HIDDEN)]
        content = " ".join(map(str, (made.name, symbol, *sizes))).encode()
        file = f"{made.name}.{architecture}.{form}"
        (folder / file).write_bytes(content)
        yield Kernel(
            configuration=made,
            architecture=architecture,
            form=form,
            file=file,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            key="0",
            symbol=symbol,
            arguments=arguments,
            hidden=HIDDEN,
            shared=50000 if made.kernel == "few_tokens" else 1000,
            threads=made.warps * 32,
            registers=100,
            spilled=0,
            dependent=architecture in DEPENDENT_LAUNCH and made.kernel != "prologue" and form == "cubin",
        )


def write_bundle(folder: Path, *architectures: str, ptx: str = "") -> Manifest:
    """A bundle of these architectures, and of PTX of one."""
    folder.mkdir(exist_ok=True)
    made = [kernel for name in architectures for kernel in kernels(name, "cubin", folder)]
    made += kernels(ptx, "ptx", folder) if ptx else []
    manifest = Manifest("3.9.0", "12.9.86", tuple(made))
    write_manifest(folder, manifest)
    return manifest


def compiled(to: Path, *arguments: str | Path) -> Path:
    """Compile with all warnings as errors; skips without a compiler."""
    if shutil.which("c++") is None:
        pytest.skip("needs c++")
    done = subprocess.run(
        ["c++", *COMPILE, *map(str, arguments), "-o", str(to)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return to


def build_driver(folder: Path, *arguments: str) -> Path:
    """The folder of a stand-in for libcuda."""
    folder.mkdir(exist_ok=True)
    compiled(
        folder / "libcuda.so.1", HOST / "libcuda.cc", "-shared", "-fPIC", "-fvisibility=default", *arguments
    )
    return folder


def build_host(to: Path) -> Path:
    """The host with the library that is built."""
    library = Path(get_library_path())
    return compiled(to, HOST / "cuda_host.cc", library, f"-Wl,-rpath,{library.parent}", "-pthread")


def case(problem: Problem, inputs: Mapping[str, Array], *, name: str = "") -> bytes:
    """One node, as the host reads it; what it must return is not told."""
    attributes = node_attributes(problem.layout)
    named = b"".join(text(key) + struct.pack("<q", value) for key, value in attributes.items())
    arrays = b"".join(packed(inputs.get(item)) for item in problem.operator.inputs)
    counts = [struct.pack("<q", len(items)) for items in (attributes, problem.operator.inputs)]
    nothing = struct.pack("<q", 0)
    return text(name or problem.operator.name) + counts[0] + named + counts[1] + arrays + nothing + nothing


@dataclass(frozen=True)
class Launch:
    """One launch, as the stand-in saw it; `values` are those of the parameters, in order."""

    kernel: str
    grid: tuple[int, ...]
    threads: int
    shared: int
    stream: int
    attributes: str
    values: tuple[int, ...]


@dataclass
class Run:
    """One run of a node: what the host gave and what was launched.

    Attributes:
        arrays: address and bytes of each input, in the operator's order; 0 where absent.
        scratch: address and bytes; None where none was taken.
        output: address and bytes.
        launches: in order.
        failed: the error, if there was one.
    """

    arrays: list[tuple[int, int]] = field(default_factory=list)
    scratch: tuple[int, int] | None = None
    output: tuple[int, int] | None = None
    launches: list[Launch] = field(default_factory=list)
    failed: str = ""


@dataclass(frozen=True)
class Told:
    """All that was told.

    Attributes:
        registered: names.
        created: for each node its error, or "".
        runs: of the nodes that were created, each twice, the second time after all others. By several threads
            they mean nothing: lines stand as they came.
        calls: every line, split.
    """

    registered: tuple[str, ...]
    created: list[str]
    runs: list[Run]
    calls: list[list[str]]

    def count(self, call: str) -> int:
        """How often a call was made."""
        return sum(line[0] == call for line in self.calls)


def environment(driver: Path | None, bundle: Path | None, **more: str) -> dict[str, str]:
    """What a process is to see."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ZQ2ONNX_OPS", "ZQ2ONNX_P"))
    }
    kept |= {"LD_LIBRARY_PATH": str(driver)} if driver else {}
    return kept | ({"ZQ2ONNX_KERNELS": str(bundle)} if bundle else {}) | more


def run_host(
    host: Path, cases: Path, seen: Mapping[str, str], alignment: int = 256, *arguments: object
) -> Told:
    """Run the host on these cases."""
    command = [str(host), str(cases), str(alignment), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(seen))
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout[-2000:]}{done.stderr}"
    return read(done.stdout)


def read(printed: str) -> Told:
    """What a host printed."""
    calls = [line.split("\t") for line in printed.splitlines()]
    registered: tuple[str, ...] = ()
    created: list[str] = []
    runs: list[Run] = []
    for what, *rest in calls:
        match what:
            case "registered":
                registered = tuple(name for name in rest[0].split(",") if name)
            case "create":
                created.append("")
            case "absent":
                created[-1] = "absent"
            case "failed" if runs:
                runs[-1].failed = rest[0]
            case "failed":
                created[-1] = rest[0]
            case "run":
                runs.append(Run())
            case "array":
                runs[-1].arrays.append(_region(rest))
            case "scratch":
                runs[-1].scratch = _region(rest)
            case "output":
                runs[-1].output = _region(rest)
            case "launch":
                runs[-1].launches.append(_launch(rest))
    assert calls[-1] == ["end", "0"]  # all scratch memory was given back
    return Told(registered, created, runs, calls)


def _region(fields: Sequence[str]) -> tuple[int, int]:
    address, size = fields
    return (0 if address == "(nil)" else int(address, 16)), int(size)


def _launch(fields: Sequence[str]) -> Launch:
    name, grid, block, shared, stream, attributes, values = fields
    threads, *flat = map(int, block.split())
    assert flat == [1, 1]
    return Launch(
        name,
        tuple(map(int, grid.split())),
        threads,
        int(shared),
        int(stream, 16),
        attributes.strip(),
        tuple(int(value, 16) for value in values.split()),
    )


def signed(value: int) -> int:
    """A parameter's low half, as a kernel reads an i32."""
    return ctypes.c_int32(value).value


def poisoned(size: int) -> Array:
    """Bytes that are NaN as any float."""
    return np.full(size, 0xFF, np.uint8)
