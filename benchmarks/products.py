"""Models of products to be timed: MatMuls of one kind, each with weights of its own, none of any meaning.

Weights lie in a file beside the models, so that ONNX Runtime maps them as it does a converted model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from zq2onnx.layout import PackedLayout, packed_layout
from zq2onnx.opset import DOMAIN, DOMAIN_VERSION, MICROSOFT, Operator, function_proto, node_attributes
from zq2onnx.scheme import PerBlock

ALIGNMENT = 64


@dataclass(frozen=True)
class Shape:
    """A weight's shape, and how many of a row's weights share a scale."""

    k: int
    n: int
    group: int


@dataclass(frozen=True)
class FloatMatMul:
    """A stock `MatMul` of floats."""


@dataclass(frozen=True)
class StockNBits:
    """A `com.microsoft::MatMulNBits` with zero points; level 0 has float activations, level 4 int8 ones."""

    bits: int
    level: int


@dataclass(frozen=True)
class OurMatMul:
    """A node of ours, and the rank of its branch if it has one: int8 factors, as `convert` writes them."""

    operator: Operator
    rank: int = 0


Kind = FloatMatMul | StockNBits | OurMatMul


class WeightFile:
    """External data that grows by random initializers; floats are of `dtype`."""

    def __init__(self, path: Path, dtype: Any = np.float32) -> None:
        self.path = path
        self.dtype = dtype
        self.file = path.open("wb")
        self.rng = np.random.default_rng(0)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: Any, mask: int = 255) -> TensorProto:
        """Append a tensor: bytes of the mask's bits, int8 factors, or small positive floats."""
        if dtype == np.uint8:
            array = self.rng.integers(0, 256, shape, np.uint8)
            if mask != 255:
                array &= np.uint8(mask)
        elif dtype == np.int8:
            array = self.rng.integers(-127, 128, shape, np.int8)
        else:
            array = self.rng.random(shape, np.float32) * np.float32(0.001) + np.float32(0.001)
            array = array.astype(dtype, copy=False)
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        proto = TensorProto(name=name, dims=shape, data_location=TensorProto.EXTERNAL)
        proto.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        place = {"location": self.path.name, "offset": self.file.tell(), "length": array.nbytes}
        for key, value in place.items():
            proto.external_data.add(key=key, value=str(value))
        self.file.write(array.data)
        return proto


def layout_of(kind: StockNBits | OurMatMul, shape: Shape) -> PackedLayout:
    """How a kind's weight is stored. A `MatMulNBits` has 8-bit codes as whole bytes."""
    whole = kind.operator.whole_bytes if isinstance(kind, OurMatMul) else kind.bits == 8
    bits = kind.operator.bits if isinstance(kind, OurMatMul) else kind.bits
    return packed_layout(shape.k, shape.n, bits, PerBlock(shape.group), whole_bytes=whole)


def packed_shapes(kind: StockNBits | OurMatMul, shape: Shape) -> tuple[tuple[int, ...], ...]:
    """Shapes of the codes, scales and zero points. Those of a `MatMulNBits` are dense, and flat."""
    layout = layout_of(kind, shape)
    if isinstance(kind, OurMatMul):
        return layout.codes_shape, layout.scales_shape, layout.zero_points_shape
    n, blocks = layout.n, layout.k_blocks
    codes = (n, blocks, layout.block_size * kind.bits // 8)
    return codes, (n * blocks,), (n * -(-blocks * kind.bits // 8),)


def stored_bytes(kind: Kind, shape: Shape) -> int:
    """Bytes of one product's codes, scales and zero points; of the weight, where it is float."""
    if isinstance(kind, FloatMatMul):
        return 4 * shape.k * shape.n
    codes, scales, zero_points = (math.prod(each) for each in packed_shapes(kind, shape))
    return codes + 4 * scales + zero_points


def add_product(
    weights: WeightFile, kind: Kind, shape: Shape, at: int, activation: str
) -> tuple[NodeProto, list[TensorProto]]:
    """The product number `at`, which reads `activation` and writes `Y{at}`, and its weights."""
    output = f"Y{at}"
    if isinstance(kind, FloatMatMul):
        weight = weights.tensor(f"W{at}", (shape.k, shape.n), weights.dtype)
        return helper.make_node("MatMul", [activation, weight.name], [output]), [weight]
    layout = layout_of(kind, shape)
    codes, scales, zero_points = packed_shapes(kind, shape)
    if isinstance(kind, StockNBits):
        name, domain, mask = "MatMulNBits", MICROSOFT, 255
        attributes: dict[str, Any] = {
            "K": shape.k,
            "N": shape.n,
            "bits": kind.bits,
            "block_size": layout.block_size,
        }
        attributes["accuracy_level"] = kind.level
    else:
        name, domain, attributes = kind.operator.name, DOMAIN, node_attributes(layout)
        mask = {2: 0x33, 3: 0x77}.get(layout.bits, 255)  # a zero point is a code, in a nibble of its own
    tensors = [
        weights.tensor(f"B{at}", codes, np.uint8),
        weights.tensor(f"scales{at}", scales, weights.dtype),
        weights.tensor(f"zero_points{at}", zero_points, np.uint8, mask),
    ]
    inputs = [activation, *(tensor.name for tensor in tensors)]
    if isinstance(kind, OurMatMul) and kind.operator.lorc:
        factors = _factors(weights, at, shape, kind.rank)
        inputs += ["", *(tensor.name for tensor in factors)]
        tensors += factors
    return helper.make_node(name, inputs, [output], domain=domain, **attributes), tensors


def _factors(weights: WeightFile, at: int, shape: Shape, rank: int) -> list[TensorProto]:
    return [
        weights.tensor(f"U{at}", (shape.k, rank), np.int8),
        weights.tensor(f"V{at}", (rank, shape.n), np.int8),
        weights.tensor(f"U_scales{at}", (1, rank), weights.dtype),
        weights.tensor(f"V_scales{at}", (rank, 1), weights.dtype),
    ]


def write_models(
    folder: Path,
    kind: Kind,
    shape: Shape,
    counts: list[int],
    *,
    one_activation: bool = False,
    dtype: Any = np.float32,
) -> list[Path]:
    """Models of so many products each, over one file of weights.

    Args:
        folder: where they go; an older file of weights there is unlinked, and stays with who mapped it.
        one_activation: whether all products of a model read `A`, rather than `A0`, `A1` and so on. Equal
            steps on one activation would be merged by ONNX Runtime: its rounding, say.
        dtype: of activations, scales and float weights.
    """
    (folder / "weights.data").unlink(missing_ok=True)
    weights = WeightFile(folder / "weights.data", dtype)
    paths = []
    for index, count in enumerate(counts):
        activations = ["A"] if one_activation else [f"A{at}" for at in range(count)]
        products = [
            add_product(weights, kind, shape, at, activations[0 if one_activation else at])
            for at in range(count)
        ]
        paths.append(folder / f"{index}.onnx")
        onnx.save(_model(kind, shape, activations, products, dtype), paths[-1])
    weights.file.close()
    return paths


def _model(
    kind: Kind,
    shape: Shape,
    activations: list[str],
    products: list[tuple[NodeProto, list[TensorProto]]],
    dtype: Any,
) -> onnx.ModelProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def values(names: list[str], width: int) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, element, ["tokens", width]) for name in names]

    graph = helper.make_graph(
        [node for node, _ in products],
        "products",
        values(activations, shape.k),
        values([node.output[0] for node, _ in products], shape.n),
        [tensor for _, tensors in products for tensor in tensors],
    )
    imports = [helper.make_opsetid(*item) for item in (("", 21), (DOMAIN, DOMAIN_VERSION), (MICROSOFT, 1))]
    functions = [function_proto(kind.operator)] if isinstance(kind, OurMatMul) else []
    return helper.make_model(graph, ir_version=10, opset_imports=imports, functions=functions)
