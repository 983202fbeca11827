"""The bundle that `zq2onnx kernels build` made, against its manifest: by cuobjdump and the PTX."""

from __future__ import annotations

import functools
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from zq2onnx.runtime.kernels.assembly import key_of, tool_versions
from zq2onnx.runtime.kernels.configurations import (
    ARCHITECTURES,
    DEPENDENT_LAUNCH,
    SHARED_LIMITS,
    configurations,
)
from zq2onnx.runtime.kernels.manifest import Kernel, bundle_folder, read_manifest
from zq2onnx.runtime.kernels.problem import WHOLE_BYTES

pytestmark = pytest.mark.skipif(
    not (bundle_folder() / "manifest.json").is_file(), reason="no kernels are compiled: make kernels"
)

EM_CUDA = 190
BYTES = {"i32": 4}
MANY = 64  # files that one call of cuobjdump is given


@functools.cache
def kernels() -> tuple[Kernel, ...]:
    return read_manifest(bundle_folder()).kernels


def cubins() -> list[Kernel]:
    return [kernel for kernel in kernels() if kernel.form == "cubin"]


def cuobjdump(option: str) -> Iterator[tuple[Kernel, str]]:
    """What it says of each cubin."""
    from triton import knobs

    for kernel in cubins():
        said = subprocess.run(
            [knobs.nvidia.cuobjdump.path, option, bundle_folder() / kernel.file],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        yield kernel, said.stdout


def test_every_configuration_is_compiled_for_every_architecture() -> None:
    for architecture in ARCHITECTURES:
        made = [kernel.configuration for kernel in cubins() if kernel.architecture == architecture]
        assert made == list(configurations(architecture))
    assert [kernel.configuration for kernel in kernels() if kernel.form == "ptx"] == list(
        configurations("sm_80")
    )
    assert len(kernels()) == 7 * len(configurations("sm_80")) and len(configurations("sm_80")) <= 150


def test_the_bundle_is_of_these_sources() -> None:
    stale = [
        kernel.file
        for kernel in kernels()
        if kernel.key != key_of(kernel.configuration, kernel.architecture, tool_versions())
    ]
    assert not stale, f"{len(stale)} files are of other sources or tools: make kernels"


def test_it_is_small() -> None:
    assert sum(kernel.bytes for kernel in kernels()) <= 80e6


def test_cubins_are_for_their_architecture() -> None:
    for kernel in cubins():
        content = (bundle_folder() / kernel.file).read_bytes()
        assert content[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", content, 18) == (EM_CUDA,)
        flags = struct.unpack_from("<I", content, 48)[0]
        assert int(kernel.architecture.removeprefix("sm_")) in (flags & 0xFF, flags >> 8 & 0xFF), kernel.file


def test_parameters_are_the_cubins() -> None:
    pattern = re.compile(r"Ordinal : 0x(\w+)\s+Offset  : 0x(\w+)\s+Size    : 0x(\w+)")
    for kernel, said in cuobjdump("-elf"):
        found = sorted(tuple(int(part, 16) for part in match) for match in pattern.findall(said))
        sizes = [BYTES.get(argument.type, 8) for argument in kernel.arguments] + [8] * len(kernel.hidden)
        offset, expected = 0, []
        for ordinal, size in enumerate(sizes):
            offset = -(-offset // size) * size
            expected.append((ordinal, offset, size))
            offset += size
        assert found == expected, kernel.file
        assert f".text.{kernel.symbol}" in said, kernel.file


def test_parameters_are_the_ptx() -> None:
    kinds = {"i32": "u32"}
    for kernel in kernels():
        if kernel.form != "ptx":
            continue
        text = (bundle_folder() / kernel.file).read_text()
        head = text[text.index(f".entry {kernel.symbol}(") : text.index(")", text.index(".entry"))]
        declared = re.findall(r"\.param \.(\w+)", head)
        expected = [kinds.get(argument.type, "u64") for argument in kernel.arguments] + ["u64", "u64"]
        assert declared == expected, kernel.file
        assert re.findall(r"\.target (\w+)", text) == ["sm_80"]


def test_nothing_is_spilled_and_shared_memory_suffices() -> None:
    pattern = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
    for kernel, said in cuobjdump("--dump-resource-usage"):
        registers, stack, fixed, local = map(int, pattern.search(said).groups())  # type: ignore[union-attr]
        assert (stack, local, kernel.spilled) == (0, 0, 0), kernel.file
        assert registers == kernel.registers and registers * kernel.threads <= 1 << 16, kernel.file
        assert kernel.shared + fixed <= SHARED_LIMITS[kernel.architecture], kernel.file
        assert kernel.threads == 32 * kernel.configuration.warps <= 1024


def test_scratch_is_not_needed() -> None:
    for kernel in kernels():
        assert [(pointer.name, pointer.bytes) for pointer in kernel.hidden] == [
            ("global_scratch", 0),
            ("profile_scratch", 0),
        ]


def tile_bytes(kernel: Kernel) -> tuple[int, int]:
    """Bytes of weights and of activations in one tile of a product of few tokens."""
    constants = dict(kernel.configuration.constants)
    bits = 8 if constants["BITS"] == WHOLE_BYTES else constants["BITS"]
    codes = constants["PARTS"] * constants["BK"]
    item = 1 if constants["INT8"] else 2
    return constants["BN"] * codes * bits // 8, constants["BM"] * codes * item


def asynchronous(kernel: Kernel) -> dict[int, int]:
    """Bytes of a block's asynchronous copies by the bytes of one, in its PTX."""
    text = (bundle_folder() / kernel.file).read_text()
    found: dict[int, int] = {}
    for size in re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]+\], \[[^]]+\], (0x\w+)", text):
        width = int(size, 16)
        found[width] = found.get(width, 0) + width * kernel.threads
    return found


def few_tokens() -> list[Kernel]:
    return [made for made in kernels() if made.form == "ptx" and made.configuration.kernel == "few_tokens"]


def test_weights_of_few_tokens_are_read_once_in_16_bytes() -> None:
    assert few_tokens()
    for kernel in few_tokens():
        weights, activations = tile_bytes(kernel)
        copied = asynchronous(kernel)
        stages = kernel.configuration.stages
        constants = dict(kernel.configuration.constants)
        # Of 3 bits in blocks of 64 a plane has 8 bytes.
        width = 8 if (constants["BITS"], constants["BLOCK"]) == (3, 64) else 16
        expected = {width: stages * weights}
        expected[16] = expected.get(16, 0) + stages * activations
        assert copied == expected, kernel.file


def test_nothing_wide_is_read_another_way() -> None:
    """What is not copied asynchronously is a scale, a zero point or of the epilogue: no word of a weight."""
    for kernel in few_tokens():
        text = (bundle_folder() / kernel.file).read_text()
        loads = set(re.findall(r"ld\.global(?:\.\w+)*\.(v\d\.\w+|\w+) ", text))
        assert loads <= {"b8", "b16", "b32"}, (kernel.file, loads)
        before_the_end = text[: text.rindex("mma.sync")]
        assert "ld.global" in before_the_end


def test_tensor_cores_multiply() -> None:
    for kernel in kernels():
        if kernel.form == "ptx" and kernel.configuration.kernel in ("few_tokens", "many_tokens"):
            text = (bundle_folder() / kernel.file).read_text()
            wide = {"fp16": "f32.f16.f16.f32", "bf16": "f32.bf16.bf16.f32", "i8": "s32.s8.s8.s32"}
            kind = wide[kernel.configuration.x_dtype]
            assert re.search(rf"mma\.sync\.aligned\.[.\w]*\.{re.escape(kind)}", text), kernel.file


def instructions(kernel: Kernel) -> list[str]:
    """A cubin's, in order."""
    from triton import knobs

    tool = knobs.nvidia.nvdisasm.path
    said = subprocess.run(
        [tool, "-c", bundle_folder() / kernel.file], capture_output=True, text=True, check=True
    )
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?\s*([A-Z]\S*)", said.stdout, re.MULTILINE)


@pytest.mark.parametrize("architecture", ["sm_89", "sm_90", "sm_120"])
def test_a_product_waits_for_its_prologue(architecture: str) -> None:
    names = ("prologue_plain_fp16", "few_w4_fp16_u128_m8_p4", "few_w4_a8_fp16", "many_w8_fp16_u64_m128")
    chosen = [
        kernel
        for kernel in cubins()
        if kernel.architecture == architecture and kernel.configuration.name.startswith(names)
    ]
    assert len(chosen) == 5  # an aligned prologue and another
    for kernel in chosen:
        found = instructions(kernel)
        dependent = architecture in DEPENDENT_LAUNCH
        is_prologue = kernel.configuration.kernel == "prologue"
        assert kernel.dependent == (dependent and not is_prologue), kernel.file
        assert ("PREEXIT" in found) == (dependent and is_prologue), kernel.file
        # Before X, where that is the prologue's, and before T.
        assert found.count("ACQBULK") == (2 if kernel.dependent else 0), kernel.file


def test_a_folder_cut_short_is_refused(tmp_path: Path) -> None:
    from zq2onnx.errors import UserError

    text = (bundle_folder() / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=f"lacks {len(kernels())} of {len(kernels())} kernels"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="is no manifest"):
        read_manifest(tmp_path)
