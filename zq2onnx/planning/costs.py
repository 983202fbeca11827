"""What quantizing each layer alone costs: measured, and as cheaper estimates have it."""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION_IN = "attention in"
ATTENTION_OUT = "attention out"
MLP_UP = "MLP up"
MLP_DOWN = "MLP down"
OTHER = "other"

KINDS = (ATTENTION_IN, ATTENTION_OUT, MLP_UP, MLP_DOWN, OTHER)
"""What a linear layer can be to its transformer block."""


@dataclass(frozen=True)
class LayerCost:
    """One layer, quantized alone.

    Attributes:
        node: its name.
        kind: what it is to its block, one of `KINDS`.
        block: the transformer block it belongs to, from 0.
        kl: mean divergence from the float model on held-out text, in nats; None where it was not measured.
        estimate: `tr(G E R Eᵀ) / 2` in nats, `G` the second moment of the gradient at its output; None
            where there are no gradients.
        layer_error: `tr(E R Eᵀ)`, the energy of its output's error: the weaker estimate.
    """

    node: str
    kind: str
    block: int
    kl: float | None
    estimate: float | None
    layer_error: float


@dataclass(frozen=True)
class Sensitivity:
    """A model's layers, each quantized alone by one scheme.

    Attributes:
        label: the scheme in words, as `w3a16 g64 gptq`.
        layers: in graph order.
        spearman: rank correlation of `estimate` with `kl`; None where one of them is missing.
        spearman_of_layer_error: of `layer_error` with `kl`.
    """

    label: str
    layers: tuple[LayerCost, ...]
    spearman: float | None
    spearman_of_layer_error: float | None

    def by_kind(self) -> dict[str, float]:
        """Sums of `kl` by kind of layer, or of `estimate` where nothing was measured."""
        sums: dict[str, float] = {}
        for layer in self.layers:
            cost = layer.kl if layer.kl is not None else layer.estimate or 0.0
            sums[layer.kind] = sums.get(layer.kind, 0.0) + cost
        return sums
