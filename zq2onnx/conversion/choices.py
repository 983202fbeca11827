"""What a user may say: the options that change the bytes, their types, and what they mean for a scheme."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zq2onnx.errors import UserError
from zq2onnx.scheme import (
    ActGranularity,
    Clip,
    Compensation,
    FactorType,
    Method,
    Objective,
    Scheme,
    parse_choice,
    parse_granularity,
    parse_scheme_name,
)


@dataclass(frozen=True)
class Choices:
    """The options that change the bytes; None is "not said". Names are the command line's."""

    scheme: str | None = None
    group_size: int | str | None = None
    symmetric: bool | None = None
    method: str | None = None
    clip: str | None = None
    lorc_rank: int | None = None
    lorc_dtype: str | None = None
    lorc: str | None = None
    lorc_rounds: int | None = None
    objective: str | None = None
    act_granularity: str | None = None
    smooth: str | None = None
    calib_samples: int | None = None
    calib_length: int | None = None
    calib_inputs: str | None = None
    embedding_bits: int | None = None
    dtype: str | None = None
    target: str | None = None
    bias: str | None = None
    merge: bool | None = None
    single_file: bool | None = None
    only: tuple[str, ...] | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    profile: str | None = None

    def over(self, other: Choices) -> Choices:
        """These choices, and the other's where these are silent."""
        said = {key: value for key, value in vars(self).items() if value is not None}
        return dataclasses.replace(other, **said)


AUTO = "auto"

DEFAULTS = Choices(
    scheme="w4a16",
    group_size=128,
    symmetric=False,
    lorc_rank=8,
    lorc_dtype="int8",
    lorc=AUTO,
    lorc_rounds=1,
    objective="layer",
    act_granularity="token",
    smooth=AUTO,
    calib_samples=128,
    calib_length=2048,
    calib_inputs="quantized",
    dtype="keep",
    target="portable",
    bias="inside",
    merge=False,
    single_file=False,
    only=(),
    include=(),
    exclude=(),
)

PATTERN_LISTS = ("only", "include", "exclude")

_TYPES: Mapping[str, tuple[type, ...]] = {
    "profile": (str,),
    "scheme": (str,),
    "group_size": (int, str),
    "symmetric": (bool,),
    "method": (str,),
    "clip": (str,),
    "lorc_rank": (int,),
    "lorc_dtype": (str,),
    "lorc": (str,),
    "lorc_rounds": (int,),
    "objective": (str,),
    "act_granularity": (str,),
    "smooth": (str,),
    "calib_samples": (int,),
    "calib_length": (int,),
    "calib_inputs": (str,),
    "embedding_bits": (int,),
    "dtype": (str,),
    "target": (str,),
    "bias": (str,),
    "merge": (bool,),
    "single_file": (bool,),
    **dict.fromkeys(PATTERN_LISTS, (str, list, tuple)),
    "keep_float": (bool,),
    "match": (str,),
}
_TYPE_NAMES = {str: "text", int: "a whole number", bool: "true or false", list: "a list of texts"}


def plain_fields(overrides: Mapping[str, Any]) -> dict[str, object]:
    """Fields of `Scheme` as options' values, `scheme_fields` undone."""
    said = dict(overrides)
    plain: dict[str, object] = {}
    if "bits" in said:
        plain["scheme"] = Scheme(said.pop("bits"), said.pop("activation")).name
    if "granularity" in said:
        plain["group-size"] = str(said.pop("granularity"))
    for key, value in said.items():
        plain[key.replace("_", "-")] = value.value if isinstance(value, enum.Enum) else value
    return plain


def scheme_fields(said: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Scheme` from options' values; what is None is left out."""
    fields: dict[str, Any] = {}
    if said.get("scheme") is not None:
        fields["bits"], fields["activation"] = parse_scheme_name(said["scheme"])
    if said.get("group_size") is not None:
        fields["granularity"] = parse_granularity(said["group_size"])
    for key, kind, what in (
        ("method", Method, "method"),
        ("clip", Clip, "clip"),
        ("lorc_dtype", FactorType, "factor type"),
        ("lorc", Compensation, "compensation"),
        ("objective", Objective, "objective"),
        ("act_granularity", ActGranularity, "activation granularity"),
    ):
        if said.get(key) is not None:
            fields[key] = parse_choice(kind, said[key], what)
    if "method" in fields and "clip" not in fields:
        fields["clip"] = Clip.AUTO if fields["method"] is Method.GPTQ else Clip.NONE
    for key in ("symmetric", "lorc_rank", "lorc_rounds"):
        if said.get(key) is not None:
            fields[key] = said[key]
    return fields


def compensation(said: str | None, calibrated: bool) -> str | None:
    """What `--lorc auto` stands for; another word for itself."""
    if said != AUTO:
        return said
    return (Compensation.EXACT if calibrated else Compensation.PLAIN).value


def check_type(name: str, value: object) -> None:
    """Make sure that a value is of its option's type.

    Raises:
        UserError: it is not.
    """
    kinds = _TYPES[name]
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if isinstance(value, list | tuple):
        fits = fits and all(isinstance(item, str) for item in value)
    if not fits:
        names = " or ".join(_TYPE_NAMES[kind] for kind in kinds if kind in _TYPE_NAMES)
        raise UserError(f"{name.replace('_', '-')} is {value!r}", names)
