"""Chooses the shapes that models are run on: prompts, and the step of one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zq2onnx.errors import UserError

DEFAULT_PROMPT = 128
DEFAULT_PAST = 512


@dataclass(frozen=True)
class Shape:
    """What a model is given at once.

    Attributes:
        batch: sequences, or samples of an archive.
        tokens: of each sequence; None for samples of an archive.
        past: tokens of each that a cache holds.
    """

    batch: int
    tokens: int | None
    past: int = 0

    @property
    def amount(self) -> int:
        """Tokens that are read in one run, or samples."""
        return self.batch * (self.tokens or 1)

    @property
    def name(self) -> str:
        """
        >>> Shape(1, 128).name, Shape(4, 1, 512).name, Shape(8, None).name
        ('128 tokens', '4 x 1 token after 512', '8 samples')
        """
        if self.tokens is None:
            return _count(self.batch, "sample")
        times = "" if self.batch == 1 else f"{self.batch} x "
        return times + _count(self.tokens, "token") + (f" after {self.past}" if self.past else "")


@dataclass(frozen=True)
class Limits:
    """What a model of text can be given.

    Attributes:
        file: the model, for messages.
        batch: the one number of sequences that its graph takes; None for any.
        length: the one number of tokens; None for any.
        context: the most tokens that its config.json promises, the past's included; None where it is silent.
        cache: whether it has a cache.
    """

    file: str
    batch: int | None
    length: int | None
    context: int | None
    cache: bool


@dataclass(frozen=True)
class Wishes:
    """What shapes are asked for; None: the defaults."""

    prompts: tuple[int, ...] = ()
    batch: int | None = None
    past: int | None = None

    def __post_init__(self) -> None:
        for prompt in self.prompts:
            if prompt < 1:
                raise UserError(f"--prompt {prompt}", "at least 1")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"--batch {self.batch}", "at least 1")
        if self.past is not None and self.past < 0:
            raise UserError(f"--past {self.past}", "at least 0")


def choose_batch(limits: Sequence[tuple[str, int | None]], wish: int | None) -> int:
    """The batch that is asked for, or what the graphs take; else 1.

    Args:
        limits: models, and the one batch that each takes; None for any.
        wish: what is asked for.

    Raises:
        UserError: a graph takes another.
    """
    batch = wish or next((fixed for _, fixed in limits if fixed is not None), 1)
    for file, fixed in limits:
        if fixed not in (None, batch):
            raise UserError(
                f"{file}: its graph takes a batch of {fixed}, not {batch}", remedy=f"--batch {fixed}"
            )
    return batch


def choose_shapes(limits: Sequence[Limits], wishes: Wishes) -> tuple[Shape, ...]:
    """Prompts after nothing, and one token after the past, or after nothing where there is no cache.

    A graph that takes one length is run on that alone.

    Raises:
        UserError: a model cannot be given what is asked for.
    """
    batch = choose_batch([(each.file, each.batch) for each in limits], wishes.batch)
    context = min((each.context for each in limits if each.context is not None), default=None)
    length = next((each.length for each in limits if each.length is not None), None)
    cache = all(each.cache for each in limits)
    if wishes.past and not cache:
        raise UserError(f"--past {wishes.past}: {limits[-1].file} has no KV cache", remedy="leave --past out")
    shapes = [Shape(batch, prompt) for prompt in wishes.prompts or _default_prompts(length, context, cache)]
    if length in (None, 1):
        default_past = DEFAULT_PAST if context is None else min(DEFAULT_PAST, context - 1)
        past = wishes.past if wishes.past is not None else default_past if cache else 0
        shapes.append(Shape(batch, 1, past))
    for each in limits:
        for shape in shapes:
            _check(each, shape)
    return tuple(dict.fromkeys(shapes))


def _default_prompts(length: int | None, context: int | None, cache: bool) -> tuple[int, ...]:
    if length is not None:
        return () if cache and length == 1 else (length,)
    return (DEFAULT_PROMPT if context is None else min(DEFAULT_PROMPT, context),)


def _check(limits: Limits, shape: Shape) -> None:
    assert shape.tokens is not None
    if limits.length not in (None, shape.tokens):
        raise UserError(
            f"{limits.file}: its graph takes {limits.length} tokens, not {shape.tokens}",
            remedy=f"--prompt {limits.length}",
        )
    if limits.context is not None and shape.tokens + shape.past > limits.context:
        raise UserError(
            f"{limits.file}: {shape.name}",
            f"at most {limits.context} in all, the context of its config.json",
            "a smaller --past" if shape.past else "a smaller --prompt",
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
