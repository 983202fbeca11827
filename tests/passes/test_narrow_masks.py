"""A narrowed model's masks stay finite, wherever they come from and whatever is added to them.

Through onnx.reference, which rounds after each node: ONNX Runtime's CPU kernels compute a float16 model in
float32, with Casts before and behind, and drop those that are back to back.
"""

from __future__ import annotations

import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest

from tests.passes.hand_made import graph, proto, rand
from tests.passes.test_narrow import FLOAT, LEAST, narrowed, types

SEEN = np.tril(np.ones((1, 4, 4), bool), -1)  # the first row is all masked
CONSTANTS = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "least": np.float32(LEAST),
    "wide": np.float64(LEAST),
    "once": np.int64(1),
    "on": np.array(True),
    "w": (rand(64, 64) / 8).astype(np.float32),
}
MASKS = {
    "where": "m = Where(seen, zero, least)",
    "filled": (
        "n = Shape(seen) f = ConstantOfShape <value = float[1] {-3.4028234e38}> (n) m = Where(seen, zero, f)"
    ),
    "double": "f = Cast <to = 1> (wide) m = Where(seen, zero, f)",
    "branch": (
        "m = If (on) < then_branch = a () => (float[1, 4, 4] t) { t = Where(seen, zero, least) },"
        " else_branch = b () => (float[1, 4, 4] e) { e = Where(seen, least, zero) } >"
    ),
    "loop": (
        "v = Cast <to = 1> (seen) m = Loop (once, on, v) < body = c (int64 k, bool go, float[1, 4, 4] i)"
        " => (bool going, float[1, 4, 4] o) { going = Identity (go) j = Sub (one, i) o = Mul (j, least) } >"
    ),
}


def attention(mask: str, scores: str = "a = Add(s, m)") -> str:
    """Scores of -18 to -60, with the mask `m`, and what becomes of the values."""
    return (
        f"g (float[1, 4, 64] x, bool[1, 4, 4] seen) => (float[1, 4, 64] y) {{ {mask} q = MatMul(x, w)"
        " k = Transpose <perm = [0, 2, 1]> (q) minus = Neg(k) s = MatMul(q, minus)"
        f" {scores} p = Softmax(a) y = MatMul(p, q) }}"
    )


def both(text: str, feeds: dict[str, np.ndarray]) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """The narrowed model, what it gives by the reference, and what the float32 one does."""
    constants = {name: np.asarray(array) for name, array in CONSTANTS.items() if name in text}
    (expected,) = onnx.reference.ReferenceEvaluator(proto(text, constants)).run(None, feeds)
    model = graph(text, constants)
    made = narrowed(model)
    halves = {
        name: each.astype(np.float16) if each.dtype == np.float32 else each for name, each in feeds.items()
    }
    (got,) = onnx.reference.ReferenceEvaluator(made).run(None, halves)
    return model, got.astype(np.float32), expected


@pytest.mark.parametrize("name", MASKS)
def test_a_row_that_is_all_masked_stays_finite_below_low_scores(name: str) -> None:
    feeds = {"x": 1 + rand(1, 4, 64) / 10, "seen": SEEN}
    q = feeds["x"] @ CONSTANTS["w"]
    assert (q @ q.swapaxes(1, 2)).min() > 16  # float16 has no number between -65504 and what overflows
    model, got, expected = both(attention(MASKS[name]), feeds)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:], rtol=0, atol=0.01 * np.abs(expected).max())
    assert types(model)["m"] is FLOAT and sum(node.op_type == "Clip" for node in model.graph) == 1


def test_two_masks_are_added() -> None:
    """In float32 the row that is all masked is a NaN."""
    text = attention("m = Where(seen, zero, least)", "b = Where(seen, s, least) a = Add(b, m)")
    with np.errstate(over="ignore", invalid="ignore"):
        _, got, expected = both(text, {"x": 1 + rand(1, 4, 64) / 10, "seen": SEEN})
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:], rtol=0, atol=0.01 * np.abs(got).max())


def test_an_infinity_on_purpose_and_a_large_number_in_a_product_are_no_masks() -> None:
    text = (
        "g (float[2, 8] x, bool[2, 8] seen, int64[8] ids) => (float[2, 8] y) {"
        " m = Where(seen, zero, never) a = Add(x, m) p = Softmax(a)"
        " f = Cast <to = 1> (ids) g = Mul(f, theta) c = Cos(g) y = Mul(p, c) }"
    )
    constants = {"zero": np.float32(0), "never": np.float32(-np.inf), "theta": np.float32(5e5)}
    model = graph(text, {name: np.asarray(array) for name, array in constants.items()})
    narrowed(model)
    assert not any(node.op_type == "Clip" for node in model.graph)
