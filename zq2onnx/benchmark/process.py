"""Starts the process that a model is timed in, and talks to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zq2onnx
from zq2onnx.benchmark.results import Route
from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.runtime.providers import require_onnxruntime


class ModelProcess:
    """A model, loaded in a process of its own; a context manager that ends the process.

    Args:
        path: the model as it was given; it is named in errors.
        route: what runs it.
        log: file for what the process prints.
    """

    def __init__(self, path: Path, route: Route, log: Path) -> None:
        self.path = path
        self.route = route
        self.load_seconds = 0.0
        self.load_peak_bytes = 0
        self._log = log
        package = str(Path(zq2onnx.__file__).resolve().parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                # -P: a file of the working folder is not to pass for a module
                [sys.executable, "-P", "-m", "zq2onnx.benchmark.worker", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                process_group=0,  # Ctrl-C is for this process, which ends that one
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def load(self, file: Path, ops: Sequence[str], threads: int | None, provider: str = "cpu") -> None:
        """Load the model.

        Args:
            file: what is run: the model's file or its float32 copy.
            ops: operators that the library registers; none: the session knows nothing of it.
            threads: of ONNX Runtime; None: as many as it chooses.
            provider: what the session runs on, `cpu` or `cuda`.

        Raises:
            UserError: ONNX Runtime refuses the file, or has no such provider here.
            CheckFailed: the library does, or the process dies.
        """
        command = {
            "do": "load",
            "model": str(file.absolute()),
            "ops": list(ops),
            "threads": threads or 0,
            "provider": provider,
        }
        answer = self._ask(command, "cannot load it")
        self.load_seconds, self.load_peak_bytes = answer["seconds"], answer["peak_bytes"]

    def time(self, inputs: Path, runs: int, warm_up: bool = True) -> list[float]:
        """Run the model, and return how many seconds each run took; then its threads sleep.

        Args:
            inputs: `.npz` of its inputs.
            runs: that are timed.
            warm_up: whether there is one before them.

        Raises:
            UserError: ONNX Runtime cannot run it.
            CheckFailed: the library cannot, or the process dies.
        """
        command = {"do": "time", "inputs": str(inputs), "runs": runs, "warm_up": warm_up}
        seconds: list[float] = self._ask(command, "cannot run it")["seconds"]
        return seconds

    def peak_bytes(self) -> int:
        """The most memory that the process has held so far."""
        return int(self._ask({"do": "memory"}, "cannot tell its memory")["peak_bytes"])

    def save_outputs(self, inputs: Path, folder: Path) -> dict[str, Path]:
        """Run the model, and write its outputs of float types.

        Returns:
            `.npy` files by the outputs' names.
        """
        command = {"do": "save", "inputs": str(inputs), "folder": str(folder)}
        return {name: Path(file) for name, file in self._ask(command, "cannot run it")["outputs"].items()}

    def _ask(self, command: dict[str, Any], failure: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failure(failure, answer["error"])
        return answer

    def _failure(self, failure: str, message: str) -> CheckFailed | UserError:
        """On the stock route it is the model; the fused one comes after that went well, and is ours."""
        told = f"onnxruntime {require_onnxruntime().__version__} {failure}"
        if self.route is Route.FUSED:
            return CheckFailed(f"{self.path}: with the operator library {told} ({message})")
        return UserError(f"{self.path}: {told} ({message})")

    def _death(self) -> CheckFailed:
        """Why the process is no more: a signal, or the last line that it printed."""
        status = self._process.wait()
        if status < 0:
            reason = f"killed by {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                reason += ", as the system does for want of memory"
        else:
            printed = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = printed[-1] if printed else f"exit code {status}"
        return CheckFailed(f"{self.path}: the process that ran it ({self.route}) died: {reason}")
