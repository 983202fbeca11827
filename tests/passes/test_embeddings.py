from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests import zoo
from tests.passes.hand_made import SCHEME, graph, groups, initializers, proto, rand, rounded, structure
from tests.passes.test_odd_graphs import convert
from zq2onnx.passes.insert_embedding_qdq import InsertEmbeddingQdqPass
from zq2onnx.passes.lower_embeddings import LowerEmbeddingsPass
from zq2onnx.passes.select_nodes import Policy, select_nodes
from zq2onnx.passes.unpack_embeddings import UnpackEmbeddingsPass
from zq2onnx.scheme import PerBlock, PerChannel, Scheme

LOOKUP = "g (int64[2, 5] ids) => (float[2, 5, 23] y) { y = Gather(w, ids) }"
DEQUANTIZE = (
    "y = DequantizeLinear <axis=-1, block_size=16> (y/codes/output, y/scales/output, y/zero_points/output)"
)


def embedded(scheme: Scheme, text: str = LOOKUP, *, width: int = 23) -> ir.Model:
    model = graph(text, {"w": rand(30, width)})
    step = InsertEmbeddingQdqPass(select_nodes(model, Policy(SCHEME, embedding=scheme)))
    assert step(model).modified and not step(model).modified
    return model


def test_insert_embedding_qdq() -> None:
    model = embedded(SCHEME)
    assert structure(model) == [
        "y/codes/output = Gather <axis=0> (w_table_Q4_codes, ids)",
        "y/scales/output = Gather <axis=0> (w_table_Q4_scales, ids)",
        "y/zero_points/output = Gather <axis=0> (w_table_Q4_zero_points, ids)",
        DEQUANTIZE,
    ]
    assert initializers(model) == {
        "w_table_Q4_codes": "UINT4[30,23]",
        "w_table_Q4_scales": "FLOAT[30,2]",
        "w_table_Q4_zero_points": "UINT4[30,2]",
    }
    assert groups(model) == {"y"}


@pytest.mark.parametrize(("width", "block"), [(1, 16), (16, 16), (17, 32), (23, 32), (64, 64)])
def test_a_row_is_a_block_that_holds_it(width: int, block: int) -> None:
    model = embedded(dataclasses.replace(SCHEME, granularity=PerChannel()), width=width)
    assert f"block_size={block}>" in structure(model)[-1]
    assert initializers(model)["w_table_Q4_scales"] == "FLOAT[30,1]"


def test_lower_embeddings() -> None:
    for bits, more in ((4, ""), (8, ", bits=8")):
        model = embedded(dataclasses.replace(SCHEME, bits=bits))
        name = f"w_table_Q{bits}"
        assert LowerEmbeddingsPass()(model).modified and not LowerEmbeddingsPass()(model).modified
        assert structure(model) == [
            f"y = com.microsoft.GatherBlockQuantized <gather_axis=0, quantize_axis=1, block_size=16{more}>"
            f" ({name}_codes, ids, {name}_scales, {name}_zero_points)"
        ]
        assert model.opset_imports["com.microsoft"] == 1 and groups(model) == {"y"}


def test_unpack_embeddings_of_an_odd_width() -> None:
    model = embedded(SCHEME)
    assert UnpackEmbeddingsPass()(model).modified and not UnpackEmbeddingsPass()(model).modified
    assert structure(model) == [
        "y/codes/output/bytes = Gather <axis=0> (w_table_Q4_packed_codes, ids)",
        "y/low/output = BitwiseAnd (y/codes/output/bytes, zq2onnx/low_nibble)",
        "y/high/output = BitShift <direction=RIGHT> (y/codes/output/bytes, zq2onnx/nibble_bits)",
        "y/unpack/output = Concat <axis=-1> (y/low/output, y/high/output)",
        "y/codes/output = Slice (y/unpack/output, zq2onnx/slice_0, zq2onnx/slice_23, zq2onnx/slice_-1)",
        "y/scales/output = Gather <axis=0> (w_table_Q4_scales, ids)",
        "y/zero_points/output = Gather <axis=0> (w_table_Q4_packed_zero_points, ids)",
        DEQUANTIZE,
    ]
    assert initializers(model)["w_table_Q4_packed_codes"] == "UINT8[30,12]"
    assert initializers(model)["w_table_Q4_packed_zero_points"] == "UINT8[30,2]"
    assert len({node.name for node in model.graph}) == len(structure(model))


def test_unpack_embeddings_of_an_even_width_slices_nothing() -> None:
    model = embedded(SCHEME, "g (int64[2, 5] ids) => (float[2, 5, 24] y) { y = Gather(w, ids) }", width=24)
    UnpackEmbeddingsPass()(model)
    assert "Slice" not in {node.op_type for node in model.graph}


def test_eight_bits_need_no_unpacking() -> None:
    model = embedded(dataclasses.replace(SCHEME, bits=8))
    before = structure(model)
    assert not UnpackEmbeddingsPass()(model).modified
    assert structure(model) == before


INTO_PRODUCT = "g (int64[2, 5] ids) => (float[2, 5, 12] y) { h = Gather(w, ids) y = MatMul(h, v) }"


def test_looked_up_rows_are_parted_from_a_product() -> None:
    """ONNX Runtime would make a MatMulIntegerToFloat of the two and fail."""
    model = embedded(dataclasses.replace(SCHEME, bits=8), INTO_PRODUCT)
    assert UnpackEmbeddingsPass()(model).modified and not UnpackEmbeddingsPass()(model).modified
    assert structure(model)[-3:] == [
        "h/unsqueeze/output = Unsqueeze (h/output/rows, zq2onnx/first_axis)",
        "h = Squeeze (h/unsqueeze/output, zq2onnx/first_axis)",
        "y = MatMul (h, v)",
    ]


@pytest.mark.parametrize("target", ["portable", "qdq"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group_size", [16, "row"])
def test_rows_are_those_of_the_rounded_table(
    bits: int, group_size: int | str, target: str, tmp_path: Path
) -> None:
    """With negative ids, into a product in 8 bits, and looked up twice."""
    table, weight = rand(30, 24), rand(24, 12, seed=1)
    text = (
        "g (int64[2, 5] ids, int64[3] more) => (float[2, 5, 12] y, float[3, 24] e)"
        " { h = Gather(w, ids) y = MatMul(h, v) e = Gather <axis = -2> (w, more) }"
    )
    model = proto(text, {"w": table, "v": weight})
    options = {"group_size": group_size, "scheme": "w8a16", "lorc_rank": 4, "embedding_bits": bits}
    output, report = convert(model, tmp_path, target=target, **options)
    assert [node.reason for node in report.nodes] == ["", "", ""]
    granularity = PerChannel() if group_size == "row" else PerBlock(16)
    plain = Scheme(bits=bits, granularity=granularity, lorc_rank=0)
    rows = rounded(table.T, plain).T
    product = rounded(weight, dataclasses.replace(plain, bits=8, lorc_rank=4))
    ids, more = np.arange(10).reshape(2, 5) - 4, np.array([0, 29, -30])
    got = zoo.run(output, {"ids": ids, "more": more})
    np.testing.assert_allclose(got[0], rows[ids] @ product, rtol=0, atol=2e-5 * np.abs(got[0]).max())
    np.testing.assert_allclose(got[1], rows[more], rtol=0, atol=1e-6)
