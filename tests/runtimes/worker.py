"""Runs models on the ONNX Runtime of the environment that starts this: it needs nothing but NumPy beside.

Usage: worker.py JOBS.json, a list of `{"model": path, "feeds": path.npz, "result": path without ending}`.
Writes `result.npy` where the model ran, `result.txt` with the reason where it did not.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def run(job):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    result = Path(job["result"])
    try:
        session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        with np.load(job["feeds"]) as feeds:
            np.save(result.with_name(result.name + ".npy"), session.run(None, dict(feeds))[0])
    except Exception as error:
        result.with_name(result.name + ".txt").write_text(str(error).splitlines()[0])


if __name__ == "__main__":
    for item in json.loads(Path(sys.argv[1]).read_text()):
        run(item)
    print(onnxruntime.__version__)
