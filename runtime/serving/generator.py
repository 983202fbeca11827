"""Greedy generation: a prompt runs once, then token after token with the keys and values of those before."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zq2onnx.errors import UserError
from zq2onnx.runtime.providers import CPU_PROVIDER
from zq2onnx.runtime.serving.batch import Ids, pad_left, positions
from zq2onnx.runtime.serving.folder import find_model
from zq2onnx.runtime.serving.opening import cache_device, first_line, open_session
from zq2onnx.runtime.serving.settings import TextSettings, read_settings
from zq2onnx.runtime.serving.signature import Signature, read_signature

Prompt = Sequence[int]
Tokens = tuple[int | None, ...]
"""One new token for each prompt; None where the text has ended."""


class Generator:
    """A causal language model with a key-value cache, loaded.

    Its texts are independent of each other: any number of `stream`s may be open, in any threads. What a
    stream holds is its cache, which goes when it is exhausted or closed.

    Args:
        path: an ONNX model, or a folder that holds one; files such as config.json are looked for beside it.
        fused: run our nodes by the operator library; False: by stock kernels. None: as the folder of
            onnxruntime-genai says, else by the library where there is one.
        providers: ONNX Runtime's execution providers.
        threads: of ONNX Runtime; None for as many as it chooses.

    Raises:
        UserError: there is no such model, it cannot be loaded, it has no cache, or there is no library.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fused: bool | None = None,
        providers: Sequence[Any] = (CPU_PROVIDER,),
        threads: int | None = None,
    ) -> None:
        deployed = find_model(Path(path))
        self.path = deployed.model
        self.settings: TextSettings = read_settings(self.path.parent)
        self._session = open_session(deployed, fused=fused, providers=providers, threads=threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.signature: Signature = read_signature(self.path, inputs, outputs)
        self.signature.check_types(self.path)
        self._device = cache_device(self._session)

    def stream(
        self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Collection[int] | None = None
    ) -> Iterator[Tokens]:
        """Generate the likeliest next token of each prompt, over and over.

        Args:
            prompts: ids, at least one each; of different lengths, if they are.
            max_new_tokens: of each text.
            stop: ids that end a text, and are its last; None: those that the model's files name.

        Yields:
            For each step one token a prompt, until all texts have ended.

        Raises:
            UserError: a prompt is empty, holds ids that the model does not know, or leaves no room in its
                context.
        """
        if max_new_tokens < 1:
            raise UserError(f"{max_new_tokens} new tokens", "at least 1")
        self._check(prompts, max_new_tokens)
        ends = set(self.settings.eos if stop is None else stop)
        return self._steps(*pad_left(prompts, self._filling), max_new_tokens, ends)

    def logits(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """The logits of whole texts, `[batch, length, vocabulary]`; shorter ones are filled up on the left.

        Raises:
            UserError: a text is empty or longer than the context, or holds ids that the model does not know.
        """
        self._check(prompts, 0)
        ids, mask = pad_left(prompts, self._filling)
        return self._run(ids, mask, self._empty(len(ids)))[0]

    def room(self, prompts: Sequence[Prompt]) -> int | None:
        """How many tokens may follow the longest of the prompts; None where no file says."""
        context = self.settings.context
        return None if context is None else max(context - max(map(len, prompts), default=0), 0)

    @property
    def _filling(self) -> int:
        """What fills up shorter prompts: it is masked, and so need only be a token that the model knows."""
        pad, known = self.settings.pad, self.signature.vocabulary
        return pad if pad is not None and (known is None or pad < known) else 0

    def _check(self, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise UserError("a prompt of 0 tokens", "at least one token to go on from")
        longest, context, room = max(map(len, prompts)), self.settings.context, self.room(prompts)
        if context is not None and longest + max_new_tokens > context:
            raise UserError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones",
                f"at most {context} together, the context of {self.path}",
                f"ask for at most {room} new tokens" if room else "shorten the prompt",
            )
        known = self.signature.vocabulary
        smallest, largest = min(map(min, prompts)), max(map(max, prompts))
        if smallest < 0 or (known is not None and largest >= known):
            wrong = smallest if smallest < 0 else largest
            raise UserError(
                f"a prompt with id {wrong}, and {self.path} knows {known or 'no such'} tokens",
                "the tokenizer that the model was trained with",
            )

    def _steps(self, ids: Ids, mask: Ids, count: int, ends: set[int]) -> Iterator[Tokens]:
        batch = len(ids)
        cache: list[Any] = self._empty(batch)
        ended = np.zeros(batch, bool)
        for _ in range(count):
            logits, cache = self._run(ids, mask, cache)
            tokens = logits[:, -1].argmax(axis=-1)
            yield tuple(None if done else int(token) for token, done in zip(tokens, ended, strict=True))
            ended |= np.isin(tokens, list(ends))
            if ended.all():
                return
            ids = tokens[:, None].astype(np.int64)
            mask = np.concatenate([mask, np.ones((batch, 1), np.int64)], axis=1)

    def _empty(self, batch: int) -> list[np.ndarray]:
        """The cache before the first token."""
        return [tensor.empty(batch) for tensor in self.signature.cache]

    def _run(self, ids: Ids, mask: Ids, cache: Sequence[Any]) -> tuple[np.ndarray, list[Any]]:
        """One run: logits `[batch, sequence, vocabulary]`, and the cache with these tokens in it."""
        binding = self._session.io_binding()
        made = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask, ids.shape[1])}
        # Their memory is read by the run, and must last until then.
        feeds = {name: made[name].astype(dtype, order="C") for name, dtype in self.signature.text.items()}
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for tensor, past in zip(self.signature.cache, cache, strict=True):
            if isinstance(past, np.ndarray):
                binding.bind_cpu_input(tensor.past, past)
            else:
                binding.bind_ortvalue_input(tensor.past, past)
        binding.bind_output("logits", "cpu")
        for tensor in self.signature.cache:
            binding.bind_output(tensor.present, *self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            raise UserError(
                f"{self.path}: onnxruntime fails on {mask.shape[1]} tokens ({first_line(error)})"
            ) from error
        logits, *present = binding.get_outputs()
        return logits.numpy(), present
