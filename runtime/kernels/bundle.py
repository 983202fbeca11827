"""Compiles every configuration ahead of time, into a folder that a host without Triton launches from.

A build is incremental: what would come out the same is kept, and what an interrupted one made is found again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.runtime.kernels.assembly import Work, file_name, make, tool_versions
from zq2onnx.runtime.kernels.configurations import ARCHITECTURES, FAMILIES, configurations
from zq2onnx.runtime.kernels.manifest import (
    MANIFEST,
    Kernel,
    Manifest,
    is_there,
    read_manifest,
    write_manifest,
)

PORTABLE = "sm_80"
"""Whose PTX is kept: it uses nothing that later architectures lack."""

_PR_SET_PDEATHSIG = 1

UNFINISHED = "unfinished.json"
"""The manifest of what an interrupted build had made."""


def build(
    folder: Path,
    architectures: Sequence[str] = ARCHITECTURES,
    *,
    only: str = "",
    jobs: int | None = None,
    advance: Callable[[float], None] = lambda files: None,
) -> tuple[Manifest, int]:
    """Compile what is not compiled yet; afterwards the folder holds these architectures and no others.

    Args:
        folder: made if its parent exists.
        architectures: as `sm_90`, of `ARCHITECTURES`.
        only: a regular expression: configurations whose names it is found in.
        jobs: processes; None: one for each processor.
        advance: called with the number of files done, of `file_count` in all.

    Returns:
        The bundle, and how many of its files are new.

    Raises:
        UserError: an architecture is not known.
        CheckFailed: a kernel does not compile, spills registers or exceeds the shared memory.
    """
    file_count(architectures, only)
    versions = tool_versions()
    folder.mkdir(exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"{folder} cannot be written", "a folder that can", "change its permissions, or -o DIR"
        )
    before = _earlier(folder)
    wanted = [name for name in ARCHITECTURES if name in architectures]
    there = {kernel.file: kernel for kernel in before if is_there(kernel, folder)}
    done, open_work = _split(wanted, only, there, versions)
    advance(len(done))
    made: list[Kernel] = []
    try:
        for kernels in _compiled(open_work, folder, jobs):
            made += kernels
            advance(len(kernels))
    except BaseException:
        with contextlib.suppress(OSError):  # what stopped the build is to be told of
            write_manifest(folder, Manifest(*versions, (*done, *made)), UNFINISHED)
        raise
    manifest = Manifest(*versions, _ordered((*done, *made), wanted))
    write_manifest(folder, manifest)
    _remove_earlier(folder, manifest, before)
    return manifest, len(made)


def file_count(architectures: Sequence[str], only: str = "") -> int:
    """How many files a bundle of these has.

    Raises:
        UserError: an architecture is not known, or there is no such configuration.
    """
    unknown = [name for name in architectures if name not in ARCHITECTURES]
    if unknown:
        raise UserError(f"architecture {unknown[0]!r}", f"of {', '.join(ARCHITECTURES)}")
    forms = [*set(architectures), *([PORTABLE] if PORTABLE in map(FAMILIES.get, architectures) else [])]
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise UserError(f"{only!r} is no regular expression: {error}", "one as Python reads it") from None
    names = [made.name for family in forms for made in configurations(family) if pattern.search(made.name)]
    if not names:
        raise UserError(f"no kernel's name matches {only!r}", "a regular expression found in one, as w4_fp16")
    return len(names)


def _earlier(folder: Path) -> list[Kernel]:
    """What earlier builds made, finished or not, the newest last."""
    found: list[Kernel] = []
    for name in (MANIFEST, UNFINISHED):
        with contextlib.suppress(UserError):
            found += read_manifest(folder, name, whole=False).kernels
    return found


def _split(
    architectures: Sequence[str],
    only: str,
    before: dict[str, Kernel],
    versions: tuple[str, str],
) -> tuple[list[Kernel], list[Work]]:
    """What is made already, and what is to be made."""
    done, left = [], []
    for family in dict.fromkeys(FAMILIES[name] for name in architectures):
        forms = [(name, "cubin") for name in architectures if FAMILIES[name] == family]
        forms += [(PORTABLE, "ptx")] if family == PORTABLE else []
        for index, configuration in enumerate(configurations(family)):
            if not re.search(only, configuration.name):
                continue
            missing = []
            for architecture, form in forms:
                kernel = before.get(file_name(configuration, architecture, form, versions))
                if kernel is not None:
                    done.append(kernel)
                else:
                    missing.append((architecture, form))
            if missing:
                left.append(Work(family, index, tuple(missing)))
    return done, left


def _compiled(works: Sequence[Work], folder: Path, jobs: int | None) -> Iterator[list[Kernel]]:
    """Yield what each work gives, as it is done."""
    if not works:
        return
    with tempfile.TemporaryDirectory(prefix="zq2onnx-triton-") as cache:
        pool = ProcessPoolExecutor(jobs or os.cpu_count(), get_context("spawn"), _prepare, (cache,))
        try:
            with _uninterrupted():
                futures: list[Future[list[Kernel]]] = [pool.submit(make, work, folder) for work in works]
            failed = []
            for future in as_completed(futures):
                try:
                    yield future.result()
                except CheckFailed as error:
                    failed.append(str(error))
            if failed:
                others = f"; and {len(failed) - 1} others" if len(failed) > 1 else ""
                raise CheckFailed(min(failed) + others)
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let processes that are begun here never see Ctrl-C: who began them is interrupted, and ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare(cache: str) -> None:
    """In a process of the pool, before it loads Triton; on Linux it ends with its parent in any case."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = cache
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # it would be half of every file
    from triton import knobs

    os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = knobs.nvidia.ptxas.path


def _ordered(kernels: Sequence[Kernel], architectures: Sequence[str]) -> tuple[Kernel, ...]:
    """By form, architecture and preference, whatever the order in which they were made."""
    place = {
        (name, configuration.name): index
        for name in architectures
        for index, configuration in enumerate(configurations(name))
    }

    def rank(kernel: Kernel) -> tuple[bool, int, int]:
        where = ARCHITECTURES.index(kernel.architecture)
        return kernel.form == "ptx", where, place.get((kernel.architecture, kernel.configuration.name), 0)

    return tuple(sorted(kernels, key=rank))


def _remove_earlier(folder: Path, manifest: Manifest, before: Iterable[Kernel]) -> None:
    """Remove what earlier builds left there, finished, interrupted or killed, and nothing else."""
    kept = {kernel.file for kernel in manifest.kernels}
    gone = {UNFINISHED} | {kernel.file for kernel in before}
    left = re.compile(r"\.(manifest|unfinished)\.json\.\d+|\.?\w+\.sm_\d+\.[0-9a-f]{8}\.(cubin|ptx)")
    for path in folder.iterdir():
        if path.name not in kept and (path.name in gone or left.fullmatch(path.name)):
            path.unlink()
