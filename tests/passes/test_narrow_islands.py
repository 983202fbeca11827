"""What a narrowed model computes in float32, so that float16 neither overflows nor counts wrong.

Through onnx.reference, which rounds after each node; ONNX Runtime's CPU kernels hide most of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tests.passes.hand_made import graph, proto, rand
from tests.passes.test_narrow import BF16, FLOAT, FP16, NORM, NORM_WEIGHTS, narrowed, run, types
from zq2onnx.errors import UserError
from zq2onnx.passes.narrow import NarrowFloatsPass

WEIGHTS = {**NORM_WEIGHTS, "one": np.float32(1), "axis": np.array([-1])}
POSITIONS = np.arange(8192)[:, None] * (1e4 ** (-np.arange(0, 64, 2) / 64))[None]


def agree(text: str, weights: dict[str, np.ndarray], feeds: dict[str, np.ndarray]) -> ir.Model:
    """The narrowed model, which computes what the float32 one does, but for rounding."""
    used = {name: np.asarray(array) for name, array in weights.items() if name in text}
    halves = {key: each.astype(np.float16) if key == "x" else each for key, each in feeds.items()}
    rounded = {key: each.astype(np.float32) if key == "x" else each for key, each in halves.items()}
    (expected,) = onnx.reference.ReferenceEvaluator(proto(text, used)).run(None, rounded)
    model = graph(text, used)
    (got,) = onnx.reference.ReferenceEvaluator(narrowed(model)).run(None, halves)
    np.testing.assert_allclose(got, expected, rtol=0, atol=4e-3 * np.abs(expected).max())
    return model


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" r = Sqrt(e)", " size = Shape(s) q = Expand(e, size) r = Sqrt(q)"),
        (" o = Mul(n, gamma)", " t = Div(s, e) p = Mul(t, n) o = Mul(p, gamma)"),
        (" e = Add(m, eps)", " low = Less(m, eps) e = Where(low, eps, m)"),
        (
            "s = Pow(x, two) m = ReduceMean(s, last)",
            's = Identity(x) k = Einsum <equation = "bd, bd -> b"> (s, s) m = Unsqueeze(k, axis)',
        ),
    ],
    ids=["shape", "square", "where", "einsum"],
)
def test_a_variance_is_float32_whatever_else_reads_its_squares(old: str, new: str) -> None:
    assert old in NORM
    model = agree(NORM.replace(old, new), WEIGHTS, {"x": 1000 * (1 + rand(2, 64) ** 2)})
    kinds = types(model)
    assert all(kinds[name] is FLOAT for name in ("m", "e", "r", "i", "n")) and kinds["y"] is FP16


def test_what_an_exponential_makes_is_float32_until_it_meets_the_rest() -> None:
    """Of 15, Exp is no number of float16: a softplus."""
    text = (
        "g (float[2, 64] x) => (float[2, 4] y)"
        " { e = Exp(x) a = Add(e, one) l = Log(a) p = Mul(l, gamma) y = MatMul(p, w) }"
    )
    model = agree(text, WEIGHTS, {"x": 15 + rand(2, 64)})
    assert types(model) == {"x_fp32": FLOAT, "e": FLOAT, "a": FLOAT, "l": FLOAT, "p": FLOAT, "y": FP16} | {
        name: FP16 for name in types(model) if name.endswith("_fp16")
    }


@pytest.mark.parametrize(
    "angles",
    [
        "a = Gather(table, ids)",
        "f = Cast <to = 1> (ids) p = Unsqueeze(f, axis) r = Concat <axis = 1> (p, p) a = MatMul(r, rates)",
    ],
)
def test_tables_of_angles_stay_float32(angles: str) -> None:
    """8000 in float16 is a multiple of 4: its cosine is any number."""
    text = (
        f"g (float[4, 32] x, int64[4] ids) => (float[4, 32] y) {{ {angles}"
        " c = Cos(a) s = Sin(a) h = Mul(x, c) k = Mul(x, s) y = Add(h, k) }"
    )
    weights = {
        "table": POSITIONS.astype(np.float32),
        "rates": np.stack([POSITIONS[1]] * 2).astype(np.float32) / 2,
        "axis": np.array([1]),
    }
    model = agree(text, weights, {"x": rand(4, 32), "ids": np.array([1, 2050, 5001, 8111])})
    assert types(model)["a"] is FLOAT
    assert all(value.dtype is not FP16 for value in model.graph.initializers.values())


def test_a_table_that_others_read_too_is_not_of_angles_alone() -> None:
    text = (
        "g (float[4, 32] x, int64[4] ids) => (float[4, 32] y) { a = Gather(t, ids) c = Cos(a) y = Mul(a, c) }"
    )
    model = graph(text, {"t": rand(16, 32)})
    narrowed(model)
    assert types(model)["a"] is FP16


def test_a_normalization_whose_mean_is_used_is_float32() -> None:
    """Mean and deviation are float32 by `stash_type`, also where the schema allows bfloat16."""
    text = (
        "g (float[2, 64] x) => (float[2, 64] y)"
        " { n, mean, i = LayerNormalization (x, gamma) p = Mul(n, i) y = Identity(p) }"
    )
    for dtype in (FP16, BF16):
        model, alone = (
            graph(each, {"gamma": rand(64)}) for each in (text, text.replace("Mul(n, i)", "Neg(n)"))
        )
        narrowed(model, dtype)
        assert types(model)["n"] is FLOAT
        RemoveUnusedNodesPass()(alone)  # as NormalizePass does, the outputs too that nobody reads
        narrowed(alone, dtype)
        assert types(alone)["n"] is dtype


def test_an_if_that_makes_a_sequence_too_is_float32(tmp_path: Path) -> None:
    text = """
      g (float[2, 64] x, bool on) => (float[2, 64] y) {
        h = Neg (x)
        a, s = If (on) <
          then_branch = t () => (float[2, 64] b, seq(float[2, 64]) p)
            { b = Relu (h) p = SequenceConstruct (h) },
          else_branch = e () => (float[2, 64] c, seq(float[2, 64]) q)
            { c = Abs (h) q = SequenceConstruct (h, h) }
        >
        f = SequenceAt (s, last)
        y = Add (a, f)
      }
    """
    model = graph(text, {"last": np.array(-1)})
    made = narrowed(model)
    assert types(model)["a"] is FLOAT and types(model)["f"] is FLOAT and types(model)["h"] is FP16
    x = rand(2, 64, dtype=np.float16)
    for on, branch in ((True, np.maximum(-x, 0)), (False, np.abs(x))):
        got = run(made, {"x": x, "on": np.array(on)}, tmp_path)[0]
        np.testing.assert_allclose(got, branch - x, rtol=0, atol=4e-3)


CHAIN = " ".join(f"h{i} = MatMul(g{i}, w) g{i + 1} = com.microsoft.Gelu(h{i})" for i in range(4))


def test_types_are_inferred_behind_any_number_of_contributed_operators() -> None:
    text = f"g (float[2, 8] x) => (float[2, 8] y) {{ g0 = Neg(x) {CHAIN} y = Neg(g4) }}"
    model = graph(text, {"w": rand(8, 8)})
    assert model.graph.node("g3").outputs[0].dtype is None
    assert NarrowFloatsPass(FP16)(model).modified
    assert set(types(model).values()) == {FP16}


def test_a_function_of_a_contributed_operator_s_name_is_none() -> None:
    body = (
        '\n<domain: "{0}", opset_import: ["" : 20]>'
        " Gelu (x) => (y) {{ c = Constant <value = float {{2.0}}> () y = Mul(x, c) }}"
    )
    text = "g (float[2, 8] x) => (float[2, 8] y) <float[2, 8] z> { a = Neg(x) z = DOMAIN.Gelu(a) y = Neg(z) }"
    for domain, more in (("my.mod", ("my.mod",)), ("com.microsoft", ())):
        model = graph(text.replace("DOMAIN", domain), domains=more, functions=body.format(domain))
        assert NarrowFloatsPass(FP16)(model).modified
        kinds = types(model)
        assert (kinds["a"], kinds["z"], kinds["y"]) == (FP16, FLOAT, FP16)


def test_a_declared_shape_that_is_wrong_is_of_no_concern(caplog: pytest.LogCaptureFixture) -> None:
    """The sum has two dimensions."""
    text = "g (float[1, 4, 64] x) => (float[1, 64] y) { s = ReduceSum(x, one) z = Relu(s) y = Relu(z) }"
    model = graph(text, {"one": np.array([1])})
    assert NarrowFloatsPass(FP16)(model).modified
    assert model.graph.outputs[0].shape == (1, 64)
    assert not caplog.records


def test_an_inference_that_fails_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    text = "g (float[2, 8] x) => (float[2, 8] y) { z = Add(x, n) y = Relu(z) }"
    with pytest.raises(UserError, match=r"the type of 'z' cannot be inferred \(.*Add.*\)") as caught:
        NarrowFloatsPass(FP16)(graph(text, {"n": np.array([1])}))
    assert "\n" not in str(caught.value) and not caplog.records
