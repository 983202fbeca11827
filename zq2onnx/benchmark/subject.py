"""Reads off model files what benchmarking them needs, and makes their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

from zq2onnx.archive import read_arrays
from zq2onnx.benchmark.operators import Ops, operator_uses, tolerance_of
from zq2onnx.benchmark.results import OperatorUse
from zq2onnx.benchmark.shapes import Limits, Shape, Wishes, choose_batch, choose_shapes
from zq2onnx.configuration import context_length
from zq2onnx.errors import UserError
from zq2onnx.evaluation.model_file import read_model
from zq2onnx.evaluation.subject import measure_file
from zq2onnx.feeds import TextInput, feed_text, text_inputs
from zq2onnx.language import INPUTS, fixed_length, free_inputs, read_config, static_dim
from zq2onnx.language import vocabulary as known_vocabulary

_SEED = 17
_OWN_INPUTS = "--npz FILE with the model's own inputs"


@dataclass(frozen=True)
class Subject:
    """A model that is to be timed.

    Attributes:
        path: the file, as it was given.
        bytes: its size with all external data.
        operators: those of `ai.zq2onnx` in it.
        tolerance: what its outputs on the two routes may differ by, as a part of the largest.
        text: how its inputs are made from tokens; () where they are in an archive.
        vocabulary: ids that it may be fed are below this.
        arrays: its inputs by name; {} where they are made.
    """

    path: Path
    bytes: int
    operators: tuple[OperatorUse, ...]
    tolerance: float
    text: tuple[TextInput, ...]
    vocabulary: int
    arrays: Mapping[str, np.ndarray]

    @property
    def fused(self) -> tuple[str, ...]:
        """The operators that the library registers."""
        return tuple(use.name for use in self.operators if use.fused)

    def inputs(self, shape: Shape) -> dict[str, np.ndarray]:
        """What it reads of a shape, always the same; its float32 copy reads float32 in place of bfloat16."""
        made = dict(self.arrays) if shape.tokens is None else self._from_tokens(shape, shape.tokens)
        return {
            name: array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
            for name, array in made.items()
        }

    def _from_tokens(self, shape: Shape, tokens: int) -> dict[str, np.ndarray]:
        """Random ids after a cache of random numbers."""
        rng = np.random.default_rng(_SEED)
        ids = rng.integers(0, self.vocabulary, (shape.batch, tokens))
        feeds = feed_text(self.text, ids)
        for each in self.text:
            feed = feeds[each.name]
            if each.cache is not None:
                sizes = [size or shape.past for size in feed.shape]
                feeds[each.name] = rng.standard_normal(sizes, np.float32).astype(feed.dtype)
            elif each.name == "attention_mask":
                feeds[each.name] = np.ones((shape.batch, shape.past + tokens), feed.dtype)
            elif each.name == "position_ids":
                feeds[each.name] = feed + feed.dtype.type(shape.past)
        return feeds


def read_text_models(
    paths: Sequence[Path], wishes: Wishes, ops: Ops, provider: str
) -> tuple[tuple[Subject, ...], tuple[Shape, ...]]:
    """Read models that are fed tokens, and choose what they are run on.

    Raises:
        UserError: a file is missing or no model, or it cannot be given what is asked for.
    """
    models = [read_model(path) for path in paths]
    _check_inputs(paths, models)
    text = [text_inputs(model, path, _OWN_INPUTS) for path, model in zip(paths, models, strict=True)]
    limits = [_limits(*each) for each in zip(paths, models, text, strict=True)]
    shapes = choose_shapes(limits, wishes)
    vocabulary = min(_vocabulary(path, model) for path, model in zip(paths, models, strict=True))
    subjects = tuple(
        _subject(path, model, operator_uses(model, ops, provider), inputs, vocabulary, {})
        for path, model, inputs in zip(paths, models, text, strict=True)
    )
    return subjects, shapes


def read_fed_models(
    paths: Sequence[Path], archive: Path, wishes: Wishes, ops: Ops, provider: str
) -> tuple[tuple[Subject, ...], tuple[Shape, ...]]:
    """Read models whose inputs are in an archive, and the first samples of it.

    Raises:
        UserError: a file is missing or no model, or the archive does not fit it.
    """
    if wishes.prompts or wishes.past is not None:
        given = "--prompt" if wishes.prompts else "--past"
        raise UserError(f"{given} with --npz, which has no use for it", remedy="leave it out")
    models = [read_model(path) for path in paths]
    _check_inputs(paths, models)
    fixed = [(str(path), _fixed_batch(model)) for path, model in zip(paths, models, strict=True)]
    batch = choose_batch(fixed, wishes.batch)
    subjects = []
    for path, model in zip(paths, models, strict=True):
        arrays = read_arrays(model, path, archive, batch)
        found = len(next(iter(arrays.values())))
        if found < batch:
            raise UserError(f"{archive}: {found} samples", f"{batch}, as --batch says or the graph takes")
        uses = operator_uses(model, ops, provider)
        subjects.append(_subject(path, model, uses, (), 0, _narrowed(model, arrays)))
    return tuple(subjects), (Shape(batch, None),)


def _subject(
    path: Path,
    model: ir.Model,
    uses: tuple[OperatorUse, ...],
    text: tuple[TextInput, ...],
    vocabulary: int,
    arrays: Mapping[str, np.ndarray],
) -> Subject:
    size = measure_file(path, model).bytes
    return Subject(path, size, uses, tolerance_of(model), text, vocabulary, arrays)


def _check_inputs(paths: Sequence[Path], models: Sequence[ir.Model]) -> None:
    """All must read the same."""
    names = [sorted(value.name or "" for value in free_inputs(model)) for model in models]
    for path, read in zip(paths, names, strict=True):
        if read != names[-1]:
            raise UserError(
                f"{path}: its inputs are {', '.join(read)}; those of {paths[-1]}: {', '.join(names[-1])}",
                "models with the same inputs",
                "leave out --against",
            )


def _limits(path: Path, model: ir.Model, text: Sequence[TextInput]) -> Limits:
    if not any(each.name == "input_ids" for each in text):
        raise UserError(f"{path}: no input named input_ids", "a model that reads tokens", _OWN_INPUTS)
    own = [value for value in free_inputs(model) if value.name in INPUTS]
    cache = any(each.cache is not None for each in text)  # a mask is as long as it and the tokens
    return Limits(
        file=str(path),
        batch=next(filter(None, (static_dim(value, 0) for value in own)), None),
        length=fixed_length([value for value in own if not (cache and value.name == "attention_mask")]),
        context=context_length(read_config(path)),
        cache=cache,
    )


def _vocabulary(path: Path, model: ir.Model) -> int:
    """Tokens that a model knows; where nothing tells, 1: it knows token 0, and what is read takes no time."""
    logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
    return known_vocabulary(model, logits, read_config(path)) or 1


def _fixed_batch(model: ir.Model) -> int | None:
    return next(filter(None, (static_dim(value, 0) for value in free_inputs(model))), None)


def _narrowed(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays in the types that the graph reads: float32 serves for narrower ones."""
    dtypes = {value.name: value.dtype.numpy() for value in model.graph.inputs if value.dtype is not None}
    return {name: array.astype(dtypes.get(name, array.dtype), copy=False) for name, array in arrays.items()}
