"""What a user may choose, where choices come from, and which one wins.

Precedence: command line (or Python arguments), recipe, default.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib.util
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zq2onnx.errors import UserError
from zq2onnx.passes.select_nodes import NodeRule, Policy
from zq2onnx.scheme import (
    ActGranularity,
    Activation,
    Clip,
    Compensation,
    FactorType,
    Method,
    Objective,
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
    lorc: str | None = None
    lorc_rounds: int | None = None
    objective: str | None = None
    act_granularity: str | None = None
    smooth: str | None = None
    calib_samples: int | None = None
    calib_length: int | None = None
    calib_inputs: str | None = None
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


EMBEDDING_BITS = (8, 4)
BY_GRADIENT = (Method.ZQ_LOCAL, Method.ZQ_GLOBAL)

AUTO = "auto"

_DATA = "calibration data"
_GIVE_DATA = "give --calib FILE.txt --tokenizer DIR, or FILE.npz"

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
    target="portable",
    single_file=False,
    only=(),
    include=(),
    exclude=(),
)

PATTERN_LISTS = ("only", "include", "exclude")

_TYPES: Mapping[str, tuple[type, ...]] = {
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
    "target": (str,),
    "single_file": (bool,),
    **dict.fromkeys(PATTERN_LISTS, (str, list, tuple)),
    "keep_float": (bool,),
    "match": (str,),
}
_TYPE_NAMES = {str: "text", int: "a whole number", bool: "true or false", list: "a list of texts"}
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


class CalibrationInputs(enum.Enum):
    """What a block is observed on."""

    QUANTIZED = "quantized"
    """What the quantized blocks before it make."""
    FLOAT = "float"
    """What the float model makes."""


class Smooth(enum.Enum):
    """Whether activation outliers are moved into the weights."""

    AUTO = "auto"
    """Where activations are int8 and the graph allows it."""
    OFF = "off"
    """Nowhere."""


@dataclass(frozen=True)
class CalibrationOptions:
    """How calibration data is used.

    Attributes:
        samples: how many at most.
        length: tokens in a sample.
        inputs: what a block is observed on.
        smooth: whether outliers are moved.
    """

    samples: int
    length: int
    inputs: CalibrationInputs
    smooth: Smooth

    def describe(self) -> dict[str, object]:
        """Plain values in a fixed order."""
        return {
            "calib-samples": self.samples,
            "calib-length": self.length,
            "calib-inputs": self.inputs.value,
            "smooth": self.smooth.value,
        }


@dataclass(frozen=True)
class Options:
    """Choices resolved and checked."""

    policy: Policy
    target: Target
    single_file: bool
    calibration: CalibrationOptions | None = None

    @property
    def schemes(self) -> list[Scheme]:
        """The scheme by default, and refined by each rule alone; rules that meet at a node are not joined."""
        base = self.policy.scheme
        overrides = [rule.overrides for rule in self.policy.rules]
        return [base, *(dataclasses.replace(base, **fields) for fields in overrides)]

    def describe(self) -> dict[str, object]:
        """Everything that decides the bytes, as plain values in a fixed order."""
        embedding = self.policy.embedding
        return {
            **self.policy.scheme.describe(),
            "embedding-bits": None if embedding is None else embedding.bits,
            "target": self.target.value,
            "single-file": self.single_file,
            **({} if self.calibration is None else self.calibration.describe()),
            "only": list(self.policy.only),
            "include": list(self.policy.include),
            "exclude": list(self.policy.exclude),
            "node": [
                {"match": rule.match, "keep-float": rule.keep_float, **_plain(rule.overrides)}
                for rule in self.policy.rules
            ],
        }


def _plain(overrides: Mapping[str, Any]) -> dict[str, object]:
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


def resolve(said: Choices, recipe: Path | None, calibrated: bool = False) -> Options:
    """Put command line, recipe and defaults together.

    Args:
        said: on the command line.
        recipe: the recipe's path.
        calibrated: whether there is calibration data, which changes what is the default.

    Raises:
        UserError: a value is unknown or needs calibration data, or the recipe is not what it should be.
    """
    for key, value in vars(said).items():
        if value is not None:
            _check_type(key, value)
    _options(said.over(DEFAULTS), (), calibrated)
    for key, value in vars(said).items():
        if key.startswith("calib_") and value is not None and not calibrated:
            raise UserError(f"--{key.replace('_', '-')} {value}", _DATA, _GIVE_DATA)
    in_recipe, rules = (Choices(), ()) if recipe is None else read_recipe(recipe, calibrated)
    options = _options(said.over(in_recipe).over(DEFAULTS), rules, calibrated)
    for scheme in options.schemes:
        check_scheme(scheme, options)
    return options


def check_scheme(scheme: Scheme, options: Options) -> None:
    """Make sure that a scheme goes with the target, and that there is what it needs: data, torch.

    Raises:
        UserError: it does not, or there is not.
    """
    if options.calibration is None and (what := _needs_data(scheme)):
        raise UserError(what, _DATA, _GIVE_DATA)
    if needs_torch(scheme) and importlib.util.find_spec("torch") is None:
        by_gradient = scheme.method in BY_GRADIENT
        what = f"method {scheme.method.value}" if by_gradient else "objective model"
        raise UserError(f"{what} without torch", "torch", 'pip install "zq2onnx[torch]"')
    if scheme.clip is Clip.AUTO and scheme.method is not Method.GPTQ:
        raise UserError(f"clip auto with method {scheme.method.value}", "method gptq", "or another clip")
    if _is_static(scheme) and options.target is Target.PORTABLE:
        raise UserError("target portable with one activation scale a tensor", "--target qdq")


def _needs_data(scheme: Scheme) -> str:
    """What of a scheme cannot be had without calibration data; "" where there is nothing."""
    if scheme.method is not Method.RTN:
        return f"method {scheme.method.value}"
    if _is_static(scheme):
        return "static activation scales"
    if scheme.lorc is Compensation.EXACT and scheme.lorc_rank > 0:
        return "an exact low-rank branch"
    return "objective model" if scheme.objective is Objective.MODEL else ""


def _is_static(scheme: Scheme) -> bool:
    """Whether its activations have one scale for good."""
    return scheme.activation is Activation.A8 and scheme.act_granularity is ActGranularity.TENSOR


def needs_torch(scheme: Scheme) -> bool:
    """Whether a weight's bytes are found by gradients."""
    return scheme.method in BY_GRADIENT or scheme.objective is Objective.MODEL


def _by_default(choices: Choices, calibrated: bool) -> Choices:
    """What depends on whether there is calibration data."""
    method = choices.method or (Method.GPTQ.value if calibrated else Method.RTN.value)
    clip = choices.clip or (Clip.AUTO.value if method == Method.GPTQ.value else Clip.NONE.value)
    return dataclasses.replace(
        choices, method=method, clip=clip, lorc=_compensation(choices.lorc, calibrated)
    )


def _compensation(said: str | None, calibrated: bool) -> str | None:
    """What `--lorc auto` stands for; another word for itself."""
    if said != AUTO:
        return said
    return (Compensation.EXACT if calibrated else Compensation.PLAIN).value


def _options(choices: Choices, rules: tuple[NodeRule, ...], calibrated: bool) -> Options:
    """Options of choices in which nothing that has a default is silent."""
    choices = _by_default(choices, calibrated)
    scheme = Scheme(**scheme_fields(vars(choices)))
    embedding = None
    if choices.embedding_bits is not None:
        if choices.embedding_bits not in EMBEDDING_BITS:
            raise UserError(f"{choices.embedding_bits} embedding bits", "8 or 4")
        clip = Clip.NONE if scheme.clip is Clip.AUTO else scheme.clip
        embedding = Scheme(
            choices.embedding_bits,
            Activation.A16,
            scheme.granularity,
            scheme.symmetric,
            clip=clip,
            lorc_rank=0,
        )
    calibration = CalibrationOptions(
        choices.calib_samples or 0,
        choices.calib_length or 0,
        parse_choice(CalibrationInputs, choices.calib_inputs or "", "kind of calibration inputs"),
        parse_choice(Smooth, choices.smooth or "", "smoothing"),
    )
    only, include, exclude = (tuple(getattr(choices, key) or ()) for key in PATTERN_LISTS)
    policy = Policy(scheme, only, include, exclude, rules, embedding)
    target = parse_choice(Target, choices.target or "", "target")
    return Options(policy, target, bool(choices.single_file), calibration if calibrated else None)


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
    try:
        nodes = table.pop("node", [])
        if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
            raise UserError("`node` is not an array of tables", "[[node]] tables")
        choices = _choices(table)
        _options(choices.over(DEFAULTS), (), calibrated)
        return choices, tuple(_rule(number, node, calibrated) for number, node in enumerate(nodes, 1))
    except UserError as error:
        raise UserError(f"{path}: {error.found}", error.required, error.remedy) from None


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
        overrides = scheme_fields(said | {"lorc": _compensation(said.get("lorc"), calibrated)})
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
        _check_type(name, value)
        said[name] = value
    return said


def _check_type(name: str, value: object) -> None:
    kinds = _TYPES[name]
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if isinstance(value, list | tuple):
        fits = fits and all(isinstance(item, str) for item in value)
    if not fits:
        names = " or ".join(_TYPE_NAMES[kind] for kind in kinds if kind in _TYPE_NAMES)
        raise UserError(f"{name.replace('_', '-')} is {value!r}", names)
