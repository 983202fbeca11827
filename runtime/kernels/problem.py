"""What one node asks of the kernels: its sizes by name, as configurations and the manifest speak of them."""

from __future__ import annotations

from dataclasses import dataclass

from zq2onnx.layout import PackedLayout
from zq2onnx.opset import Operator
from zq2onnx.scheme import ActGranularity

DTYPES = ("fp16", "bf16", "fp32")
"""What A, the scales and the bias may be of."""

ITEM_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}

WHOLE_BYTES = 9
"""Stands for the bits of codes that are stored as whole bytes: a storage of its own."""

ROUND_TILE = 256
"""Channels that the prologue reads at once: what rows of int8 codes are padded to."""

RANK_TILE = 16
"""Ranks that the prologue multiplies at once."""

TOKEN_TILE = 16
"""Tokens that the prologue reads at once."""

SUMMED = 128
"""Channels whose int8 codes have one sum."""

NO_BOUND = 1 << 30
"""The group of a row that has one scale: a multiple of all block sizes."""


NO_SHIFT = 30
"""Its power of two."""


def _shift(size: int) -> int:
    """
    >>> _shift(128), _shift(384)
    (7, -1)
    """
    return size.bit_length() - 1 if size & (size - 1) == 0 else -1


ROUNDINGS = {None: 0, ActGranularity.TOKEN: 1, ActGranularity.BLOCK: 2}
"""How activations are rounded, as the sizes say it."""


@dataclass(frozen=True)
class Problem:
    """A node and the number of its tokens.

    Attributes:
        operator: which of the domain's.
        layout: of its weight.
        tokens: rows of A.
        dtype: of A: one of `DTYPES`.
        rank: of the branch; 0 without.
        bias: whether there is one.
        int8_u, int8_v: whether the factors are int8; else they are of A's type.
    """

    operator: Operator
    layout: PackedLayout
    tokens: int
    dtype: str
    rank: int = 0
    bias: bool = False
    int8_u: bool = False
    int8_v: bool = False

    @property
    def bits(self) -> int:
        """Bits of a code as the kernels name them."""
        return WHOLE_BYTES if self.layout.whole_bytes else self.layout.bits

    @property
    def granularity(self) -> ActGranularity | None:
        """What int8 activations share a scale; None where activations are floats."""
        return self.operator.act_granularity

    @property
    def parts(self) -> int:
        """Into how many parts the prologue cuts K, so that some sixty blocks share its work."""
        blocks = -(-self.tokens // TOKEN_TILE) * -(-max(self.rank, 1) // RANK_TILE)
        return max(1, min(16, self.k_padded // ROUND_TILE, 64 // max(blocks, 1)))

    @property
    def k_padded(self) -> int:
        """Bytes in a row of int8 codes."""
        return -(-self.layout.k // ROUND_TILE) * ROUND_TILE

    def sizes(self) -> dict[str, int]:
        """Every integer that a kernel takes, or a configuration depends on, by its name.

        >>> from zq2onnx.layout import packed_layout
        >>> from zq2onnx.opset import OPERATORS
        >>> from zq2onnx.scheme import PerBlock
        >>> layout = packed_layout(4096, 11008, 4, PerBlock(128))
        >>> sizes = Problem(OPERATORS["MatMulW4A16"], layout, 1, "fp16").sizes()
        >>> sizes["row_bytes"], sizes["group"], sizes["zero_bytes"], sizes["parts"]
        (2048, 128, 16, 16)
        """
        layout, by_block = self.layout, self.granularity is ActGranularity.BLOCK
        _, k_blocks, block_bytes = layout.codes_shape
        return {
            "bits": self.bits,
            "rounds": ROUNDINGS[self.granularity],
            "M": self.tokens,
            "N": layout.n,
            "K": layout.k,
            "block": layout.block_size,
            "k_blocks": k_blocks,
            "k_padded": self.k_padded,
            "row_bytes": k_blocks * block_bytes,
            "group": layout.block_size * layout.repeat if layout.groups > 1 else NO_BOUND,
            "group_shift": _shift(layout.block_size * layout.repeat) if layout.groups > 1 else NO_SHIFT,
            "groups": layout.groups,
            "zero_bytes": layout.zero_points_shape[1],
            "zero_packed": int(layout.repeat == 1 and not layout.whole_bytes),
            "x_shift": _shift(layout.block_size) if by_block else NO_SHIFT,
            "x_blocks": k_blocks if by_block else 1,
            "rank": self.rank,
            "rank_or_one": max(self.rank, 1),
            "parts": self.parts,
            "has_bias": int(self.bias),
            "u_int8": int(self.int8_u),
            "v_int8": int(self.int8_v),
        }
