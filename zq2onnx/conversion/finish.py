"""Turn planned tensors into places in the data file, and give the output its name."""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path

import google.protobuf.message
import onnx
import onnx.helper
import onnx_ir as ir

from zq2onnx.conversion.loading import Source
from zq2onnx.conversion.placement import Plan
from zq2onnx.conversion.protos import graphs
from zq2onnx.errors import UserError
from zq2onnx.passes.raise_opset import LOWEST_IR_VERSION
from zq2onnx.storage import embedded
from zq2onnx.storage.failures import no_space_is_told
from zq2onnx.storage.journal import Journal
from zq2onnx.storage.output import OutputFiles
from zq2onnx.storage.paths import same_file
from zq2onnx.storage.plan import Region, Section


def least_ir_version(model: ir.Model) -> int:
    """The lowest IR version that the file's opset needs."""
    opset = onnx.helper.make_opsetid("", model.opset_imports[""])
    return max(LOWEST_IR_VERSION, onnx.helper.find_min_ir_version_for([opset]))


def finish(model: ir.Model, plan: Plan, files: OutputFiles, journal: Journal) -> None:
    """Put the factors that stay behind the data, point the graph at the bytes, publish."""
    moves = place_tensors(model, plan, files.data)
    files.append_factors(plan.data.size, moves)
    proto = to_proto(model)
    if files.single_file:
        _embed(proto, files)
    content = proto.SerializeToString(deterministic=True)
    journal.record_model(content)
    files.publish(content)


def place_tensors(model: ir.Model, plan: Plan, data: Path) -> list[tuple[Region, Region]]:
    """Put the factors that stay behind the rest, and point the graph at its bytes in the file `data`.

    Returns:
        From where in the factors' file to where in `data` each factor goes.
    """
    used = {id(value) for graph in model.graphs() for value in graph.initializers.values()}
    regions = dict(plan.data.regions)
    end = Section(size=plan.data.size)
    moves = []
    for value, name in plan.places:
        if id(value) not in used:
            continue
        if name in plan.factors.regions:
            old = plan.factors.regions[name]
            regions[name] = end.place(name, old.length)
            moves.append((old, regions[name]))
        value.const_value = _external(value, regions[name], data)
    return moves


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The message of a model whose tensors are placed."""
    proto = ir.to_proto(model)
    _drop_repeated_types(proto.graph)
    return proto


def _external(value: ir.Value, region: Region, data: Path) -> ir.ExternalTensor:
    tensor = value.const_value
    assert tensor is not None
    return ir.ExternalTensor(
        data.name,
        region.offset,
        region.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name or "",
        base_dir=data.parent,
    )


def _drop_repeated_types(graph: onnx.GraphProto) -> None:
    """An initializer says its type itself: a fifth of a small model's file without its weights."""
    known = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in known]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _embed(proto: onnx.ModelProto, files: OutputFiles) -> None:
    """Move the data file's bytes into the message."""
    with files.partial_data.open("rb") as data:
        for tensor in (tensor for graph in graphs(proto) for tensor in graph.initializer):
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            tensor.raw_data = os.pread(data.fileno(), int(place["length"]), int(place["offset"]))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


def check_unchanged(source: Source, files: OutputFiles) -> list[tuple[Path, Path]]:
    """Where the input's data files go if the input is written to the output as it is.

    They keep their names, for the model names them.

    Returns:
        `(from, to)` of each; none where the folder is the same.

    Raises:
        UserError: one of them would overwrite another file.
    """
    folder = files.model.parent
    if folder.resolve() == source.path.parent.resolve():
        return []
    pairs = [(path, folder / path.relative_to(source.path.parent)) for path in source.data]
    for path, target in pairs:
        if target.resolve() == files.model.resolve():
            raise UserError(f"{target} is the name of the input's data too", "another output name")
        if target.exists() and not filecmp.cmp(path, target, shallow=False):
            raise UserError(
                f"{target} exists, and is not the input's data of that name",
                "a folder without it",
                "choose one with -o",
            )
    return pairs


def stale_data(files: OutputFiles, source: Source) -> Path | None:
    """The data of the model that is to be overwritten, if that names it and it is none of the input's."""
    if not files.data.is_file() or any(same_file(files.data, path) for path in source.files):
        return None
    try:
        old, _ = embedded.parse_model(files.model)
    except (OSError, google.protobuf.message.DecodeError):
        return None
    named = {
        entry.value
        for graph in graphs(old)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return files.data if files.data.name in named else None


def copy_unchanged(source: Source, files: OutputFiles) -> None:
    """Write the input to the output as it is: there was nothing to quantize.

    Raises:
        UserError: a data file would overwrite another file, or there is no room.
    """
    pairs = [*check_unchanged(source, files), (source.path, files.model)]
    files.make_folder()
    try:
        with no_space_is_told(files.model.parent):
            for path, target in pairs:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, _partial(target))
        files.model.unlink(missing_ok=True)  # no old model on new data
        if files.stale is not None and not any(same_file(files.stale, target) for _, target in pairs):
            files.remove_stale()
        for _, target in pairs:
            _partial(target).replace(target)
    finally:
        for _, target in pairs:
            _partial(target).unlink(missing_ok=True)
        if not files.model.exists():
            files.discard()


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
