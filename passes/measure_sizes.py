"""Measures what every weight of a graph takes, from shapes and types alone: no weight is read."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from zq2onnx.opset import BRANCH_INPUTS, DOMAIN, GROUP_KEY, MATMUL_INPUTS, MICROSOFT
from zq2onnx.passes.planned import PlannedTensor, storage
from zq2onnx.passes.trace_weights import STEP_OPS, constant_tensor, is_standard, tensor_attributes

_LINEAR = ("MatMul", "Gemm")
_FUSED_LINEAR = ("FusedMatMul", "FusedGemm")
_WEIGHT_INPUTS = tuple(i for i, name in enumerate(MATMUL_INPUTS + BRANCH_INPUTS) if name not in ("A", "bias"))
_NBITS_WEIGHT_INPUTS = (1, 2, 3, 4)


class Kind(enum.Enum):
    """What a weight is to the model."""

    FLOAT_LINEAR = "float linear"
    QUANTIZED_LINEAR = "quantized linear"
    EMBEDDING = "embedding"
    QUANTIZED_EMBEDDING = "quantized embedding"
    OTHER = "other"


@dataclass(frozen=True)
class WeightSize:
    """What one node's weight takes.

    Attributes:
        node: the node's name; the replaced node's where the passes wrote a group of nodes.
        op: the node's operator type.
        kind: what the weight is.
        weights: numbers in the weight, those of scales, zero points and factors not counted.
        bits: bits per weight, with scales, zero points and factors.
        bytes: all of it in bytes, a tensor that an earlier entry counted left out.
    """

    node: str
    op: str
    kind: Kind
    weights: int
    bits: float
    bytes: int


def measure_sizes(model: ir.Model) -> list[WeightSize]:
    """Measure every constant of the model, in graph order; each tensor is counted once.

    A weight shared by several nodes belongs to the first of them (so a linear layer tied to an
    embedding is the embedding's); the others have no entry. What is neither a linear layer's nor an
    embedding's weight (norms, biases, and so on) comes last, as `Kind.OTHER`, under its first reader.
    """
    ledger = _Ledger()
    groups: dict[str, list[ir.Node]] = {}
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        if key := _group(node):
            groups.setdefault(key, []).append(node)
    for node in nodes:
        if key := _group(node):
            if members := groups.pop(key, None):
                _measure_group(key, members, ledger)
        else:
            _measure_node(node, ledger)
    for graph in model.graphs():
        for value in graph.initializers.values():
            _measure_rest(value, ledger)
    return ledger.entries


def bits_per_weight(model: ir.Model) -> float | None:
    """Bits of codes, scales, zero points and factors per quantized weight, linear layers' and embeddings';
    of a model without any, those of its float linear layers; None where there are none either."""
    sizes = measure_sizes(model)
    for kinds in ((Kind.QUANTIZED_LINEAR, Kind.QUANTIZED_EMBEDDING), (Kind.FLOAT_LINEAR,)):
        of_kind = [size for size in sizes if size.kind in kinds]
        if weights := sum(size.weights for size in of_kind):
            return 8 * sum(size.bytes for size in of_kind) / weights
    return None


def file_bytes(path: Path) -> int:
    """Bytes of a model file and of every external-data file that it names, each counted once.

    Raises:
        OSError: one of the files does not exist.
    """
    model = ir.load(path)
    files = {
        path.parent / tensor.location for tensor in _tensors(model) if isinstance(tensor, ir.ExternalTensor)
    }
    return path.stat().st_size + sum(file.stat().st_size for file in {file.resolve() for file in files})


class _Ledger:
    """The entries so far and the tensors that they have counted."""

    def __init__(self) -> None:
        self.entries: list[WeightSize] = []
        self._counted: set[object] = set()

    def count(self, name: str, op: str, kind: Kind, sources: list[ir.Value], weights: int) -> None:
        """Add an entry for the tensors behind `sources`, unless all of them were counted before."""
        fresh = {key: value for value in sources if (key := _identity(value)) not in self._counted}
        if not fresh:
            return
        self._counted.update(fresh)
        size = sum(_tensor(value).nbytes for value in fresh.values())
        self.entries.append(WeightSize(name, op, kind, weights, 8 * size / weights if weights else 0.0, size))


def _measure_group(key: str, members: list[ir.Node], ledger: _Ledger) -> None:
    """Several nodes that stand for one: the largest tensor is the weight, the others its company."""
    sources: list[ir.Value] = []
    for node in members:
        if node.domain in (DOMAIN, MICROSOFT):
            return _measure_node(node, ledger, key)
        if is_standard(node, "DequantizeLinear"):
            sources += _behind(node.outputs[0])
        elif is_standard(node, *_LINEAR):
            sources += _sources(node, (0, 1))
        elif is_standard(node, "Gather"):
            sources += _sources(node, (0,))
    if not sources:
        return None
    embedding = any(is_standard(node, "Gather") for node in members)
    kind = Kind.QUANTIZED_EMBEDDING if embedding else Kind.QUANTIZED_LINEAR
    # Where a lookup shifts its bytes, they are two 4-bit codes each.
    packed = 2 if embedding and any(is_standard(node, "BitShift") for node in members) else 1
    weights = packed * max(_tensor(value).size for value in sources)
    return ledger.count(key, "Gather" if embedding else "MatMul", kind, sources, weights)


def _measure_node(node: ir.Node, ledger: _Ledger, name: str = "") -> None:
    """A node that holds its weight alone."""
    name = name or node.name or ""
    product = node.attributes.get_int("K", 0) * node.attributes.get_int("N", 0)
    linear, embedding = Kind.QUANTIZED_LINEAR, Kind.QUANTIZED_EMBEDDING
    match node.domain, node.op_type:
        case (domain, op) if domain == DOMAIN:
            ledger.count(name, op, linear, _sources(node, _WEIGHT_INPUTS), product)
        case (domain, "MatMulNBits" as op) if domain == MICROSOFT:
            ledger.count(name, op, linear, _sources(node, _NBITS_WEIGHT_INPUTS), product)
        case (domain, "GatherBlockQuantized" as op) if domain == MICROSOFT:
            ledger.count(name, op, embedding, _sources(node, (0, 2, 3)), _table_size(node))
        case (domain, op) if is_standard(node, *_LINEAR) or (domain == MICROSOFT and op in _FUSED_LINEAR):
            _measure_plain(node, _linear_sources(node), Kind.FLOAT_LINEAR, linear, ledger)
        case _ if is_standard(node, "Gather") and node.attributes.get_int("axis", 0) == 0:
            _measure_plain(node, _sources(node, (0,)), Kind.EMBEDDING, embedding, ledger)


def _measure_plain(
    node: ir.Node, sources: list[ir.Value], plain: Kind, rounded: Kind, ledger: _Ledger
) -> None:
    """A MatMul, Gemm or Gather: quantized if integers and their scales are what it reads."""
    if not sources:
        return
    weight = max((_tensor(value) for value in sources), key=lambda tensor: tensor.size)
    is_float = all(_tensor(value).dtype.is_floating_point() for value in sources)
    # Integers alone are indices and shapes, vectors are biases: both are nobody's weight.
    if len(weight.shape) >= 2 and (is_float or len(sources) > 1):
        kind = plain if is_float else rounded
        ledger.count(node.name or "", node.op_type, kind, sources, weight.size)


def _measure_rest(value: ir.Value, ledger: _Ledger) -> None:
    """An initializer that no rule above has claimed."""
    tensor = value.const_value
    if tensor is None or tensor.dtype is ir.DataType.STRING:
        return
    reader = next((use.node for use in value.uses()), None)
    name, op = (value.name, "") if reader is None else (reader.name, reader.op_type)
    ledger.count(name or "", op, Kind.OTHER, [value], tensor.size)


def _sources(node: ir.Node, inputs: tuple[int, ...]) -> list[ir.Value]:
    """The constants behind some of a node's inputs; inputs that are absent or computed give none."""
    return [source for i in inputs if i < len(node.inputs) for source in _behind(node.inputs[i])]


def _linear_sources(node: ir.Node) -> list[ir.Value]:
    """The constants of a product's weight: the right-hand side, or a matrix on the left."""
    return _sources(node, (1,)) or [
        source for source in _sources(node, (0,)) if len(_tensor(source).shape) == 2
    ]


def _behind(value: ir.Value | None) -> list[ir.Value]:
    """The constants that a value is made of by casts, changes of shape and dequantization."""
    if value is None:
        return []
    if _stored(value) is not None:
        return [value]
    node = value.producer()
    if node is None:
        return []
    if is_standard(node, "DequantizeLinear"):
        return _sources(node, (0, 1, 2)) if _behind(node.inputs[0]) else []
    if is_standard(node, "Mul") and all(_behind(source) for source in node.inputs):
        return _sources(node, (0, 1))  # an integer factor and its scales
    return _behind(node.inputs[0]) if is_standard(node, *STEP_OPS, "CastLike") else []


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of a value that `_behind` returned."""
    tensor = _stored(value)
    assert tensor is not None
    return tensor


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    """A constant's tensor, or an input's default value: the file holds both."""
    return value.const_value if value.is_initializer() else constant_tensor(value)


def _identity(value: ir.Value) -> object:
    """Equal for values of the same bytes."""
    tensor = _tensor(value)
    if isinstance(tensor, PlannedTensor):
        return tensor.key
    return storage(tensor) if isinstance(tensor, ir.ExternalTensor) else id(value)


def _table_size(node: ir.Node) -> int:
    """Weights in a GatherBlockQuantized's table; uint8 data packs several to a byte."""
    sources = _sources(node, (0,))
    if not sources:
        return 0
    table = _tensor(sources[0])
    packed = 8 // node.attributes.get_int("bits", 4) if table.dtype is ir.DataType.UINT8 else 1
    return table.size * packed


def _group(node: ir.Node) -> str:
    """The name of the node that this one replaces in part, or ""."""
    return node.metadata_props.get(GROUP_KEY, "")


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of the model: initializers, and attributes of nodes, in subgraphs and functions too."""
    for graph in model.graphs():
        yield from (
            value.const_value for value in graph.initializers.values() if value.const_value is not None
        )
    for _, attribute in tensor_attributes(model):
        single = attribute.type is ir.AttributeType.TENSOR
        yield from [attribute.as_tensor()] if single else attribute.as_tensors()
