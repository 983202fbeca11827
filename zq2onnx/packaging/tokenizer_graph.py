"""Tokenizer and detokenizer as ONNX graphs, of operators that onnxruntime-extensions brings.

A host with ONNX Runtime and that library then needs no tokenizer of its own. Not every kind of tokenizer is
known to it: what was made is run on a text of many kinds, beside the tokenizer itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
from tokenizers import Tokenizer

from zq2onnx.configuration import read_object
from zq2onnx.errors import UserError
from zq2onnx.packaging.tokenizer_trial import try_graphs
from zq2onnx.text import read_tokenizer

_DOMAIN = "ai.onnx.contrib"
_OPSET = 18
_IR_VERSION = 9

_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    " leading and trailing ",
    "  two  spaces,\ttabs\nand\r\nlines\n\n",
    "don't I'll we've it's",
    "1 23 456 7890 3.14 -2e10 @-@ <unk> = = =",
    "def f(x):\n    return x ** 2  # {}[]|~`^",
    "Grüße aus Köln, été à Orléans, señor, naïve",
    "Привет, мир. Γειά σου Κόσμε. שלום עולם مرحبا بالعالم",
    "日本語のテキストと中文文本 한국어",
    "😀🎉👩‍👩‍👧 ½ € ™ “quotes” — dash…",
)
"""Texts on which graph and tokenizer must agree."""


def make_tokenizer_graphs(file: Path, config: Path) -> tuple[bytes, bytes]:
    """The tokenizer's graph, and the detokenizer's.

    The first takes `text`, strings `[batch]`, and gives `ids`, int64 `[batch, length]`, as the tokenizer does
    with special tokens, shorter texts filled up; the second takes `ids`, int64 `[length]`, and gives `text`,
    one string without special tokens.

    Args:
        file, config: tokenizer.json and tokenizer_config.json.

    Raises:
        UserError: onnxruntime-extensions is missing, or it does not do what this tokenizer does.
    """
    tokenizer = read_tokenizer(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text = file.read_text(encoding="utf-8")
    _check_kind(file, tokenizer)
    encoder = _encoder(text, _settings(config))
    decoder = _decoder(tokenizer, json.loads(text))
    _check(file, tokenizer, encoder, decoder)
    return encoder, decoder


def _check_kind(file: Path, tokenizer: Tokenizer) -> None:
    """Refuse what onnxruntime-extensions may not be given: some other models make it crash."""
    for name, part, known in (("model", tokenizer.model, "BPE"), ("decoder", tokenizer.decoder, "ByteLevel")):
        kind = "none" if part is None else type(part).__name__
        if kind != known:
            raise UserError(f"{file}: its {name} is {kind}", known, "leave out --with-tokenizer-graph")


def _settings(config: Path) -> str:
    """tokenizer_config.json; what transformers 5 writes as the class, as onnxruntime-extensions knows it."""
    settings = read_object(config)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # as it was called before
    return json.dumps(settings)


def _encoder(tokenizer: str, config: str) -> bytes:
    attributes = {"tokenizer_vocab": tokenizer, "tokenizer_config": config}
    text = ir.val("text", ir.DataType.STRING, ["batch"])
    node = ir.node("HfJsonTokenizer", [text], attributes, domain=_DOMAIN, name="tokenizer")
    return _model(text, node, ir.DataType.INT64, ["batch", "length"], "ids")


def _decoder(tokenizer: Tokenizer, parts: dict[str, Any]) -> bytes:
    added = parts.get("added_tokens") or []
    special = [token["id"] for token in added if token["special"]]
    words = {index: word for word, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    attributes: dict[str, str | int] = {
        "id_vocab": "\n".join(words.get(index, "") for index in range(max(words) + 1)),
        "byte_decoder": "\n".join(f"{ord(letter)}\t{byte}" for letter, byte in _byte_letters().items()),
        "added_tokens": "\n".join(f"{token['id']}\t{token['content']}" for token in added),
        "all_special_ids": "\n".join(map(str, special)),
        "skip_special_tokens": 1,
    }
    ids = ir.val("ids", ir.DataType.INT64, ["length"])
    node = ir.node("BpeDecoder", [ids], attributes, domain=_DOMAIN, name="detokenizer")
    return _model(ids, node, ir.DataType.STRING, [1], "text")


def _byte_letters() -> dict[str, int]:
    """How byte-level tokenizers write bytes: those that print as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


def _model(taken: ir.Value, node: ir.Node, dtype: ir.DataType, shape: list[Any], name: str) -> bytes:
    given = node.outputs[0]
    given.name, given.dtype, given.shape = name, dtype, ir.Shape(shape)
    graph = ir.Graph([taken], [given], nodes=[node], opset_imports={"": _OPSET, _DOMAIN: 1}, name=node.name)
    made: bytes = ir.to_proto(ir.Model(graph, ir_version=_IR_VERSION)).SerializeToString()
    return made


def _check(file: Path, tokenizer: Tokenizer, encoder: bytes, decoder: bytes) -> None:
    wanted = [tokenizer.encode(probe).ids for probe in _PROBES]
    answers = try_graphs(encoder, decoder, _PROBES, wanted)
    if isinstance(answers, str):
        raise _unknown(file, answers)
    for probe, ids, (found, text) in zip(_PROBES, wanted, answers, strict=True):
        if found != ids:
            raise _unknown(file, f"encodes {probe!r} as {found[:8]}, the tokenizer as {ids[:8]}")
        if text != tokenizer.decode(ids):
            raise _unknown(file, f"decodes {text!r}, the tokenizer {tokenizer.decode(ids)!r}")


def _unknown(file: Path, what: str) -> UserError:
    return UserError(
        f"{file}: onnxruntime-extensions {what.splitlines()[0]}",
        "a kind of tokenizer that it knows",
        "leave out --with-tokenizer-graph",
    )
