"""The process that one model is loaded and timed in: `python -m zq2onnx.benchmark.worker PARENT`.

Reads a command per line on standard input and answers each with a line on standard output, both JSON.
A process of its own gives each model its own peak of memory; commands let several of them take turns.

    {"do": "load", "model": PATH, "ops": [NAME..],
     "threads": N, "provider": P}                             -> {"seconds": S, "peak_bytes": B}
    {"do": "time", "inputs": NPZ, "warm_up": BOOL, "runs": N} -> {"seconds": [S..]}
    {"do": "memory"}                                          -> {"peak_bytes": B}
    {"do": "save", "inputs": NPZ, "folder": PATH}             -> {"outputs": {NAME: FILE}}

Inputs and outputs stay where the session runs, P, which is "cpu" or "cuda": nothing is copied in a timed run,
which ends when the device has done its work.

What goes wrong is `{"error": LINE}`. PARENT is the process to die with.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.runtime.library import register
from zq2onnx.runtime.providers import CPU_PROVIDER, CUDA_PROVIDER, require_onnxruntime

_FATAL_ONLY = 4  # what ONNX Runtime logs of an error, it also raises
_PR_SET_PDEATHSIG = 1
_NAP = 0.005
_AWAKE = 0.2
"""Share of a nap that the process must have computed in to count as awake."""
_LONGEST_REST = 0.5


class Worker:
    """One model, loaded when it is told to."""

    def __init__(self) -> None:
        self._ort = require_onnxruntime()
        self._session: Any = None
        self._device = "cpu"
        self._bindings: dict[str, Any] = {}

    def obey(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a command says, and return the answer."""
        match command["do"]:
            case "load":
                return self._load(command["model"], command["ops"], command["threads"], command["provider"])
            case "time":
                return self._time(command["inputs"], command["warm_up"], command["runs"])
            case "memory":
                return {"peak_bytes": peak_bytes()}
            case "save":
                return {"outputs": self._save(command["inputs"], Path(command["folder"]))}
        raise ValueError(f"no command {command['do']!r}")

    def _load(self, model: str, ops: list[str], threads: int, provider: str) -> dict[str, Any]:
        """Open a session, with the library where operators are named; 0 threads: ONNX Runtime chooses."""
        options = self._ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = threads
        for key, value in FLOAT_ACTIVATIONS.items():
            options.add_session_config_entry(key, value)
        start = time.perf_counter()
        if ops:
            register(options, ops, provider)
        providers = [CUDA_PROVIDER, CPU_PROVIDER] if provider == "cuda" else [CPU_PROVIDER]
        self._session = self._ort.InferenceSession(model, options, providers=providers)
        if self._session.get_providers()[0] != providers[0]:  # it goes on without what it cannot make
            raise RuntimeError(f"{providers[0]} cannot be made here, as its log says")
        self._device = provider
        return {"seconds": time.perf_counter() - start, "peak_bytes": peak_bytes()}

    def _time(self, inputs: str, warm_up: bool, runs: int) -> dict[str, Any]:
        binding = self._binding(inputs)
        gc.disable()  # a collection is no part of a run
        if warm_up:
            self._session.run_with_iobinding(binding)
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            self._session.run_with_iobinding(binding)
            seconds.append(time.perf_counter() - start)
        gc.enable()
        _rest()
        return {"seconds": seconds}

    def _binding(self, inputs: str) -> Any:
        """Inputs from an `.npz`, read once, and outputs, which the first run makes."""
        if inputs not in self._bindings:
            binding = self._session.io_binding()
            with np.load(inputs) as arrays:
                for name in arrays.files:
                    value = self._ort.OrtValue.ortvalue_from_numpy(arrays[name], self._device, 0)
                    binding.bind_ortvalue_input(name, value)
            for output in self._session.get_outputs():
                binding.bind_output(output.name, self._device)
            self._bindings[inputs] = binding
        return self._bindings[inputs]

    def _save(self, inputs: str, folder: Path) -> dict[str, str]:
        """Run once, and write each output of a float type as `.npy`."""
        saved = {}
        binding = self._binding(inputs)
        self._session.run_with_iobinding(binding)
        outputs = zip(self._session.get_outputs(), binding.get_outputs(), strict=True)
        for index, (described, value) in enumerate(outputs):
            if value.is_tensor() and (array := value.numpy()).dtype.kind == "f":
                file = folder / f"{os.getpid()}-{index}.npy"
                np.save(file, array)
                saved[described.name] = str(file)
        _rest()
        return saved


def _rest() -> None:
    """Wait until ONNX Runtime's threads sleep: they spin for some 50 ms, and another process runs next."""
    end = time.perf_counter() + _LONGEST_REST
    while time.perf_counter() < end:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(_NAP)
        if time.process_time() - used < _AWAKE * (time.perf_counter() - start):
            return


def peak_bytes() -> int:
    """The most memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would begin with the parent's peak
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent dies, in a long run too, where it can (Linux).

    Elsewhere the process ends at its next command, which does not come.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before that
            sys.exit(1)


def _own_stdout() -> IO[str]:
    """Standard output for answers alone: what else is printed goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def main() -> None:
    """Obey until standard input ends."""
    _die_with(int(sys.argv[1]))
    answers = _own_stdout()
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.obey(json.loads(line))
        except Exception as error:  # ONNX Runtime's share no base class but this
            answer = {"error": next(iter(str(error).splitlines()), type(error).__name__)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
