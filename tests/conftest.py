"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports NumPy or torch: each worker has one core, and nothing asks the network.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Triton's kernels become what it was when they are imported: here they run on the CPU. What compiles them
# does so in processes of its own.
os.environ["TRITON_INTERPRET"] = "1"

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Machines differ in speed, and a run that failed must fail again.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def _shared(folder: str) -> Path:
    path = ROOT.parent / "shared" / folder
    if not path.is_dir():
        pytest.skip(f"needs ../shared/{folder} beside the checkout")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of texts beside the checkout; skips where there is none."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Folder of checkpoints beside the checkout; skips where there is none."""
    return _shared("models")


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Folder of the bundled model."""
    return ROOT / "models" / "tiny"
