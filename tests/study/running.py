"""Small studies of the bundled model, also in processes of their own, which can be killed."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zq2onnx import pipeline
from zq2onnx.study import Grid, Request, Study, run_study

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.study.running"])

TINY = Path(__file__).resolve().parents[2] / "models" / "tiny"
GRID = Grid(schemes=("w4a16", "w2a16"), methods=("rtn", "gptq"), group_sizes=("64",), lorc_ranks=(0,))
LABELS = ["w4a16 g64 rtn rank 0", "w2a16 g64 rtn rank 0", "w4a16 g64 gptq rank 0", "w2a16 g64 gptq rank 0"]


def request(root: Path, **changes: Any) -> Request:
    """Two methods by two schemes on the held-out text, a part of which calibrates; results in `out`."""
    parts = (TINY / "heldout.txt").read_text(encoding="utf-8").split("\n\n")
    texts = {name: root / f"{name}.txt" for name in ("first", "second", "calib")}
    for start, path in enumerate(texts.values()):
        if not path.exists():
            path.write_text("\n\n".join(parts[start::3])[:6000], encoding="utf-8")
    usual = Request(
        model=TINY / "model.onnx",
        texts=(texts["first"], texts["second"]),
        tokenizer=None,
        folder=root / "out",
        grid=GRID,
        calib=texts["calib"],
        calib_samples=4,
        calib_length=16,
        length=16,
        windows=3,
        sensitivity=False,
    )
    return dataclasses.replace(usual, **changes)


@dataclasses.dataclass
class Conversions:
    """The cells that were converted, by their labels."""

    labels: list[str]

    def watch(
        self, monkeypatch: pytest.MonkeyPatch, fail: Callable[[str], None] = lambda label: None
    ) -> None:
        """Note every conversion from now on; `fail` may raise in place of one."""
        convert = pipeline.convert

        def noted(*arguments: Any, **options: Any) -> Any:
            label = _label(options)
            self.labels.append(label)
            fail(label)
            return convert(*arguments, **options)

        monkeypatch.setattr(pipeline, "convert", noted)


def _label(options: dict[str, Any]) -> str:
    size = options["group_size"]
    groups = size if size == "row" else f"g{size}"
    return f"{options['scheme']} {groups} {options['method']} rank {options['lorc_rank']}"


def run(asked: Request) -> Study:
    """The study."""
    return run_study(asked)


def killed(asked: Request, conversion: int) -> None:
    """Run a study in a process of its own, which is killed when it is in the middle of a conversion."""
    process = CONTEXT.Process(target=_run_and_die, args=(asked, conversion))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def _run_and_die(asked: Request, conversion: int) -> None:
    convert, count = pipeline.convert, 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count < conversion:
            return convert(*arguments, **options)

        def die(done: int, total: int) -> None:
            if done:
                os.kill(os.getpid(), signal.SIGKILL)

        return convert(*arguments, **{**options, "progress": die, "block_progress": die})

    pipeline.convert = counted
    run_study(asked)
