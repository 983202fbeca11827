"""Sizes of hand-made graphs, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.operator_model import operator_model, random_constants
from zq2onnx.layout import packed_layout
from zq2onnx.opset import GROUP_KEY, MICROSOFT, OPERATORS
from zq2onnx.passes.measure_sizes import Kind, WeightSize, bits_per_weight, file_bytes, measure_sizes
from zq2onnx.scheme import PerBlock, PerChannel

K, N, BLOCK = 64, 24, 32


def graph(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> ir.Model:
    """A model of these nodes; a constant is an array, or a (type, shape) of which no byte exists."""
    initializers = []
    for name, constant in constants.items():
        if isinstance(constant, np.ndarray):
            initializers.append(numpy_helper.from_array(constant, name))
            continue
        tensor = TensorProto(name=name, data_type=constant[0], dims=constant[1])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="absent.data")
        tensor.external_data.add(key="offset", value=str(4096 * len(initializers)))
        initializers.append(tensor)
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "sizes", [x], [output], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return ir.from_proto(helper.make_model(made, ir_version=10, opset_imports=opsets))


def node(op: str, inputs: list[str], output: str, *, group: str = "", **attributes: Any) -> onnx.NodeProto:
    made = helper.make_node(op, inputs, [output], name=f"{output}_node", **attributes)
    if group:
        made.metadata_props.add(key=GROUP_KEY, value=group)
    return made


def weights_of(model: ir.Model) -> list[WeightSize]:
    return [size for size in measure_sizes(model) if size.kind is not Kind.OTHER]


def test_float_linears_however_their_weight_is_reached() -> None:
    """Nothing is read: the external data does not exist."""
    model = graph(
        [
            node("MatMul", ["x", "plain"], "a"),
            node("Cast", ["half"], "half_wide", to=TensorProto.FLOAT),
            node("Transpose", ["half_wide"], "turned"),
            node("MatMul", ["a", "turned"], "b"),
            node("Gemm", ["b", "gemm", "bias"], "c", transB=1),
            node("MatMul", ["c", "c"], "d"),
            node("Mul", ["d", "gain"], "e"),
        ],
        {
            "plain": (TensorProto.FLOAT, [K, N]),
            "half": (TensorProto.FLOAT16, [K, N]),
            "gemm": (TensorProto.BFLOAT16, [N, K]),
            "bias": (TensorProto.FLOAT, [N]),
            "gain": (TensorProto.FLOAT, [N]),
        },
    )
    size = K * N
    assert measure_sizes(model) == [
        WeightSize("a_node", "MatMul", Kind.FLOAT_LINEAR, size, 32, 4 * size),
        WeightSize("b_node", "MatMul", Kind.FLOAT_LINEAR, size, 16, 2 * size),
        WeightSize("c_node", "Gemm", Kind.FLOAT_LINEAR, size, 16, 2 * size),
        WeightSize("c_node", "Gemm", Kind.OTHER, N, 32, 4 * N),
        WeightSize("e_node", "Mul", Kind.OTHER, N, 32, 4 * N),
    ]
    assert bits_per_weight(model) == pytest.approx((32 + 16 + 16) / 3)


def test_a_constant_nodes_weight_counts_and_a_matrix_on_the_left_too() -> None:
    value = numpy_helper.from_array(np.zeros((K, N), np.float16))
    model = graph(
        [
            node("Constant", [], "w", value=value),
            node("MatMul", ["x", "w"], "a"),
            node("MatMul", ["left", "a"], "b"),
            node("MatMul", ["row", "b"], "c"),
        ],
        {"left": (TensorProto.FLOAT, [3, 5]), "row": (TensorProto.FLOAT, [1, 4, 1])},
    )
    kinds = [(size.node, size.kind, size.bytes) for size in measure_sizes(model)]
    assert kinds == [
        ("a_node", Kind.FLOAT_LINEAR, 2 * K * N),
        ("b_node", Kind.FLOAT_LINEAR, 60),
        ("c_node", Kind.OTHER, 16),
    ]


def test_shared_weights_are_counted_once_and_a_tied_head_is_the_embeddings() -> None:
    model = graph(
        [
            node("Gather", ["table", "ids"], "a"),
            node("MatMul", ["a", "w"], "b"),
            node("MatMul", ["b", "w"], "c"),
            node("Transpose", ["table"], "turned"),
            node("MatMul", ["c", "turned"], "d"),
        ],
        {
            "table": (TensorProto.FLOAT, [100, N]),
            "w": (TensorProto.FLOAT, [N, N]),
            "ids": np.arange(5),
        },
    )
    assert weights_of(model) == [
        WeightSize("a_node", "Gather", Kind.EMBEDDING, 100 * N, 32, 400 * N),
        WeightSize("b_node", "MatMul", Kind.FLOAT_LINEAR, N * N, 32, 4 * N * N),
    ]


def test_lookups_of_shapes_and_vectors_are_no_embeddings() -> None:
    model = graph(
        [node("Gather", ["sizes", "i"], "a"), node("Gather", ["vector", "i"], "b")],
        {"sizes": np.zeros((4, 4), np.int64), "vector": np.zeros(9, np.float32), "i": np.array(0)},
    )
    assert weights_of(model) == []
    assert bits_per_weight(model) is None


@pytest.mark.parametrize("granularity", [PerBlock(32), PerBlock(64), PerChannel()])
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_our_operators_count_all_but_the_bias(name: str, granularity: PerBlock | PerChannel) -> None:
    operator = OPERATORS[name]
    layout = packed_layout(100, 66, operator.bits, granularity, whole_bytes=operator.whole_bytes)
    constants = random_constants(operator, layout, np.random.default_rng(0))
    model = ir.from_proto(operator_model(operator, layout, constants))
    total = sum(array.nbytes for key, array in constants.items() if key != "bias")
    assert measure_sizes(model) == [
        WeightSize("layer/MatMul", name, Kind.QUANTIZED_LINEAR, 6600, 8 * total / 6600, total),
        WeightSize("layer/MatMul", name, Kind.OTHER, layout.stored_rows, 32, 4 * layout.stored_rows),
    ]
    assert bits_per_weight(model) == 8 * total / 6600


def test_stock_microsoft_nodes() -> None:
    blocks = K // BLOCK
    model = graph(
        [
            node(
                "GatherBlockQuantized",
                ["table", "ids", "table_s", "table_z"],
                "a",
                domain=MICROSOFT,
                bits=4,
            ),
            node(
                "MatMulNBits",
                ["a", "codes", "s", "z", "", "bias"],
                "b",
                domain=MICROSOFT,
                K=K,
                N=N,
                bits=4,
                block_size=BLOCK,
            ),
            node("MatMul", ["b", "float"], "c"),
        ],
        {
            "table": (TensorProto.UINT8, [10, K // 2]),
            "table_s": (TensorProto.FLOAT16, [10, blocks]),
            "table_z": (TensorProto.UINT8, [10, blocks // 2]),
            "ids": np.arange(3),
            "codes": (TensorProto.UINT8, [N, blocks, BLOCK // 2]),
            "s": (TensorProto.FLOAT, [N, blocks]),
            "z": (TensorProto.UINT8, [N, 1]),
            "bias": (TensorProto.FLOAT, [N]),
            "float": (TensorProto.FLOAT, [N, N]),
        },
    )
    table, linear = 10 * (K // 2 + 2 * blocks + blocks // 2), N * (K // 2 + 4 * blocks + 1)
    assert weights_of(model) == [
        WeightSize(
            "a_node", "GatherBlockQuantized", Kind.QUANTIZED_EMBEDDING, 10 * K, 8 * table / (10 * K), table
        ),
        WeightSize("b_node", "MatMulNBits", Kind.QUANTIZED_LINEAR, K * N, 8 * linear / (K * N), linear),
        WeightSize("c_node", "MatMul", Kind.FLOAT_LINEAR, N * N, 32, 4 * N * N),
    ]
    # Per rewritten weight, as a conversion's report says it: the float layer is not mixed in.
    assert bits_per_weight(model) == 8 * (table + linear) / (10 * K + K * N)


@pytest.mark.parametrize(("element", "width"), [(TensorProto.UINT4, 10), (TensorProto.INT8, 10)])
def test_an_unpacked_table_counts_its_elements(element: int, width: int) -> None:
    model = graph(
        [node("GatherBlockQuantized", ["table", "ids", "s"], "a", domain=MICROSOFT)],
        {"table": (element, [6, width]), "ids": np.arange(3), "s": (TensorProto.FLOAT, [6, 1])},
    )
    size = 6 * width // (2 if element == TensorProto.UINT4 else 1) + 24
    assert weights_of(model) == [
        WeightSize("a_node", "GatherBlockQuantized", Kind.QUANTIZED_EMBEDDING, 60, 8 * size / 60, size)
    ]


def test_a_group_of_qdq_nodes_is_one_weight_with_all_its_company() -> None:
    rank = 2
    blocked = {"axis": 0, "block_size": BLOCK}
    model = graph(
        [
            node("DequantizeLinear", ["codes", "s", "z"], "w", group="fc", **blocked),
            node("MatMul", ["x", "w"], "product", group="fc"),
            node("DequantizeLinear", ["u", "u_s"], "u_wide", group="fc"),
            node("MatMul", ["x", "u_wide"], "down", group="fc"),
            node("Cast", ["v"], "v_cast", group="fc", to=TensorProto.FLOAT),
            node("Mul", ["v_cast", "v_s"], "v_wide", group="fc"),
            node("MatMul", ["down", "v_wide"], "up", group="fc"),
            node("Add", ["product", "up"], "sum", group="fc"),
            node("Add", ["sum", "bias"], "y", group="fc"),
        ],
        {
            "codes": (TensorProto.UINT4, [K, N]),
            "s": (TensorProto.FLOAT, [K // BLOCK, N]),
            "z": (TensorProto.UINT4, [K // BLOCK, N]),
            "u": (TensorProto.INT8, [K, rank]),
            "u_s": (TensorProto.FLOAT, [rank]),
            "v": (TensorProto.INT8, [rank, N]),
            "v_s": (TensorProto.FLOAT, [rank, 1]),
            "bias": (TensorProto.FLOAT, [N]),
        },
    )
    total = K * N // 2 + (K // BLOCK) * N * 4 + K // BLOCK * N // 2 + rank * (K + 4 + N + 4)
    assert weights_of(model) == [
        WeightSize("fc", "MatMul", Kind.QUANTIZED_LINEAR, K * N, 8 * total / (K * N), total)
    ]
    assert [size.node for size in measure_sizes(model)] == ["fc", "y_node"]


def test_a_group_of_lookups_is_an_embedding() -> None:
    model = graph(
        [
            node("Gather", ["codes", "ids"], "c", group="embed"),
            node("Gather", ["s", "ids"], "s_row", group="embed"),
            node("DequantizeLinear", ["c", "s_row"], "y", group="embed", axis=-1, block_size=BLOCK),
        ],
        {
            "codes": (TensorProto.INT8, [10, K]),
            "s": (TensorProto.FLOAT, [10, K // BLOCK]),
            "ids": np.arange(3),
        },
    )
    total = 10 * (K + 4 * K // BLOCK)
    assert weights_of(model) == [
        WeightSize("embed", "Gather", Kind.QUANTIZED_EMBEDDING, 10 * K, 8 * total / (10 * K), total)
    ]


def test_a_lookup_of_packed_bytes_counts_two_codes_to_a_byte() -> None:
    model = graph(
        [
            node("Gather", ["codes", "ids"], "bytes", group="embed"),
            node("BitwiseAnd", ["bytes", "mask"], "low", group="embed"),
            node("BitShift", ["bytes", "four"], "high", group="embed", direction="RIGHT"),
            node("Concat", ["low", "high"], "c", group="embed", axis=-1),
            node("Gather", ["s", "ids"], "s_row", group="embed"),
            node("DequantizeLinear", ["c", "s_row"], "y", group="embed", axis=-1, block_size=BLOCK),
        ],
        {
            "codes": (TensorProto.UINT8, [10, K // 2]),
            "s": (TensorProto.FLOAT, [10, K // BLOCK]),
            "ids": np.arange(3),
            "mask": np.array(15, np.uint8),
            "four": np.array(4, np.uint8),
        },
    )
    total = 10 * (K // 2 + 4 * K // BLOCK)
    assert weights_of(model) == [
        WeightSize("embed", "Gather", Kind.QUANTIZED_EMBEDDING, 10 * K, 8 * total / (10 * K), total)
    ]


def test_qdq_of_other_tools_is_recognised_and_activation_qdq_is_not_a_weight() -> None:
    model = graph(
        [
            node("QuantizeLinear", ["x", "x_s"], "x_q"),
            node("DequantizeLinear", ["x_q", "x_s"], "x_dq"),
            node("DequantizeLinear", ["codes", "s"], "w"),
            node("MatMul", ["x_dq", "w"], "y"),
        ],
        {
            "x_s": np.array(0.1, np.float32),
            "codes": (TensorProto.INT8, [K, N]),
            "s": np.array(0.1, np.float32),
        },
    )
    size = K * N + 4
    assert weights_of(model) == [
        WeightSize("y_node", "MatMul", Kind.QUANTIZED_LINEAR, K * N, 8 * size / (K * N), size)
    ]


def test_a_weight_in_a_subgraph_counts() -> None:
    output = helper.make_tensor_value_info("a", TensorProto.FLOAT, None)
    inner = numpy_helper.from_array(np.zeros((K, N), np.float32), "inner")
    branch = helper.make_graph([node("MatMul", ["x", "inner"], "a")], "then", [], [output], [inner])
    other = helper.make_graph(
        [node("MatMul", ["x", "outer"], "b")],
        "else",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    model = graph(
        [node("If", ["condition"], "y", then_branch=branch, else_branch=other)],
        {"condition": np.array(True), "outer": (TensorProto.FLOAT16, [K, N])},
    )
    sizes = [(size.node, size.bytes) for size in weights_of(model)]
    assert sorted(sizes) == [("a_node", 4 * K * N), ("b_node", 2 * K * N)]


def test_file_bytes_counts_every_file_once(tmp_path: Path) -> None:
    arrays = {name: np.zeros((40, 40), np.float32) for name in ("u", "v", "w")}
    nodes = [
        node("MatMul", ["x", "u"], "a"),
        node("MatMul", ["a", "v"], "b"),
        node("MatMul", ["b", "w"], "c"),
    ]
    proto = ir.to_proto(graph(nodes, arrays))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    assert file_bytes(path) == path.stat().st_size
    for initializer, location in zip(
        proto.graph.initializer, ("one.data", "one.data", "two.data"), strict=True
    ):
        onnx.external_data_helper.set_external_data(initializer, location)
    onnx.save(proto, path)
    files = [path, tmp_path / "one.data", tmp_path / "two.data"]
    assert files[1].stat().st_size == 2 * 6400
    assert file_bytes(path) == sum(file.stat().st_size for file in files)
    files[2].unlink()
    with pytest.raises(FileNotFoundError):
        file_bytes(path)
