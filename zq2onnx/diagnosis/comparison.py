"""Compares a quantized model with the float one, layer by layer: the flow of `zq2onnx compare`."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from zq2onnx.diagnosis.findings import Finding
from zq2onnx.diagnosis.judge import judge
from zq2onnx.diagnosis.jump import Jump, LayerError
from zq2onnx.diagnosis.matching import Layer, Matching, match_layers
from zq2onnx.diagnosis.measure import Energies, Feeds, Progress, cut_layers, measure, tokens_of
from zq2onnx.diagnosis.opening import open_pair
from zq2onnx.diagnosis.running import Opened
from zq2onnx.diagnosis.samples import read_npz, read_texts
from zq2onnx.errors import UserError
from zq2onnx.runtime.providers import require_onnxruntime

WINDOWS = 4
"""Windows of each text, or samples, where nobody says how many: relative errors vary little among tokens."""


@dataclass(frozen=True)
class Comparison:
    """What was found out about a pair of models.

    Attributes:
        layers: those that both have, in the models' order.
        unmatched: why a layer of the float model is not among them, by name.
        usual: the lower quartile of the quantized layers' own errors.
        jump: where the error jumps first; None where it does not.
        findings: what ails layers, that of `jump` first.
        tokens: how many were run; numbers, of a model that reads none.
    """

    layers: tuple[LayerError, ...]
    unmatched: dict[str, str]
    usual: float
    jump: Jump | None
    findings: tuple[Finding, ...]
    tokens: int

    @property
    def identical(self) -> bool:
        """Whether no layer differs at all."""
        return all(each.accumulated == 0 and not each.broken for each in self.layers)

    def to_json(self) -> str:
        """All of it, indented; a number that is not finite is null."""
        said = {
            "tokens": self.tokens,
            "usual": self.usual,
            "layers": [{**asdict(each), "snr_db": each.snr_db} for each in self.layers],
            "unmatched": [{"name": name, "reason": reason} for name, reason in self.unmatched.items()],
            "jump": None if self.jump is None else asdict(self.jump),
            "findings": [{**asdict(each), "cause": each.cause.value} for each in self.findings],
        }
        return json.dumps(_finite(said), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, eq=False)
class Plan:
    """A comparison whose models and samples were read and found to fit each other."""

    of_float: Opened
    quantized: Opened
    matching: Matching
    feeds: Feeds

    @property
    def runs(self) -> int:
        """How many samples are to be run, through each chunk of layers."""
        return len(self.feeds) * len(list(cut_layers(self.matching.layers, tokens_of(self.feeds[0]))))

    def run(self, progress: Progress | None = None) -> Comparison:
        """Run both models, and look for causes.

        Raises:
            UserError: ONNX Runtime cannot load or run a model, or they differ in the shapes of layers.
        """
        advance = progress or (lambda amount: None)
        layers = self.matching.layers
        with np.errstate(all="ignore"):  # numbers that are not finite are a result, not a fault
            energies = measure(layers, self.of_float, self.quantized, self.feeds, advance)
            errors = [_layer_error(layer, each) for layer, each in zip(layers, energies, strict=True)]
            verdict = judge(layers, errors, energies, self.of_float, self.quantized, self.feeds)
        return Comparison(
            tuple(errors),
            self.matching.unmatched,
            verdict.usual,
            verdict.jump,
            verdict.findings,
            sum(tokens_of(sample) for sample in self.feeds),
        )


@contextlib.contextmanager
def plan_comparison(
    of_float: str | Path,
    quantized: str | Path,
    *,
    texts: Sequence[str | Path] = (),
    tokenizer: str | Path | None = None,
    npz: str | Path | None = None,
    length: int | None = None,
    windows: int = WINDOWS,
) -> Iterator[Plan]:
    """Read models and samples, and check that they fit each other.

    Args:
        of_float: the float model.
        quantized: what was made of it, by zq2onnx or another tool.
        texts: UTF-8 files; either these or `npz`.
        tokenizer: the models' `tokenizer.json`, or its folder; None for the float model's folder.
        npz: the models' own inputs, as `numpy.savez` writes them.
        length: tokens in a window; None for the model's context, at most 512.
        windows: the first windows of each text, or samples of `npz`, to use.

    Yields:
        The plan; it is of no use after the block.

    Raises:
        UserError: a file is missing or is not what it should be, the models are not of one origin, or
            onnxruntime is not installed.
    """
    if bool(texts) == (npz is not None):
        raise UserError("both --text and --npz" if texts else "neither --text nor --npz", "one of them")
    if windows < 1:
        raise UserError(f"--windows {windows}", "at least 1")
    require_onnxruntime()
    with open_pair(Path(of_float), Path(quantized)) as (mine, theirs):
        matching = match_layers(mine.model, theirs.model)
        if not matching.layers:
            reason = next(iter(matching.unmatched.values()), "the first has no float linear layers")
            raise UserError(
                f"{quantized}: no layer in common with {of_float} ({reason})", "a model made of it"
            )
        if npz is not None:
            feeds = read_npz(mine, Path(npz), windows)
        else:
            source = Path(of_float).parent if tokenizer is None else Path(tokenizer)
            feeds = read_texts(mine, [Path(text) for text in texts], source, length, windows)
        yield Plan(mine, theirs, matching, feeds)


def compare(
    of_float: str | Path,
    quantized: str | Path,
    *,
    texts: Sequence[str | Path] = (),
    tokenizer: str | Path | None = None,
    npz: str | Path | None = None,
    length: int | None = None,
    windows: int = WINDOWS,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two models layer by layer; see `plan_comparison` for the arguments and errors."""
    with plan_comparison(
        of_float, quantized, texts=texts, tokenizer=tokenizer, npz=npz, length=length, windows=windows
    ) as plan:
        return plan.run(progress)


def _layer_error(layer: Layer, sums: Energies) -> LayerError:
    note = layer.of_quantized if isinstance(layer.of_quantized, str) else layer.smoothing.obstacle
    known = not layer.embedding and layer.input is not None and not layer.smoothing.obstacle
    return LayerError(
        name=layer.name,
        operator=layer.operator,
        block=layer.block,
        quantized=layer.quantized,
        accumulated=_relative(sums.accumulated, sums.output),
        own=None if note else _relative(sums.own, sums.output),
        inherited=_relative(sums.inherited, sums.input) if known else None,
        broken=sums.broken,
        note=note,
    )


def _relative(difference: float, whole: float) -> float:
    if whole > 0 or math.isnan(difference):
        return math.sqrt(difference / whole) if whole > 0 else math.nan
    return math.inf if difference > 0 else 0.0


def _finite(value: object) -> object:
    """What JSON can say: no NaN, no infinity, no NumPy numbers."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
