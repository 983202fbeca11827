"""Measures the error of every layer, on the activations of both models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from zq2onnx.diagnosis.matching import Layer
from zq2onnx.diagnosis.running import Alone, Array, Opened, Tap
from zq2onnx.errors import UserError

MEMORY_BYTES = 256_000_000
"""Layers whose activations take this together are run at a time."""

Feeds = Sequence[dict[str, Array]]
"""Inputs of both models, a sample at a time."""

Progress = Callable[[float], None]
"""Told how many samples were run through layers since the last call."""


@dataclass(eq=False)
class Energies:
    """What is summed up over all tokens for one layer; energies are sums of squares.

    Attributes:
        output: of the float layer's output.
        accumulated: of the difference that the quantized model's own output has from it.
        own: of the difference where the quantized layer reads the float layer's input.
        input: of the float layer's input.
        inherited: of the difference that the quantized model's input has from it.
        rows: `[N]`, as `output`, by channel of the output.
        own_rows: `[N]`, as `own`, by channel of the output.
        broken: numbers of the quantized model's output that are not finite where the float model's are.
        broken_input: the same of its input.
        numbers: how many there are in the output.
    """

    output: float = 0.0
    accumulated: float = 0.0
    own: float = 0.0
    input: float = 0.0
    inherited: float = 0.0
    rows: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    own_rows: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    broken: int = 0
    broken_input: int = 0
    numbers: int = 0


def measure(
    layers: Sequence[Layer], of_float: Opened, quantized: Opened, feeds: Feeds, advance: Progress
) -> list[Energies]:
    """Run all samples through both models, a chunk of layers at a time.

    Args:
        layers: in the models' order.
        of_float: the float model.
        quantized: the other.
        feeds: the samples.
        advance: told after each sample of each chunk.

    Returns:
        One for each layer.

    Raises:
        UserError: ONNX Runtime cannot load or run one of them.
    """
    tokens = tokens_of(feeds[0])
    energies: list[Energies] = []
    for chunk in cut_layers(layers, tokens):
        sums = [Energies() for _ in chunk]
        theirs = Tap(quantized, [name for layer in chunk for name in _quantized_names(layer)])
        mine = Tap(of_float, [name for layer in chunk for name in _float_names(layer)])
        alone = [_alone(layer, quantized) for layer in chunk]
        for sample in feeds:
            ours, other = mine.run(sample), theirs.run(sample)
            for layer, session, each in zip(chunk, alone, sums, strict=True):
                _add(layer, session, each, ours, other)
            advance(1)
        energies += sums
    return energies


def cut_layers(layers: Sequence[Layer], tokens: int) -> Iterator[list[Layer]]:
    """Cut layers into chunks whose activations fit in `MEMORY_BYTES`, of one layer at least."""
    chunk: list[Layer] = []
    filled = 0
    for layer in layers:
        size = 2 * 4 * tokens * (layer.shape[1] + (0 if layer.embedding else layer.shape[0]))
        if chunk and filled + size > MEMORY_BYTES:
            yield chunk
            chunk, filled = [], 0
        chunk.append(layer)
        filled += size
    if chunk:
        yield chunk


def tokens_of(sample: Mapping[str, Array]) -> int:
    """How many tokens are in a sample; the numbers in the largest input, where there are none."""
    ids = sample.get("input_ids")
    return max((array.size for array in (sample.values() if ids is None else (ids,))), default=1)


def fed(layer: Layer, x: Array) -> Array:
    """The float model's input as the quantized layer expects it: smoothed, and in its type."""
    if layer.embedding:
        return x
    scales = layer.smoothing.scales
    known = None if layer.input is None else layer.input.dtype
    dtype = x.dtype if known is None else known.numpy()
    return (x if scales is None else x.astype(np.float32) / scales).astype(dtype)


def _float_names(layer: Layer) -> list[str]:
    return [layer.of_float.input.name or "", layer.of_float.output.name or ""]


def _quantized_names(layer: Layer) -> list[str]:
    read = [] if layer.input is None else [layer.input.name or ""]
    return [*read, layer.output.name or ""]


def _alone(layer: Layer, quantized: Opened) -> Alone | None:
    """The quantized layer, where it can be fed with the float model's input."""
    if isinstance(layer.of_quantized, str) or layer.smoothing.obstacle:
        return None
    return Alone(quantized, layer.of_quantized)


def _add(
    layer: Layer, alone: Alone | None, sums: Energies, mine: dict[str, Array], theirs: dict[str, Array]
) -> None:
    """Add one sample."""
    x, y = mine[layer.of_float.input.name or ""], _wide(mine[layer.of_float.output.name or ""])
    other = _wide(theirs[layer.output.name or ""])
    if other.shape != y.shape:
        raise UserError(
            f"node {layer.name!r}: output of shape {list(y.shape)} in the float model,"
            f" {list(other.shape)} in the quantized one",
            "a model and what was made of it",
        )
    sums.output += energy(y)
    sums.accumulated += energy(other - y)
    sums.broken += _broken(other, y)
    sums.numbers += y.size
    sums.rows = sums.rows + _by_row(y)
    if layer.input is not None and not layer.embedding:
        read = _wide(theirs[layer.input.name or ""])
        if layer.smoothing.scales is not None:
            read = read * layer.smoothing.scales
        sums.input += energy(_wide(x))
        sums.inherited += energy(read - _wide(x))
        sums.broken_input += _broken(read, _wide(x))
    if alone is not None:
        difference = _wide(alone.run(fed(layer, x))) - y
        sums.own += energy(difference)
        sums.own_rows = sums.own_rows + _by_row(difference)


def _wide(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def energy(array: Array) -> float:
    """Sum of squares, in float64."""
    flat = array.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def _by_row(array: Array) -> npt.NDArray[np.float64]:
    rows = array.reshape(-1, array.shape[-1])
    sums: npt.NDArray[np.float64] = np.einsum("tn,tn->n", rows, rows, dtype=np.float64)
    return sums


def _broken(theirs: Array, mine: Array) -> int:
    return int((~np.isfinite(theirs) & np.isfinite(mine)).sum())
