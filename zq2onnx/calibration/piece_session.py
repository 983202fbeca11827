"""Runs one piece of a model in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zq2onnx.calibration.piece_graph import InputType, PieceGraph
from zq2onnx.errors import UserError
from zq2onnx.numerics.grid import Float32Array
from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.runtime.providers import CPU_PROVIDER, require_onnxruntime, usable_cores
from zq2onnx.storage.mapped import tensor_array

_FATAL_ONLY = 4  # what it logs of an error, it also raises: that becomes one line
_SESSION_CONFIG = {
    **FLOAT_ACTIVATIONS,
    # Between two runs the cores are needed for other things than threads that spin.
    "session.force_spinning_stop": "1",
}


class PieceSession:
    """A piece, loaded.

    Weights are read when it is first run, each by a mapping of its own, and given back with the
    session.

    Args:
        graph: what to run.
        types: of its inputs, by name.
        threads: for one operator; None for as many as there are cores.

    Raises:
        UserError: ONNX Runtime is not installed.
        ValueError: it cannot load the piece; with its reason, in one line.
    """

    def __init__(self, graph: PieceGraph, types: Mapping[str, InputType], threads: int | None) -> None:
        ort = require_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = threads or usable_cores()
        # Memory is given back after each run: activations of many shapes would pile up in an arena.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        for key, value in _SESSION_CONFIG.items():
            options.add_session_config_entry(key, value)
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = _FATAL_ONLY
        self._graph = graph
        self._weights: dict[str, np.ndarray] = {}
        proto = graph.to_proto(types).SerializeToString()
        try:
            self._session = ort.InferenceSession(proto, options, providers=[CPU_PROVIDER])
        except Exception as error:  # its exceptions share no base class but this
            raise ValueError(_first_line(error)) from error

    def read_weights(self, replaced: Mapping[str, Float32Array]) -> None:
        """Map the piece's weights and large constants.

        Args:
            replaced: by node name, `[N, K]`: what takes the place of a linear's weight, as `y = x Wᵀ`.
        """
        for name, linear in self._graph.linears.items():
            weight = replaced.get(linear.name)
            self._weights[name] = (
                linear.stored_operand() if weight is None else linear.effective_operand(weight)
            )
        for name, tensor in self._graph.large.items():
            self._weights[name] = np.require(tensor_array(tensor), requirements=["C", "A"])

    def run(self, where: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the piece on one batch, after `read_weights`.

        Args:
            where: names the piece in errors.
            inputs: by name, at least those that the graph reads.

        Returns:
            The graph's outputs by name.

        Raises:
            UserError: ONNX Runtime fails.
        """
        feeds: dict[str, Any] = {value.name or "": inputs[value.name or ""] for value in self._graph.inputs}
        try:
            arrays = self._session.run(self._graph.outputs, feeds | self._weights, self._run_options)
        except Exception as error:
            raise UserError(
                f"{where}: onnxruntime fails on calibration samples ({_first_line(error)})",
                "samples that the float model runs on",
            ) from error
        return dict(zip(self._graph.outputs, arrays, strict=True))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
