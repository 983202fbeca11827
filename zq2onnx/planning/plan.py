"""A plan: what is chosen for each layer, what that costs and takes, as a recipe that `convert` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zq2onnx.planning.layers import Place
from zq2onnx.scheme import Scheme
from zq2onnx.storage.text_file import write_whole


@dataclass(frozen=True)
class PlannedLayer:
    """What is chosen for a layer.

    Attributes:
        node: its name.
        place: what it is to its block.
        scheme: how it is quantized.
        bits: effective bits per weight.
        cost: estimated divergence of the predictions, in nats.
    """

    node: str
    place: Place
    scheme: Scheme
    bits: float
    cost: float


@dataclass(frozen=True)
class Plan:
    """What is chosen for all layers.

    Attributes:
        budget: what it keeps to, as `--budget` says it.
        options: all options of the conversion, by their names in a recipe.
        layers: in the order of their tables: graph order, but for names that mean other layers too.
        bytes: of the output with its data, if every low-rank branch is kept; else it will be smaller, and
            in a single file by what says where data is.
        stored: of them the bytes of codes, scales, zero points and factors.
        weights: how many weights these stand for.
        cost: estimated divergence of the predictions, in nats.
        warnings: one line each.
    """

    budget: str
    options: Mapping[str, object]
    layers: tuple[PlannedLayer, ...]
    bytes: int
    stored: int
    weights: int
    cost: float
    warnings: tuple[str, ...] = ()

    @property
    def bits(self) -> float:
        """Effective bits per quantized weight."""
        return 8 * self.stored / self.weights

    def to_toml(self, origin: str = "") -> str:
        """The plan as a recipe: options at the top, a `[[node]]` table for each layer.

        Args:
            origin: what the plan was made of, one line; `read_origin` finds it again.
        """
        return "\n".join(self._lines(origin)) + "\n"

    def _lines(self, origin: str) -> Iterator[str]:
        yield f"# zq2onnx plan for --budget {self.budget}: {self.bits:.3f} bits per weight,"
        yield f"# {self.bytes / 1e6:.3f} MB, estimated divergence {self.cost:.3g} nats"
        if origin:
            yield f"{ORIGIN}{origin}"
        tables = self.options.get("node", [])
        yield from _pairs({key: value for key, value in self.options.items() if key != "node"})
        for table in tables if isinstance(tables, list) else ():
            yield from ("", "[[node]]", *_pairs(table))
        for layer in self.layers:
            yield ""
            where = f"block {layer.place.block}, {layer.place.kind}"
            yield f"[[node]]  # {where}: {layer.bits:.2f} bits, {layer.cost:.2g} nats"
            yield from _pairs(
                {
                    "match": exactly(layer.node),
                    "scheme": layer.scheme.name,
                    "group-size": str(layer.scheme.granularity),
                    "lorc-rank": layer.scheme.lorc_rank,
                }
            )

    def save(self, path: Path, origin: str = "") -> None:
        """Write the recipe, whole or not at all."""
        write_whole(path, self.to_toml(origin))


ORIGIN = "# made of: "


def exactly(node: str) -> str:
    """The regular expression that a node's name alone matches."""
    return rf"^{re.escape(node)}\Z"


def read_origin(recipe: Path) -> str:
    """What a saved plan was made of; "" where the file is missing or does not say."""
    try:
        lines = recipe.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return ""
    return next((line.removeprefix(ORIGIN) for line in lines if line.startswith(ORIGIN)), "")


def _pairs(table: Mapping[str, object]) -> Iterator[str]:
    """A table's lines; what is None is left out. JSON's texts, numbers and lists are TOML's, but for DEL."""
    for key, value in table.items():
        if value is not None:
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            yield f"{key} = {text}"
