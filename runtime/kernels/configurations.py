"""All that is compiled, for each architecture, in order of preference. Knows no Triton.

Why the numbers are what they are:

    16 tokens   is what tensor cores multiply at the price of one; up to 8 cost half of it
    BK = 128    the usual group: sums are exact integers and scaled once. 64 codes of 4 bits are 32 bytes
    PARTS = 4   four warps, each 32 rows and a part of K: 24 KB on their way; 8 where rows are few
    stages      what the shared memory holds of tiles on their way; sm_86, sm_89 and sm_120 have 99 KB
    BN = 128    in `many_tokens`: rows enough for two groups of four warps, which is what wgmma takes
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from zq2onnx.runtime.kernels.configuration import Condition, Configuration, Tile, exactly
from zq2onnx.runtime.kernels.problem import (
    NO_BOUND,
    RANK_TILE,
    ROUND_TILE,
    ROUNDINGS,
    TOKEN_TILE,
    WHOLE_BYTES,
)
from zq2onnx.scheme import ActGranularity

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
"""What the bundle is compiled for, unasked."""

SHARED_LIMITS = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
}
"""Bytes of shared memory that one block may have (CUDA C++ Programming Guide, compute capabilities)."""

DEPENDENT_LAUNCH = ("sm_90", "sm_100", "sm_120")
"""Where a product may be launched before its prologue has ended, and waits for it."""

FAMILIES = {"sm_80": "sm_80", "sm_86": "sm_80", "sm_89": "sm_80"} | {
    name: name for name in ("sm_90", "sm_100", "sm_120")
}
"""Whose PTX is assembled for an architecture: those of compute capability 8 execute the same."""

SEVERAL_TOKENS = 96
"""Up to here 64 tokens are a tile, for 128 would be mostly idle."""

FEW_ROWS = 6144
"""Up to here eight parts of K fill a large GPU where four would not."""


def storage_conditions(bits: int, unit: int, block: int, int8: bool) -> tuple[Condition, ...]:
    """What tuned products need of a weight: 16-byte accesses, one scale for each unit, whole blocks."""
    fixed = (
        exactly("bits", bits),
        *((Condition("rounds", at_least=1),) if int8 else ()),
        Condition("K", multiple_of=16),
        Condition("row_bytes", multiple_of=16),
        Condition("group_shift", at_least=unit.bit_length() - 1),
    )
    return (*fixed, exactly("block", block)) if bits in (2, 3) else fixed


def few_tokens(
    bits: int, dtype: str, tile: Tile, parts: int, *, unit: int, block: int = 0, int8: bool = False
) -> Configuration:
    """A configuration of `few_tokens`; the tile's codes are those of one part."""
    rows = (Condition("N", at_most=FEW_ROWS),) if parts > 4 else ()
    blocks = (Condition("x_shift", at_least=tile.codes.bit_length() - 1),) if int8 else ()
    constants = (
        ("BITS", bits), ("BLOCK", block), ("UNIT", unit), ("INT8", int8),
        ("PARTS", parts), ("BM", tile.tokens), ("BN", tile.rows), ("BK", tile.codes),
    )  # fmt: skip
    return Configuration(
        "few_tokens",
        _name("few", bits, dtype, int8, unit, block, f"m{tile.tokens}", f"p{parts}"),
        dtype,
        "i8" if int8 else dtype,
        constants,
        tile.warps,
        tile.stages,
        (Condition("M", at_most=tile.tokens), *rows, *blocks, *storage_conditions(bits, unit, block, int8)),
        ((("N", tile.rows),), (("M", tile.tokens),), ()),
        aligned=True,
    )


def many_tokens(
    bits: int,
    dtype: str,
    tile: Tile,
    *,
    unit: int,
    block: int = 0,
    int8: bool = False,
    by_block: bool = False,
    one_group: bool = False,
    at_most: int = NO_BOUND,
) -> Configuration:
    """A configuration of `many_tokens`, for at most so many tokens."""
    tokens = (Condition("M", at_most=at_most),)
    several = by_block and bits != WHOLE_BYTES  # where one scale is all, others are for tokens, and better
    kind = (Condition("x_blocks", int(several) + 1, NO_BOUND if by_block else 1),) if int8 else ()
    blocks = (Condition("x_shift", at_least=tile.codes.bit_length() - 1),) if int8 else ()
    group = (exactly("groups", 1), Condition("K", at_most=65536)) if one_group else ()
    constants = (
        ("BITS", bits), ("BLOCK", block), ("UNIT", unit), ("INT8", int8),
        ("BY_BLOCK", by_block), ("ONE_GROUP", one_group),
        ("BM", tile.tokens), ("BN", tile.rows), ("BK", tile.codes),
    )  # fmt: skip
    marks = [mark for mark, set_ in (("block", by_block), ("row", one_group)) if set_]
    return Configuration(
        "many_tokens",
        _name("many", bits, dtype, int8, unit, block, f"m{tile.tokens}", *marks),
        dtype,
        "i8" if int8 else dtype,
        constants,
        tile.warps,
        tile.stages,
        (*tokens, *kind, *blocks, *group, *storage_conditions(bits, unit, block, int8)),
        ((("N", tile.rows), ("M", tile.tokens)), (), ()),
        aligned=True,
    )


def any_shape(bits: int, dtype: str) -> Configuration:
    """The configuration of `any_shape` for a storage and a type."""
    rows = 32 if dtype == "fp32" else 64
    return Configuration(
        "any_shape",
        _name("any", bits, dtype, False, 16, 0),
        dtype,
        dtype,
        (("BITS", bits), ("BM", 16), ("BN", rows), ("BK", 16)),
        4,
        2,
        (exactly("bits", bits),),
        ((("N", rows), ("M", 16)), (), ()),
        aligned=False,
    )


def prologue(
    dtype: str,
    rounding: ActGranularity | None,
    *,
    codes: bool = False,
    split: bool = False,
    aligned: bool = True,
) -> Configuration:
    """A configuration of `prologue`."""
    what = "plain" if rounding is None else rounding.value
    form = (
        "" if rounding is None else ("_codes" if codes else "_floats") + ("" if split else "_whole") * codes
    )
    anywhere = "" if aligned else "_any"
    kind = ROUNDINGS[rounding]
    stored = (exactly("bits", WHOLE_BYTES) if not split else Condition("bits", at_most=8),) if codes else ()
    return Configuration(
        "prologue",
        f"prologue_{what}{form}_{dtype}{anywhere}",
        dtype,
        "i8" if codes else dtype,
        (
            ("ROUND", kind),
            ("CODES", codes),
            ("SPLIT", split),
            ("BM", TOKEN_TILE),
            ("BK", ROUND_TILE),
        ),
        4,
        2,
        (
            exactly("rounds", kind),
            exactly("codes", int(codes)),
            *stored,
            *((Condition("K", multiple_of=16),) if aligned else ()),
        ),
        ((("M", TOKEN_TILE),), (("parts", 1),), (("rank_or_one", RANK_TILE),)),
        aligned,
    )


def _name(form: str, bits: int, dtype: str, int8: bool, unit: int, block: int, *rest: str) -> str:
    storage = "w8whole" if bits == WHOLE_BYTES else f"w{bits}"
    kind = f"a8_{dtype}" if int8 else dtype
    marks = [f"u{unit}", f"b{block}" if block else "", *rest]
    return "_".join([form, storage, kind, *(mark for mark in marks if mark)])


HALF_TYPES = ("fp16", "bf16")
INT8_BLOCKS = {2: (256, 128), 3: (256,)}
"""Blocks whose segments have the 32 even codes that an int8 product takes at least."""

STORAGES = (2, 3, 4, 8, WHOLE_BYTES)
TOKEN, BLOCK = ActGranularity.TOKEN, ActGranularity.BLOCK


def _few(deep: int) -> Iterator[Configuration]:
    """Products of few tokens, the preferred first; `deep` is the number of stages."""
    usual = {tokens: Tile(tokens, 32, 128, 4, deep) for tokens in (8, 16)}
    for dtype in HALF_TYPES:
        for bits in (4, 8, WHOLE_BYTES):
            yield few_tokens(bits, dtype, usual[16], 4, unit=128, int8=True)
        for bits in (4, 8):
            yield few_tokens(bits, dtype, Tile(8, 32, 128, 8, deep - 1), 8, unit=128)
            yield few_tokens(bits, dtype, usual[8], 4, unit=128)
            yield few_tokens(bits, dtype, usual[16], 4, unit=128)
        for bits in (4, 8, WHOLE_BYTES):
            yield few_tokens(bits, dtype, usual[16], 4, unit=32)
        for bits in (2, 3):
            for block in INT8_BLOCKS[bits]:
                tile = Tile(16, 32, block, 4, deep - 1)
                yield few_tokens(bits, dtype, tile, 4, unit=block, block=block, int8=True)
            yield few_tokens(bits, dtype, usual[8], 4, unit=128, block=128)
            for block in (256, 128, 64):
                tile = Tile(16, 32, max(block, 128), 4, deep if block < 256 else 2)
                yield few_tokens(bits, dtype, tile, 4, unit=block, block=block)


def _many(deep: int) -> Iterator[Configuration]:
    """Products of many tokens, the preferred first; `deep` is the number of stages."""
    wide8, tall8 = Tile(128, 128, 128, 8, deep), Tile(64, 128, 128, 8, deep)
    for dtype in HALF_TYPES:
        for bits in (4, WHOLE_BYTES):
            yield many_tokens(bits, dtype, tall8, unit=128, int8=True, by_block=True)
        for bits in (4, 8):
            yield many_tokens(bits, dtype, wide8, unit=128, int8=True, one_group=True)
            grouped8 = wide8 if bits == 4 else tall8  # two rows of codes and two sums: registers run out
            yield many_tokens(bits, dtype, grouped8, unit=128, int8=True)
            tile = Tile(64, 128, 64, 8, deep)
            yield many_tokens(bits, dtype, tile, unit=64, at_most=SEVERAL_TOKENS)
            yield many_tokens(bits, dtype, Tile(128, 128, 64, 8, deep), unit=64)
        for bits in (4, 8):
            yield many_tokens(bits, dtype, Tile(128, 128, 64, 8, deep), unit=32)
        yield many_tokens(WHOLE_BYTES, dtype, Tile(64, 128, 64, 8, deep), unit=32)
        for bits in (2, 3):
            for block in INT8_BLOCKS[bits]:
                tile = Tile(64, 128, block, 8, 3 if block == 128 else 2)
                yield many_tokens(bits, dtype, tile, unit=block, block=block, int8=True)
            for block in (256, 128, 64):
                tile = Tile(64, 128, block, 8, 3 if block < 256 else 2)
                yield many_tokens(bits, dtype, tile, unit=block, block=block)


@cache
def products(architecture: str) -> tuple[Configuration, ...]:
    """Every product of an architecture, the preferred first.

    Raises:
        KeyError: its shared memory is not known.
    """
    deep = 4 if SHARED_LIMITS[FAMILIES[architecture]] > 163 << 10 else 3
    generic = [any_shape(bits, dtype) for bits in STORAGES for dtype in (*HALF_TYPES, "fp32")]
    return (*_few(deep), *_many(deep), *generic)


@cache
def prologues() -> tuple[Configuration, ...]:
    """Every prologue."""
    made = []
    for dtype in HALF_TYPES:
        made += [prologue(dtype, rounding, codes=True, split=True) for rounding in (TOKEN, BLOCK)]
        made.append(prologue(dtype, BLOCK, codes=True))
        made += [prologue(dtype, rounding) for rounding in (None, TOKEN, BLOCK)]
    for dtype in (*HALF_TYPES, "fp32"):
        made += [prologue(dtype, rounding, aligned=False) for rounding in (None, TOKEN, BLOCK)]
    return tuple(made)


def configurations(architecture: str) -> tuple[Configuration, ...]:
    """All that is compiled for an architecture."""
    return (*prologues(), *products(architecture))
