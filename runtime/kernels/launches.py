"""From a problem to the kernels that run it, in order, with what each of them is given."""

from __future__ import annotations

from dataclasses import dataclass

from zq2onnx.runtime.kernels.choice import choose, prologue_for
from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.configurations import DEPENDENT_LAUNCH
from zq2onnx.runtime.kernels.problem import SUMMED, Problem


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        configuration: what is launched.
        grid: blocks along its three axes.
        pointers: for each pointer parameter, whose array it is: an input of the node, `Y`, or a scratch.
        integers: the integer parameters.
        dependent: whether it may begin before the launch before it has ended (programmatic dependent launch):
            it waits by itself for what it needs. Never so of PTX for other architectures.
    """

    configuration: Configuration
    grid: tuple[int, int, int]
    pointers: dict[str, str]
    integers: dict[str, int]
    dependent: bool


@dataclass(frozen=True)
class Plan:
    """How a problem runs.

    Attributes:
        launches: in order.
        scratch: arrays that must be allocated: type ("fp32", "i8", ..) and shape by name.
    """

    launches: tuple[Launch, ...]
    scratch: dict[str, tuple[str, tuple[int, ...]]]


PROLOGUE_POINTERS = ("A", "U", "U_scales", "T", "X", "sums", "x_scales")
PRODUCT_POINTERS = ("X", "B", "scales", "zero_points", "bias", "T", "V", "V_scales", "Y")
CODES_POINTERS = ("sums", "x_scales")
PROLOGUE_INTEGERS = ("M", "K", "k_padded", "block", "k_blocks", "rank", "u_int8")
PRODUCT_INTEGERS = (
    "M", "N", "K", "x_stride", "row_bytes", "groups", "zero_bytes", "zero_packed",
    "rank", "parts", "has_bias", "v_int8", "x_waits",
)  # fmt: skip
TUNED_INTEGERS = ("x_shift", "x_blocks", "group_shift")
GENERIC_INTEGERS = ("group", "block")


def plan(
    problem: Problem, architecture: str, *, aligned: bool = True, product: Configuration | None = None
) -> Plan:
    """Choose the kernels of a problem.

    Args:
        architecture: that the kernels are compiled for, as `sm_90`.
        aligned: whether all arrays, scratch too, lie at multiples of 16 bytes.
        product: one whose conditions hold, to be taken instead of the first of them.
    """
    product = product or choose(problem, architecture, aligned=aligned)
    first = prologue_for(problem, product, aligned=aligned)
    rounds = problem.granularity is not None
    codes = product.x_dtype == "i8"
    sizes = problem.sizes()
    sizes["x_stride"] = sizes["k_padded"] if codes else sizes["K"]
    sizes["x_waits"] = int(rounds)
    launches = []
    if first is not None:
        launches.append(
            Launch(
                first,
                first.extents(sizes),
                {name: name for name in PROLOGUE_POINTERS},
                {name: sizes[name] for name in PROLOGUE_INTEGERS},
                dependent=False,
            )
        )
    generic = product.kernel == "any_shape"
    pointers = PRODUCT_POINTERS + (() if generic else CODES_POINTERS)
    names = PRODUCT_INTEGERS + (GENERIC_INTEGERS if generic else TUNED_INTEGERS)
    launches.append(
        Launch(
            product,
            product.extents(sizes),
            {name: name for name in pointers} | ({} if rounds else {"X": "A"}),
            {name: sizes[name] for name in names},
            dependent=first is not None and architecture in DEPENDENT_LAUNCH,
        )
    )
    return Plan(tuple(launches), _scratch(problem, codes, rounds))


def _scratch(problem: Problem, codes: bool, rounds: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    sizes = problem.sizes()
    tokens, padded = problem.tokens, problem.k_padded
    scratch: dict[str, tuple[str, tuple[int, ...]]] = {}
    if problem.rank:
        scratch["T"] = ("fp32", (problem.parts, tokens, problem.rank))
    if rounds:
        scratch["X"] = ("i8", (tokens, padded)) if codes else (problem.dtype, (tokens, sizes["K"]))
        scratch["x_scales"] = ("fp32", (tokens, sizes["x_blocks"]))
    if codes:
        scratch["sums"] = ("fp32", (tokens, padded // SUMMED))
    return scratch
