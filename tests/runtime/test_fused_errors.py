"""What does not fit is an error that names the input and the numbers: never a crash, never a wrong read."""

from __future__ import annotations

import copy
import random
import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.operator_model import Array, operator_layout, operator_model, random_constants
from tests.runtime.fused import needs_library, open_session, with_fed_constants
from zq2onnx.opset import OPERATORS, Operator

pytestmark = needs_library

K, N = 100, 20


def node_model(
    operator: Operator, changed: dict[str, Array] | None = None, attributes: dict[str, int] | None = None
) -> onnx.ModelProto:
    """A node of K 100, N 20 in blocks of 32, with some constants and attributes exchanged."""
    layout = operator_layout(operator, K, N, 32)
    constants = random_constants(operator, layout, np.random.default_rng(0)) | (changed or {})
    model = operator_model(operator, layout, constants)
    for item in model.graph.node[0].attribute:
        if attributes and item.name in attributes:
            item.i = attributes[item.name]
    return model


def run(model: onnx.ModelProto, feeds: dict[str, Array] | None = None, a: Array | None = None) -> Any:
    """The result; the model's own A is not checked by its declared shape."""
    model.graph.input[0].type.tensor_type.ClearField("shape")
    a = np.ones((3, K), np.float32) if a is None else a
    return open_session(model).run(None, {"A": a, **(feeds or {})})[0]


PLAIN, LORC, HALVES = OPERATORS["MatMulW4A16"], OPERATORS["MatMulW4A16LoRC"], OPERATORS["MatMulW8A16"]


@pytest.mark.parametrize("value", [0, -32, 8, 48, 512, 2**40, -(2**63), 2**63 - 1])
def test_block_size(value: int) -> None:
    with pytest.raises(
        Exception, match=f"MatMulW4A16 'layer/MatMul': attribute block_size is {value}; required: 16"
    ):
        run(node_model(PLAIN, attributes={"block_size": value}))


@pytest.mark.parametrize("name", ["K", "N", "scale_repeat", "zero_point_repeat"])
@pytest.mark.parametrize("value", [0, -1, -(2**63), 2**40 + 1, 2**63 - 1])
def test_sizes_out_of_range(name: str, value: int) -> None:
    with pytest.raises(Exception, match=rf"attribute {name} is {value}; required: 1 to 2\^40"):
        run(node_model(PLAIN, attributes={name: value}))


def test_sizes_whose_product_overflows() -> None:
    with pytest.raises(
        Exception, match=f"K = {2**40} and N = {2**39}; required: a weight that can be addressed"
    ):
        run(node_model(PLAIN, attributes={"K": 2**40, "N": 2**39}))


def test_half_bytes_know_their_rows() -> None:
    with pytest.raises(Exception, match=r"attribute stored_rows is 20; required: 2N = 40"):
        run(node_model(HALVES, attributes={"stored_rows": 20}))


@pytest.mark.parametrize("name", ["K", "block_size", "zero_point_repeat"])
def test_absent_attribute(name: str) -> None:
    model = node_model(PLAIN)
    kept = [item for item in model.graph.node[0].attribute if item.name != name]
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(kept)
    with pytest.raises(Exception, match=f"attribute {name} is absent or no integer"):
        run(model)


SHAPES = [
    (PLAIN, "B", (20, 4, 15), "[20, 4, 16]"),
    (PLAIN, "B", (19, 4, 16), "[20, 4, 16]"),
    (PLAIN, "B", (20, 64), "[20, 4, 16]"),
    (PLAIN, "scales", (20, 3), "[20, 4]"),
    (PLAIN, "scales", (80,), "[20, 4]"),
    (PLAIN, "zero_points", (20, 1), "[20, 2]"),
    (PLAIN, "bias", (19,), "[20]"),
    (HALVES, "bias", (20,), "[40]"),
    (HALVES, "B", (20, 4, 16), "[40, 4, 16]"),
    (LORC, "U", (99, 8), "[100, 8]"),
    (LORC, "U", (100, 7), "[7, 20]"),
    (LORC, "V", (8, 19), "[8, 20]"),
    (LORC, "U_scales", (8,), "[1, 8]"),
    (LORC, "V_scales", (1, 8), "[8, 1]"),
    (LORC, "V_scales", (7, 1), "[8, 1]"),
]


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("operator", "name", "shape", "required"), SHAPES)
def test_shapes(operator: Operator, name: str, shape: tuple[int, ...], required: str, constant: bool) -> None:
    layout = operator_layout(operator, K, N, 32)
    dtype = random_constants(operator, layout, np.random.default_rng(0))[name].dtype
    model = node_model(operator, {name: np.zeros(shape, dtype)})
    feeds = {} if constant else with_fed_constants(model)
    named = "V" if required == "[7, 20]" else name  # U says the rank
    found = "[8, 20]" if named != name else str(list(shape))
    message = f"input {named} has shape {found}; required: {required} (K=100, N=20, block_size=32"
    with pytest.raises(Exception, match=f"'layer/MatMul': {re.escape(message)}"):
        run(model, feeds)


@pytest.mark.parametrize("shape", [(3, 99), (3, 101), (0, 99), (), (1,)])
def test_activations_that_do_not_fit(shape: tuple[int, ...]) -> None:
    message = f"input A has shape {list(shape)}; required: [.., K] with K = 100"
    with pytest.raises(Exception, match=re.escape(message)):
        run(node_model(LORC), a=np.zeros(shape, np.float32))


def test_a_vector_is_one_token() -> None:
    model = node_model(LORC)
    a = np.random.default_rng(0).standard_normal(K).astype(np.float32)
    expected = run(node_model(LORC), a=a[None])
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert np.array_equal(run(model, a=a), expected[0])


@pytest.mark.parametrize("name", ["B", "scales", "zero_points", "U", "V_scales"])
def test_absent_input(name: str) -> None:
    model = node_model(LORC)
    node = model.graph.node[0]
    node.input[LORC.inputs.index(name)] = ""
    with pytest.raises(Exception, match=rf"(?s)input {name} is absent|{name}|layer/MatMul|Input"):
        run(model)


@pytest.mark.parametrize(("name", "dtype"), [("B", np.int8), ("scales", np.float16), ("U", np.uint8)])
def test_types_that_no_kernel_has(name: str, dtype: Any) -> None:
    layout = operator_layout(LORC, K, N, 32)
    wrong = random_constants(LORC, layout, np.random.default_rng(0))[name].astype(dtype)
    with pytest.raises(Exception, match="MatMulW4A16LoRC"):
        run(node_model(LORC, {name: wrong}))


def mutate(model: onnx.ModelProto, rng: random.Random) -> None:
    """Change something at random: an attribute, a constant's shape, an input."""
    node = model.graph.node[0]
    match rng.randrange(4):
        case 0:
            item = rng.choice(node.attribute)
            values = [0, -1, 1, 2, 16, 32, 64, 100, item.i + 1, item.i * 2, 2**31, 2**32 + 1, 2**62, -(2**63)]
            item.i = rng.choice(values)
        case 1 | 2:
            tensor = rng.choice(model.graph.initializer)
            array = numpy_helper.to_array(tensor)
            shape = [max(0, size + rng.choice([0, 0, 0, -1, 1, -size, size])) for size in array.shape]
            if rng.random() < 0.2:
                shape = rng.choice([[], shape[:-1], [*shape, 1], [array.size]])
            tensor.CopyFrom(numpy_helper.from_array(np.resize(array, shape).astype(array.dtype), tensor.name))
        case _:
            at = rng.randrange(1, len(node.input))
            node.input[at] = rng.choice(["", *node.input])


def outcome(model: onnx.ModelProto, feeds: dict[str, Array], a: Array) -> str:
    """ "" where the model ran."""
    try:
        result = run(model, feeds, a)
    except Exception as error:
        return str(error)
    assert result.shape[:-1] == a.shape[:-1]
    return ""


def test_anything_that_does_not_fit_is_an_error() -> None:
    rng, operators = random.Random(0), list(OPERATORS.values())
    errors = 0
    for _ in range(600):
        operator = rng.choice(operators)
        model = copy.deepcopy(node_model(operator))
        for _ in range(rng.choice([1, 1, 2, 3])):
            mutate(model, rng)
        feeds = with_fed_constants(model) if rng.random() < 0.5 else {}
        a = np.ones((rng.choice([0, 1, 3]), rng.choice([K, K, K, K - 1, K + 1, 0])), np.float32)
        message = outcome(model, feeds, a)
        errors += bool(message)
        assert "unknown exception" not in message
        assert not message or operator.name in message or "layer/MatMul" in message or "Invalid" in message, (
            message
        )
    assert errors > 300
