"""A study of 24 cells with plausible numbers, as the command would have found it."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from zq2onnx.planning.costs import LayerCost, Sensitivity
from zq2onnx.study.results import Cell, CellResult, LayerError, Study

KINDS = {
    "self_attn.q_proj": "attention in",
    "self_attn.k_proj": "attention in",
    "self_attn.v_proj": "attention in",
    "self_attn.out_proj": "attention out",
    "fc1": "MLP up",
    "fc2": "MLP down",
}
NODES = [
    (f"model.decoder.layers.{block}.{name}", block, kind)
    for block in range(6)
    for name, kind in KINDS.items()
]
FLOAT_BYTES, WEIGHTS = 68_400_000, 11_000_000
TEXTS = {"shared/data/wikitext2-test.txt": 61.2, "shared/data/news.txt": 74.9}


def cell_result(cell: Cell, gap: float, kl: float) -> CellResult:
    """What a cell of that gap and divergence would have given."""
    bits = int(cell.scheme[1]) + (0.0 if cell.group_size == "row" else 0.375) + 0.04 * cell.lorc_rank
    random = np.random.default_rng(7)
    scale = 2.0 ** -int(cell.scheme[1])
    layers = tuple(
        LayerError(node, (0.8 if cell.lorc_rank else 1.0) * error, error)
        for (node, _, _), error in zip(NODES, scale * random.lognormal(0, 0.4, len(NODES)), strict=True)
    )
    perplexity = {text: value + gap for text, value in TEXTS.items()}
    mean = math.fsum(perplexity.values()) / len(perplexity)
    size = 22_000_000 + int(WEIGHTS * bits / 8)
    return CellResult(
        cell, size, bits, perplexity, mean, gap, kl, math.exp(-2.2 * math.sqrt(kl)), 3.2, layers
    )


def study(
    methods: tuple[str, ...] = ("rtn", "gptq"),
    schemes: tuple[str, ...] = ("w4a16", "w3a16", "w2a16"),
    group_sizes: tuple[str, ...] = ("row", "64"),
    ranks: tuple[int, ...] = (0, 8),
) -> Study:
    """A finished study of the grid that is asked for, with sensitivity at two schemes."""
    cells = []
    for method, scheme, group, rank in itertools.product(methods, schemes, group_sizes, ranks):
        harm = 4.6 ** (4 - int(scheme[1]))
        harm *= {"rtn": 2.4, "gptq": 1.0}.get(method, 1.3) * (2.1 if group == "row" else 1.0) * 0.97**rank
        cells.append(cell_result(Cell(method, scheme, group, rank), 0.11 * harm**1.35 - 0.06, 0.0031 * harm))
    mean = math.fsum(TEXTS.values()) / len(TEXTS)
    return Study(
        model="models/opt-17m/model.onnx",
        bytes=FLOAT_BYTES,
        perplexity=dict(TEXTS),
        mean=mean,
        length=256,
        positions=40 * 255 * len(TEXTS),
        calibration="shared/data/calibration.txt",
        cells=tuple(cells),
        sensitivity=(sensitivity("w3a16 g64 gptq", 1.0), sensitivity("w2a16 g64 gptq", 9.0)),
        tokenizer="models/opt-17m",
        windows=40,
    )


def sensitivity(label: str, scale: float) -> Sensitivity:
    """Costs of every layer, measured and estimated."""
    random = np.random.default_rng(3)
    measured = scale * random.lognormal(-7, 1.1, len(NODES))
    estimates = measured * random.lognormal(0, 0.2, len(NODES))
    layers = tuple(
        LayerCost(node, kind, block, float(kl), float(estimate), float(estimate) * 900)
        for (node, block, kind), kl, estimate in zip(NODES, measured, estimates, strict=True)
    )
    return Sensitivity(label, layers, 0.962, 0.478)


def with_costs(given: Study, **changes: object) -> Study:
    """The same study with every cell's fields replaced."""
    return dataclasses.replace(
        given,
        cells=tuple(dataclasses.replace(cell, **changes) for cell in given.cells),  # type: ignore[arg-type]
    )
