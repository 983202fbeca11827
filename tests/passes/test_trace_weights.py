from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

from tests.passes.hand_made import candidates, graph, rand
from zq2onnx.passes.planned import WeightView
from zq2onnx.passes.trace_weights import trace_weight

K, N = 4, 6


@dataclass(frozen=True)
class Way:
    """How `w` becomes `r`, the right operand of `y = MatMul(x, r)`; what `w` is, and how it is read."""

    steps: str
    stored: np.ndarray
    k: int = K
    n: int = N
    transposed: bool = False
    dtype: ir.DataType = ir.DataType.FLOAT


WAYS = {
    "initializer": Way("r = Identity(w)", rand(K, N)),
    "Constant node": Way("w = Constant <value_int = 0> () r = Identity(w)", rand(K, N)),
    "Transpose": Way("r = Transpose <perm = [1, 0]> (w)", rand(N, K), transposed=True),
    "Transpose without perm": Way("r = Transpose(w)", rand(N, K), transposed=True),
    "two Transposes": Way("t = Transpose(w) r = Transpose(t)", rand(K, N)),
    "Cast from half": Way("r = Cast <to = 1> (w)", rand(K, N, dtype=np.float16)),
    "Cast to half": Way("r = Cast <to = 10> (w)", rand(K, N), dtype=ir.DataType.FLOAT16),
    "Cast to bfloat16": Way("r = Cast <to = 16> (w)", rand(K, N), dtype=ir.DataType.BFLOAT16),
    "Reshape": Way("s = Constant <value_ints = [4, -1]> () r = Reshape(w, s)", rand(1, K, N)),
    "Reshape with a kept size": Way("s = Constant <value_ints = [0, 6]> () r = Reshape(w, s)", rand(K, N, 1)),
    "Squeeze": Way("a = Constant <value_ints = [0]> () r = Squeeze(w, a)", rand(1, K, N)),
    "Squeeze of all": Way("r = Squeeze(w)", rand(K, 1, N, 1)),
    "Unsqueeze": Way("a = Constant <value_ints = [0, 1]> () r = Unsqueeze(w, a)", rand(K, N)),
    "Unsqueeze from the back": Way("a = Constant <value_ints = [-3]> () r = Unsqueeze(w, a)", rand(K, N)),
    "Flatten": Way("r = Flatten(w)", rand(K, N, 1)),
    "Flatten from the back": Way("r = Flatten <axis = -1> (w)", rand(1, K, N)),
    "leading dimensions of 1": Way("r = Identity(w)", rand(1, 1, K, N)),
    "Transpose around a unit dimension": Way(
        "r = Transpose <perm = [1, 2, 0]> (w)", rand(N, 1, K), transposed=True
    ),
    "one row": Way("r = Identity(w)", rand(1, N), k=1),
    "one column": Way("r = Transpose(w)", rand(1, K), n=1),
    "one number": Way("r = Identity(w)", rand(1, 1), k=1, n=1),
    "vector made a row": Way("a = Constant <value_ints = [0]> () r = Unsqueeze(w, a)", rand(N), k=1),
    "all together": Way(
        "a = Constant <value_ints = [0]> () c = Cast <to = 1> (w) u = Unsqueeze(c, a) i = Identity(u)"
        " r = Transpose <perm = [0, 2, 1]> (i)",
        rand(N, K, dtype=np.float16),
        transposed=True,
    ),
}


def operand(steps: str, stored: np.ndarray, *, opset: int = 21) -> ir.Value | None:
    model = graph(f"g (float[2, {K}] x) => (y) {{ {steps} y = MatMul(x, r) }}", {"w": stored}, opset=opset)
    return next(node for node in model.graph if node.name == "y").inputs[1]


@pytest.mark.parametrize("way", WAYS)
def test_finds_the_matrix(way: str) -> None:
    expected = WAYS[way]
    view = trace_weight(operand(expected.steps, expected.stored))
    assert isinstance(view, WeightView), view
    assert (view.k, view.n, view.dtype, view.scale) == (expected.k, expected.n, expected.dtype, 1.0)
    assert view.name == "w"
    np.testing.assert_array_equal(view.tensor.numpy(), expected.stored)
    if 1 not in (view.k, view.n):
        assert view.transposed is expected.transposed


def test_axes_may_be_an_attribute_as_until_opset_12() -> None:
    view = trace_weight(operand("r = Squeeze <axes = [0]> (w)", rand(1, K, N), opset=11))
    assert isinstance(view, WeightView) and (view.k, view.n) == (K, N)


REASONS = {
    "its weight has 3 dimensions: [2, 4, 6] (a stack of matrices)": ("r = Identity(w)", rand(2, K, N)),
    "its weight is a vector": ("r = Identity(w)", rand(K)),
    "its weight is empty": ("r = Identity(w)", rand(K, 0)),
    "its weight is INT8, not one of FLOAT, FLOAT16, BFLOAT16": (
        "r = Identity(w)",
        np.ones((K, N), np.int8),
    ),
    "its weight is DOUBLE, not one of FLOAT, FLOAT16, BFLOAT16": (
        "r = Cast <to = 1> (w)",
        rand(K, N, dtype=np.float64),
    ),
    "its weight is cast to INT32, which is not one of FLOAT, FLOAT16, BFLOAT16": (
        "r = Cast <to = 6> (w)",
        rand(K, N),
    ),
    "its weight passes through a Reshape that regroups its elements": (
        "s = Constant <value_ints = [4, 6]> () r = Reshape(w, s)",
        rand(N, K),
    ),
    "its weight passes through a Flatten that regroups its elements": ("r = Flatten(w)", rand(K, 2, 3)),
    "its weight passes through a Reshape whose shape is not known": (
        "s = Shape(x) r = Reshape(w, s)",
        rand(2, K),
    ),
    "already quantized (DequantizeLinear)": (
        "s = Constant <value_float = 0.1> () d = DequantizeLinear(w, s) r = Transpose(d)",
        np.ones((N, K), np.int8),
    ),
    "its weight is computed by a Relu": ("r = Relu(w)", rand(K, N)),
    "its weight is computed by a Mul": (
        "s = Constant <value_float = 0.1> () e = Exp(s) m = Mul(w, e) r = Transpose(m)",
        rand(N, K),
    ),
    "both operands are activations": ("z = Shape(x) s = Cast <to = 1> (z) r = Mul(w, s)", rand(K, N)),
}


@pytest.mark.parametrize("reason", REASONS)
def test_says_why_there_is_none(reason: str) -> None:
    assert trace_weight(operand(*REASONS[reason])) == reason


def test_a_fed_operand_is_an_activation() -> None:
    model = graph("g (float[2, 4] x, float[4, 6] w) => (float[2, 6] y) { y = MatMul(x, w) }")
    assert candidates(model)["y"].view == "both operands are activations"


@pytest.mark.parametrize(("steps", "computed"), [(8, True), (80, False)])
def test_what_takes_many_steps_is_taken_for_an_activation(steps: int, computed: bool) -> None:
    """Nobody walks up a deep model for each product of activations."""
    chain = " ".join(f"c{i + 1} = Relu(c{i})" for i in range(steps))
    view = trace_weight(operand(f"c0 = Relu(w) {chain} r = Relu(c{steps})", rand(K, N)))
    assert view == ("its weight is computed by a Relu" if computed else "both operands are activations")


def test_what_a_subgraph_makes_is_an_activation() -> None:
    steps = (
        "r = If (c) <then_branch = yes () => (a) { a = Relu(w) }, else_branch = no () => (d) { d = Abs(x) }>"
    )
    text = f"g (float[2, {K}] x) => (y) {{ {steps} y = MatMul(x, r) }}"
    model = graph(text, {"w": rand(K, N), "c": np.array(True)})
    assert candidates(model)["y"].view == "both operands are activations"


def test_nothing_is_read_to_trace_a_weight() -> None:
    """The external data does not exist."""
    model = graph("g (float[2, 4] x) => (y) { t = Transpose(w) y = MatMul(x, t) }")
    tensor = ir.ExternalTensor("absent", 0, 96, ir.DataType.FLOAT, shape=ir.Shape((N, K)), name="w")
    weight = model.graph.node(0).inputs[0]
    assert weight is not None
    weight.const_value = tensor
    model.graph.register_initializer(weight)
    view = candidates(model)["y"].view
    assert isinstance(view, WeightView) and (view.k, view.n, view.transposed) == (K, N, True)


@pytest.mark.parametrize(
    ("attributes", "stored", "k", "n", "transposed", "scale"),
    [
        ("", (K, N), K, N, False, 1.0),
        ("<transB = 1>", (N, K), K, N, True, 1.0),
        ("<transA = 1, alpha = 0.5, beta = 3.0>", (K, N), K, N, False, 0.5),
    ],
)
def test_gemm(
    attributes: str, stored: tuple[int, int], k: int, n: int, transposed: bool, scale: float
) -> None:
    model = graph(f"g (float[4, 4] x) => (y) {{ y = Gemm {attributes} (x, w) }}", {"w": rand(*stored)})
    view = candidates(model)["y"].view
    assert isinstance(view, WeightView)
    assert (view.k, view.n, view.transposed, view.scale) == (k, n, transposed, scale)


def test_one_vector_read_as_a_row_and_as_a_column_is_two_matrices() -> None:
    steps = "y = MatMul(x, w) t = Transpose(w) z = MatMul(x, t)"
    model = graph(f"g (float[2, 3] x) => (y, z) {{ {steps} }}", {"w": rand(1, N)})
    row, column = (candidates(model)[name].view for name in "yz")
    assert isinstance(row, WeightView) and isinstance(column, WeightView)
    assert row.storage == column.storage and row.key != column.key
