"""Conversions in processes of their own, which can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import zq2onnx.pipeline
from zq2onnx.storage.journal import Entry, Journal

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.convert.killing"])


def start(*arguments: object, **options: object) -> ForkServerProcess:
    """Start `convert`, without a check."""
    process = CONTEXT.Process(target=_convert, args=arguments, kwargs=options)
    process.start()
    return process


def _convert(*arguments: Any, die_at: int | None = None, pause: float = 0, **options: Any) -> None:
    if die_at is not None:
        _die_at(die_at)
    if pause:
        _pause(pause)
    zq2onnx.pipeline.convert(*arguments, check="none", **options)


def _pause(seconds: float) -> None:
    """Wait after each weight that the journal records."""
    record = Journal.record

    def slow(self: Journal, entry: Entry) -> None:
        record(self, entry)
        time.sleep(seconds)

    Journal.record = slow  # type: ignore[method-assign]


def _die_at(number: int) -> None:
    """Kill this process before its `number`th change of a file's name or flush to disk."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return function(*arguments, **options)

        return call

    for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync"), (os, "posix_fallocate")):
        setattr(owner, name, counted(getattr(owner, name)))
