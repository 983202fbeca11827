"""What a bundle of compiled kernels says of itself: `manifest.json`. A host needs no Triton to read it.

    {"format": 1, "triton": "3.9.0", "ptxas": "12.9.86", "kernels": [{
        "name": "few_w4_fp16_u128_m8_p4", "kernel": "few_tokens", "architecture": "sm_90", "form": "cubin",
        "file": "few_w4_fp16_u128_m8_p4.sm_90.1f0c2a9b.cubin", "bytes": 21704, "sha256": "..", "key": "..",
        "symbol": "few_tokens", "arguments": [{"name": "X", "type": "*fp16", "multiple_of": 16}, ..],
        "hidden": [{"name": "global_scratch", "bytes": 0, "alignment": 1}, ..],
        "shared": 49664, "threads": 128, "registers": 126, "spilled": 0,
        "dependent": true,
        "dtype": "fp16", "x_dtype": "fp16", "constants": {"BITS": 4, ..}, "warps": 4, "stages": 4,
        "when": [{"size": "M", "at_least": 0, "at_most": 8, "multiple_of": 1}, ..],
        "grid": [[["N", 32]], [["M", 8]], []], "aligned": true}, ..]}

What a host does, for a node and a number of tokens that have the *sizes* of `Problem.sizes`:

1. The *product*: of the kernels of its architecture with `dtype` A's type that are not "prologue", the
   first whose `when` holds for the sizes; `aligned` ones only where all arrays lie at multiples of 16
   bytes.
2. The *prologue*, if activations are rounded or there is a branch: likewise of those that are "prologue",
   with the size `codes`: 1 where the product's `x_dtype` is "i8", else 0.
3. Scratch: `T` float32 [parts, M, rank]; where activations are rounded `X`, of the product's x_dtype, [M,
   k_padded] if that is "i8", else [M, K], and `x_scales` float32 [M, x_blocks]; for "i8" also `sums`
   float32 [M, k_padded / 128].
4. Launches: `arguments` in their order, each by its name: an input of the node, Y, a scratch, or a size.
   `x_stride` is k_padded or K, as X has it, and `x_waits` 1 where activations are rounded; where they are
   not, the product's `X` is A. What is absent is null. After them a pointer for each of `hidden`, null
   where `bytes` is 0. `grid`: an axis is the product of ceil(size / tile) over its pairs; where one is 0,
   nothing is launched. A product with `dependent` may have the attribute of programmatic dependent launch,
   if a prologue was launched before it.

`form` "ptx": for every architecture from `architecture` on that has no cubins, compiled by the driver.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zq2onnx.errors import UserError
from zq2onnx.runtime.kernels.configuration import Condition, Configuration
from zq2onnx.runtime.library import library_folder

FORMAT = 1
"""Of the manifest: another is refused."""

FOLDER_VARIABLE = "ZQ2ONNX_KERNELS"
"""Environment variable: the folder of another bundle."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Argument:
    """One argument of a launch.

    Attributes:
        name: as `launches` names it.
        type: `*fp16` and so on for pointers, `i32`.
        multiple_of: what its value, or address, must be a multiple of.
    """

    name: str
    type: str
    multiple_of: int


@dataclass(frozen=True)
class Hidden:
    """A pointer that follows the arguments.

    Attributes:
        name: what it is for.
        bytes, alignment: of the memory that each block of the grid needs there; 0: the pointer may be null.
    """

    name: str
    bytes: int
    alignment: int


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel; see the module's text.

    Attributes:
        configuration: what was compiled.
        architecture: what for.
        form: `cubin` or `ptx`.
        file: its name in the bundle's folder.
        bytes, sha256: of the file.
        key: of all that the file depends on.
        symbol: the function's name in it.
        arguments, hidden: of a launch.
        shared: bytes of dynamic shared memory.
        threads: in a block.
        registers: of each thread; 0 where the driver will say.
        spilled: bytes of them that each thread keeps in memory.
        dependent: whether it may be launched before the launch before it has ended.
    """

    configuration: Configuration
    architecture: str
    form: str
    file: str
    bytes: int
    sha256: str
    key: str
    symbol: str
    arguments: tuple[Argument, ...]
    hidden: tuple[Hidden, ...]
    shared: int
    threads: int
    registers: int
    spilled: int
    dependent: bool


@dataclass(frozen=True)
class Manifest:
    """A bundle.

    Attributes:
        triton, ptxas: versions of what compiled it.
        kernels: all of them; those of one architecture in order of preference.
    """

    triton: str
    ptxas: str
    kernels: tuple[Kernel, ...]

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those that have cubins."""
        return tuple(dict.fromkeys(kernel.architecture for kernel in self.kernels if kernel.form == "cubin"))


def bundle_folder() -> Path:
    """Where the bundle is, or would be: beside the operator library, or where the environment says."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else library_folder() / "kernels"


def _kernel_text(kernel: Kernel) -> dict[str, Any]:
    own = asdict(kernel)
    configuration = own.pop("configuration")
    configuration["constants"] = dict(kernel.configuration.constants)
    return configuration | own


def _kernel_of(text: dict[str, Any]) -> Kernel:
    own = dict(text)
    configuration = Configuration(
        **{
            name: own.pop(name)
            for name in ("kernel", "name", "dtype", "x_dtype", "warps", "stages", "aligned")
        },
        constants=tuple(own.pop("constants").items()),
        when=tuple(Condition(**condition) for condition in own.pop("when")),
        grid=_grid_of(own.pop("grid")),
    )
    arguments = tuple(Argument(**argument) for argument in own.pop("arguments"))
    hidden = tuple(Hidden(**pointer) for pointer in own.pop("hidden"))
    return Kernel(configuration=configuration, arguments=arguments, hidden=hidden, **own)


def _grid_of(axes: list[list[list[Any]]]) -> Any:
    x, y, z = (tuple((str(size), int(tile)) for size, tile in axis) for axis in axes)
    return x, y, z


def write_manifest(folder: Path, manifest: Manifest, name: str = MANIFEST) -> None:
    """Write it, whole or not at all."""
    text = {
        "format": FORMAT,
        "triton": manifest.triton,
        "ptxas": manifest.ptxas,
        "kernels": [_kernel_text(kernel) for kernel in manifest.kernels],
    }
    unfinished = folder / f".{name}.{os.getpid()}"
    unfinished.write_text(json.dumps(text, indent=1) + "\n")
    unfinished.replace(folder / name)


def is_there(kernel: Kernel, folder: Path) -> bool:
    """Whether a kernel's file is in the folder, as it was written."""
    file = folder / kernel.file
    if file.parent != folder or not file.is_file():
        return False
    return hashlib.sha256(file.read_bytes()).hexdigest() == kernel.sha256


def read_manifest(folder: Path, name: str = MANIFEST, *, whole: bool = True) -> Manifest:
    """Read a bundle's manifest.

    Args:
        whole: see that all its files are there, as they were written.

    Raises:
        UserError: there is none, or it is cut short, of another format, or of other files.
    """
    path = folder / name
    remedy = "build the bundle anew: zq2onnx kernels build"
    try:
        text = json.loads(path.read_text())
        known = text["format"]
        if known != FORMAT:
            raise UserError(f"{path} is of format {known}", f"format {FORMAT}", remedy)
        kernels = tuple(_kernel_of(kernel) for kernel in text["kernels"])
        manifest = Manifest(text["triton"], text["ptxas"], kernels)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {name}", "a folder of compiled kernels", remedy) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no manifest: {error}", "an intact bundle", remedy) from None
    missing = [kernel for kernel in manifest.kernels if whole and not is_there(kernel, folder)]
    if missing:
        found = f"{len(missing)} of {len(manifest.kernels)} kernels, {missing[0].file} one of them"
        raise UserError(
            f"{folder} lacks {found}", "the files that its manifest names, as they were written", remedy
        )
    return manifest
