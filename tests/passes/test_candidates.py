from __future__ import annotations

import numpy as np
import pytest

from tests.passes.hand_made import candidates, graph, rand, reports
from zq2onnx.opset import GROUP_KEY
from zq2onnx.passes.candidates import SCOPES_KEY, module_path
from zq2onnx.passes.normalize import NormalizePass
from zq2onnx.passes.planned import WeightView

SQUARE = rand(8, 8)


@pytest.mark.parametrize(
    "tail",
    [
        "logits = MatMul(x, w)",
        "m = MatMul(x, w) logits = Add(m, b)",
        "m = MatMul(x, w) a = Mul(m, b) c = Cast <to = 1> (a) logits = Reshape(c, s)",
    ],
)
def test_what_becomes_the_logits_is_the_lm_head(tail: str) -> None:
    model = graph(
        f"g (float[2, 8] x) => (float[2, 8] logits) {{ {tail} }}",
        {"w": SQUARE, "b": rand(8), "s": np.array([2, 8])},
    )
    assert [found.role for found in candidates(model).values()] == ["lm_head"]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2, 8] x) => (float[2, 8] y) { y = MatMul(x, w) }",
        "g (float[2, 8] x) => (float[2, 8] logits) { m = MatMul(x, w) logits = Softmax(m) }",
        "g (float[2, 8] x) => (logits, z) { m = MatMul(x, w) logits = Add(m, b) z = Relu(m) }",
    ],
)
def test_what_does_not_is_not(text: str) -> None:
    model = graph(text, {"w": SQUARE, "b": rand(8)})
    assert [found.role for found in candidates(model).values()] == [""]


def test_a_matmul_that_reads_an_embeddings_bytes_is_the_lm_head() -> None:
    model = graph(
        "g (int64[2] ids) => (y) { h = Gather(table, ids) t = Transpose(table) y = MatMul(h, t) }",
        {"table": rand(30, 8)},
    )
    assert {name: (found.role, found.tied) for name, found in candidates(model).items()} == {
        "h": ("embedding", True),
        "y": ("lm_head", True),
    }


@pytest.mark.parametrize(
    ("gather", "table", "found"),
    [
        ("Gather(w, ids)", rand(30, 8), (30, 8)),
        ("Gather <axis = -2> (w, ids)", rand(30, 8), (30, 8)),
        ("Gather <axis = 1> (w, ids)", rand(30, 8), None),
        ("Gather <axis = -1> (w, ids)", rand(30, 8), None),
        ("Gather(w, ids)", rand(30), None),
        ("Gather(w, ids)", rand(30, 8, 2), None),
        ("Gather(w, ids)", np.ones((30, 8), np.int64), None),
        ("Gather(w, one)", rand(30, 8), "it looks up a single row"),
    ],
)
def test_tables(gather: str, table: np.ndarray, found: object) -> None:
    model = graph(f"g (int64[2] ids, int64 one) => (y) {{ y = {gather} }}", {"w": table})
    views = [
        (found.view.k, found.view.n) if isinstance(found.view, WeightView) else found.view
        for found in candidates(model).values()
    ]
    assert views == ([] if found is None else [found])


def test_a_table_behind_a_cast_and_one_that_is_transposed() -> None:
    model = graph(
        "g (int64[2] ids) => (y, z) "
        "{ c = Cast <to = 1> (half) y = Gather(c, ids) t = Transpose(w) z = Gather(t, ids) }",
        {"half": rand(30, 8, dtype=np.float16), "w": rand(8, 30)},
    )
    views = [found.view for found in candidates(model).values()]
    assert [(view.k, view.n, view.transposed) for view in views if isinstance(view, WeightView)] == [
        (30, 8, False),
        (30, 8, True),
    ]


SKIPPED = {
    "its constant is the left operand": "y = MatMul(w, x)",
    "both operands are activations": "y = MatMul(x, x)",
    "its activation is a vector": "y = MatMul(v, w)",
    "com.microsoft::FusedMatMul was fused before; export without fusion to quantize it": (
        "y = com.microsoft.FusedMatMul <alpha = 0.5> (x, w)"
    ),
    "com.microsoft::Attention was fused before; export without fusion to quantize it": (
        "y = com.microsoft.Attention <num_heads = 2> (x, w, b)"
    ),
    "com.microsoft::MoE was fused before; export without fusion to quantize it": (
        "y = com.microsoft.MoE(x, x, stack, , stack)"
    ),
    "already quantized (QMoE)": "y = com.microsoft.QMoE(x, x, codes, b)",
    "already quantized (MatMulNBits)": (
        "y = com.microsoft.MatMulNBits <K = 8, N = 8, bits = 4, block_size = 16> (x, codes, b)"
    ),
    "already quantized (MatMulInteger)": "y = MatMulInteger(x, codes)",
    "already quantized (MatMulW4A16)": "y = ai.zq2onnx.MatMulW4A16(x, codes, b, codes)",
    "Conv is not rewritten": "y = Conv(x, stack)",
    "Einsum is not rewritten": 'y = Einsum <equation = "ij,jk"> (x, w)',
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_reasons(reason: str) -> None:
    model = graph(
        f"g (float[8, 8] x, float[8] v) => (y) {{ {SKIPPED[reason]} }}",
        {"w": SQUARE, "b": rand(8), "stack": rand(2, 8, 8), "codes": np.ones((8, 8), np.uint8)},
        domains=("ai.zq2onnx",),
    )
    assert {name: found.view for name, found in candidates(model).items()} == {"y": reason}


@pytest.mark.parametrize(
    "node",
    [
        "y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (x, x, x, , , n, n, w, w)",
        "y = com.microsoft.SkipLayerNormalization(x, x, b)",
        "y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x, b)",
        'y = Einsum <equation = "ij,jk"> (x, x)',
        "y = LayerNormalization(x, b)",
        "y = Add(x, w)",
    ],
)
def test_operators_without_a_weight_are_not_listed(node: str) -> None:
    model = graph(f"g (float[8, 8] x, int32[1] n) => (y) {{ {node} }}", {"w": SQUARE, "b": rand(8)})
    assert candidates(model) == {}


def test_a_fused_product_of_activations_is_no_lost_weight() -> None:
    model = graph("g (float[8, 8] x) => (y) { y = com.microsoft.FusedMatMul(x, x) }")
    assert candidates(model)["y"].view == "both operands are activations"


@pytest.mark.parametrize("reader", ["MatMul(x, d)", "Gather(d, i)"])
def test_dequantized_weights_and_tables_are_quantized_already(reader: str) -> None:
    model = graph(
        f"g (float[2, 8] x, int64[2] i) => (y) {{ d = DequantizeLinear(w, s) y = {reader} }}",
        {"w": np.ones((8, 8), np.int8), "s": np.float32(0.1).reshape(())},
    )
    assert candidates(model)["y"].view == "already quantized (DequantizeLinear)"


def test_a_group_is_one_entry() -> None:
    model = graph("g (float[2, 8] x) => (y) { m = MatMul(x, w) y = Add(m, b) }", {"w": SQUARE, "b": rand(8)})
    for node in model.graph:
        node.metadata_props[GROUP_KEY] = "m"
    assert [found.view for found in candidates(model).values()] == ["already quantized (MatMul)"]


@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        ("['', 'decoder', 'decoder.layers.0.fc1', 'linear_4']", "decoder.layers.0.fc1"),
        ("['', 'linear']", ""),
        ("['linear']", ""),
        ("decoder.fc1", "decoder.fc1"),
        ("'one'", "'one'"),
        (None, ""),
    ],
)
def test_module_path_is_the_last_scope_but_the_node_itself(scopes: str | None, path: str) -> None:
    node = graph("g (float[2, 8] x) => (y) { y = MatMul(x, w) }", {"w": SQUARE}).graph.node(0)
    if scopes is not None:
        node.metadata_props[SCOPES_KEY] = scopes
    assert module_path(node) == path


def test_subgraphs_are_descended_into() -> None:
    model = graph(
        "g (float[2, 8] x, bool c) => (y) { y = If (c) <then_branch = yes () => (a) { a = MatMul(x, w) },"
        " else_branch = no () => (d) { v = Constant <value_int = 0> () d = MatMul(x, v) }> }",
        {"w": SQUARE, "v": rand(8, 8, seed=1)},
    )
    found = candidates(model)
    assert {name: getattr(each.view, "name", each.view) for name, each in found.items()} == {
        "a": "w",
        "d": "v",
    }


FUNCTION = """
<domain: "local", opset_import: ["" : {}]>
Linear (x, w) => (y) {{ t = Transpose(w) y = MatMul(x, t) }}
"""


def test_local_functions_are_inlined() -> None:
    model = graph(
        "g (float[2, 8] x) => (z) { y = local.Linear(x, w) z = local.Linear(y, w) }",
        {"w": SQUARE},
        domains=("local",),
        functions=FUNCTION.format(21),
    )
    assert NormalizePass()(model).modified
    assert sorted(report.op for report in reports(model).values()) == ["MatMul", "MatMul"]
    assert [report.status.value for report in reports(model).values()] == ["quantized"] * 2
    assert not model.functions


def test_a_local_function_of_another_opset_is_named_as_skipped() -> None:
    model = graph(
        "g (float[2, 8] x) => (z) { z = local.Linear(x, w) }",
        {"w": SQUARE},
        domains=("local",),
        functions=FUNCTION.format(17),
    )
    NormalizePass()(model)
    assert reports(model)["z"].reason == "the local function local::Linear cannot be inlined"
    assert len(model.functions) == 1


def test_an_initializer_that_is_a_graph_input_is_a_weight_once_normalized() -> None:
    model = graph("g (float[2, 8] x, float[8, 8] w) => (y) { y = MatMul(x, w) }", {"w": SQUARE})
    NormalizePass()(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert isinstance(candidates(model)["y"].view, WeightView)
