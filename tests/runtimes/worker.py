"""Runs models on the ONNX Runtime of the environment that starts this: it needs nothing but NumPy beside.

Usage: worker.py JOBS.json, a list of `{"model": path, "config": session configuration, "load_only": bool,
"feeds": path.npz, "result": path without ending}`. Writes `result.npy` where the model ran, `result.txt`
with the reason where it did not; of a model to load only, an empty result where it loads but for a kernel.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def run(job):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in job["config"].items():
        options.add_session_config_entry(key, value)
    result = Path(job["result"])
    try:
        session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        with np.load(job["feeds"]) as feeds:
            np.save(result.with_name(result.name + ".npy"), session.run(None, dict(feeds))[0])
    except Exception as error:
        if job["load_only"] and "NOT_IMPLEMENTED" in str(error):
            np.save(result.with_name(result.name + ".npy"), np.zeros(0, np.float32))
            return
        result.with_name(result.name + ".txt").write_text(str(error).splitlines()[0])


if __name__ == "__main__":
    for item in json.loads(Path(sys.argv[1]).read_text()):
        run(item)
    print(onnxruntime.__version__)
