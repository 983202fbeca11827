"""Quantized weights that are named in a graph and computed only when they are saved."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import onnx_ir as ir

from zq2onnx.layout import PackedLayout, scheme_layout
from zq2onnx.passes.recast import RecastTensor
from zq2onnx.scheme import FactorType, PerBlock, Scheme

EXACT_INT2_MULTIPLE = 4
"""ONNX Runtime fuses 2-bit DequantizeLinear + MatMul wrongly where N is no multiple of this."""


def storage(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """Identity of a tensor's bytes: equal for two names of one region of a file."""
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.path, tensor.offset or 0, tensor.nbytes
    if isinstance(tensor, RecastTensor):
        return *storage(tensor.source), tensor.dtype
    return (id(tensor),)


@dataclass(frozen=True, eq=False)
class WeightView:
    """A constant float matrix `[K, N]` as a MatMul reads it, wherever its bytes are.

    Attributes:
        tensor: the stored tensor, `[K, N]` or, if `transposed`, `[N, K]`; unit dimensions aside.
        name: the stored tensor's name.
        k, n: the matrix's shape as the MatMul reads it.
        transposed: whether the stored order is `[N, K]`.
        scale: factor to multiply the stored values by (Gemm's alpha).
        dtype: float type in which the node reads it.
    """

    tensor: ir.TensorProtocol
    name: str
    k: int
    n: int
    transposed: bool
    scale: float
    dtype: ir.DataType

    @property
    def storage(self) -> tuple[object, ...]:
        """Identity of the stored bytes: equal for two names of one tensor."""
        return storage(self.tensor)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for views that read the same matrix."""
        return *self.storage, self.k, self.n, self.transposed, self.scale, self.dtype


class Part(enum.Enum):
    """What a planned tensor holds of its weight; the value is its name's suffix."""

    CODES = "codes"
    SCALES = "scales"
    ZERO_POINTS = "zero_points"
    U = "lorc_U"
    V = "lorc_V"
    U_SCALES = "lorc_U_scales"
    V_SCALES = "lorc_V_scales"
    ACT_SCALE = "act_scale"
    """The one scale of its int8 activations, which calibration tells."""


FACTORS = (Part.U, Part.V, Part.U_SCALES, Part.V_SCALES)


class Form(enum.Enum):
    """How a weight's codes, scales and zero points are laid out."""

    QDQ = "qdq"
    """`[K, N]`, for `DequantizeLinear` + `MatMul`."""
    PORTABLE = "portable"
    """As `zq2onnx.layout` packs them, for the operators of `ai.zq2onnx`."""
    TABLE = "table"
    """`[rows, width]`, quantized along the width: an embedding. Codes are unsigned."""
    NIBBLES = "nibbles"
    """As `TABLE`, 4 bits in bytes `[rows, ceil(width / 2)]`: first half low, second half high."""


INFIXES = {Form.QDQ: "DQ_", Form.PORTABLE: "", Form.TABLE: "", Form.NIBBLES: "packed_"}


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """One float weight, the scheme it is to be quantized with, and what its tensors are named after.

    Equal where the numbers are, under whatever names: such *twins* are computed and stored once.

    Attributes:
        view: the float weight. An embedding table is read as the transpose of a MatMul's: `n` rows of `k`.
        scheme: how to quantize it.
        name: first part of its tensors' names.
        table: whether it is an embedding.
    """

    view: WeightView
    scheme: Scheme
    name: str
    table: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for twins."""
        return *self.view.key, self.scheme, self.table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuantizedWeight) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def layout(self) -> PackedLayout:
        """Its packed shapes in portable form."""
        return scheme_layout(self.view.k, self.view.n, self.scheme)

    @property
    def groups(self) -> int:
        """Scales in a row."""
        return self.scheme.granularity.groups(self.view.k)

    @property
    def rank(self) -> int:
        """Rank of the branch: what was asked for, or all there is."""
        return min(self.scheme.lorc_rank, self.view.k, self.view.n)

    @property
    def blocked(self) -> bool:
        """Whether scales are per block rather than per row."""
        return isinstance(self.scheme.granularity, PerBlock)


class PlannedTensor(ir.LazyTensor):
    """A tensor with a type, a shape and a place in its weight, but no bytes yet.

    The forms of a weight are named apart, so that two can be in a graph while it is lowered.
    """

    def __init__(
        self, weight: QuantizedWeight, part: Part, form: Form, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> None:
        name = f"{weight.name}_{'' if part in FACTORS else INFIXES[form]}{part.value}"
        super().__init__(_not_yet, dtype=dtype, shape=ir.Shape(shape), name=name)
        self.weight = weight
        self.part = part
        self.form = form

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for tensors that share their place in the file.

        Factors share none: each is moved to the file's end by its own name, and they are small.
        """
        return self.weight, self.part, self.form, self.dtype, self.part in FACTORS and self.name


def _not_yet() -> ir.TensorProtocol:
    raise RuntimeError("a planned tensor is computed when its model is saved")


def qdq_code_type(scheme: Scheme) -> ir.DataType:
    """The type that names codes in the middle form: 2 and 3 bits are named as 4.

    Asymmetric codes are unsigned; symmetric ones signed, without a zero point.
    """
    if scheme.bits == 8:
        return ir.DataType.INT8 if scheme.symmetric else ir.DataType.UINT8
    return ir.DataType.INT4 if scheme.symmetric else ir.DataType.UINT4


def qdq_part(weight: QuantizedWeight, part: Part) -> PlannedTensor:
    """A weight's codes, scales or zero points in `DequantizeLinear`'s shapes."""
    k, n = weight.view.k, weight.view.n
    scales = (weight.groups, n) if weight.blocked else (n,)
    match part:
        case Part.CODES:
            return PlannedTensor(weight, part, Form.QDQ, qdq_code_type(weight.scheme), (k, n))
        case Part.ZERO_POINTS:
            return PlannedTensor(weight, part, Form.QDQ, qdq_code_type(weight.scheme), scales)
        case Part.SCALES:
            return PlannedTensor(weight, part, Form.QDQ, weight.view.dtype, scales)
    raise ValueError(part)


def activation_scale_part(weight: QuantizedWeight) -> PlannedTensor:
    """The scale `[]` of the int8 activations that a weight meets (`ActGranularity.TENSOR`), float32."""
    return PlannedTensor(weight, Part.ACT_SCALE, Form.QDQ, ir.DataType.FLOAT, ())


def portable_part(weight: QuantizedWeight, part: Part) -> PlannedTensor:
    """A weight's codes, scales or zero points as `zq2onnx.layout` packs them."""
    layout = weight.layout
    match part:
        case Part.CODES:
            return PlannedTensor(weight, part, Form.PORTABLE, ir.DataType.UINT8, layout.codes_shape)
        case Part.ZERO_POINTS:
            return PlannedTensor(weight, part, Form.PORTABLE, ir.DataType.UINT8, layout.zero_points_shape)
        case Part.SCALES:
            return PlannedTensor(weight, part, Form.PORTABLE, weight.view.dtype, layout.scales_shape)
    raise ValueError(part)


def factor_part(weight: QuantizedWeight, part: Part) -> PlannedTensor:
    """One of the low-rank factors `U[K, R]`, `V[R, N]` or their scales; the same in every form."""
    rank = weight.rank
    int8 = weight.scheme.lorc_dtype is FactorType.INT8
    factor_type = ir.DataType.INT8 if int8 else weight.view.dtype
    match part:
        case Part.U:
            return PlannedTensor(weight, part, Form.QDQ, factor_type, (weight.view.k, rank))
        case Part.V:
            return PlannedTensor(weight, part, Form.QDQ, factor_type, (rank, weight.view.n))
        case Part.U_SCALES:
            return PlannedTensor(weight, part, Form.QDQ, weight.view.dtype, (1, rank))
        case Part.V_SCALES:
            return PlannedTensor(weight, part, Form.QDQ, weight.view.dtype, (rank, 1))
    raise ValueError(part)


def table_part(weight: QuantizedWeight, part: Part) -> PlannedTensor:
    """An embedding's codes, scales or zero points; they serve both targets.

    Codes are unsigned and zero points present in symmetric schemes too: where they are absent,
    `GatherBlockQuantized` takes 0 for UINT4 and 128 for UINT8.
    """
    rows, width = weight.view.n, weight.view.k
    shape = (rows, width) if part is Part.CODES else (rows, weight.groups)
    codes = ir.DataType.UINT8 if weight.scheme.bits == 8 else ir.DataType.UINT4
    dtype = weight.view.dtype if part is Part.SCALES else codes
    return PlannedTensor(weight, part, Form.TABLE, dtype, shape)


def nibble_part(weight: QuantizedWeight, part: Part) -> PlannedTensor:
    """A 4-bit embedding's codes or zero points in bytes, which ONNX Runtime can gather."""
    columns = -(-weight.view.k // 2) if part is Part.CODES else weight.groups
    return PlannedTensor(weight, part, Form.NIBBLES, ir.DataType.UINT8, (weight.view.n, columns))
