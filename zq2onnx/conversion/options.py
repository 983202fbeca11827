"""What was asked for, resolved and checked: which choice wins, and which go together.

Precedence: command line (or Python arguments), recipe, profile, default.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from zq2onnx.conversion.choices import (
    DEFAULTS,
    PATTERN_LISTS,
    Choices,
    check_type,
    compensation,
    plain_fields,
    scheme_fields,
)
from zq2onnx.conversion.loading import naming
from zq2onnx.conversion.profiles import Applied, apply_profile, find_profile
from zq2onnx.conversion.recipe import read_recipe
from zq2onnx.errors import UserError
from zq2onnx.passes.select_nodes import NodeRule, Policy
from zq2onnx.scheme import (
    Activation,
    BiasPlace,
    Clip,
    Compensation,
    FloatType,
    Method,
    Objective,
    Scheme,
    Target,
    parse_choice,
)

EMBEDDING_BITS = (8, 4)
BY_GRADIENT = (Method.ZQ_LOCAL, Method.ZQ_GLOBAL)

_DATA = "calibration data"
_GIVE_DATA = "give --calib FILE.txt --tokenizer DIR, or FILE.npz"


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
    """Choices resolved and checked.

    Attributes:
        policy: which nodes are quantized, and how.
        target: what the rewritten nodes are written as.
        single_file: whether weights are in the model file.
        calibration: how calibration data is used; None without.
        dtype: the float type.
        bias: where a portable node's bias is added.
        merge: whether products of one input become one.
        profile: what stands behind what was said; None without one.
    """

    policy: Policy
    target: Target
    single_file: bool
    calibration: CalibrationOptions | None = None
    dtype: FloatType = FloatType.KEEP
    bias: BiasPlace = BiasPlace.INSIDE
    merge: bool = False
    profile: Applied | None = None

    @property
    def schemes(self) -> list[Scheme]:
        """The scheme by default, and refined by each rule alone; rules that meet at a node are not joined."""
        base = self.policy.scheme
        overrides = [rule.overrides for rule in self.policy.rules]
        return [base, *(dataclasses.replace(base, **fields) for fields in overrides)]

    def describe(self) -> dict[str, object]:
        """Everything that decides the bytes, as plain values in a fixed order."""
        embedding = self.policy.embedding
        int8 = any(scheme.activation is Activation.A8 for scheme in self.schemes)  # in a rule alone, maybe
        return {
            "profile": None if self.profile is None else self.profile.profile.name,
            **self.policy.scheme.describe(),
            "act-granularity": self.policy.scheme.act_granularity.value if int8 else None,
            "embedding-bits": None if embedding is None else embedding.bits,
            "dtype": self.dtype.value,
            "target": self.target.value,
            "bias": self.bias.value,
            "merge": self.merge,
            "single-file": self.single_file,
            **({} if self.calibration is None else self.calibration.describe()),
            "only": list(self.policy.only),
            "include": list(self.policy.include),
            "exclude": list(self.policy.exclude),
            "node": [
                {"match": rule.match, "keep-float": rule.keep_float, **plain_fields(rule.overrides)}
                for rule in self.policy.rules
            ],
        }


def resolve(said: Choices, recipe: Path | None, calibrated: bool = False) -> Options:
    """Put command line, recipe, profile and defaults together.

    Args:
        said: on the command line.
        recipe: the recipe's path.
        calibrated: whether there is calibration data, which changes what is the default.

    Raises:
        UserError: a value is unknown or needs calibration data, or the recipe is not what it should be.
    """
    for key, value in vars(said).items():
        if value is not None:
            check_type(key, value)
    _options(said.over(DEFAULTS), (), calibrated)
    for key, value in vars(said).items():
        if key.startswith("calib_") and value is not None and not calibrated:
            raise UserError(f"--{key.replace('_', '-')} {value}", _DATA, _GIVE_DATA)
    in_recipe, rules = (Choices(), ()) if recipe is None else read_recipe(recipe, calibrated)
    if recipe is not None:
        with naming(recipe):
            _options(in_recipe.over(DEFAULTS), (), calibrated)
    said = said.over(in_recipe)
    profile = None if said.profile is None else apply_profile(said.profile, said)
    behind = DEFAULTS if profile is None else profile.profile.choices.over(DEFAULTS)
    options = dataclasses.replace(_options(said.over(behind), rules, calibrated), profile=profile)
    if profile is not None:
        profile.check(options.target)
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
    if scheme.static_activations and options.target is Target.PORTABLE:
        raise UserError("target portable with one activation scale a tensor", "--target qdq")


def _needs_data(scheme: Scheme) -> str:
    """What of a scheme cannot be had without calibration data; "" where there is nothing."""
    if scheme.method is not Method.RTN:
        return f"method {scheme.method.value}"
    if scheme.static_activations:
        return "static activation scales"
    if scheme.lorc is Compensation.EXACT and scheme.lorc_rank > 0:
        return "an exact low-rank branch"
    return "objective model" if scheme.objective is Objective.MODEL else ""


def needs_torch(scheme: Scheme) -> bool:
    """Whether a weight's bytes are found by gradients."""
    return scheme.method in BY_GRADIENT or scheme.objective is Objective.MODEL


def _by_default(choices: Choices, calibrated: bool) -> Choices:
    """What depends on whether there is calibration data."""
    method = choices.method or (Method.GPTQ.value if calibrated else Method.RTN.value)
    clip = choices.clip or (Clip.AUTO.value if method == Method.GPTQ.value else Clip.NONE.value)
    return dataclasses.replace(choices, method=method, clip=clip, lorc=compensation(choices.lorc, calibrated))


def _options(choices: Choices, rules: tuple[NodeRule, ...], calibrated: bool) -> Options:
    """Options of choices in which nothing that has a default is silent."""
    if choices.profile is not None:
        find_profile(choices.profile)
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
    return Options(
        policy,
        target,
        bool(choices.single_file),
        calibration if calibrated else None,
        parse_choice(FloatType, choices.dtype or "", "float type"),
        parse_choice(BiasPlace, choices.bias or "", "place of the bias"),
        bool(choices.merge),
    )
