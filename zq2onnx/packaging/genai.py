"""A folder for onnxruntime-genai: the model, its tokenizer, and genai_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from zq2onnx.configuration import positive_integers, read_configuration, read_object
from zq2onnx.errors import UserError
from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.packaging.kernels import LIBRARY
from zq2onnx.packaging.source import Source
from zq2onnx.runtime.serving.folder import MODEL
from zq2onnx.runtime.serving.settings import TextSettings, read_settings
from zq2onnx.runtime.serving.signature import Signature

DEFAULT_CONTEXT = 2048
"""For models whose files promise no length, such as BLOOM's."""

_SAMPLING = {
    "do_sample": bool,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "repetition_penalty": float,
    "no_repeat_ngram_size": int,
}
"""What is taken over from generation_config.json, and its type."""


def genai_config(source: Source, library: Path | None, context: int | None) -> str:
    """The text of genai_config.json.

    Args:
        source: the model.
        library: the operator library that lies beside it as `LIBRARY`, or None.
        context: tokens of the longest text; None for what the model's files say.

    Raises:
        UserError: it has no cache, its layers differ, no file says by which token its texts end, or the
            context is longer than its own.
    """
    signature, settings = source.signature(), read_settings(source.folder)
    if not settings.eos:
        raise UserError(
            f"{source.folder}: no file names the token that ends a text",
            "eos_token_id in generation_config.json or config.json, which onnxruntime-genai needs",
            "add it there",
        )
    if context is not None and settings.context is not None and context > settings.context:
        raise UserError(
            f"a context of {context} tokens", f"at most {settings.context}, the context of {source.model}"
        )
    length = context or settings.context or DEFAULT_CONTEXT
    config = {
        "model": {
            # One of the names for a decoder without peculiarities, known to every release.
            "type": "llama",
            **_tokens(settings),
            "vocab_size": signature.vocabulary or _sizes(source).get("vocab_size", 0),
            "context_length": length,
            "decoder": _decoder(source, signature, library),
        },
        "search": _search(source.folder, length),
    }
    return json.dumps(config, indent=2) + "\n"


def _tokens(settings: TextSettings) -> dict[str, object]:
    eos = settings.eos
    tokens = {
        "bos_token_id": settings.bos,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos),
        "pad_token_id": eos[0] if settings.pad is None else settings.pad,
    }
    return {key: value for key, value in tokens.items() if value is not None}


def _decoder(source: Source, signature: Signature, library: Path | None) -> dict[str, object]:
    shapes = {(tensor.heads, tensor.head_size) for tensor in signature.cache}
    if len(shapes) != 1:
        raise UserError(
            f"{source.model}: layers with caches of {len(shapes)} shapes, {sorted(shapes)}",
            "heads and head size that are the same in all layers, which genai_config.json can say",
        )
    (heads, head_size), sizes = shapes.pop(), _sizes(source)
    options: dict[str, object] = {"log_id": "onnxruntime-genai", **FLOAT_ACTIVATIONS, "provider_options": []}
    if library is not None:
        options["custom_ops_library"] = LIBRARY  # looked for in the folder of genai_config.json
    queries = sizes.get("num_attention_heads", sizes.get("n_head", heads))
    return {
        "filename": MODEL,
        "session_options": options,
        "head_size": head_size,
        "hidden_size": sizes.get("hidden_size", sizes.get("n_embd", queries * head_size)),
        "num_attention_heads": queries,
        "num_hidden_layers": len(signature.cache) // 2,
        "num_key_value_heads": heads,
        "inputs": {
            **{name: name for name in signature.text},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _search(folder: Path, length: int) -> dict[str, object]:
    """How tokens are chosen unless a program says otherwise: as the model's authors say, else greedily."""
    said = read_object(folder / "generation_config.json")
    # The cache of this graph grows by what it is given; genai must not keep one of full length for it.
    fixed: dict[str, object] = {"max_length": length, "past_present_share_buffer": False}
    return {"do_sample": False, **_typed(said), **fixed}


def _typed(said: Mapping[str, object]) -> dict[str, object]:
    chosen: dict[str, object] = {}
    for key, kind in _SAMPLING.items():
        value = said.get(key)
        if type(value) is kind or (kind is float and type(value) is int):
            chosen[key] = value
    return chosen


def _sizes(source: Source) -> dict[str, int]:
    return positive_integers(read_configuration(source.folder))
