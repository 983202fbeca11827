"""Hand-made layers, and a run of a model's pieces one by one, compared with the whole."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from tests.passes.hand_made import graph, rand
from zq2onnx.passes.partition import partition
from zq2onnx.passes.trace_hidden import trace_flow

Feeds = dict[str, np.ndarray]
WIDTH = 8
X = "float[2, 3, 8] x"
Y = "float[2, 3, 8] y"


def weights(*names: str) -> dict[str, np.ndarray]:
    return {name: rand(WIDTH, WIDTH, seed=seed) / 4 for seed, name in enumerate(names)}


W = weights("w", "v")
FEEDS = {"x": rand(2, 3, WIDTH, seed=9)}


def attention(i: int, x: str, out: str, keys: str = "", mask: str = "") -> str:
    """A residual attention without heads: `out = x + attention(norm(x))`; keys and values of `keys`."""
    masked = f"Add(p{i}, {mask})" if mask else f"Identity(p{i})"
    return f"""
        n{i} = Softmax ({x}) q{i} = MatMul(n{i}, w) k{i} = MatMul({keys or f"n{i}"}, v)
        v{i} = MatMul({keys or f"n{i}"}, w) t{i} = Transpose <perm = [0, 2, 1]> (k{i})
        p{i} = MatMul(q{i}, t{i}) m{i} = {masked} s{i} = Softmax(m{i}) c{i} = MatMul(s{i}, v{i})
        o{i} = MatMul(c{i}, w) {out} = Add({x}, o{i})"""


def mlp(i: int, x: str, out: str) -> str:
    return f"""
        l{i} = Softmax({x}) f{i} = MatMul(l{i}, w) a{i} = Relu(f{i}) g{i} = MatMul(a{i}, v)
        {out} = Add({x}, g{i})"""


def layer(i: int, **options: str) -> str:
    return attention(i, f"h{i}", f"r{i}", **options) + mlp(i, f"r{i}", f"h{i + 1}")


def made(body: str, inputs: str = X, outputs: str = Y, **constants: np.ndarray) -> ir.Model:
    return graph(f"g ({inputs}) => ({outputs}) {{ {body} }}", {**W, **constants})


def products(model: ir.Model) -> list[int]:
    return [piece.products for piece in partition(model)]


TWO_LAYERS = "h0 = Identity(x)" + layer(0) + layer(1) + "y = Identity(h2)"


def names(values: Iterable[ir.Value | ir.Node]) -> set[str | None]:
    return {value.name for value in values}


def run(
    model: ir.Model, nodes: Iterable[ir.Node], inputs: Feeds, outputs: Iterable[ir.Value | str]
) -> list[np.ndarray]:
    """Run some of a model's nodes by themselves, unoptimized; an input's type is that of its array."""
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    nodes, reads = list(nodes), trace_flow(model).reads
    read = {value for node in nodes for value in reads[node]}
    constants = [value for value in read if value.is_initializer() and value.name not in inputs]
    wanted = [value if isinstance(value, str) else value.name or "" for value in outputs]
    made = helper.make_graph(
        [ir.serde.serialize_node(node) for node in nodes],
        "piece",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
            for name, array in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [numpy_helper.from_array(value.const_value.numpy(), value.name) for value in constants],  # type: ignore[union-attr]
    )
    imports = [helper.make_opsetid(*item) for item in model.opset_imports.items()]
    proto = helper.make_model(made, ir_version=10, opset_imports=imports)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(wanted, inputs))


def chained(model: ir.Model, feeds: Feeds) -> list[np.ndarray]:
    """The model's outputs, computed piece by piece; a piece is given its inputs and nothing else."""
    made = dict(feeds)
    for piece in partition(model):
        inputs = {value.name or "": made[value.name or ""] for value in piece.inputs}
        made.update(
            zip(
                [value.name or "" for value in piece.outputs],
                run(model, piece.nodes, inputs, piece.outputs),
                strict=True,
            )
        )
    return [made[value.name or ""] for value in model.graph.outputs]


def check_whole(model: ir.Model, feeds: Feeds) -> None:
    """Every node is in one piece (constants in one or more), and the pieces are the model."""
    pieces = partition(model)
    constant = trace_flow(model).constant
    held = [node for piece in pieces for node in piece.nodes]
    assert set(held) == set(model.graph)
    computed = [node for node in held if not constant.issuperset(node.outputs)]
    assert len(computed) == len(set(computed))
    for piece in pieces:
        assert constant.isdisjoint(piece.inputs)
        order = [node for node in model.graph if node in set(piece.nodes)]
        assert list(piece.nodes) == order
    expected = run(model, model.graph, feeds, model.graph.outputs)
    for array, reference in zip(chained(model, feeds), expected, strict=True):
        assert array.dtype == reference.dtype
        np.testing.assert_array_equal(array, reference)
