"""Recipes: options in a TOML file, with tables for single nodes."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from zq2onnx.conversion.choices import PATTERN_LISTS, Choices, check_type, compensation, scheme_fields
from zq2onnx.conversion.loading import naming
from zq2onnx.errors import UserError
from zq2onnx.passes.select_nodes import NodeRule
from zq2onnx.scheme import Scheme

_NODE_KEYS = (
    "match",
    "scheme",
    "group_size",
    "symmetric",
    "method",
    "clip",
    "lorc_rank",
    "lorc_dtype",
    "lorc",
    "lorc_rounds",
    "objective",
    "act_granularity",
    "keep_float",
)


def read_recipe(path: Path, calibrated: bool = False) -> tuple[Choices, tuple[NodeRule, ...]]:
    """Read a recipe: TOML with the options' names at the top and `[[node]]` tables.

    Raises:
        UserError: the file cannot be read, is no TOML, or has an unknown key or value.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or '').lower()}", "a recipe in TOML") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}", "a recipe in TOML") from None
    with naming(path):
        nodes = table.pop("node", [])
        if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
            raise UserError("`node` is not an array of tables", "[[node]] tables")
        rules = tuple(_rule(number, node, calibrated) for number, node in enumerate(nodes, 1))
        return _choices(table), rules


def _choices(table: dict[str, Any]) -> Choices:
    """A recipe's top level."""
    said = _checked(table, tuple(field.name for field in dataclasses.fields(Choices)))
    for key in PATTERN_LISTS:
        if key in said:
            said[key] = (said[key],) if isinstance(said[key], str) else tuple(said[key])
    return Choices(**said)


def _rule(number: int, table: dict[str, Any], calibrated: bool) -> NodeRule:
    """The `number`th [[node]] table of a recipe."""
    where = f"[[node]] table {number}"
    try:
        said = _checked(table, _NODE_KEYS)
        if "match" not in said:
            raise UserError("it has no `match`", 'match = "REGEX"')
        overrides = scheme_fields(said | {"lorc": compensation(said.get("lorc"), calibrated)})
        Scheme(**overrides)  # is checked when made
    except UserError as error:
        raise UserError(f"{where}: {error.found}", error.required, error.remedy) from None
    return NodeRule(said["match"], overrides, said.get("keep_float"))


def _checked(table: dict[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """The table with its keys as identifiers."""
    said = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            names = ", ".join(field.replace("_", "-") for field in known)
            raise UserError(f"unknown key {key!r}", f"one of {names}")
        check_type(name, value)
        said[name] = value
    return said
