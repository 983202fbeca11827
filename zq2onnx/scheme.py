"""What may be asked of a weight: bits, granularity, method and low-rank compensation.

A `Scheme` is everything that decides a weight's bytes. It is frozen and checked when made, so
that a value of this type is always one that the passes, the kernels and the files can carry.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass
from typing import TypeVar

from zq2onnx.errors import UserError

WEIGHT_BITS = (8, 4, 3, 2)
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
MAX_LORC_RANK = 128
MAX_LORC_ROUNDS = 16


class Activation(enum.Enum):
    """What the activations are when they meet the weight."""

    A16 = "a16"
    """Float, never rounded to integers."""
    A8 = "a8"
    """Symmetric int8, -127 to 127; `ActGranularity` says what shares a scale."""


class ActGranularity(enum.Enum):
    """Which int8 activations share a scale."""

    TOKEN = "token"
    """Those of a token, `max|x| / 127` of its K channels, computed as the model runs."""
    BLOCK = "block"
    """Those of a token that meet one stored block of the weight: `MatMulNBits` at accuracy level 4."""
    TENSOR = "tensor"
    """All, for good: one scale from calibration. Standard ONNX (qdq) only."""


class Method(enum.Enum):
    """How the codes are chosen."""

    RTN = "rtn"
    """Round to nearest."""
    GPTQ = "gptq"
    """Column by column, each column's error fed to those that follow (Frantar et al. 2022)."""
    ZQ_LOCAL = "zq-local"
    """Each linear's output error by gradient (ZeroQuant-V2, section 3); needs torch."""
    ZQ_GLOBAL = "zq-global"
    """Each transformer block's output error by gradient (ZeroQuant-V2, section 3); needs torch."""


class Clip(enum.Enum):
    """How the range of a group is chosen."""

    NONE = "none"
    """From its least to its greatest weight."""
    MSE = "mse"
    """Shrunk where that lowers the group's squared weight error."""
    AUTO = "auto"
    """Shrunk where that lowers GPTQ's own final output error on calibration data."""


class Compensation(enum.Enum):
    """What the low-rank branch is the best approximation of."""

    PLAIN = "plain"
    """The weight's rounding error (ZeroQuant-V2, section 5)."""
    EXACT = "exact"
    """The output's error on calibration data, in closed form (QERA-exact, EoRA)."""


class Objective(enum.Enum):
    """Whose error calibrated methods keep small."""

    LAYER = "layer"
    """The layer's output, `tr(E R Eᵀ)`, `R` the second moment of its input."""
    MODEL = "model"
    """The model's, to second order: `tr(G E R Eᵀ)`, `G` the second moment of the gradient at the layer's
    output (K-FAC); needs torch."""


class Target(enum.Enum):
    """What the rewritten nodes are written as."""

    PORTABLE = "portable"
    """`ai.zq2onnx` operators with function bodies."""
    QDQ = "qdq"
    """Standard ONNX: `DequantizeLinear` + `MatMul`."""


class FloatType(enum.Enum):
    """In what the activations, and the weights that stay float, are computed and stored."""

    KEEP = "keep"
    """As the model has them."""
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class BiasPlace(enum.Enum):
    """Where a portable node's bias is added."""

    INSIDE = "inside"
    """By the node: an input of it."""
    OUTSIDE = "outside"
    """By an Add behind it."""


class CheckMode(enum.Enum):
    """How much of what was written is checked."""

    SAMPLE = "sample"
    """One rewritten node of every kind."""
    FULL = "full"
    """Every rewritten node, and the whole model."""
    NONE = "none"


class FactorType(enum.Enum):
    """How the low-rank factors are stored."""

    INT8 = "int8"
    """Symmetric int8, one scale per rank component."""
    FLOAT = "float"
    """In the activations' type."""


@dataclass(frozen=True)
class PerChannel:
    """One scale per output channel (a *row* of the stored `[N, K]` weight)."""

    def groups(self, k: int) -> int:
        """Number of scales along K."""
        return 1

    def __str__(self) -> str:
        return "row"


@dataclass(frozen=True)
class PerBlock:
    """One scale per `size` consecutive weights of a row (fine-grained quantization, FGQ)."""

    size: int

    def __post_init__(self) -> None:
        if self.size not in GROUP_SIZES:
            raise UserError(f"group size {self.size}", f"one of {', '.join(map(str, GROUP_SIZES))} or row")

    def groups(self, k: int) -> int:
        """Number of scales along K; the last group may be short.

        >>> PerBlock(32).groups(100)
        4
        """
        return -(-k // self.size)

    def __str__(self) -> str:
        return str(self.size)


Granularity = PerChannel | PerBlock

_Choice = TypeVar("_Choice", bound=enum.Enum)


def parse_choice(kind: type[_Choice], text: str, what: str) -> _Choice:
    """Read an enumerated option.

    >>> parse_choice(FactorType, "int8", "factor type")
    <FactorType.INT8: 'int8'>

    Raises:
        UserError: unknown; the message lists the known.
    """
    try:
        return kind(str(text).lower())
    except ValueError:
        known = ", ".join(str(member.value) for member in kind)
        raise UserError(f"unknown {what} {text!r}", f"one of {known}") from None


def parse_granularity(text: str | int) -> Granularity:
    """Read `128` or `row`.

    >>> parse_granularity("64"), parse_granularity("row")
    (PerBlock(size=64), PerChannel())

    Raises:
        UserError: the size is not one of `GROUP_SIZES`.
    """
    if str(text).lower() == "row":
        return PerChannel()
    try:
        return PerBlock(int(text))
    except ValueError:
        raise UserError(f"group size {text!r}", f"one of {', '.join(map(str, GROUP_SIZES))} or row") from None


SCHEME_NAMES = tuple(f"w{bits}{act.value}" for act in Activation for bits in WEIGHT_BITS)


def parse_scheme_name(name: str) -> tuple[int, Activation]:
    """Split `w4a16` into weight bits and activation.

    >>> parse_scheme_name("w4a16")
    (4, <Activation.A16: 'a16'>)

    Raises:
        UserError: the name is unknown.
    """
    match = re.fullmatch(r"w([2348])(a16|a8)", name.lower())
    if match is None:
        raise UserError(f"unknown scheme {name!r}", f"one of {', '.join(SCHEME_NAMES)}")
    return int(match[1]), Activation(match[2])


@dataclass(frozen=True)
class Scheme:
    """How one weight is quantized.

    Attributes:
        bits: bits per weight code: 8, 4, 3 or 2.
        activation: what the weight is multiplied with.
        granularity: how many weights share a scale.
        symmetric: zero point fixed in the middle of the codes; else an integer one per group.
        method: how codes are chosen.
        clip: how a group's range is chosen.
        lorc_rank: rank of the low-rank compensation, 0 for none (ZeroQuant-V2, section 5).
        lorc_dtype: how its factors are stored.
        act_granularity: what int8 activations share a scale; of no concern with A16.
        lorc: what the branch approximates.
        lorc_rounds: how often codes are chosen: after the first time, for `W - UV` of the last branch.
        objective: what GPTQ and an exact branch keep small.
    """

    bits: int = 4
    activation: Activation = Activation.A16
    granularity: Granularity = PerBlock(128)
    symmetric: bool = False
    method: Method = Method.RTN
    clip: Clip = Clip.NONE
    lorc_rank: int = 8
    lorc_dtype: FactorType = FactorType.INT8
    act_granularity: ActGranularity = ActGranularity.TOKEN
    lorc: Compensation = Compensation.PLAIN
    lorc_rounds: int = 1
    objective: Objective = Objective.LAYER

    def __post_init__(self) -> None:
        if self.bits not in WEIGHT_BITS:
            raise UserError(f"{self.bits} weight bits", f"one of {', '.join(map(str, WEIGHT_BITS))}")
        if not 0 <= self.lorc_rank <= MAX_LORC_RANK:
            raise UserError(f"low-rank compensation of rank {self.lorc_rank}", f"0 to {MAX_LORC_RANK}")
        if not 1 <= self.lorc_rounds <= MAX_LORC_ROUNDS:
            raise UserError(f"{self.lorc_rounds} rounds of compensation", f"1 to {MAX_LORC_ROUNDS}")

    @property
    def name(self) -> str:
        """The name the command line uses.

        >>> Scheme(bits=3).name
        'w3a16'
        """
        return f"w{self.bits}{self.activation.value}"

    @property
    def midpoint(self) -> int:
        """The code that stands for zero in a symmetric grid.

        >>> Scheme(bits=4).midpoint
        8
        """
        return 1 << (self.bits - 1)

    @property
    def calibrated(self) -> bool:
        """Whether its bytes depend on calibration data."""
        exact = self.lorc is Compensation.EXACT and self.lorc_rank > 0
        return self.method is not Method.RTN or exact or self.static_activations

    @property
    def static_activations(self) -> bool:
        """Whether one scale, told by calibration, serves all its int8 activations."""
        return self.activation is Activation.A8 and self.act_granularity is ActGranularity.TENSOR

    def without_lorc(self) -> Scheme:
        """The same scheme with the low-rank branch off."""
        return dataclasses.replace(self, lorc_rank=0)

    def describe(self) -> dict[str, object]:
        """Plain values for reports, metadata and fingerprints, in a fixed order."""
        return {
            "scheme": self.name,
            "group-size": str(self.granularity),
            "symmetric": self.symmetric,
            "method": self.method.value,
            "clip": self.clip.value,
            "lorc-rank": self.lorc_rank,
            "lorc-dtype": self.lorc_dtype.value,
            "lorc": self.lorc.value,
            "lorc-rounds": self.lorc_rounds,
            "objective": self.objective.value,
            "act-granularity": self.act_granularity.value if self.activation is Activation.A8 else None,
        }
