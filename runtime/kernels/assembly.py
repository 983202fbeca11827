"""One configuration, compiled into the files of a bundle. Needs Triton, and no GPU.

Triton makes PTX and a cubin of it; architectures of one family share the PTX, which ptxas assembles for the
others. The oldest ptxas that Triton brings knows them all and is taken: a cubin asks for a driver as new as
its ptxas. Where ptxas spills a few registers so that more blocks fit, it is told how many it may use instead;
what spills all the same is correct, and counted.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zq2onnx.errors import CheckFailed
from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.configurations import FAMILIES, SHARED_LIMITS, configurations
from zq2onnx.runtime.kernels.manifest import Hidden, Kernel

REGISTER_BOUNDS = (None, 128, 168, 255)
"""Registers of a thread that ptxas may use, tried in this order until nothing is spilled."""


@dataclass(frozen=True)
class Assembled:
    """A file's contents, its registers, and the bytes that a thread spills of them."""

    content: bytes
    registers: int = 0
    spilled: int = 0


SOURCES = ("device/*.py", "compilation.py", "assembly.py", "bundle.py")
"""Modules that a compiled file depends on."""


@dataclass(frozen=True)
class Work:
    """One configuration of a family, and what is to be made of it.

    Attributes:
        family: whose PTX is made.
        index: of the configuration among the family's.
        wanted: pairs of an architecture and a form.
    """

    family: str
    index: int
    wanted: tuple[tuple[str, str], ...]

    @property
    def configuration(self) -> Configuration:
        """What is compiled."""
        return configurations(self.family)[self.index]


@cache
def tool_versions() -> tuple[str, str]:
    """Versions of Triton and of its ptxas."""
    import triton
    from triton import knobs

    said = subprocess.run([knobs.nvidia.ptxas.path, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"V([\d.]+)", said.stdout)
    return triton.__version__, found.group(1) if found else "unknown"


def key_of(configuration: Configuration, architecture: str, versions: tuple[str, str]) -> str:
    """Hash of all that a compiled file depends on."""
    what = repr((configuration, architecture, FAMILIES[architecture], versions, _sources())).encode()
    return hashlib.sha256(what).hexdigest()[:16]


def file_name(configuration: Configuration, architecture: str, form: str, versions: tuple[str, str]) -> str:
    """A kernel's file. It is never another's: no file is replaced while an earlier manifest names it."""
    key = key_of(configuration, architecture, versions)
    return f"{configuration.name}.{architecture}.{key[:8]}.{form}"


@cache
def _sources() -> str:
    folder = Path(__file__).parent
    texts = (path.read_bytes() for pattern in SOURCES for path in sorted(folder.glob(pattern)))
    return hashlib.sha256(b"".join(texts)).hexdigest()


def make(work: Work, folder: Path) -> list[Kernel]:
    """Compile one configuration, and write its files."""
    from zq2onnx.runtime.kernels.compilation import compile_kernel

    configuration = work.configuration
    try:
        compiled = compile_kernel(configuration, work.family)
    except Exception as error:
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        reason = " ".join(str(error).split())[:300]
        raise CheckFailed(f"{configuration.name} does not compile for {work.family}: {reason}") from None
    kernels = []
    for architecture, form in work.wanted:
        if compiled.metadata.shared > SHARED_LIMITS[architecture]:
            raise CheckFailed(
                f"{configuration.name} takes {compiled.metadata.shared} bytes of shared memory; "
                f"{architecture} has {SHARED_LIMITS[architecture]}"
            )
        ptx, triton_made = compiled.asm["ptx"], _inspect(compiled.asm["cubin"])
        if form == "ptx":
            made = Assembled(ptx.encode())
        elif architecture == work.family and not triton_made.spilled:
            made = triton_made
        else:
            made = assemble(configuration.name, ptx, architecture)
        file = file_name(configuration, architecture, form, tool_versions())
        unfinished = folder / f".{file}"
        unfinished.write_bytes(made.content)
        unfinished.replace(folder / file)
        kernels.append(_describe(compiled, configuration, architecture, form, file, made))
    return kernels


def _describe(
    compiled: Any, configuration: Configuration, architecture: str, form: str, file: str, made: Assembled
) -> Kernel:
    from zq2onnx.runtime.kernels.compilation import parameters_of

    metadata = compiled.metadata
    hidden = (
        Hidden("global_scratch", metadata.global_scratch_size, metadata.global_scratch_align),
        Hidden("profile_scratch", metadata.profile_scratch_size, metadata.profile_scratch_align),
    )
    return Kernel(
        configuration=configuration,
        architecture=architecture,
        form=form,
        file=file,
        bytes=len(made.content),
        sha256=hashlib.sha256(made.content).hexdigest(),
        key=key_of(configuration, architecture, tool_versions()),
        symbol=metadata.name,
        arguments=parameters_of(configuration),
        hidden=hidden,
        shared=metadata.shared,
        threads=metadata.num_warps * 32,
        registers=made.registers,
        spilled=made.spilled,
        dependent=bool(metadata.launch_pdl),
    )


def _inspect(cubin: bytes) -> Assembled:
    """What Triton assembled. A kernel of ours has a stack for what it spills alone."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{name}:(\d+)", said)[0]) for name in ("REG", "STACK"))
    return Assembled(cubin, registers, stack)


def assemble(name: str, ptx: str, architecture: str) -> Assembled:
    """A cubin that spills nothing, or else the least."""
    from triton import knobs

    target = architecture if FAMILIES[architecture] != architecture else re.findall(r"\.target (\w+)", ptx)[0]
    tried: list[Assembled] = []
    with tempfile.TemporaryDirectory(prefix="zq2onnx-ptxas-") as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        command = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target}", source, "-o", cubin]
        for bound in REGISTER_BOUNDS:
            limit = "" if bound is None else f"\n.maxnreg {bound}"
            source.write_text(re.sub(r"(\.reqntid \d+)", rf"\1{limit}", ptx))
            said = subprocess.run(command, capture_output=True, text=True)
            if said.returncode:
                raise CheckFailed(f"{name} for {architecture}: {' '.join(said.stderr.split())[:300]}")
            used = re.search(r"Used (\d+) registers", said.stderr)
            spilled = re.search(r"(\d+) bytes spill stores", said.stderr)
            if used is None or spilled is None:
                raise CheckFailed(f"{name} for {architecture}: ptxas -v names no registers")
            tried.append(Assembled(cubin.read_bytes(), int(used.group(1)), int(spilled.group(1))))
            if not tried[-1].spilled:
                break
    return min(tried, key=lambda made: made.spilled)
