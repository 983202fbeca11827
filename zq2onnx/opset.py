"""The operators of the domain `ai.zq2onnx`: names, signatures, attributes and function bodies.

`Y = rnd(A) · deq(B)ᵀ + (A·U)·V + bias`, one operator per weight bits, activation and structure. Each
operator's meaning travels in the model as a function of stock operators, which any ONNX Runtime
inlines; a registered kernel of the same name replaces it.

`rnd` is by the kind of activation, its arithmetic float32 whatever A's type:

    A16      A itself
    A8       each token: `round(a / s) * s`, half to even, with `s = max|a| / 127` over its K channels
    A8Block  the same over each stored block of a token's channels, as `MatMulNBits` does at accuracy
             level 4; a last block that is cut short by K has the maximum of what there is

What has a maximum of 0 stays 0. The branch reads A as it is.

Inputs, in order (`R` is the rank, `A` float32, float16 or bfloat16, called T):

    A            T      [.., K]
    B            uint8  codes, as `zq2onnx.layout` packs them
    scales       T      [N, groups]
    zero_points  uint8  as `zq2onnx.layout` packs them
    bias         T      [N], optional; where 8 bits are stored as half bytes: [2N], the second half zeros
    U            T or int8  [K, R]   with a branch only, as the three below
    V            T or int8  [R, N]
    U_scales     T      [1, R]       ones where U is T
    V_scales     T      [R, 1]

Attributes, all integers: `K`, `N`, `block_size`, `scale_repeat` (blocks that share a stored scale) and
`zero_point_repeat` (pairs of blocks that share a byte of zero points), as `PackedLayout` has them;
where 8 bits are stored as half bytes also `stored_rows = 2N`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zq2onnx.errors import UserError
from zq2onnx.layout import PackedLayout
from zq2onnx.scheme import WEIGHT_BITS, ActGranularity, Activation, Scheme

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
    """One operator of the domain.

    Attributes:
        bits: bits per weight code.
        activation: what the weight is multiplied with.
        lorc: whether it has a branch.
        act_granularity: what int8 activations share a scale; None with A16.
    """

    bits: int
    activation: Activation
    lorc: bool
    act_granularity: ActGranularity | None = None

    @property
    def name(self) -> str:
        """
        >>> Operator(4, Activation.A16, lorc=True).name
        'MatMulW4A16LoRC'
        >>> Operator(4, Activation.A8, lorc=True, act_granularity=ActGranularity.BLOCK).name
        'MatMulW4A8BlockLoRC'
        """
        block = "Block" if self.int8_product else ""
        return f"MatMulW{self.bits}{self.activation.name}{block}{'LoRC' if self.lorc else ''}"

    @property
    def int8_product(self) -> bool:
        """Whether stock kernels multiply int8 activations: those of a stored block share a scale."""
        return self.act_granularity is ActGranularity.BLOCK

    @property
    def whole_bytes(self) -> bool:
        """Whether its codes are stored as `PackedLayout.whole_bytes` says."""
        return self.bits == 8 and self.int8_product

    @property
    def half_bytes(self) -> bool:
        """Whether its codes are stored as `PackedLayout.half_bytes` says."""
        return self.bits == 8 and not self.int8_product

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attribute names in order."""
        return ATTRIBUTES + (("stored_rows",) if self.half_bytes else ())

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input names in order."""
        return MATMUL_INPUTS + (BRANCH_INPUTS if self.lorc else ())


_ACTIVATIONS: tuple[tuple[Activation, ActGranularity | None], ...] = (
    (Activation.A16, None),
    (Activation.A8, ActGranularity.TOKEN),
    (Activation.A8, ActGranularity.BLOCK),
)

OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(bits, activation, lorc, granularity)
        for activation, granularity in _ACTIVATIONS
        for bits in WEIGHT_BITS
        for lorc in (False, True)
    )
}
"""Every operator by its name."""


def operator_for(scheme: Scheme) -> Operator:
    """The operator that carries a scheme.

    Raises:
        UserError: there is none, for its activations have one scale for good.
    """
    granularity = scheme.act_granularity if scheme.activation is Activation.A8 else None
    if granularity is ActGranularity.TENSOR:
        raise UserError(
            "int8 activations with one scale from calibration (act-granularity tensor)",
            "token or block in a portable model",
            "choose one of these, or --target qdq",
        )
    return Operator(scheme.bits, scheme.activation, scheme.lorc_rank > 0, granularity)


def node_attributes(layout: PackedLayout) -> dict[str, int]:
    """A node's attributes, in the order of `Operator.attributes`."""
    rows = {"stored_rows": layout.stored_rows} if layout.half_bytes else {}
    return {
        "K": layout.k,
        "N": layout.n,
        "block_size": layout.block_size,
        "scale_repeat": layout.repeat,
        "zero_point_repeat": layout.zero_point_repeat,
        **rows,
    }


def _nbits(operator: Operator) -> str:
    """MatMulNBits with its attributes.

    Level 0 keeps the activations float, where ONNX Runtime's own default may round them to int8; level 4 is
    int8 by block.
    """
    rows = "@stored_rows" if operator.half_bytes else "@N"
    bits = 8 if operator.whole_bytes else 4
    level = 4 if operator.int8_product else 0
    return (
        f"com.microsoft.MatMulNBits <K: int = @K, N: int = {rows}, bits: int = {bits},"
        f" block_size: int = @block_size, accuracy_level: int = {level}>"
    )


# A stored scale serves `scale_repeat` blocks, a byte of zero points `zero_point_repeat` pairs of blocks.
# One Gather each: ONNX Runtime keeps every intermediate of its folding until it has loaded the model.
_COMMON = """
  zero = Constant <value_int: int = 0> ()
  unit = Constant <value_int: int = 1> ()
  k_blocks_shape = Shape <start = 1, end = 2> (B)
  k_blocks = Squeeze (k_blocks_shape)
  s_times = Constant <value_int: int = @scale_repeat> ()
  blocks = Range (zero, k_blocks, unit)
  s_index = Div (blocks, s_times)
  s = Gather <axis = 1> (scales, s_index)
  z_times = Constant <value_int: int = @zero_point_repeat> ()
"""

_PAIRS = """
  pair = Constant <value_int: int = 2> ()
  k_more = Add (k_blocks, unit)
  z_bytes = Div (k_more, pair)
  pairs = Range (zero, z_bytes, unit)
  z_index = Div (pairs, z_times)
"""

_WHOLE_BYTES = """
  z_index = Div (blocks, z_times)
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


# Scales of tokens that are all zeros, or next to it, are the least normal float32: 0 / 0 is no number.
# QuantizeLinear and DequantizeLinear say the same and take three times as long on ONNX Runtime's CPU.
_ROUND_TOKENS = """
  A_wide = Cast <to = 1> (A)
  channels = Constant <value_ints: ints = [-1]> ()
  steps = Constant <value_float: float = 127.0> ()
  least = Constant <value_float: float = 1.1754944e-38> ()
  A_abs = Abs (A_wide)
  A_max = ReduceMax <keepdims = 1> (A_abs, channels)
  A_step = Div (A_max, steps)
  A_scale = Max (A_step, least)
  A_scaled = Div (A_wide, A_scale)
  A_codes = Round (A_scaled)
  A_float = Mul (A_codes, A_scale)
  A_rounded = CastLike (A_float, A)
"""


def _product(operator: Operator, result: str) -> str:
    """One MatMulNBits. With half bytes it has a row for each, and the halves' results add up."""
    tokens = operator.act_granularity is ActGranularity.TOKEN
    round_tokens, activation = (_ROUND_TOKENS, "A_rounded") if tokens else ("", "A")
    product = f"{round_tokens}  z = Gather <axis = 1> (zero_points, z_index)\n"
    if not operator.half_bytes:
        codes = "B4" if operator.bits in (2, 3) else "B"
        return f'{product}  {result} = {_nbits(operator)} ({activation}, {codes}, s, z, "", bias)\n'
    return f"""
  {product}
  sixteen = Constant <value_float: float = 16.0> ()
  s_float = Cast <to = 1> (s)
  s_product = Mul (s_float, sixteen)
  s_high = CastLike (s_product, s)
  s_both = Concat <axis = 0> (s, s_high)
  Y_both = {_nbits(operator)} ({activation}, B, s_both, z, "", bias)
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
    body = _COMMON + (_WHOLE_BYTES if operator.whole_bytes else _PAIRS) + _UNPACK[operator.bits]
    body += _product(operator, "Q") + _BRANCH if operator.lorc else _product(operator, "Y")
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
