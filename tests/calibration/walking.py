"""Models to walk, samples made up for them, and the whole model run at once as their oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from tests import zoo
from zq2onnx.calibration import Samples, Step, Walk
from zq2onnx.conversion.loading import load
from zq2onnx.passes.normalize import NormalizePass

Array = np.ndarray


def normalized(path: Path) -> ir.Model:
    model = load(path).model
    NormalizePass()(model)
    return model


def from_text(text: str, **weights: Array) -> ir.Model:
    """A model in ONNX's text form, the initializers it declares as given here."""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    model = ir.from_proto(proto)
    NormalizePass()(model)
    return model


def made_up(batches: Sequence[dict[str, Array]], held_out: Sequence[bool] | None = None) -> Samples:
    flags = [False] * len(batches) if held_out is None else held_out
    return Samples(
        tuple(batches), tuple(flags), "", sum(next(iter(batch.values())).size for batch in batches)
    )


def joined(samples: Samples, held_out: bool) -> dict[str, Array]:
    """All fitted samples, or all held out, as one batch."""
    batches = [batch for batch, out in zip(samples.batches, samples.held_out, strict=True) if out == held_out]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def run_whole(
    path: Path, feeds: Mapping[str, Array], values: Sequence[str], weights: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The values of a model, run at once.

    Args:
        path: the model.
        feeds: its inputs.
        values: names of any values in it.
        weights: `[N, K]` by node: what the node multiplies with, alpha included.
    """
    model = onnx.load(path)
    for node in model.graph.node:
        if weights and node.name in weights:
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            weight = weights[node.name] / np.float32(attributes.get("alpha", 1.0))
            stored = weight if attributes.get("transB", 0) else np.ascontiguousarray(weight.T)
            node.input[1] = f"{node.name} changed"
            model.graph.initializer.append(numpy_helper.from_array(stored, node.input[1]))
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in {*values} - known)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(values, session.run(list(values), dict(feeds)), strict=True))


def second_moment(x: Array) -> Array:
    """`E[x xᵀ]` in float64."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    return rows.T @ rows / len(rows)


def samples_for(path: Path, length: int = 9) -> Samples:
    """Three batches of two samples, the last held out."""
    batches = [zoo.feeds(path, batch=2, length=length, seed=seed) for seed in range(3)]
    return made_up(batches, [False, False, True])


def walk_of(name: str, **options: object) -> Walk:
    path = zoo.model(name)
    return Walk(normalized(path), path, samples_for(path), threads=1, **options)  # type: ignore[arg-type]


def activations(step: Step) -> dict[str, str]:
    """Name of the value that each linear of a step multiplies."""
    by_name = {node.name: node for node in step.piece.nodes}
    return {name: by_name[name].inputs[0].name for name in step.linears()}  # type: ignore[union-attr,misc]


def changed(step: Step) -> dict[str, np.ndarray]:
    """Other weights `[N, K]` for all linears of a step."""
    rng = np.random.default_rng(step.index)
    linears = step._walk._runner.linears_of(step.index)
    return {
        linear.name: rng.normal(0, 0.2, (linear.view.n, linear.view.k)).astype(np.float32)
        for linear in linears
    }
