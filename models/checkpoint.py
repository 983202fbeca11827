"""Reads a transformers checkpoint for capture: which class, which type, which files beside it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zq2onnx.errors import UserError
from zq2onnx.storage.companions import COMPANIONS

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Names of the command line, and torch's."""
LOGITS = "logits"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model.

    Attributes:
        model: in evaluation mode, on the CPU, in the type asked for, with its cache off.
        architecture: name of the class that was loaded.
        output: what the graph's first output is called.
        dropped_head: architecture named in the checkpoint, where its head is not captured.
        missing: parameters that the checkpoint lacks, which torch filled with random numbers.
        folder: where its companion files are.
    """

    model: torch.nn.Module
    architecture: str
    output: str
    dropped_head: str | None
    missing: frozenset[str]
    folder: Path

    @property
    def causal(self) -> bool:
        """Whether it predicts the next token."""
        return self.output == LOGITS


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep torch, onnxscript and transformers from printing, warning and logging."""
    level = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def require_torch() -> None:
    """Raises UserError where the `[torch]` extra is missing."""
    try:
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"export needs torch and transformers ({error})",
            remedy='install them with `pip install "zq2onnx[torch]"`',
        ) from error


def one_line(error: BaseException) -> str:
    """The first line of the innermost cause: wrappers above it say only that something failed.

    With the second, where the first announces it or it is an item of a list.

    >>> one_line(ValueError("not so:\\n  3 is not 4\\nhelp"))
    'ValueError: not so: 3 is not 4'
    """
    seen = {id(error)}
    while (cause := error.__cause__) is not None and id(cause) not in seen:
        seen.add(id(cause))
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    announced = len(lines) > 1 and (lines[0].endswith(":") or lines[1].startswith("- "))
    return ": ".join([type(error).__name__, " ".join(lines[: 1 + announced])]).removesuffix(": ")


def load(source: str | Path, dtype: str) -> Checkpoint:
    """Load a local folder or a hub id.

    Raises:
        UserError: it is not there, is no transformers model, or its files are damaged.
    """
    folder = _companion_folder(source)
    if not (folder / "config.json").is_file():
        raise UserError(f"{source} holds no config.json", "the folder of a transformers model")
    with silence():
        try:
            config = _config(str(source))
            causal, dropped_head = _kind(config)
            model, missing = _model(str(source), config, causal, dtype)
        except Exception as error:  # safetensors and transformers have classes of their own
            raise UserError(f"{source} cannot be loaded: {one_line(error)}") from error
    return Checkpoint(
        model=model.eval(),
        architecture=type(model).__name__,
        output=LOGITS if causal else "last_hidden_state",
        dropped_head=dropped_head,
        missing=frozenset(missing),
        folder=folder,
    )


def _companion_folder(source: str | Path) -> Path:
    """The folder itself, or the hub client's local one with all of the model but its weights."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_absolute() or str(source).startswith(".") or str(source).count("/") > 1:
        raise UserError(f"{source} is not a folder", "the folder or hub id of a transformers model")
    from huggingface_hub import snapshot_download

    with silence():
        try:
            return Path(
                snapshot_download(str(source), allow_patterns=[*COMPANIONS, "additional_chat_templates/*"])
            )
        except Exception as error:  # the hub client raises many unrelated classes
            raise UserError(
                f"{source} is no folder here, and the hub gave: {one_line(error)}",
                remedy="check the name and the network, or download the model and give its folder",
            ) from error


def _config(source: str) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    config.use_cache = False
    return config


def _kind(config: Any) -> tuple[bool, str | None]:
    """Whether the model has a causal head, and the name of a head that is left out."""
    from transformers.models.auto import modeling_auto as auto

    named = (config.architectures or [None])[0]
    causal_class = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if named is None:
        masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        return causal_class is not None and not masked, None
    if named == causal_class or named.endswith("ForCausalLM"):
        return True, None
    plain = auto.MODEL_MAPPING_NAMES.get(config.model_type)
    return False, None if named == plain else named


def _model(source: str, config: Any, causal: bool, dtype: str) -> tuple[Any, set[str]]:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    loader = AutoModelForCausalLM if causal else AutoModel
    model, info = loader.from_pretrained(
        source, config=config, dtype=getattr(torch, DTYPES[dtype]), output_loading_info=True
    )
    return model, set(info["missing_keys"])
