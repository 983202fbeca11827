"""Turn planned tensors into places in the data file, and give the output its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import onnx
import onnx.helper
import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.loading import Source
from zq2onnx.passes.raise_opset import LOWEST_IR_VERSION
from zq2onnx.storage.output import OutputFiles
from zq2onnx.storage.plan import Region, Section
from zq2onnx.stream import Plan


def least_ir_version(model: ir.Model) -> int:
    """The lowest IR version that the file's opset needs."""
    opset = onnx.helper.make_opsetid("", model.opset_imports[""])
    return max(LOWEST_IR_VERSION, onnx.helper.find_min_ir_version_for([opset]))


def finish(model: ir.Model, plan: Plan, files: OutputFiles) -> None:
    """Put the factors that stay behind the data, point the graph at the bytes, publish."""
    used = {id(value) for graph in model.graphs() for value in graph.initializers.values()}
    regions = dict(plan.data.regions)
    end = Section(size=plan.data.size)
    moves = []
    for value, name in plan.places:
        if name in plan.factors.regions and id(value) in used:
            old = plan.factors.regions[name]
            regions[name] = end.place(name, old.length)
            moves.append((old, regions[name]))
    files.append_factors(plan.data.size, moves)
    for value, name in plan.places:
        if id(value) in used:
            value.const_value = _external(value, regions[name], files)
    proto = ir.to_proto(model)
    if files.single_file:
        _embed(proto, files)
    files.publish(proto.SerializeToString(deterministic=True))


def _external(value: ir.Value, region: Region, files: OutputFiles) -> ir.ExternalTensor:
    tensor = value.const_value
    assert tensor is not None
    return ir.ExternalTensor(
        files.data.name,
        region.offset,
        region.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape),
        name=value.name or "",
        base_dir=files.data.parent,
    )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _tensors(subgraph)


def _embed(proto: onnx.ModelProto, files: OutputFiles) -> None:
    """Move the data file's bytes into the message."""
    with files.partial_data.open("rb") as data:
        for tensor in _tensors(proto.graph):
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            tensor.raw_data = os.pread(data.fileno(), int(place["length"]), int(place["offset"]))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


def copy_unchanged(source: Source, files: OutputFiles, force: bool) -> None:
    """Write the input to the output as it is: there was nothing to quantize.

    Its data files keep their names, for the model names them.

    Raises:
        UserError: one of them would overwrite another file.
    """
    folder = files.model.parent
    pairs = [(path, folder / path.relative_to(source.path.parent)) for path in source.data]
    if folder.resolve() != source.path.parent.resolve():
        for path, target in pairs:
            if target.exists() and not force:
                raise UserError(f"{target} exists", "a new path", "choose another folder with -o, or --force")
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".partial")
            shutil.copyfile(path, partial)
            partial.replace(target)
    shutil.copyfile(source.path, files.partial_model)
    files.partial_model.replace(files.model)
