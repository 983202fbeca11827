"""Pieces of ONNX models evaluated in torch, against ONNX Runtime and ONNX's reference evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests import zoo
from zq2onnx.errors import UserError
from zq2onnx.passes.partition import partition

torch = pytest.importorskip("torch", reason="needs torch")

from zq2onnx.calibration.torch_operators import torch_dtype  # noqa: E402
from zq2onnx.calibration.torch_piece import OPERATORS, TorchPiece, check_reproduces  # noqa: E402

ZOO = ("opt", "bloom", "gpt2", "llama", "bert", "opt-torchscript-13", "opt-torchscript-17")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
Y = RNG.standard_normal((3, 4)).astype(np.float32)
ROWS = RNG.standard_normal(4).astype(np.float32)
INTS = np.arange(-6, 6, dtype=np.int64).reshape(3, 4)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def whole(name: str) -> tuple[TorchPiece, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A zoo model as one piece, inputs with some padding, and ONNX Runtime's outputs."""
    path = zoo.model(name)
    model = ir.load(path)
    feeds = zoo.feeds(path)
    feeds["attention_mask"][0, :2] = 0
    outputs = zoo.run(path, feeds)
    names = [str(value.name) for value in model.graph.outputs]
    return TorchPiece(list(model.graph)), feeds, dict(zip(names, outputs, strict=True))


@pytest.mark.parametrize("name", ZOO)
def test_a_whole_model_gives_what_onnx_runtime_gives(name: str) -> None:
    piece, feeds, expected = whole(name)
    assert set(piece.inputs) == set(feeds)
    assert piece.outputs == tuple(expected)
    check_reproduces(piece, feeds, expected)


def test_a_float16_model_is_computed_in_float32() -> None:
    piece, feeds, expected = whole("opt-fp16")
    check_reproduces(piece, feeds, expected, tolerance=5e-3)
    with pytest.raises(UserError, match="off by"):
        check_reproduces(piece, feeds, expected)


@pytest.mark.parametrize("name", ("llama", "opt-torchscript-17"))
def test_pieces_in_a_row_give_what_the_model_gives(name: str) -> None:
    path = zoo.model(name)
    pieces = partition(ir.load(path))
    feeds = zoo.feeds(path)
    values = {key: torch.from_numpy(array) for key, array in feeds.items()}
    assert len(pieces) > 3
    for piece in pieces:
        names = [str(value.name) for value in piece.outputs]
        part = TorchPiece(piece.nodes, names)
        assert set(part.inputs) == {value.name for value in piece.inputs}
        made = part.run({name: values[name] for name in part.inputs})
        assert list(made) == names
        values |= made
    np.testing.assert_allclose(values["logits"].numpy(), zoo.run(path, feeds)[0], rtol=0, atol=1e-4)


def one_node(
    op_type: str, inputs: list[np.ndarray | None], outputs: int = 1, opset: int = 23, **attributes: object
) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A model of one node that is fed everything, and its feeds."""
    names = ["" if array is None else f"x{index}" for index, array in enumerate(inputs)]
    made = [f"y{index}" for index in range(outputs)]
    node = onnx.helper.make_node(op_type, names, made, name="the_node", **attributes)
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    ]
    results = [onnx.helper.make_empty_tensor_value_info(name) for name in made]
    graph = onnx.helper.make_graph([node], "g", infos, results)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    feeds = {name: np.asarray(array) for name, array in zip(names, inputs, strict=True) if array is not None}
    return ir.from_proto(model), feeds


CASES = [
    ("Div", [INTS, ints(4)], {}),
    ("Mod", [INTS, ints(4)], {}),
    ("Mod", [X, Y], {"fmod": 1}),
    ("Pow", [np.abs(X), np.float32(2.5)], {}),
    ("Gelu", [X], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Erf", [X], {}),
    ("Log", [np.abs(X)], {}),
    ("Floor", [X], {}),
    ("Round", [np.array([0.5, 1.5, -0.5], np.float32)], {}),
    ("Clip", [X, np.float32(-0.5), np.float32(0.3)], {}),
    ("Clip", [X, None, np.float32(0.3)], {}),
    ("Cast", [X], {"to": onnx.TensorProto.INT32}),
    ("Softmax", [X], {"axis": 1}),
    ("LayerNormalization", [X, Y, Y], {"axis": 1, "epsilon": 1e-3}),
    ("LayerNormalization", [X, ROWS], {}),
    ("RMSNormalization", [X, ROWS], {"epsilon": 1e-3}),
    ("Gemm", [Y, X[0], ROWS[:3]], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [Y, X[0]], {"transA": 1}),
    ("ReduceMean", [X, ints(-1)], {"keepdims": 0}),
    ("ReduceSum", [X], {}),
    ("ReduceSum", [X, ints()], {"noop_with_empty_axes": 1}),
    ("ReduceMax", [X, ints(0, 2)], {}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [1, 0, 2]}),
    ("Reshape", [X, ints(0, -1)], {}),
    ("Reshape", [np.zeros((0, 3), np.float32), ints(3, 0)], {"allowzero": 1}),
    ("Flatten", [X], {"axis": -1}),
    ("Squeeze", [X[:, :1]], {}),
    ("Squeeze", [X[:1, :1], ints(-2)], {}),
    ("Unsqueeze", [Y, ints(-1, 0)], {}),
    ("Expand", [Y, ints(2, 1, 4)], {}),
    ("Concat", [X, X + 1], {"axis": -2}),
    ("Slice", [X, ints(-1, 1), ints(-100, 3), ints(2, 1), ints(-2, 1)], {}),
    ("Slice", [X, ints(1), ints(2**62)], {}),
    ("Gather", [X, np.array([[0, -1], [2, 1]])], {"axis": 1}),
    ("Gather", [X, np.array(1)], {"axis": -1}),
    ("GatherElements", [Y, np.array([[0, -1, 1, 2]])], {"axis": 0}),
    ("GatherND", [X, np.array([[1, 2], [-1, 0]])], {}),
    ("GatherND", [X, np.array([[2], [0]])], {"batch_dims": 1}),
    ("ScatterND", [Y, np.array([[1], [-1]]), Y[:2] + 1], {}),
    ("ScatterND", [Y, np.array([[1], [1]]), Y[:2]], {"reduction": "add"}),
    ("Shape", [X], {"start": -2, "end": 2}),
    ("Size", [X], {}),
    ("ConstantOfShape", [ints(2, 3)], {"value": onnx.numpy_helper.from_array(ints(7))}),
    ("ConstantOfShape", [ints(2)], {}),
    ("Range", [np.array(7), np.array(0), np.array(-3)], {}),
    ("Where", [Y > 0, Y, ROWS], {}),
    ("LessOrEqual", [Y, ROWS], {}),
    ("Max", [X, Y, ROWS], {}),
    ("Min", [X, ROWS], {}),
    ("Trilu", [X, np.array(1)], {"upper": 0}),
    ("Trilu", [X], {}),
    ("Tile", [Y, ints(2, 1)], {}),
    ("CumSum", [X, np.array(1)], {}),
    ("CumSum", [X, np.array(-1)], {"exclusive": 1, "reverse": 1}),
    ("IsNaN", [np.array([1, np.nan], np.float32)], {}),
]


@pytest.mark.parametrize(("op_type", "inputs", "attributes"), CASES, ids=lambda part: str(part)[:20])
def test_an_operator_means_what_onnx_says(
    op_type: str, inputs: list[np.ndarray | None], attributes: dict[str, object]
) -> None:
    compare(*one_node(op_type, inputs, **attributes))


@pytest.mark.parametrize("sizes", (None, ints(1, 3)))
def test_split(sizes: np.ndarray | None) -> None:
    attributes = {"num_outputs": 3} if sizes is None else {}
    inputs = [X] if sizes is None else [X, sizes]
    compare(*one_node("Split", inputs, 3 if sizes is None else 2, axis=2, **attributes))


Q, K, V = (RNG.standard_normal((2, heads, 5, 4)).astype(np.float32) for heads in (4, 2, 2))
MASK = RNG.random((2, 1, 5, 5)) > 0.4


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        ([Q, K, V], {}),
        ([Q, K, V], {"is_causal": 1, "scale": 0.3}),
        ([Q, K, V, MASK | np.eye(5, dtype=bool)], {"softcap": 2.0}),
        ([Q, K, V, RNG.standard_normal((5, 5)).astype(np.float32)], {}),
        ([Q, K, V, None, K[:, :, :2], V[:, :, :2]], {}),
        (
            [np.ones((2, 5, 16), np.float32) * ROWS[0], K[:, 0], V[:, 0]],
            {"q_num_heads": 4, "kv_num_heads": 1},
        ),
    ],
)
def test_attention(inputs: list[np.ndarray | None], attributes: dict[str, object]) -> None:
    compare(*one_node("Attention", inputs, 3 if len(inputs) > 4 else 1, **attributes))


def test_a_query_that_may_attend_to_nothing_gets_zeros_and_no_gradient_of_nan() -> None:
    mask = np.ones((5, 5), bool)
    mask[2] = False
    model, feeds = one_node("Attention", [Q, K, V, mask])
    values = {name: torch.from_numpy(array) for name, array in feeds.items()}
    values["x0"].requires_grad_()
    y = TorchPiece(list(model.graph)).run(values)["y0"]
    y.sum().backward()
    assert not y[:, :, 2].any() and y[:, :, 3].any()
    assert torch.isfinite(values["x0"].grad).all()


@pytest.mark.parametrize("interleaved", (0, 1))
@pytest.mark.parametrize("width", (0, 2))
def test_rotary_embedding(interleaved: int, width: int) -> None:
    angles = RNG.random((9, (width or 4) // 2)).astype(np.float32)
    positions = np.array([[3, 4, 5, 6, 8], [0, 1, 2, 3, 4]])
    inputs = [Q, np.cos(angles), np.sin(angles), positions]
    compare(
        *one_node("RotaryEmbedding", inputs, interleaved=interleaved, rotary_embedding_dim=width),
        tolerance=1e-5,
    )


def compare(model: ir.Model, feeds: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """A model in torch against ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    expected = dict(zip(names, session.run(None, feeds), strict=True))
    check_reproduces(TorchPiece(list(model.graph)), feeds, expected, tolerance)


def test_every_operator_of_the_table_is_one_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert set(OPERATORS) - known == {"SimplifiedLayerNormalization"}  # ONNX Runtime's own, in ONNX's domain


def linear(op_type: str = "MatMul", **attributes: object) -> tuple[ir.Model, dict[str, np.ndarray]]:
    right = Y if "transB" in attributes else np.ascontiguousarray(Y.T)
    return one_node(op_type, [X[0], right], **attributes)


@pytest.mark.parametrize(("op_type", "attributes"), [("MatMul", {}), ("Gemm", {"transB": 1, "alpha": 0.5})])
def test_a_replaced_weight_counts_with_its_alpha_included(
    op_type: str, attributes: dict[str, object]
) -> None:
    model, feeds = linear(op_type, **attributes)
    weight = RNG.standard_normal((3, 4)).astype(np.float32)
    values = {name: torch.from_numpy(array) for name, array in feeds.items()}
    piece = TorchPiece(list(model.graph))
    made = piece.run(values, {"the_node": torch.from_numpy(weight), "another": torch.zeros(1)})["y0"]
    np.testing.assert_allclose(made.numpy(), X[0] @ weight.T, rtol=1e-6, atol=1e-6)


def test_an_activation_is_changed_only_before_replaced_weights() -> None:
    model, feeds = linear()
    values = {name: torch.from_numpy(array) for name, array in feeds.items()}
    piece = TorchPiece(list(model.graph))
    seen = []

    def double(name: str, x: torch.Tensor) -> torch.Tensor:
        seen.append(name)
        return 2 * x

    plain = piece.run(values, None, double)["y0"]
    assert not seen
    doubled = piece.run(values, {"the_node": torch.from_numpy(Y)}, double)["y0"]
    assert seen == ["the_node"]
    torch.testing.assert_close(doubled, 2 * plain)


@pytest.mark.parametrize("name", ("opt", "llama"))
def test_gradients_are_finite_differences(name: str) -> None:
    path = zoo.model(name)
    model = ir.load(path)
    node = next(n for n in model.graph if n.op_type == "MatMul" and n.inputs[1].const_value is not None)
    weight = torch.from_numpy(np.array(node.inputs[1].const_value.numpy().T, np.float32))
    feeds = {key: torch.from_numpy(array) for key, array in zoo.feeds(path).items()}
    piece = TorchPiece(list(model.graph))
    probe = torch.from_numpy(RNG.standard_normal((2, 7, zoo.VOCABULARY)).astype(np.float32))

    def loss(change: torch.Tensor) -> torch.Tensor:
        return (piece.run(feeds, {node.name: weight + change})["logits"] * probe).sum()

    change = torch.zeros_like(weight, requires_grad=True)
    loss(change).backward()
    direction = torch.from_numpy(RNG.standard_normal(weight.shape).astype(np.float32))
    step = 1e-2 / float(direction.norm())
    with torch.no_grad():
        difference = float(loss(step * direction) - loss(-step * direction)) / (2 * step)
    slope = float((change.grad * direction).sum())
    assert abs(slope) > 1
    assert slope == pytest.approx(difference, rel=0.02)


def test_an_unknown_operator_names_itself_its_node_and_the_remedy() -> None:
    model, _ = one_node("Hardmax", [X])
    with pytest.raises(UserError, match="'the_node' .Hardmax.*--method gptq.*--exclude"):
        TorchPiece(list(model.graph))


def test_another_domains_operator_is_unknown_even_by_a_known_name() -> None:
    model, _ = one_node("Relu", [X])
    next(iter(model.graph)).domain = "com.microsoft"
    with pytest.raises(UserError, match="com.microsoft::Relu"):
        TorchPiece(list(model.graph))


def test_an_unknown_use_of_a_known_operator_is_said_when_it_runs() -> None:
    model, feeds = one_node("ScatterND", [Y, np.array([[1]]), Y[:1]], reduction="mul")
    piece = TorchPiece(list(model.graph))
    with pytest.raises(UserError, match="'the_node' .ScatterND.*reduction 'mul'"):
        piece.run({name: torch.from_numpy(array) for name, array in feeds.items()})


def test_a_difference_names_the_output_and_its_size() -> None:
    model, feeds = one_node("Relu", [X])
    piece = TorchPiece(list(model.graph))
    expected = np.maximum(X, 0)
    expected[0, 0, 0] = expected.max() * 1.01
    with pytest.raises(UserError, match="'y0'.*off by .* at most 0.0001.*--method gptq"):
        check_reproduces(piece, feeds, {"y0": expected})
    with pytest.raises(UserError, match=r"'y0'.*of shape \[2, 3, 4\].*\[24\]"):
        check_reproduces(piece, feeds, {"y0": np.maximum(X, 0).reshape(-1)})


def test_nan_in_one_alone_is_a_difference() -> None:
    model, feeds = one_node("Relu", [X])
    expected = np.maximum(X, 0)
    expected[1, 1, 1] = np.nan
    with pytest.raises(UserError, match="'y0'"):
        check_reproduces(TorchPiece(list(model.graph)), feeds, {"y0": expected})


def test_types_that_blocks_do_not_compute_with_are_refused() -> None:
    with pytest.raises(ValueError, match="UINT64"):
        torch_dtype(ir.DataType.UINT64)
