"""The process that tokenizer graphs are tried in: `python -m zq2onnx.packaging.tokenizer_trial`.

onnxruntime-extensions may end a process by a signal where it meets a kind of tokenizer that it does not know.

Reads a line of JSON, `{"encoder": FILE, "decoder": FILE, "texts": [TEXT..], "ids": [[ID..]..]}`, and answers
with one: a list of what the first graph makes of each text and the second of the ids, or `{"error": LINE}`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import zq2onnx
from zq2onnx.runtime.providers import CPU_PROVIDER, require_onnxruntime

Answers = list[tuple[list[int], str]]


def try_graphs(
    encoder: bytes, decoder: bytes, texts: Sequence[str], ids: Sequence[list[int]]
) -> Answers | str:
    """What two graphs make of texts and of ids, found out in another process; a string says why nothing."""
    importlib.import_module("onnxruntime_extensions")  # told of here where it is not installed
    with tempfile.TemporaryDirectory(prefix="zq2onnx-") as folder:
        files = {"encoder": Path(folder, "encoder.onnx"), "decoder": Path(folder, "decoder.onnx")}
        files["encoder"].write_bytes(encoder)
        files["decoder"].write_bytes(decoder)
        asked = {**{name: str(path) for name, path in files.items()}, "texts": list(texts), "ids": list(ids)}
        package = str(Path(zq2onnx.__file__).resolve().parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            # -P: a file of the working folder is not to pass for a module
            [sys.executable, "-P", "-m", "zq2onnx.packaging.tokenizer_trial"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    if done.returncode < 0:
        return f"dies of it ({signal.Signals(-done.returncode).name})"
    if done.returncode:
        return f"fails: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}"
    answer = json.loads(done.stdout.splitlines()[-1])
    return str(answer["error"]) if isinstance(answer, dict) else [(found, text) for found, text in answer]


def _session(file: str) -> Any:
    ort = require_onnxruntime()
    from onnxruntime_extensions import get_library_path

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(get_library_path())
    return ort.InferenceSession(file, options, providers=[CPU_PROVIDER])


def _answer(asked: Mapping[str, Any]) -> object:
    try:
        encode, decode = _session(asked["encoder"]), _session(asked["decoder"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        return {"error": f"does not take it: {_line(error)}"}
    answers = []
    for text, ids in zip(asked["texts"], asked["ids"], strict=True):
        try:
            found = encode.run(None, {"text": np.array([text], object)})[0][0].tolist()
            answers.append((found, str(decode.run(None, {"ids": np.array(ids, np.int64)})[0][0])))
        except Exception as error:  # likewise
            return {"error": f"fails on {text!r}: {_line(error)}"}
    return answers


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
