"""Hand-made graphs are cut where one hidden value is alive, and their pieces compute what they do."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.passes.hand_made import rand
from tests.passes.piecewise import (
    FEEDS,
    TWO_LAYERS,
    X,
    Y,
    attention,
    check_whole,
    layer,
    made,
    mlp,
    names,
    products,
)
from zq2onnx.passes.partition import Piece, blocks, partition


def test_layers_that_are_fed_hidden_values() -> None:
    model = made(TWO_LAYERS)
    pieces = partition(model)
    assert products(model) == [4, 2, 4, 2]
    assert [piece.attention for piece in pieces] == [True, False, True, False]
    assert [names(piece.inputs) for piece in pieces] == [{"x"}, {"r0"}, {"h1"}, {"r1"}]
    assert blocks(pieces) == [tuple(pieces[:2]), tuple(pieces[2:])]
    check_whole(model, FEEDS)


def test_two_streams_that_exchange_what_they_know_are_one_piece() -> None:
    streams = "".join(
        f"b{i} = MatMul(t{i}, w) s{i + 1} = Add(s{i}, b{i}) c{i} = MatMul(s{i}, v) t{i + 1} = Add(t{i}, c{i})"
        for i in range(3)
    )
    model = made(f"s0 = MatMul(x, w) t0 = MatMul(x, v) {streams} y = Add(s3, t3)")
    (piece,) = partition(model)
    assert (piece.products, piece.attention) == (8, False)
    assert piece.nodes == tuple(model.graph)
    assert (names(piece.inputs), names(piece.outputs)) == ({"x"}, {"y"})
    assert blocks([piece]) == [(piece,)]
    check_whole(model, FEEDS)


def test_what_shares_the_models_input_is_one_piece_without_a_residual_sum_too() -> None:
    body = attention(0, "x", "r0").replace("r0 = Add(x, o0)", "r0 = Relu(o0)") + "y = MatMul(r0, v)"
    model = made(body)
    assert products(model) == [3, 1, 1]
    check_whole(model, FEEDS)


def test_an_mlp_beside_the_attention_is_in_its_piece() -> None:
    def parallel(i: int) -> str:
        side = mlp(i, f"h{i}", f"z{i}").rsplit("\n", 1)[0]
        return attention(i, f"h{i}", f"r{i}") + side + f" h{i + 1} = Add(r{i}, g{i})"

    model = made("h0 = Identity(x)" + parallel(0) + parallel(1) + "e = Softmax(h2) y = MatMul(e, v)")
    pieces = partition(model)
    assert products(model) == [6, 6, 1]
    assert [len(block) for block in blocks(pieces)] == [1, 1, 1]
    check_whole(model, FEEDS)


def test_a_second_mlp_branch_is_in_the_first_ones_piece() -> None:
    second = "ll = Softmax(r0) ff = MatMul(ll, v) aa = Relu(ff) gg = MatMul(aa, w) y = Add(h1, gg)"
    model = made("h0 = Identity(x)" + attention(0, "h0", "r0") + mlp(0, "r0", "h1") + second)
    assert products(model) == [4, 4]
    assert [len(block) for block in blocks(partition(model))] == [2]
    check_whole(model, FEEDS)


def test_a_norm_behind_the_sum_belongs_to_the_piece_before_it() -> None:
    body = (
        "h0 = Identity(x)" + attention(0, "h0", "r") + "n = Softmax(r)" + mlp(1, "n", "m") + "y = Softmax(m)"
    )
    model = made(body)
    assert [names(piece.outputs) for piece in partition(model)] == [{"n"}, {"y"}]
    assert products(model) == [4, 2]
    check_whole(model, FEEDS)


def test_a_model_inside_a_branch_is_one_piece() -> None:
    inner = attention(0, "x", "r0") + mlp(0, "r0", "h1")
    body = f"""y = If (flag) <
        then_branch = then () => (float[2, 3, 8] h1) {{ {inner} }},
        else_branch = other () => (float[2, 3, 8] n) {{ n = Identity(x) }} >"""
    model = made(body, inputs=f"{X}, bool flag")
    (piece,) = partition(model)
    assert (piece.products, piece.attention) == (1, True)
    check_whole(model, {**FEEDS, "flag": np.array(True)})


def test_constants_are_computed_in_each_piece_that_needs_them() -> None:
    body = "half = Constant <value_float = 0.5> () turned = Transpose(w) scaled = Mul(turned, half)"
    body += "a = MatMul(x, scaled) b = Mul(a, half) c = MatMul(b, v) y = MatMul(c, scaled)"
    model = made(body, outputs=f"{Y}, float[8, 8] turned")
    pieces = partition(model)
    assert [names(piece.nodes) for piece in pieces] == [
        {"half", "turned", "scaled", "a", "b"},
        {"c"},
        {"half", "turned", "scaled", "y"},
    ]
    assert [names(piece.inputs) for piece in pieces] == [{"x"}, {"b"}, {"c"}]
    assert [names(piece.outputs) for piece in pieces] == [{"turned", "b"}, {"c"}, {"y"}]
    check_whole(model, FEEDS)


def test_quantized_products_count_too() -> None:
    body = "d = DequantizeLinear(codes, scale) a = MatMul(x, d) b = Relu(a)"
    body += "y = com.microsoft.MatMulNBits <K = 8, N = 8, bits = 4, block_size = 16> (b, packed, scales)"
    model = made(
        body,
        codes=np.ones((8, 8), np.int8),
        scale=np.float32(0.5),
        packed=np.full((8, 1, 8), 0x9A, np.uint8),
        scales=rand(8, 1),
    )
    assert products(model) == [1, 1]
    check_whole(model, FEEDS)


def test_numbers_that_are_drawn_are_no_constants() -> None:
    body = "noise = RandomNormal <shape = [8]> () a = MatMul(x, w) b = Add(a, noise) y = Mul(b, noise)"
    (piece,) = partition(made(body))
    assert names(piece.nodes) == {"noise", "a", "b", "y"}
    model = made("noise = RandomNormal <shape = [8]> () a = MatMul(x, w) c = MatMul(a, v) y = Add(c, noise)")
    assert ["noise" in names(piece.nodes) for piece in partition(model)] == [False, True]


def test_dead_nodes_are_held_once() -> None:
    model = made("h0 = Identity(x)" + layer(0) + "dead = Relu(r0) dim = Shape(h1) y = Identity(h1)")
    held = [node.name for piece in partition(model) for node in piece.nodes]
    assert held.count("dead") == held.count("dim") == 1
    assert products(model) == [4, 2]


def test_a_graph_without_a_product_is_one_piece() -> None:
    model = made("a = Relu(x) y = Add(a, x)")
    (piece,) = partition(model)
    assert (names(piece.inputs), names(piece.outputs)) == ({"x"}, {"y"})
    assert (piece.products, piece.attention) == (0, False)
    check_whole(model, FEEDS)


def test_a_graph_of_constants_alone_is_one_piece() -> None:
    model = made("y = Identity(w)", inputs="", outputs="float[8, 8] y")
    (piece,) = partition(model)
    assert (piece.inputs, names(piece.outputs)) == ((), {"y"})
    check_whole(model, {})


def test_a_graph_without_nodes_has_no_piece() -> None:
    value = ir.Value(name="x")
    model = ir.Model(ir.Graph([value], [value], nodes=[], opset_imports={"": 21}), ir_version=10)
    assert partition(model) == []
    assert blocks([]) == []


def test_an_mlp_without_an_attention_before_it_is_a_block_of_its_own() -> None:
    def piece(attention: bool, products: int) -> Piece:
        return Piece((), (), (), attention, products)

    a, m, h = piece(True, 4), piece(False, 2), piece(False, 1)
    assert blocks([m, a, m, m, a, h]) == [(m,), (a, m), (m,), (a,), (h,)]
    assert blocks([a, a, m]) == [(a,), (a, m)]


def test_a_deep_graph_needs_no_deep_stack() -> None:
    body = "".join(
        f"a{i} = MatMul(h{i}, w) b{i} = Relu(a{i}) c{i} = MatMul(b{i}, w) h{i + 1} = Add(h{i}, c{i}) "
        for i in range(700)
    )
    assert products(made(f"h0 = Relu(x) {body} y = Identity(h700)")) == [2] * 700
