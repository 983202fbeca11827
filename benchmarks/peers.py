"""Divergence of the trained OPT at 4 bits in groups of 32, beside ONNX Runtime's own quantizers.

    python benchmarks/peers.py

The same layers (a Gemm is a MatMul and an Add to the peers, which skip Gemms), no branch. Exits with 1 where
GPTQ leaves more than `BAR` of the better peer's mean KL, or its file is larger than that peer's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import zoo
from tests.acceptance.calibrated import convert_cell
from tests.acceptance.perplexity import LENGTH, WINDOWS, write_texts
from zq2onnx.evaluation import evaluate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BLOCK = 32
BAR = 0.35


def without_gemm(path: Path) -> onnx.ModelProto:
    """The model with each Gemm of a constant weight as MatMul and Add."""
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.input[1] not in weights:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        matrix = np.ascontiguousarray(weight.T if attributes.get("transB") else weight)
        model.graph.initializer.append(numpy_helper.from_array(matrix, f"{node.name}.matrix"))
        product = f"{node.output[0]}.product"
        nodes.append(helper.make_node("MatMul", [node.input[0], f"{node.name}.matrix"], [product], node.name))
        nodes.append(helper.make_node("Add", [product, node.input[2]], node.output, f"{node.name}.bias"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def quantize_as_peer(model: onnx.ModelProto, config: object, head: str, path: Path) -> Path:
    """ONNX Runtime's quantizer, the head left float."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = MatMulNBitsQuantizer(copy, nodes_to_exclude=[head], algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=False)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of each text")
    given = parser.parse_args()
    from onnxruntime.quantization import matmul_nbits_quantizer as peers

    model = zoo.model("opt-17m")
    with tempfile.TemporaryDirectory(prefix="zq2onnx-") as scratch:
        folder = Path(scratch)
        plain = without_gemm(model)
        head = next(node.name for node in reversed(plain.graph.node) if node.op_type == "MatMul")
        rtn = peers.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False)
        paths = {
            "onnxruntime RTN": quantize_as_peer(plain, rtn, head, folder / "rtn.onnx"),
            "onnxruntime HQQ": quantize_as_peer(
                plain, peers.HQQWeightOnlyQuantConfig(block_size=BLOCK), head, folder / "hqq.onnx"
            ),
        }
        for name, objective in (("zq2onnx GPTQ", "layer"), ("zq2onnx GPTQ, model", "model")):
            options = {"method": "gptq", "lorc_rank": 0, "objective": objective}
            path = folder / f"{objective}.onnx"
            paths[name] = convert_cell(model, DATA / "calibration.txt", path, "W4 g32", options)
        texts = write_texts(DATA, folder / "texts")
        result = evaluate([model, *paths.values()], texts, model.parent, length=LENGTH, windows=given.windows)
        scores = dict(zip(paths, result.models[1:], strict=True))
    best = min(score.kl for name, score in scores.items() if name.startswith("onnxruntime"))
    least = min(score.bytes for score in scores.values() if score.kl == best)
    bad = False
    for name, score in scores.items():
        print(
            f"{name:22} KL {score.kl:.6f} = {score.kl / best:.3f} of the better peer's, {score.bytes} bytes"
        )
        bad |= name.startswith("zq2onnx") and (score.kl > BAR * best or score.bytes > least)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
