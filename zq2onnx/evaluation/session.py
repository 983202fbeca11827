"""Runs a causal language model on windows of tokens, on ONNX Runtime's CPU provider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from zq2onnx.errors import UserError
from zq2onnx.evaluation.subject import Subject
from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.runtime.providers import CPU_PROVIDER, require_onnxruntime

_SESSION_CONFIG = {
    **FLOAT_ACTIVATIONS,
    # Several sessions are open, one runs: the threads of the others must not spin.
    "session.force_spinning_stop": "1",
}
_FATAL_ONLY = 4  # what it logs of an error, it also raises: that becomes one line


class LanguageModel:
    """A subject, loaded.

    Args:
        subject: what the file says of itself; it is named in errors.
        file: what is run: the subject's file or its float32 copy.

    Raises:
        UserError: ONNX Runtime refuses the file.
    """

    def __init__(self, subject: Subject, file: Path) -> None:
        ort = require_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        for key, value in _SESSION_CONFIG.items():
            options.add_session_config_entry(key, value)
        self.subject = subject
        self.vocabulary = 0
        """Tokens that it predicts among, once it has been run."""
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = _FATAL_ONLY
        try:
            self._session = ort.InferenceSession(str(file), options, providers=[CPU_PROVIDER])
        except Exception as error:  # its exceptions share no base class but this
            raise UserError(
                f"{subject.path}: onnxruntime {ort.__version__} cannot load it ({_first_line(error)})"
            ) from error

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Run one window.

        Args:
            tokens: int64 `[length]`.

        Returns:
            `[length, vocabulary]`, in the model's float type.

        Raises:
            UserError: ONNX Runtime cannot run it, or what comes out are not logits of these tokens.
        """
        try:
            (logits,) = self._session.run([self.subject.output], self._feeds(tokens), self._run_options)
        except Exception as error:
            raise UserError(
                f"{self.subject.path}: onnxruntime fails on {len(tokens)} tokens ({_first_line(error)})",
                remedy="try a smaller --length",
            ) from error
        if logits.ndim != 3 or logits.shape[:2] != (1, len(tokens)) or logits.shape[2] <= tokens.max():
            raise UserError(
                f"{self.subject.path}: output {self.subject.output} is of shape {list(logits.shape)}"
                f" for {len(tokens)} tokens with ids up to {tokens.max()}",
                "[1, length, vocabulary] with a vocabulary that holds every id",
                "give the model's own tokenizer",
            )
        self.vocabulary = logits.shape[2]
        window: npt.NDArray[np.floating] = logits[0]
        return window

    def _feeds(self, tokens: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.generic]]:
        """Every input of the model for one window, `[1, length]`."""
        values = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(len(tokens)),
            "token_type_ids": np.zeros_like(tokens),
        }
        return {name: values[name][None].astype(dtype) for name, dtype in self.subject.inputs}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
