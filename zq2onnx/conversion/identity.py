"""What makes two conversions the same: for the journal of one, and for the metadata of its output."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json

import numpy as np
import threadpoolctl

from zq2onnx import __version__
from zq2onnx.calibration.samples import Samples
from zq2onnx.conversion.loading import Source
from zq2onnx.conversion.options import Options, needs_torch
from zq2onnx.conversion.stream import Written
from zq2onnx.runtime.providers import require_onnxruntime, usable_cores


def journal_header(source: Source, options: Options, samples: Samples | None = None) -> dict[str, object]:
    """What must be the same for a journal to be resumed: version, input, options and arithmetic.

    With calibration that is the samples too, ONNX Runtime, torch where it is used, and the number of
    cores, on which the sums in their matrix products depend.

    The factors of a low-rank branch come from matrix products, whose last bits are those of the BLAS
    kernels for this kind of processor. They are not in the output's metadata: a file says what was
    asked for, and is the same wherever the kernels are.
    """
    stats = [(path.name, path.stat()) for path in source.data]
    return {
        "zq2onnx": __version__,
        "input": source.digest,
        "data": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        "options": options.describe(),
        "numpy": np.__version__,
        "blas": blas_architectures(),
        **({} if samples is None else _calibration(samples, options)),
    }


def _calibration(samples: Samples, options: Options) -> dict[str, object]:
    by_gradient = any(needs_torch(scheme) for scheme in options.schemes)
    return {
        "samples": samples.digest,
        "onnxruntime": require_onnxruntime().__version__,
        **({"torch": importlib.metadata.version("torch")} if by_gradient else {}),
        "cores": usable_cores(),
    }


def blas_architectures() -> list[str]:
    """The kinds of processor whose kernels the loaded BLAS libraries run."""
    libraries = threadpoolctl.threadpool_info()
    return sorted({str(each.get("architecture")) for each in libraries if each["user_api"] == "blas"})


def stamp(
    source: Source, options: Options, written: Written, samples: Samples | None = None
) -> dict[str, str]:
    """The output's metadata: version, options and the input's fingerprint. No time, path or host."""
    fingerprint = hashlib.sha256(source.digest.encode())
    for name, digest in sorted(written.sources.items()):
        fingerprint.update(f"{name}\0{digest}\n".encode())
    return {
        "zq2onnx.version": __version__,
        "zq2onnx.scheme": options.policy.scheme.name,
        "zq2onnx.options": json.dumps(options.describe()),
        "zq2onnx.input": f"sha256:{fingerprint.hexdigest()}",
        **({} if samples is None else {"zq2onnx.calibration": f"sha256:{samples.digest}"}),
    }
