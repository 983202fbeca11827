"""The operators of the domain `ai.zq2onnx`: names, signatures, attributes and function bodies.

`Y = A · deq(B)ᵀ + (A·U)·V + bias`, one operator per weight bits, activation and structure. Each
operator's meaning travels in the model as a function of stock operators, which any ONNX Runtime
inlines; a registered kernel of the same name replaces it.

Inputs, in order (`R` is the rank, `A` float32, float16 or bfloat16, called T):

    A            T      [.., K]
    B            uint8  codes, as `zq2onnx.layout` packs them
    scales       T      [N, groups]
    zero_points  uint8  as `zq2onnx.layout` packs them
    bias         T      [N], optional
    U            T or int8  [K, R]   with a branch only, as the three below
    V            T or int8  [R, N]
    U_scales     T      [1, R]       ones where U is T
    V_scales     T      [R, 1]

Attributes: `K`, `N`, `block_size` and the repeats of `PackedLayout`, as shapes to `Expand` by:
`scale_repeat = [1, 1, r]`, `zero_point_repeat = [1, 1, ceil(r / 2)]`.
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


def node_attributes(layout: PackedLayout) -> dict[str, int | list[int]]:
    """A node's attributes, in the order of `ATTRIBUTES`."""
    return {
        "K": layout.k,
        "N": layout.n,
        "block_size": layout.block_size,
        "scale_repeat": [1, 1, layout.repeat],
        "zero_point_repeat": [1, 1, layout.zero_point_repeat],
    }


# Level 0 keeps the activations float; ONNX Runtime's own default may round them to int8.
_NBITS = (
    "com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = 4,"
    " block_size: int = @block_size, accuracy_level: int = 0>"
)

_COMMON = """
  first = Constant <value_ints: ints = [0]> ()
  unit = Constant <value_ints: ints = [1]> ()
  pair = Constant <value_ints: ints = [2]> ()
  last = Constant <value_ints: ints = [-1]> ()
  flat = Constant <value_ints: ints = [0, -1]> ()
  k_blocks = Shape <start = 1, end = 2> (B)
  s_times = Constant <value_ints: ints = @scale_repeat> ()
  s_stored = Unsqueeze (scales, last)
  s_wide = Expand (s_stored, s_times)
  s_flat = Reshape (s_wide, flat)
  s = Slice (s_flat, first, k_blocks, unit)
  z_times = Constant <value_ints: ints = @zero_point_repeat> ()
  k_more = Add (k_blocks, unit)
  z_bytes = Div (k_more, pair)
"""


def _repeat_zero_points(source: str, target: str) -> str:
    return f"""
  {target}_stored = Unsqueeze ({source}, last)
  {target}_wide = Expand ({target}_stored, z_times)
  {target}_flat = Reshape ({target}_wide, flat)
  {target} = Slice ({target}_flat, first, z_bytes, unit)
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
    8: """
  B_low, B_high = Split <axis = -1, num_outputs = 2> (B)
  zero_points_low, zero_points_high = Split <axis = -1, num_outputs = 2> (zero_points)
""",
}


def _product(bits: int, result: str) -> str:
    """The MatMulNBits nodes: one for 2 to 4 bits, two (low and high nibbles) for 8."""
    if bits != 8:
        codes = "B" if bits == 4 else "B4"
        return _repeat_zero_points("zero_points", "z") + (
            f'  {result} = {_NBITS} (A, {codes}, s, z, "", bias)\n'
        )
    return (
        _repeat_zero_points("zero_points_low", "z_low")
        + _repeat_zero_points("zero_points_high", "z_high")
        + f"""
  f16 = Constant <value_float: float = 16.0> ()
  sixteen = CastLike (f16, s)
  s_high = Mul (s, sixteen)
  Y_low = {_NBITS} (A, B_low, s, z_low, "", bias)
  Y_high = {_NBITS} (A, B_high, s_high, z_high)
  {result} = Add (Y_low, Y_high)
"""
    )


# Cast and Mul fold to float; a DequantizeLinear here would become an int8 product (level 4).
_BRANCH = """
  U_cast = CastLike (U, A)
  U_float = Mul (U_cast, U_scales)
  V_cast = CastLike (V, A)
  V_float = Mul (V_cast, V_scales)
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
        f"{operator.name} <{', '.join(ATTRIBUTES)}> ({', '.join(operator.inputs)}) => (Y)\n"
        f"{{\n{lines}\n}}\n"
    )


@functools.cache
def function_proto(operator: Operator, opset: int = 21) -> onnx.FunctionProto:
    """The operator's body as a model-local function. Do not modify what is returned."""
    import onnx.parser

    return onnx.parser.parse_function(function_text(operator, opset))
