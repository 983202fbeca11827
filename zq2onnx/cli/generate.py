"""`zq2onnx generate`: lets a language model go on with a prompt."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zq2onnx.cli.console import stderr
from zq2onnx.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from zq2onnx.runtime.serving import Generator

DEFAULT_NEW_TOKENS = 128


def generate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL.onnx|DIR",
            help="A causal language model with KV cache, or a folder that holds one, such as one that"
            " `package --for genai` made.",
        ),
    ],
    prompt: Annotated[
        list[str],
        typer.Option(metavar="TEXT", show_default=False, help="What to go on with. May be repeated."),
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json, or its folder.", show_default="the model's folder")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of each text, at most.",
            show_default=f"{DEFAULT_NEW_TOKENS}, or what the context leaves",
        ),
    ] = None,
    fused: Annotated[
        bool | None,
        typer.Option(
            "--fused/--portable",
            help="Run our nodes by the operator library, or everything on stock kernels.",
            show_default="as genai_config.json says; else by the library, where it is built",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Threads of ONNX Runtime.", show_default="as many as it chooses"
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the text alone.")] = False,
) -> None:
    """Try a language model at once: stream the likeliest continuation of a prompt.

    Plain ONNX Runtime on the CPU, greedy, with the KV cache kept where it is computed. The text goes to
    stdout as it comes, the speed to stderr. Prompts are taken as they are, without chat template; several
    run as one batch, and their texts are printed when all have ended.

    \b
    zq2onnx generate model.w4a16.onnx --prompt "The capital of France is"
    zq2onnx generate package/ --prompt "Once" --prompt "The first" --max-new-tokens 64
    """
    from zq2onnx.runtime.serving import Generator, find_model
    from zq2onnx.text import read_tokenizer, tokenizer_file

    words = read_tokenizer(tokenizer_file(tokenizer or find_model(model).model.parent))
    words.no_truncation()
    words.no_padding()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack what a model writes
    prompts = [_encode(words, text) for text in prompt]
    generator = Generator(model, fused=fused, threads=threads)
    left = generator.room(prompts) or DEFAULT_NEW_TOKENS
    count = min(DEFAULT_NEW_TOKENS, left) if max_new_tokens is None else max_new_tokens
    texts = [_Text(words, ids, _write if len(prompts) == 1 else None) for ids in prompts]
    if not (generator.settings.eos or quiet):
        stderr.print(f"no file beside {generator.path} names a token that ends a text: {count} come of each")
    speed = _run(generator, prompts, count, texts)
    for text, ids in zip(prompt, texts, strict=True):
        _write("\n" if len(prompts) == 1 else f"[{text}]{''.join(ids.pieces)}\n")
    if not quiet:
        stderr.print(speed)


def _encode(words: Tokenizer, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that the shell handed on as they were
        raise UserError(f"--prompt {text!r}: not UTF-8", "a UTF-8 text") from None
    ids: list[int] = words.encode(text).ids
    return ids


@dataclass
class _Text:
    """A text as it comes: only whole characters of it.

    Attributes:
        tokenizer: what its ids mean.
        prompt: the ids before it, which say how it begins.
        show: called with each piece; None to keep them.
        pieces: what has come so far, kept.
    """

    tokenizer: Tokenizer
    prompt: Sequence[int]
    show: Callable[[str], None] | None
    pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from tokenizers.decoders import DecodeStream

        self._stream = DecodeStream(skip_special_tokens=True)
        for token in self.prompt:
            self._stream.step(self.tokenizer, token)

    def add(self, token: int) -> None:
        """One token more."""
        piece = self._stream.step(self.tokenizer, token)
        if piece:
            (self.show or self.pieces.append)(piece)


def _write(text: str) -> None:
    """To stdout at once, with no line broken; ends the command where nobody reads on, as behind `| head`."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at exit
        raise typer.Exit from None


def _run(generator: Generator, prompts: Sequence[list[int]], count: int, texts: Sequence[_Text]) -> str:
    """Generate, hand tokens out, and say how fast it was."""
    begun = first = time.perf_counter()
    made = steps = 0
    try:
        for tokens in generator.stream(prompts, count):
            if not steps:
                first = time.perf_counter()
            steps += 1
            for token, text in zip(tokens, texts, strict=True):
                if token is not None:
                    made += 1
                    text.add(token)
    except KeyboardInterrupt:
        _write("\n")  # what is said of it begins a line
        raise
    rest, later = made - len(prompts), time.perf_counter() - first
    told = f"; then {rest / later:.1f} tokens/s" if rest and later else ""
    read = sum(map(len, prompts))
    return f"{read} tokens of prompt in {first - begun:.3f} s{told}; {made} tokens in all"
