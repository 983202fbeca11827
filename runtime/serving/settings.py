"""What a language model's files say of the tokens that it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zq2onnx.configuration import context_length, positive_integers, read_configuration, read_object


@dataclass(frozen=True)
class TextSettings:
    """How texts begin and end, and how long they may be.

    Attributes:
        context: tokens of the longest text, prompt included; None where no file says it.
        eos: ids that end a text; () where no file names one.
        bos, pad: ids that begin one, and that fill it up; None where no file names them.
    """

    context: int | None
    eos: tuple[int, ...]
    bos: int | None
    pad: int | None


def read_settings(folder: Path) -> TextSettings:
    """Read genai_config.json, else generation_config.json, else config.json: what the earlier says, counts.

    Raises:
        UserError: one of them cannot be read or is no JSON object.
    """
    config = read_configuration(folder)
    model = read_object(folder / "genai_config.json").get("model")
    served: Mapping[str, object] = model if isinstance(model, dict) else {}
    merged = {
        **config,
        **_told(read_object(folder / "generation_config.json")),
        **_told(served),
    }
    context = positive_integers(served).get("context_length") or context_length(positive_integers(config))
    eos = merged.get("eos_token_id")
    return TextSettings(
        context=context,
        eos=tuple(id for id in map(_token, eos if isinstance(eos, list) else [eos]) if id is not None),
        bos=_token(merged.get("bos_token_id")),
        pad=_token(merged.get("pad_token_id")),
    )


def _told(config: Mapping[str, object]) -> dict[str, object]:
    """The entries that are not null: transformers writes null for what it does not know."""
    return {key: value for key, value in config.items() if value is not None}


def _token(value: object) -> int | None:
    """A token's id; None for anything else, -1 included, by which some say that there is none."""
    return value if type(value) is int and value >= 0 else None
