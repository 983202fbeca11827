"""The operators of the domain `ai.zq2onnx`: names, signatures, attributes and function bodies.

`Y = A · deq(B)ᵀ + (A·U)·V + bias`, one operator per weight bits, activation and structure. Each
operator's meaning travels in the model as a function of stock operators, which any ONNX Runtime
inlines; a registered kernel of the same name replaces it.

Inputs, in order (`R` is the rank, `A` float32, float16 or bfloat16, called T):

    A            T      [.., K]
    B            uint8  codes, as `zq2onnx.layout` packs them
    scales       T      [N, groups]
    zero_points  uint8  as `zq2onnx.layout` packs them
    bias         T      [N], optional; 8 bits: [2N], the second half zeros
    U            T or int8  [K, R]   with a branch only, as the three below
    V            T or int8  [R, N]
    U_scales     T      [1, R]       ones where U is T
    V_scales     T      [R, 1]

Attributes, all integers: `K`, `N`, `block_size`, `scale_repeat` (blocks that share a stored scale) and
`zero_point_repeat` (pairs of blocks that share a byte of zero points), as `PackedLayout` has them;
with 8 bits also `stored_rows = 2N`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zq2onnx.layout import PackedLayout
from zq2onnx.scheme import WEIGHT_BITS, Activation, Scheme

if TYPE_CHECKING:
    import onnx

DOMAIN = "ai.zq2onnx"
DOMAIN_VERSION = 1
MICROSOFT = "com.microsoft"

FLOAT_ACTIVATIONS = {"session.qdq_matmulnbits_accuracy_level": "0"}
"""Session configuration that a qdq model needs: ONNX Runtime's own default of level 4 rounds the
activations to int8."""

GROUP_KEY = "ai.zq2onnx.group"
"""Key in `metadata_props` of every node that the passes wrote; its value is the name of the node
that the group replaces. A group reads one activation and has one output."""

MATMUL_INPUTS = ("A", "B", "scales", "zero_points", "bias")
BRANCH_INPUTS = ("U", "V", "U_scales", "V_scales")
ATTRIBUTES = ("K", "N", "block_size", "scale_repeat", "zero_point_repeat")


@dataclass(frozen=True)
class Operator:
    """One operator of the domain."""

    bits: int
    activation: Activation
    lorc: bool

    @property
    def name(self) -> str:
        """
        >>> Operator(4, Activation.A16, lorc=True).name
        'MatMulW4A16LoRC'
        """
        return f"MatMulW{self.bits}{self.activation.name}{'LoRC' if self.lorc else ''}"

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attribute names in order."""
        return ATTRIBUTES + (("stored_rows",) if self.bits == 8 else ())

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input names in order."""
        return MATMUL_INPUTS + (BRANCH_INPUTS if self.lorc else ())


OPERATORS = {
    operator.name: operator
    for operator in (Operator(bits, Activation.A16, lorc) for bits in WEIGHT_BITS for lorc in (False, True))
}
"""Every operator by its name."""


def operator_for(scheme: Scheme) -> Operator:
    """The operator that carries a scheme."""
    return Operator(scheme.bits, scheme.activation, scheme.lorc_rank > 0)


def node_attributes(layout: PackedLayout) -> dict[str, int]:
    """A node's attributes, in the order of `Operator.attributes`."""
    rows = {"stored_rows": layout.stored_rows} if layout.bits == 8 else {}
    return {
        "K": layout.k,
        "N": layout.n,
        "block_size": layout.block_size,
        "scale_repeat": layout.repeat,
        "zero_point_repeat": layout.zero_point_repeat,
        **rows,
    }


# Level 0 keeps the activations float; ONNX Runtime's own default may round them to int8.
_NBITS = (
    "com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = 4,"
    " block_size: int = @block_size, accuracy_level: int = 0>"
)

# A stored scale serves `scale_repeat` blocks, a byte of zero points `zero_point_repeat` pairs of blocks.
# One Gather each: ONNX Runtime keeps every intermediate of its folding until it has loaded the model.
_COMMON = """
  zero = Constant <value_int: int = 0> ()
  unit = Constant <value_int: int = 1> ()
  pair = Constant <value_int: int = 2> ()
  k_blocks_shape = Shape <start = 1, end = 2> (B)
  k_blocks = Squeeze (k_blocks_shape)
  s_times = Constant <value_int: int = @scale_repeat> ()
  blocks = Range (zero, k_blocks, unit)
  s_index = Div (blocks, s_times)
  s = Gather <axis = 1> (scales, s_index)
  z_times = Constant <value_int: int = @zero_point_repeat> ()
  k_more = Add (k_blocks, unit)
  z_bytes = Div (k_more, pair)
  pairs = Range (zero, z_bytes, unit)
  z_index = Div (pairs, z_times)
"""


_UNPACK = {
    4: "",
    3: """
  one = Constant <value: tensor = uint8 {1}> ()
  two = Constant <value: tensor = uint8 {2}> ()
  three = Constant <value: tensor = uint8 {3}> ()
  m11 = Constant <value: tensor = uint8 {17}> ()
  m22 = Constant <value: tensor = uint8 {34}> ()
  m44 = Constant <value: tensor = uint8 {68}> ()
  m77 = Constant <value: tensor = uint8 {119}> ()
  p0, p1, p2 = Split <axis = -1, num_outputs = 3> (B)
  t0 = BitShift <direction = "RIGHT"> (p0, three)
  e0 = BitwiseAnd (t0, m11)
  t1 = BitShift <direction = "RIGHT"> (p1, two)
  e1 = BitwiseAnd (t1, m22)
  t2 = BitShift <direction = "RIGHT"> (p2, one)
  e2 = BitwiseAnd (t2, m44)
  e01 = BitwiseOr (e0, e1)
  last_quarter = BitwiseOr (e01, e2)
  first_quarters = BitwiseAnd (B, m77)
  B4 = Concat <axis = -1> (first_quarters, last_quarter)
""",
    2: """
  two = Constant <value: tensor = uint8 {2}> ()
  m33 = Constant <value: tensor = uint8 {51}> ()
  first_half = BitwiseAnd (B, m33)
  shifted = BitShift <direction = "RIGHT"> (B, two)
  second_half = BitwiseAnd (shifted, m33)
  B4 = Concat <axis = -1> (first_half, second_half)
""",
    8: "",
}


def _product(bits: int, result: str) -> str:
    """One MatMulNBits. With 8 bits it has a row for each half byte, and the halves' results add up."""
    product = "z = Gather <axis = 1> (zero_points, z_index)\n"
    if bits != 8:
        codes = "B4" if bits in (2, 3) else "B"
        return f'  {product}  {result} = {_NBITS} (A, {codes}, s, z, "", bias)\n'
    return f"""
  {product}
  sixteen = Constant <value_float: float = 16.0> ()
  s_float = Cast <to = 1> (s)
  s_product = Mul (s_float, sixteen)
  s_high = CastLike (s_product, s)
  s_both = Concat <axis = 0> (s, s_high)
  Y_both = {_NBITS.replace("@N", "@stored_rows")} (A, B, s_both, z, "", bias)
  Y_low, Y_high = Split <axis = -1, num_outputs = 2> (Y_both)
  {result} = Add (Y_low, Y_high)
"""


# Products of constants are float32's: ONNX Runtime's CPU has no Mul of float16 or bfloat16 to fold them
# with, and 1.20 and 1.24 compute nonsense from float16 scales that are not constant.
# Cast and Mul fold to float; a DequantizeLinear here would become an int8 product (level 4).
_BRANCH = """
  U_wide = Cast <to = 1> (U)
  U_scales_wide = Cast <to = 1> (U_scales)
  U_product = Mul (U_wide, U_scales_wide)
  U_float = CastLike (U_product, A)
  V_wide = Cast <to = 1> (V)
  V_scales_wide = Cast <to = 1> (V_scales)
  V_product = Mul (V_wide, V_scales_wide)
  V_float = CastLike (V_product, A)
  T = MatMul (A, U_float)
  L = MatMul (T, V_float)
  Y = Add (Q, L)
"""


def function_text(operator: Operator, opset: int = 21) -> str:
    """The operator's body in ONNX's textual form, for a model of the given opset (21 or later)."""
    body = _COMMON + _UNPACK[operator.bits]
    if operator.lorc:
        body += _product(operator.bits, "Q") + _BRANCH
    else:
        body += _product(operator.bits, "Y")
    lines = "\n".join(line for line in body.splitlines() if line)
    return (
        f'<\n  domain: "{DOMAIN}",\n  opset_import: ["" : {opset}, "{MICROSOFT}" : 1]\n>\n'
        f"{operator.name} <{', '.join(operator.attributes)}> ({', '.join(operator.inputs)}) => (Y)\n"
        f"{{\n{lines}\n}}\n"
    )


@functools.cache
def function_proto(operator: Operator, opset: int = 21) -> onnx.FunctionProto:
    """The operator's body as a model-local function. Do not modify what is returned."""
    import onnx.parser

    return onnx.parser.parse_function(function_text(operator, opset))
