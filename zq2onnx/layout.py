"""Packed shapes and bit order of the `ai.zq2onnx` operators: the single owner of both.

A weight `W[N, K]` (one row per output channel) is cut along K in blocks. A block of `b` codes
is stored in `b * bits / 8` bytes, `nib(c)[j] = c[2j] | c[2j+1] << 4`:

bits 4   `nib(c)`: the packing of `com.microsoft::MatMulNBits`
bits 3   three planes of `b/8` bytes; with the quarters q0..q3 of the block, plane i is
         `nib(q_i) | nib(bit i of q3) << 3`
bits 2   `nib(first half) | nib(second half) << 2`
bits 8   `nib(c & 15)` for all N rows, then `nib(c >> 4)` for all N rows: twice the rows; or, as
         *whole bytes*, `c`: the packing of `com.microsoft::MatMulNBits`, of `MatMulW8A8Block` alone

2 and 3 bits become 4-bit `MatMulNBits` blocks by byte-wise operations that ONNX Runtime folds at
load. 8 bits are 4-bit blocks as they lie, of a product that is twice as wide: its halves add up.
Whole bytes would be slow there: ONNX Runtime has no fast 8-bit product of float activations.

*Stored scales* are one per group. Groups of up to 256 weights are blocks. Larger groups and
whole rows are stored once and repeated to blocks by the operator (`scale_repeat`).
"""

from __future__ import annotations

from dataclasses import dataclass

from zq2onnx.scheme import ActGranularity, Activation, Granularity, PerBlock, PerChannel, Scheme

BLOCK_SIZES = (256, 128, 64, 32, 16)
"""Block sizes every stock `MatMulNBits` takes, largest first."""


def row_block(k: int) -> int:
    """The block in which a row of `k` weights with one scale is stored: least padding, then largest.

    >>> row_block(4096), row_block(384), row_block(100), row_block(1)
    (256, 128, 16, 16)
    """
    return min(BLOCK_SIZES, key=lambda block: -(-k // block) * block)


@dataclass(frozen=True)
class PackedLayout:
    """Shapes of one packed weight.

    Attributes:
        k, n: shape of the float weight as the MatMul reads it, `[K, N]`.
        bits: bits per code.
        block_size: codes per stored block, 16 to 256.
        repeat: how many blocks share a stored scale; 1 for groups of up to 256.
        whole_bytes: whether 8-bit codes and zero points are stored as bytes rather than half bytes.
    """

    k: int
    n: int
    bits: int
    block_size: int
    repeat: int
    whole_bytes: bool = False

    @property
    def half_bytes(self) -> bool:
        """Whether a code is stored in two places, its low and its high nibble."""
        return self.bits == 8 and not self.whole_bytes

    @property
    def k_blocks(self) -> int:
        """Blocks in a row; the last is padded with codes that the operator never reads."""
        return -(-self.k // self.block_size)

    @property
    def groups(self) -> int:
        """Stored scales in a row."""
        return -(-self.k_blocks // self.repeat)

    @property
    def stored_rows(self) -> int:
        """Rows of `B` and of `zero_points`: N, or one for each half byte."""
        return self.n * (2 if self.half_bytes else 1)

    @property
    def codes_shape(self) -> tuple[int, int, int]:
        """Shape of `B`, uint8.

        >>> packed_layout(100, 66, 3, PerBlock(32)).codes_shape
        (66, 4, 12)
        >>> packed_layout(100, 66, 8, PerBlock(32)).codes_shape
        (132, 4, 16)
        >>> packed_layout(100, 66, 8, PerBlock(32), whole_bytes=True).codes_shape
        (66, 4, 32)
        """
        stored_bits = 4 if self.half_bytes else self.bits
        return self.stored_rows, self.k_blocks, self.block_size * stored_bits // 8

    @property
    def scales_shape(self) -> tuple[int, int]:
        """Shape of `scales`, in the activations' type.

        >>> packed_layout(4096, 66, 4, PerBlock(1024)).scales_shape
        (66, 4)
        """
        return self.n, self.groups

    @property
    def zero_points_shape(self) -> tuple[int, int]:
        """Shape of `zero_points`, uint8: two nibbles a byte, low first; where scales are repeated
        a byte for each holds its nibble twice. 8 bits: N rows of low nibbles, then N of high; or a
        whole byte for each scale.

        >>> packed_layout(100, 66, 4, PerBlock(32)).zero_points_shape
        (66, 2)
        >>> packed_layout(100, 66, 8, PerBlock(16)).zero_points_shape
        (132, 4)
        >>> packed_layout(4096, 66, 8, PerChannel()).zero_points_shape
        (132, 1)
        >>> packed_layout(4096, 66, 8, PerBlock(1024), whole_bytes=True).zero_points_shape
        (66, 4)
        """
        each = self.whole_bytes or self.repeat > 1
        return self.stored_rows, self.groups if each else (self.groups + 1) // 2

    @property
    def zero_point_repeat(self) -> int:
        """How often the operator repeats a zero-point byte, which holds one block's or two's nibbles."""
        return self.repeat if self.whole_bytes else (self.repeat + 1) // 2


def packed_layout(
    k: int, n: int, bits: int, granularity: Granularity, *, whole_bytes: bool = False
) -> PackedLayout:
    """Lay out a weight.

    A group that spans the whole row is laid out as a row, so that short rows are not padded to it.

    >>> layout = packed_layout(4096, 11008, 4, PerChannel())
    >>> layout.block_size, layout.repeat, layout.groups, layout.zero_points_shape
    (256, 16, 1, (11008, 1))
    >>> packed_layout(96, 8, 4, PerBlock(1024)) == packed_layout(96, 8, 4, PerChannel())
    True
    """
    match granularity:
        case PerBlock(size) if size < k:
            block = min(size, BLOCK_SIZES[0])
            return PackedLayout(k, n, bits, block, size // block, whole_bytes)
        case PerBlock() | PerChannel():
            block = row_block(k)
            return PackedLayout(k, n, bits, block, -(-k // block), whole_bytes)


def scheme_layout(k: int, n: int, scheme: Scheme) -> PackedLayout:
    """Lay out a weight as the operator of its scheme reads it.

    >>> scheme_layout(64, 8, Scheme(bits=8, activation=Activation.A8)).whole_bytes
    False
    """
    blocks = scheme.activation is Activation.A8 and scheme.act_granularity is ActGranularity.BLOCK
    return packed_layout(k, n, scheme.bits, scheme.granularity, whole_bytes=blocks and scheme.bits == 8)
