"""Hand-made graphs in ONNX's textual form, and what quantization makes of a weight, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
from onnx import ModelProto, TensorProto, numpy_helper

from zq2onnx.conversion.compute import compute_weight
from zq2onnx.numerics.quantize import quantize_weight
from zq2onnx.opset import GROUP_KEY
from zq2onnx.passes.candidates import Candidate, find_candidates
from zq2onnx.passes.insert_qdq import InsertQdqPass
from zq2onnx.passes.planned import Part, PlannedTensor
from zq2onnx.passes.select_nodes import Policy, Selection, select_nodes
from zq2onnx.passes.trace_weights import all_nodes
from zq2onnx.report import NodeReport
from zq2onnx.scheme import FactorType, PerBlock, Scheme

HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1{more}]>\n'
SCHEME = Scheme(bits=4, granularity=PerBlock(16), lorc_rank=0)
LORC = Scheme(bits=4, granularity=PerBlock(16), lorc_rank=2)
FLOAT_LORC = Scheme(bits=4, granularity=PerBlock(16), lorc_rank=2, lorc_dtype=FactorType.FLOAT)
PRODUCT = "g (float[2, 40] x) => (float[2, 12] y) { y = MatMul(x, w) }"
BIASED = "g (float[2, 40] x) => (float[2, 12] y) { m = MatMul(x, w) y = Add(m, b) }"


def rand(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def proto(
    text: str,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 21,
    domains: tuple[str, ...] = (),
    functions: str = "",
) -> ModelProto:
    """A model of `g (inputs) => (outputs) { nodes }`; every node gets its first output's name.

    Weights become initializers. Where the graph has a Constant node's output of that name, as in
    `w = Constant <value_int = 0> ()`, its value is replaced instead, in subgraphs too.
    """
    more = "".join(f', "{domain}" : 1' for domain in domains)
    model = onnx.parser.parse_model(HEADER.format(opset=opset, more=more) + text + functions)
    given = dict(weights or {})
    _finish(model.graph, given)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in given.items())
    return model


def _finish(graph: onnx.GraphProto, given: dict[str, np.ndarray]) -> None:
    for node in graph.node:
        node.name = node.name or node.output[0]
        if node.op_type == "Constant" and node.output[0] in given:
            del node.attribute[:]
            tensor = numpy_helper.from_array(given.pop(node.output[0]))
            node.attribute.append(onnx.helper.make_attribute("value", tensor))
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _finish(attribute.g, given)


def graph(text: str, weights: Mapping[str, np.ndarray] | None = None, **options: Any) -> ir.Model:
    return ir.from_proto(proto(text, weights, **options))


def candidates(model: ir.Model) -> dict[str, Candidate]:
    return {candidate.node.name or "": candidate for candidate in find_candidates(model)}


def selected(model: ir.Model, policy: Policy | None = None, **said: Any) -> Selection:
    return select_nodes(model, policy or Policy(SCHEME, **said))


def reports(model: ir.Model, **said: Any) -> dict[str, NodeReport]:
    return {report.name: report for report in selected(model, **said).reports}


def structure(model: ir.Model) -> list[str]:
    """Every node as `outputs = Op <attributes> (inputs)`, subgraphs' behind their owner."""
    return [_line(node) for node in all_nodes(model)]


def _line(node: ir.Node) -> str:
    attributes = [
        f"{name}={attribute.value}"
        for name, attribute in node.attributes.items()
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.TENSOR)
    ]
    shown = f" <{', '.join(attributes)}>" if attributes else ""
    domain = f"{node.domain}." if node.domain else ""
    inputs = ", ".join("-" if value is None else str(value.name) for value in node.inputs)
    outputs = ", ".join(str(value.name) for value in node.outputs)
    return f"{outputs} = {domain}{node.op_type}{shown} ({inputs})"


def initializers(model: ir.Model) -> dict[str, str]:
    """Types and shapes, `FLOAT[2,3]`, by name."""
    return {
        name: f"{value.dtype.name}[{','.join(map(str, value.shape.numpy()))}]"  # type: ignore[union-attr]
        for name, value in model.graph.initializers.items()
    }


def groups(model: ir.Model) -> set[str]:
    return {node.metadata_props[GROUP_KEY] for node in all_nodes(model) if GROUP_KEY in node.metadata_props}


def rounded(matrix: np.ndarray, scheme: Scheme, *, branch: bool = True) -> np.ndarray:
    """What `[K, N]` becomes: `(codes - zero points) * scales + U V`, in float64."""
    numbers = quantize_weight(np.ascontiguousarray(matrix.T), scheme, matrix.dtype)
    quantized = numbers.quantized
    size = scheme.granularity.size if isinstance(scheme.granularity, PerBlock) else matrix.shape[0]

    def each(values: np.ndarray) -> np.ndarray:
        return np.repeat(values.astype(np.float64), size, axis=1)[:, : matrix.shape[0]]

    result = ((quantized.codes - each(quantized.zero_points)) * each(quantized.scales)).T
    factors = numbers.factors
    if not branch or factors is None:
        return result
    u, v = factors.u.astype(np.float64), factors.v.astype(np.float64)
    if factors.u_scales is not None:
        u, v = u * factors.u_scales.astype(np.float64), v * factors.v_scales.astype(np.float64)
    return result + u @ v


def rewritten(
    text: str,
    weights: dict[str, np.ndarray],
    scheme: Scheme = SCHEME,
    passes: Sequence[type[ir.passes.PassBase]] = (),
    **said: object,
) -> tuple[ir.Model, Selection]:
    """The model after InsertQdqPass and `passes`; each must modify it, and a second run must not."""
    model = graph(text, weights)
    selection = select_nodes(model, Policy(scheme, **said))  # type: ignore[arg-type]
    for step in (InsertQdqPass(selection), *(kind() for kind in passes)):
        assert step(model).modified, step
        before = structure(model)
        assert not step(model).modified, step
        assert structure(model) == before
    return model, selection


def materialized(model: ir.Model, activation_scale: float = 0.03) -> ModelProto:
    """The model with the numbers of its planned tensors, as the writer computes them."""
    for owner in model.graphs():
        for value in owner.initializers.values():
            part = value.const_value
            if isinstance(part, PlannedTensor):
                value.const_value = _computed(part, activation_scale)
    made = ir.to_proto(model)
    del made.graph.value_info[:]  # what the passes made has no types yet
    return made


def _computed(part: PlannedTensor, activation_scale: float) -> ir.TensorProtocol:
    if part.part is Part.ACT_SCALE:
        return ir.tensor(np.array(activation_scale, part.dtype.numpy()), dtype=part.dtype, name=part.name)
    (data,) = compute_weight(part.weight, [part], "node").contents
    tensor = TensorProto(name=part.name, data_type=part.dtype.value, dims=part.shape.numpy())
    tensor.raw_data = bytes(data)
    return ir.from_proto(tensor)
