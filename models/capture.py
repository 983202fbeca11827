"""Capture: a transformers model goes in, an ONNX file comes out.

Needs the `[torch]` extra; torch and transformers are imported when `export` is called.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zq2onnx.errors import UserError
from zq2onnx.models import checkpoint, trace
from zq2onnx.models.cache import check_cache
from zq2onnx.models.checkpoint import Checkpoint
from zq2onnx.models.trial import Turn, ask
from zq2onnx.storage.companions import check_companions, copy_companions
from zq2onnx.storage.paths import check_folder, identity

if TYPE_CHECKING:
    import onnx_ir as ir

_EXPORTED = (".onnx", ".onnx.data")
INLINE_BYTES = 1024
"""Tensors up to this size stay in the model file."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Capture:
    """What `export` wrote.

    Attributes:
        path, data: the model and its weights.
        bytes: size of both.
        inputs, outputs: name, type and shape of each, as `input_ids int64[batch, sequence]`.
        opset: version of the standard operators.
        architecture: transformers class that was captured.
        cached: whether a KV cache is among inputs and outputs.
        dropped_head: class named in the checkpoint, where its head is not in the file.
        companions: files that the model needs beside it, in the folder of `path`.
        turns: what torch was asked before its model was written, and what it gave.
        difference: the largest between that and what the file gives; None where it was not asked.
    """

    path: Path
    data: Path
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    architecture: str
    cached: bool
    dropped_head: str | None
    companions: tuple[Path, ...]
    turns: tuple[Turn, ...] = field(repr=False)
    difference: float | None = None


def export(
    source: str | Path,
    output: Path,
    *,
    cache: bool | None = None,
    dtype: str = "fp32",
    force: bool = False,
    progress: Progress | None = None,
) -> Capture:
    """Write a transformers model as ONNX, with dynamic batch, sequence and past.

    Inputs are `input_ids` and `attention_mask`, int64 `[batch, sequence]`. The output is `logits`
    `[batch, sequence, vocabulary]` of a causal language model, else `last_hidden_state`
    `[batch, sequence, width]`. With a cache there are also `past_key_values.N.key|value`
    `[batch, heads, past, width]`, of a past that may be empty, and `present.N.key|value`; the mask is then
    `[batch, past + sequence]`, and `position_ids` `[batch, sequence]` is an input of models that do not
    count positions from the mask. Weights go to `OUTPUT.data`; both files appear under their names only
    when whole.

    Args:
        source: folder or hub id.
        output: the ONNX file. Of a path that does not exist, only the last folder is created.
        cache: whether the graph has a KV cache; None for one where the model is a causal language model.
        dtype: `fp32`, `fp16` or `bf16`, whatever the checkpoint holds.
        force: overwrite.
        progress: called with a few words at the start of each stage.

    Raises:
        UserError: the model cannot be loaded or captured, has no such cache, or the output exists.
    """
    report = progress or (lambda stage: None)
    output = Path(output)
    if dtype not in checkpoint.DTYPES:
        raise UserError(f"unknown dtype {dtype!r}", f"one of {', '.join(checkpoint.DTYPES)}")
    _check_output(output, force)
    checkpoint.require_torch()
    report("loading")
    loaded = checkpoint.load(source, dtype)
    _spare_checkpoint(loaded.folder, output)
    cached = loaded.causal if cache is None else cache
    if cached and not loaded.causal:
        raise UserError(
            f"--cache: {loaded.architecture} is no causal language model, and has no KV cache",
            remedy="leave --cache out",
        )
    check_companions(loaded.folder, output.parent, force=force)
    report("capturing")
    model, turns = _capture(loaded, source, cached)
    report("writing")
    companions = _write(model, loaded.folder, output, force)
    data = _data_path(output)
    made = Capture(
        path=output,
        data=data,
        bytes=sum(path.stat().st_size for path in (output, data) if path.exists()),
        inputs=tuple(map(_describe, model.graph.inputs)),
        outputs=tuple(map(_describe, model.graph.outputs)),
        opset=model.opset_imports[""],
        architecture=loaded.architecture,
        cached=cached,
        dropped_head=loaded.dropped_head,
        companions=tuple(companions),
        turns=turns,
    )
    _forget_weights(model, loaded)
    return made


def _data_path(output: Path) -> Path:
    return output.with_name(output.name + ".data")


def _check_output(output: Path, force: bool) -> None:
    if output.is_dir():
        raise UserError(f"{output} is a folder", "the path of a file to write")
    check_folder(output)
    for path in (output, _data_path(output)):
        if path.exists() and not force:
            raise UserError(f"{path} exists", remedy="give --force to overwrite it, or another -o")


def _spare_checkpoint(folder: Path, output: Path) -> None:
    """Refuse to write over a file of the model that is read; an earlier export beside it may go."""
    files = (path for path in folder.iterdir() if not path.name.endswith(_EXPORTED))
    read = {identity(path): path for path in files}
    for path in (output, _data_path(output)):
        if identity(path) in read:
            raise UserError(
                f"{path} is {read[identity(path)].name} of the model that is exported",
                "an output that is no file of it",
                "choose another -o, such as model.onnx",
            )


def _capture(loaded: Checkpoint, source: str | Path, cached: bool) -> tuple[ir.Model, tuple[Turn, ...]]:
    """The graph, named by module paths, with every weight from the checkpoint; and what torch answers."""
    from zq2onnx.models.naming import name_by_modules

    with checkpoint.silence():
        try:
            if cached:
                check_cache(loaded.model)
            turns = ask(loaded, cached)
            model = trace.trace_cached(loaded) if cached else trace.trace_plain(loaded)
        except UserError:
            raise
        except Exception as error:  # torch.export raises whatever the model's code raises
            raise UserError(
                f"{source}: torch.export cannot capture {loaded.architecture}: {checkpoint.one_line(error)}"
            ) from error
    name_by_modules(model, trace.WRAPPED)
    absent = sorted(loaded.missing & set(model.graph.initializers))
    if absent:
        raise UserError(
            f"{source} lacks {len(absent)} weights of {loaded.architecture}, {absent[0]} for one",
            "a checkpoint with all of them",
        )
    return model, turns


def _write(model: ir.Model, folder: Path, output: Path, force: bool) -> list[Path]:
    """Save under temporary names, then rename: data before model, an old model going first."""
    import onnx_ir as ir

    output.parent.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    data = _data_path(output)
    try:
        ir.save(model, temporary / output.name, external_data=data.name, size_threshold_bytes=INLINE_BYTES)
        companions = copy_companions(folder, output.parent, force=force)
        if force:
            output.unlink(missing_ok=True)
            data.unlink(missing_ok=True)
        if (temporary / data.name).exists():
            os.replace(temporary / data.name, data)
        os.replace(temporary / output.name, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return companions


def _forget_weights(model: ir.Model, loaded: Checkpoint) -> None:
    """Free them now: onnxscript's rewrite rules, which live on, hold the graph that they saw last."""
    import torch

    for value in model.graph.initializers.values():
        value.const_value = None
    for tensor in (*loaded.model.parameters(), *loaded.model.buffers()):
        tensor.data = torch.empty(0)


def _describe(value: ir.Value) -> str:
    dims = ", ".join(str(dim) for dim in value.shape or ())
    return f"{value.name} {str(value.dtype).lower()}[{dims}]"
