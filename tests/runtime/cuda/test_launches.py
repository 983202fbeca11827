"""What the library launches on a GPU: which kernels, with which arguments; that they compute the operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels import interpreted
from tests.kernels.problems import make
from tests.operator_model import Array
from tests.runtime.cuda.stand_in import (
    STREAM,
    Launch,
    Run,
    Told,
    build_driver,
    build_host,
    case,
    environment,
    poisoned,
    run_host,
    signed,
    write_bundle,
)
from tests.runtime.fused import needs_library
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime.kernels.compilation import KERNELS, constants_of
from zq2onnx.runtime.kernels.launches import plan
from zq2onnx.runtime.kernels.manifest import Kernel, Manifest
from zq2onnx.runtime.kernels.problem import Problem

pytestmark = needs_library

Case = tuple[Problem, dict[str, Array]]


def drawn() -> Iterator[Case]:
    """Every operator in four granularities; types, numbers of tokens, lengths and the rest in turns."""
    for at, operator in enumerate(OPERATORS.values()):
        for group_at, group in enumerate((32, 128, 1024, "row")):
            turn = at // 2 + group_at
            k = (256, 272, 1040, 331)[(turn + group_at) % 4] if group != 1024 else 1040
            yield make(
                operator,
                (1, 9, 33, 130)[turn % 4],
                k,
                (31, 48)[turn % 2],
                group,
                ("fp16", "bf16", "fp32")[turn % 3],
                rank=(8, 5, 40)[turn % 3],
                bias=turn % 4 > 0,
                int8_factors=operator.lorc and turn % 3 > 0,
            )


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return list(drawn())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, cases: list[Case]) -> tuple[Path, Path, Path, Path]:
    """Host, driver, bundle and cases."""
    folder = tmp_path_factory.mktemp("cuda")
    write_bundle(folder / "bundle", "sm_90", "sm_86", ptx="sm_80")
    (folder / "cases").write_bytes(b"".join(case(*each) for each in cases))
    return build_host(folder / "host"), build_driver(folder / "driver"), folder / "bundle", folder / "cases"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_bundle(tmp_path_factory.mktemp("manifest"), "sm_90", "sm_86", ptx="sm_80")


def told(built: tuple[Path, Path, Path, Path], alignment: int = 256, **more: str) -> Told:
    host, driver, bundle, path = built
    return run_host(host, path, environment(driver, bundle, **more), alignment)


@pytest.fixture(scope="module")
def on_sm_90(built: tuple[Path, Path, Path, Path]) -> Told:
    return told(built)


def check_run(
    problem: Problem,
    run: Run,
    architecture: str,
    manifest: Manifest,
    *,
    aligned: bool = True,
    form: str = "cubin",
) -> None:
    """Compare one run's launches with what the plan says, argument by argument."""
    planned = plan(problem, architecture, aligned=aligned)
    assert not run.failed
    assert len(run.launches) == len(planned.launches)
    addresses = dict(zip(problem.operator.inputs, (address for address, _ in run.arrays), strict=True))
    assert run.output is not None
    addresses["Y"] = run.output[0]
    scratch: dict[str, int] = {}
    for expected, seen in zip(planned.launches, run.launches, strict=True):
        kernel = kernel_of(seen, architecture, manifest, form)
        assert kernel.configuration == expected.configuration
        assert seen.grid == expected.grid
        assert (seen.threads, seen.shared, seen.stream) == (kernel.threads, kernel.shared, STREAM)
        assert seen.attributes == ("6=1" if expected.dependent else "")
        assert seen.values[len(kernel.arguments) :] == (0, 0)
        for argument, value in zip(kernel.arguments, seen.values, strict=False):
            if argument.name in expected.integers:
                assert signed(value) == expected.integers[argument.name], argument
                continue
            source = expected.pointers[argument.name]
            if source in planned.scratch:
                assert scratch.setdefault(source, value) == value
            else:
                assert value == addresses.get(source, 0), argument
            assert value % argument.multiple_of == 0
    check_scratch(planned.scratch, scratch, run)


def check_scratch(wanted: dict[str, tuple[str, tuple[int, ...]]], seen: dict[str, int], run: Run) -> None:
    """Every scratch array has memory of its own, inside what was taken."""
    if not wanted:
        assert run.scratch is None
        return
    assert run.scratch is not None
    free, size = run.scratch
    items = {"fp32": 4, "fp16": 2, "bf16": 2, "i8": 1}
    for name, address in sorted(seen.items(), key=lambda item: item[1]):
        kind, shape = wanted[name]
        assert address >= free and address % 16 == 0, name
        free = address + items[kind] * int(np.prod(shape))
    assert free <= run.scratch[0] + size


def kernel_of(launch: Launch, architecture: str, manifest: Manifest, form: str = "cubin") -> Kernel:
    (found,) = (
        kernel
        for kernel in manifest.kernels
        if (kernel.configuration.name, kernel.architecture, kernel.form)
        == (launch.kernel, architecture, form)
    )
    return found


def test_arguments_are_those_of_the_plan(on_sm_90: Told, cases: list[Case], manifest: Manifest) -> None:
    assert set(on_sm_90.registered) == set(OPERATORS)
    assert on_sm_90.created == [""] * len(cases)
    for run, (problem, _) in zip(on_sm_90.runs, cases * 2, strict=True):
        check_run(problem, run, "sm_90", manifest)
    kinds = {name.split("_")[0] for run in on_sm_90.runs for name in [run.launches[-1].kernel]}
    assert kinds == {"few", "many", "any"}


def test_every_architecture_gets_its_own(
    built: tuple[Path, Path, Path, Path], cases: list[Case], manifest: Manifest
) -> None:
    for run, (problem, _) in zip(told(built, STAND_IN_GPUS="An A10:86").runs, cases * 2, strict=True):
        check_run(problem, run, "sm_86", manifest)


def test_arrays_that_begin_anywhere(
    built: tuple[Path, Path, Path, Path], cases: list[Case], manifest: Manifest
) -> None:
    found = told(built, alignment=2)
    unaligned = 0
    for run, (problem, _) in zip(found.runs, cases * 2, strict=True):
        assert run.output is not None
        aligned = all(address % 16 == 0 for address, _ in (*run.arrays, run.output))
        unaligned += not aligned
        check_run(problem, run, "sm_90", manifest, aligned=aligned)
    assert unaligned > len(cases)


def test_later_architectures_take_ptx(
    built: tuple[Path, Path, Path, Path], cases: list[Case], manifest: Manifest
) -> None:
    for run, (problem, _) in zip(told(built, STAND_IN_GPUS="Of the future:130").runs, cases * 2, strict=True):
        check_run(problem, run, "sm_80", manifest, form="ptx")


def test_modules_are_loaded_once_and_unloaded(on_sm_90: Told) -> None:
    loaded = [line[1] for line in on_sm_90.calls if line[0] == "load"]
    assert len(loaded) == len(set(loaded))
    assert sorted(loaded) == sorted(line[1] for line in on_sm_90.calls if line[0] == "unload")
    assert (on_sm_90.count("retain"), on_sm_90.count("release")) == (1, 1)
    assert on_sm_90.count("push") == on_sm_90.count("pop")
    assert on_sm_90.calls[-2] == ["release", "0"]
    launched = {launch.kernel for run in on_sm_90.runs for launch in run.launches}
    assert launched <= set(loaded)
    first_run = on_sm_90.calls.index(["run"])
    assert not any(line[0] in ("load", "retain") for line in on_sm_90.calls[first_run:])


def test_a_current_context_is_left_as_it_is(built: tuple[Path, Path, Path, Path]) -> None:
    found = told(built, STAND_IN_CURRENT="1")
    assert found.count("launch") > 0
    assert found.count("push") == found.count("pop") == 0


def test_a_node_runs_on_the_gpu_of_its_session(built: tuple[Path, Path, Path, Path]) -> None:
    host, driver, bundle, path = built
    seen = environment(driver, bundle, STAND_IN_GPUS="An A10:86,An H100:90")
    found = run_host(host, path, seen, 256, 1)
    assert {line[1] for line in found.calls if line[0] in ("retain", "release", "push")} == {"1"}


def test_threads_make_and_run_sessions(built: tuple[Path, Path, Path, Path], on_sm_90: Told) -> None:
    host, driver, bundle, path = built
    found = run_host(host, path, environment(driver, bundle), 256, 0, "threads")
    assert found.count("failed") == 0
    for call in ("create", "launch", "scratch", "output"):
        assert found.count(call) == 4 * on_sm_90.count(call), call
    assert found.count("load") == found.count("unload") <= 4 * on_sm_90.count("load")
    assert found.count("retain") == found.count("release") <= 4
    assert found.count("push") == found.count("pop")


def test_dependent_launches_need_graphs_that_know_them(built: tuple[Path, Path, Path, Path]) -> None:
    attributes = [
        {launch.attributes for run in told(built, STAND_IN_VERSION=version).runs for launch in run.launches}
        for version in ("12020", "12030")
    ]
    assert attributes == [{""}, {"", "6=1"}]


def test_memory_is_asked_for_once(on_sm_90: Told, cases: list[Case]) -> None:
    """What takes a run's memory cannot fail in ONNX Runtime: the first run asks, the second one need not."""
    first = sum(run.scratch is not None for run in on_sm_90.runs[: len(cases)])
    assert on_sm_90.count("probe") == first > 0
    assert on_sm_90.count("free") == on_sm_90.count("scratch") + first


def memory_of(run: Run, problem: Problem, inputs: dict[str, Array]) -> list[tuple[int, Array]]:
    """Addresses and contents of what a run was given: inputs, and poisoned scratch and output."""
    regions = [
        (address, np.frombuffer(bytearray(inputs[name].tobytes()), np.uint8))
        for name, (address, _) in zip(problem.operator.inputs, run.arrays, strict=True)
        if address
    ]
    return regions + [(address, poisoned(size)) for address, size in (run.output, run.scratch) if address]  # type: ignore[misc]


def array_at(address: int, kind: str, regions: list[tuple[int, Array]]) -> torch.Tensor:
    if not address:
        return torch.zeros(1, dtype=torch.uint8)
    types: dict[str, Any] = interpreted.TORCH | {"u8": torch.uint8}
    for start, content in regions:
        if start <= address < start + content.size:
            return torch.from_numpy(content[address - start :]).view(types[kind.removeprefix("*")])
    raise AssertionError(f"{address:x} is no array's")


def replay(run: Run, problem: Problem, inputs: dict[str, Array], manifest: Manifest) -> Array:
    """Do by Triton's interpreter what was launched, with the very values that were passed."""
    interpreted.taught()
    run = Run(run.arrays, run.scratch or (0, 0), run.output, run.launches)
    regions = memory_of(run, problem, inputs)
    for launch in run.launches:
        kernel = kernel_of(launch, "sm_90", manifest)
        values = [
            array_at(value, argument.type, regions) if argument.type.startswith("*") else signed(value)
            for argument, value in zip(kernel.arguments, launch.values, strict=False)
        ]
        made = kernel.configuration
        KERNELS[made.kernel][launch.grid](*values, **constants_of(made, "interpreter"))
    assert run.output is not None
    y = array_at(run.output[0], problem.dtype, regions)
    return y[: problem.tokens * problem.layout.n].view(problem.tokens, -1).float().numpy()


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_launched_computes_the_operator(
    name: str, on_sm_90: Told, cases: list[Case], manifest: Manifest
) -> None:
    held = [at for at, (problem, _) in enumerate(cases) if problem.operator.name == name]
    at = held[list(OPERATORS).index(name) // 2 % len(held)]
    problem, inputs = cases[at]
    result = replay(on_sm_90.runs[at], problem, inputs, manifest)
    interpreted.check(problem, inputs, result)
