"""Masks, positions, shapes and an encoder's output are no hidden values: pieces hand them on as they are."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.hand_made import rand
from tests.passes.piecewise import (
    FEEDS,
    TWO_LAYERS,
    WIDTH,
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
from zq2onnx.passes.partition import partition


def test_an_encoders_output_and_a_mask_are_side_values_of_a_decoder() -> None:
    cross = attention(5, "r0", "z0", keys="e") + mlp(5, "z0", "h1")
    again = attention(1, "h1", "r1", mask="bias") + attention(6, "r1", "z1", keys="e") + mlp(6, "z1", "y")
    body = "bias = Log(mask) h0 = Identity(x)" + attention(0, "h0", "r0", mask="bias") + cross + again
    model = made(body, inputs=f"{X}, float[2, 4, 8] e, float[3] mask")
    pieces = partition(model)
    assert products(model) == [4, 4, 2] * 2
    assert names(pieces[3].inputs) == {"h1", "bias"}
    assert names(pieces[4].inputs) == {"r1", "e"}
    check_whole(model, {**FEEDS, "e": rand(2, 4, WIDTH, seed=3), "mask": np.array([1, 1, 0.1], np.float32)})


EMBEDDED = "tokens = Gather(table, ids) places = Gather(positions, at) h0 = Add(tokens, places)"
LOOKED_UP = {
    "rotary angles": "turn = Gather(angles, at)",
    "rotary angles, as products": "pos = Cast <to = 1> (at) row = Unsqueeze(pos, i) turn = MatMul(row, inv)",
    "a bias of positions": "near = Sub(at, at) turn = Gather(angles, near)",
}


@pytest.mark.parametrize("lookup", LOOKED_UP)
def test_what_all_layers_look_up_is_no_hidden_value(lookup: str) -> None:
    turned = [layer(i).replace(f"MatMul(q{i}, t{i})", f"Rotated{i}") for i in range(2)]
    turned = [text.replace(f"Rotated{i}", f"MatMul(u{i}, t{i})") for i, text in enumerate(turned)]
    turned = [text.replace(f"k{i} = ", f"u{i} = Mul(q{i}, turn) k{i} = ") for i, text in enumerate(turned)]
    tables = {"table": rand(20, WIDTH), "positions": rand(5, WIDTH), "angles": rand(5, WIDTH)}
    model = made(
        EMBEDDED + LOOKED_UP[lookup] + "".join(turned) + "y = Identity(h2)",
        inputs="int64[2, 3] ids, int64[3] at",
        i=np.array([1]),
        inv=rand(1, WIDTH, seed=4),
        **tables,
    )
    pieces = partition(model)
    assert products(model) == [4, 2, 4, 2]
    assert names(pieces[0].inputs) == {"ids", "at"}
    assert names(pieces[2].inputs) == {"h1", "turn"}
    check_whole(model, {"ids": np.array([[1, 2, 3], [4, 5, 6]]), "at": np.array([0, 1, 2])})


def test_a_shape_of_a_hidden_value_is_handed_on_and_the_value_is_not() -> None:
    """The second layer reads the shape of what the first was fed, at the end of the node list."""
    late = "size = Shape(r0) flat = Reshape(h1, minus) back = Reshape(flat, size)"
    body = "h0 = Relu(x)" + layer(0) + late + layer(1).replace("h1", "back") + "y = Identity(h2)"
    model = made(body, minus=np.array([-1]))
    pieces = partition(model)
    assert products(model) == [4, 2, 4, 2]
    assert [names(piece.inputs) for piece in pieces] == [{"x"}, {"r0"}, {"back"}, {"r1"}]
    check_whole(model, FEEDS)
    body = "h0 = Relu(x)" + layer(0) + "size = Shape(r0)" + layer(1) + "y = Expand(h2, size)"
    model = made(body)
    pieces = partition(model)
    assert [names(piece.inputs) for piece in pieces] == [{"x"}, {"r0"}, {"h1"}, {"r1", "size"}]
    assert names(pieces[1].outputs) == {"size", "h1"}
    check_whole(model, FEEDS)


def test_keys_that_are_only_laid_out_anew_at_the_end_hide_no_cut() -> None:
    ends = "".join(f"present{i} = Transpose <perm = [0, 2, 1]> (k{i}) " for i in range(2))
    outputs = f"{Y}, float[2, 8, 3] present0, float[2, 8, 3] present1"
    model = made(TWO_LAYERS + ends, outputs=outputs)
    pieces = partition(model)
    assert products(model) == [4, 2, 4, 2]
    assert names(pieces[0].outputs) == {"r0", "present0"}
    assert names(pieces[2].outputs) == {"r1", "present1"}
    check_whole(model, FEEDS)


BRANCHES = """chosen = If (flag) <
    then_branch = then () => (float[2, 3, 8] p) { i = MatMul(r0, v) p = Add(i, side) },
    else_branch = other () => (float[2, 3, 8] n) { n = Mul(r0, side) } >"""


def test_what_a_subgraph_reads_is_an_input_of_its_piece() -> None:
    body = "side = Exp(z) h0 = Identity(x)" + layer(0).replace("Softmax(r0)", "Softmax(chosen)")
    body = body.replace("l0 =", f"{BRANCHES} l0 =") + "w2 = MatMul(h1, w) y = Add(w2, side)"
    model = made(body, inputs=f"{X}, float[8] z, bool flag")
    pieces = partition(model)
    assert products(model) == [4, 3, 1]
    assert names(pieces[1].inputs) == {"r0", "z", "flag"}
    assert names(pieces[1].outputs) == {"h1", "side"}
    assert names(pieces[2].inputs) == {"h1", "side"}
    for flag in (True, False):
        check_whole(model, {**FEEDS, "z": rand(8, seed=2), "flag": np.array(flag)})
