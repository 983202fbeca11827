"""What the JSON files beside a model say of it: config.json and its like. Needs nothing but Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from zq2onnx.errors import UserError

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len")


def read_object(path: Path) -> dict[str, object]:
    """A JSON file's object; {} where there is no such file.

    Raises:
        UserError: the file cannot be read or is no JSON object.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(read, dict):
        raise UserError(f"{path}: not a JSON object")
    return read


def read_configuration(folder: Path) -> dict[str, object]:
    """The config.json of a folder, with what its text_config says in place of the whole model's.

    Raises:
        UserError: the file cannot be read or is no JSON object.
    """
    config = read_object(folder / "config.json")
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def positive_integers(config: Mapping[str, object]) -> dict[str, int]:
    """The entries that are sizes or counts.

    >>> positive_integers({"hidden_size": 64, "dropout": 0.1, "use_cache": True, "bos_token_id": 0})
    {'hidden_size': 64}
    """
    return {key: value for key, value in config.items() if type(value) is int and value > 0}


def context_length(config: Mapping[str, int]) -> int | None:
    """The longest text that a model's config.json promises; None where that is not said.

    Args:
        config: its sizes, as `positive_integers` returns them.
    """
    return next((config[key] for key in _CONTEXT_KEYS if key in config), None)
