"""Runs a model under evaluation on ONNX Runtime's CPU provider."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

from zq2onnx.errors import UserError
from zq2onnx.evaluation.float32_copy import float32_copy
from zq2onnx.evaluation.subject import Subject
from zq2onnx.feeds import feed_text
from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.runtime.providers import CPU_PROVIDER, require_onnxruntime

_SESSION_CONFIG = {
    **FLOAT_ACTIVATIONS,
    # Several sessions are open, one runs: the threads of the others must not spin.
    "session.force_spinning_stop": "1",
}
_FATAL_ONLY = 4  # what it logs of an error, it also raises: that becomes one line


class Session:
    """A model, loaded.

    Args:
        path: the model as it was given; it is named in errors.
        file: what is run: that file or its float32 copy.
        lean: whether to save memory rather than time.

    Raises:
        UserError: ONNX Runtime refuses the file.
    """

    def __init__(self, path: Path, file: Path, lean: bool = False) -> None:
        ort = require_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        for key, value in _SESSION_CONFIG.items():
            options.add_session_config_entry(key, value)
        if lean:  # weights stay where they are mapped: no second copy, packed or cast
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        self.path = path
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = _FATAL_ONLY
        try:
            self._session = ort.InferenceSession(str(file), options, providers=[CPU_PROVIDER])
        except Exception as error:  # its exceptions share no base class but this
            raise UserError(
                f"{path}: onnxruntime {ort.__version__} cannot load it ({_first_line(error)})"
            ) from error

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray], what: str, remedy: str = ""
    ) -> list[np.ndarray]:
        """Run the model once.

        Args:
            outputs: names of what is wanted.
            feeds: by input; bfloat16 is fed as float32, which its float32 copy reads.
            what: is run, and remedy: if it fails, for the message.

        Raises:
            UserError: ONNX Runtime cannot run it.
        """
        runnable = {
            name: array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
            for name, array in feeds.items()
        }
        try:
            found: list[np.ndarray] = self._session.run(list(outputs), runnable, self._run_options)
        except Exception as error:
            raise UserError(
                f"{self.path}: onnxruntime fails on {what} ({_first_line(error)})", remedy=remedy
            ) from error
        return found


@contextlib.contextmanager
def opened(path: Path, lean: bool = False) -> Iterator[Session]:
    """Load a model; bfloat16 ones as a float32 copy.

    Args:
        path: the model.
        lean: whether to save memory rather than time.

    Raises:
        UserError: it cannot be copied or loaded.
    """
    with float32_copy(path) as file:
        yield Session(path, file, lean)


class LanguageModel:
    """A causal language model, loaded."""

    def __init__(self, subject: Subject, session: Session) -> None:
        self.subject = subject
        self._session = session

    def logits(self, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.floating]:
        """Run one window.

        Args:
            tokens: `[length]`.

        Returns:
            `[length, vocabulary]`, in the model's float type.

        Raises:
            UserError: ONNX Runtime cannot run it, or what comes out are not logits of these tokens.
        """
        feeds = feed_text(self.subject.inputs, tokens[None])
        what = f"{len(tokens)} tokens"
        (logits,) = self._session.run([self.subject.output], feeds, what, "try a smaller --length")
        if logits.ndim != 3 or logits.shape[:2] != (1, len(tokens)) or logits.shape[2] <= tokens.max():
            raise UserError(
                f"{self.subject.path}: output {self.subject.output} is of shape {list(logits.shape)}"
                f" for {len(tokens)} tokens with ids up to {tokens.max()}",
                "[1, length, vocabulary] with a vocabulary that holds every id",
                "give the model's own tokenizer",
            )
        window: npt.NDArray[np.floating] = logits[0]
        return window


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
