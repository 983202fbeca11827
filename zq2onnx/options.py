"""What a user may choose, where choices come from, and which one wins.

Precedence: command line (or Python arguments), recipe, default.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zq2onnx.errors import UserError
from zq2onnx.passes.select_nodes import NodeRule, Policy
from zq2onnx.scheme import (
    Clip,
    FactorType,
    Method,
    Scheme,
    Target,
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
    embedding_bits: int | None = None
    target: str | None = None
    single_file: bool | None = None
    only: tuple[str, ...] | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None

    def over(self, other: Choices) -> Choices:
        """These choices, and the other's where these are silent."""
        said = {key: value for key, value in vars(self).items() if value is not None}
        return dataclasses.replace(other, **said)


DEFAULTS = Choices(
    scheme="w4a16",
    group_size=128,
    symmetric=False,
    method="rtn",
    clip="none",
    lorc_rank=8,
    lorc_dtype="int8",
    target="portable",
    single_file=False,
    only=(),
    include=(),
    exclude=(),
)

_TYPES: Mapping[str, tuple[type, ...]] = {
    "scheme": (str,),
    "group_size": (int, str),
    "symmetric": (bool,),
    "method": (str,),
    "clip": (str,),
    "lorc_rank": (int,),
    "lorc_dtype": (str,),
    "embedding_bits": (int,),
    "target": (str,),
    "single_file": (bool,),
    "only": (list, str),
    "include": (list, str),
    "exclude": (list, str),
    "keep_float": (bool,),
    "match": (str,),
}
_NODE_KEYS = (
    "match",
    "scheme",
    "group_size",
    "symmetric",
    "method",
    "clip",
    "lorc_rank",
    "lorc_dtype",
    "keep_float",
)


@dataclass(frozen=True)
class Options:
    """Choices resolved and checked."""

    policy: Policy
    target: Target
    single_file: bool

    def describe(self) -> dict[str, object]:
        """Everything that decides the bytes, as plain values in a fixed order."""
        embedding = self.policy.embedding
        return {
            **self.policy.scheme.describe(),
            "embedding-bits": None if embedding is None else embedding.bits,
            "target": self.target.value,
            "single-file": self.single_file,
            "only": list(self.policy.only),
            "include": list(self.policy.include),
            "exclude": list(self.policy.exclude),
            "node": [
                {
                    "match": rule.match,
                    "keep-float": rule.keep_float,
                    **{key: str(value) for key, value in rule.overrides.items()},
                }
                for rule in self.policy.rules
            ],
        }


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
    ):
        if said.get(key) is not None:
            fields[key] = parse_choice(kind, said[key], what)
    for key in ("symmetric", "lorc_rank"):
        if said.get(key) is not None:
            fields[key] = said[key]
    return fields


def resolve(said: Choices, recipe: Path | None) -> Options:
    """Put command line, recipe and defaults together.

    Raises:
        UserError: a value is unknown, or the recipe is not what it should be.
    """
    in_recipe, rules = (Choices(), ()) if recipe is None else read_recipe(recipe)
    choices = said.over(in_recipe).over(DEFAULTS)
    scheme = Scheme(**scheme_fields(vars(choices)))
    embedding = None
    if choices.embedding_bits is not None:
        if choices.embedding_bits not in (4, 8):
            raise UserError(f"{choices.embedding_bits} embedding bits", "8 or 4")
        embedding = dataclasses.replace(scheme, bits=choices.embedding_bits, lorc_rank=0)
    policy = Policy(
        scheme,
        choices.only or (),
        choices.include or (),
        choices.exclude or (),
        rules,
        embedding,
    )
    target = parse_choice(Target, choices.target or "", "target")
    return Options(policy, target, bool(choices.single_file))


def read_recipe(path: Path) -> tuple[Choices, tuple[NodeRule, ...]]:
    """Read a recipe: TOML with the options' names at the top and `[[node]]` tables.

    Raises:
        UserError: the file is missing, no TOML, or has an unknown key or a value of a wrong type.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "a recipe in TOML") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}", "a recipe in TOML") from None
    nodes = table.pop("node", [])
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
        raise UserError(f"{path}: `node` is not an array of tables", "[[node]] tables")
    known = tuple(field.name for field in dataclasses.fields(Choices))
    top = _checked(path, table, known)
    for key in ("only", "include", "exclude"):
        if key in top:
            top[key] = (top[key],) if isinstance(top[key], str) else tuple(top[key])
    return Choices(**top), tuple(_rule(path, node) for node in nodes)


def _rule(path: Path, table: dict[str, Any]) -> NodeRule:
    said = _checked(path, table, _NODE_KEYS)
    if "match" not in said:
        raise UserError(f"{path}: a [[node]] table without `match`", 'match = "REGEX"')
    return NodeRule(said["match"], scheme_fields(said), said.get("keep_float"))


def _checked(path: Path, table: dict[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """The table with its keys as identifiers."""
    said = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            names = ", ".join(field.replace("_", "-") for field in known)
            raise UserError(f"{path}: unknown key {key!r}", f"one of {names}")
        wrong_bool = isinstance(value, bool) and bool not in _TYPES[name]
        if wrong_bool or not isinstance(value, _TYPES[name]):
            kinds = " or ".join(kind.__name__ for kind in _TYPES[name])
            raise UserError(f"{path}: {key} = {value!r}", f"a value of type {kinds}")
        said[name] = value
    return said
