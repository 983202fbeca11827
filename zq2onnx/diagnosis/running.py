"""Runs models with values of their middle as outputs, and layers by themselves, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from zq2onnx.diagnosis.site import FED, Site
from zq2onnx.errors import UserError
from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.runtime.providers import CPU_PROVIDER, require_onnxruntime

Array = npt.NDArray[Any]

_FATAL_ONLY = 4  # what it logs of an error, it also raises: that becomes one line
_FOLDER = "session.model_external_initializers_file_folder_path"
_SESSION_CONFIG = {
    **FLOAT_ACTIVATIONS,
    # Several sessions are open, one runs: the threads of the others must not spin.
    "session.force_spinning_stop": "1",
}


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that is read and can be run.

    Attributes:
        path: the file, as it was given: it is named in errors.
        folder: where its external data lies.
        model: its graph; weights stay on disk.
    """

    path: Path
    folder: Path
    model: ir.Model


class Tap:
    """A model cut off behind some of its values, which are its outputs.

    Args:
        opened: the model.
        names: of values of its main graph.

    Raises:
        UserError: ONNX Runtime refuses the model.
    """

    def __init__(self, opened: Opened, names: Iterable[str]) -> None:
        self._opened = opened
        copy = opened.model.clone()
        values = {value.name: value for node in copy.graph for value in node.outputs}
        values.update((value.name, value) for value in copy.graph.inputs)
        self._fed = {name for name in names if values[name].is_graph_input()}
        self._names = [name for name in dict.fromkeys(names) if name not in self._fed]
        copy.graph.outputs[:] = [values[name] for name in self._names]
        common.RemoveUnusedNodesPass()(copy)
        self._session = _session(opened, ir.to_proto(copy).SerializeToString())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The values, by name, in the model's own types; ids and the like as they are fed.

        Raises:
            UserError: ONNX Runtime fails.
        """
        arrays = _run(self._opened, self._session, self._names, feeds)
        return dict(zip(self._names, arrays, strict=True)) | {name: feeds[name] for name in self._fed}


class Alone:
    """One layer, run by itself.

    Args:
        opened: the model that it is part of.
        site: where.

    Raises:
        UserError: ONNX Runtime refuses it.
    """

    def __init__(self, opened: Opened, site: Site) -> None:
        self._opened, self._site = opened, site
        self._session: Any = None
        self._key: tuple[object, int] | None = None

    def run(self, x: Array) -> Array:
        """The layer's output for an input of the model's own type and rank.

        Raises:
            UserError: ONNX Runtime fails.
        """
        if self._key != (x.dtype, x.ndim):
            dtype = ir.DataType.from_numpy(x.dtype)
            proto = self._site.to_proto(self._opened.model, dtype, x.ndim)
            self._session = _session(self._opened, proto.SerializeToString())
            self._key = (x.dtype, x.ndim)
        (array,) = _run(self._opened, self._session, [self._site.output.name or ""], {FED: x})
        return array


def _session(opened: Opened, proto: bytes) -> Any:
    ort = require_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    for key, value in {**_SESSION_CONFIG, _FOLDER: str(opened.folder)}.items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(proto, options, providers=[CPU_PROVIDER])
    except Exception as error:  # its exceptions share no base class but this
        raise UserError(
            f"{opened.path}: onnxruntime {ort.__version__} cannot load it ({_first_line(error)})"
        ) from error


def _run(opened: Opened, session: Any, names: list[str], feeds: Mapping[str, Array]) -> list[Array]:
    run_options = require_onnxruntime().RunOptions()
    run_options.log_severity_level = _FATAL_ONLY
    wanted = {value.name for value in session.get_inputs()}
    try:
        arrays: list[Array] = session.run(
            names, {name: array for name, array in feeds.items() if name in wanted}, run_options
        )
    except Exception as error:
        raise UserError(
            f"{opened.path}: onnxruntime fails on the samples ({_first_line(error)})",
            "samples that both models run on",
            "try a smaller --length",
        ) from error
    return arrays


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
