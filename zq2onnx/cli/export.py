"""`zq2onnx export`: a transformers model becomes an ONNX file."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from zq2onnx.cli.console import stderr, stdout

_LATER_LAYER = re.compile(r"(past_key_values|present)\.[1-9]")


class Dtype(enum.Enum):
    """Types that a model can be written in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="HF_DIR_OR_ID",
            show_default=False,
            help="Folder of a transformers model (config.json, *.safetensors), or its id on the hub.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="MODEL.onnx",
            show_default=False,
            help="The file to write; its weights go to MODEL.onnx.data. Of a path that does not exist, "
            "only the last folder is created.",
        ),
    ],
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Type of weights and activations, whatever the checkpoint holds. A bf16 file needs a "
            "GPU: ONNX Runtime's CPU provider cannot multiply bf16.",
        ),
    ] = Dtype.FP32,
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache",
            show_default="with a cache where the model generates text",
            help="Inputs and outputs for the keys and values of the tokens before: generating then computes "
            "each token once. Without, each run computes the whole sequence.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Compare what ONNX Runtime makes of the file with torch."),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Write a transformers model as ONNX, ready for `zq2onnx convert`.

    Known to work: OPT, BLOOM, GPT-2, GPT-NeoX, Llama, Mistral, Qwen2, Qwen3, Gemma, Phi, BERT. Others
    are tried; where torch.export cannot follow a model's code, its reason is shown.

    Inputs are input_ids and attention_mask, int64 [batch, sequence]; both dimensions are free. The
    output is logits of a causal language model, last_hidden_state of any other. With a cache there
    are also past_key_values.N.key|value [batch, heads, past, width] and present.N.key|value, the mask
    is [batch, past + sequence], and most models take position_ids [batch, sequence]; the past may be
    empty. Nodes and weights are named after the model's modules (model.decoder.layers.0.fc1), for
    --only, --include and --exclude of convert.

    Tokenizer, configuration and chat template are copied to the output's folder. Both files appear
    under their names only when whole. ONNX Runtime then answers two prompts and a token after each,
    and the largest difference from torch is shown. Needs: pip install "zq2onnx[torch,cpu]"

    \b
    zq2onnx export ./opt-125m -o opt-125m.onnx
    zq2onnx export facebook/opt-125m -o onnx/model.onnx --dtype fp16
    """
    from zq2onnx import exporting

    def show(stage: str) -> None:
        if stderr.is_terminal and not quiet:
            stderr.print(f"{stage} ...")

    result = exporting.export(
        source, output, cache=cache, dtype=dtype.value, check=check, force=force, progress=show
    )
    stdout.print(f"{result.path}  {result.bytes / 1e6:.1f} MB, {result.architecture}, {dtype.value}")
    stdout.print(f"inputs   {_list(result.inputs)}")
    stdout.print(f"outputs  {_list(result.outputs)}")
    stdout.print(f"opset    {result.opset}")
    if result.companions:
        stdout.print(f"copied   {', '.join(path.name for path in result.companions)}")
    if result.difference is not None:
        stdout.print(f"check    differs from torch by at most {result.difference:.2g}")
    if result.dropped_head is not None:
        stdout.print(f"note     the checkpoint is a {result.dropped_head}; its head is not in the file")


def _list(described: Sequence[str]) -> str:
    """Inputs or outputs by name, type and shape; of a cache, the first layer's, and how many there are.

    >>> _list(["input_ids int64[b, s]", "present.0.key float[b]", "present.0.value float[b]"])
    'input_ids int64[b, s], present.0.key float[b], present.0.value float[b]'
    >>> _list([f"present.{layer}.{part} float[b]" for layer in range(2) for part in ("key", "value")])
    'present.0.key float[b], present.0.value float[b], and so on for 2 layers'
    """
    layers = sum(".key " in each for each in described)
    shown = [each for each in described if _LATER_LAYER.match(each) is None]
    return ", ".join(shown) + (f", and so on for {layers} layers" if layers > 1 else "")
