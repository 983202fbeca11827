"""Finds the layers of a float model in the quantized one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from zq2onnx.diagnosis.site import Site, find_site
from zq2onnx.diagnosis.smoothing import Smoothing, find_smoothing
from zq2onnx.opset import GROUP_KEY
from zq2onnx.passes.candidates import EMBEDDING, LM_HEAD, Candidate, find_candidates
from zq2onnx.passes.partition import blocks, partition
from zq2onnx.passes.planned import WeightView

_SUFFIXES = ("", "_Q4", "_Q8", "_Q2", "_quant", "_quantized", "_NBits", "_MatMulNBits")
"""What other tools append to a node's name when they replace it."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of both models.

    Attributes:
        name: the float model's node.
        block: index of its transformer block, from 0; None of what is in none.
        embedding: whether it looks up rows of a table.
        shape: `[K, N]` of its weight; an embedding's `[rows, width]`.
        of_float: it in the float model.
        of_quantized: it in the quantized one; or why it cannot be run by itself.
        output: what the quantized model makes for it.
        input: the quantized model's value of its input; None where there is none of its name.
        smoothing: what the quantized model's input was divided by.
    """

    name: str
    block: int | None
    embedding: bool
    shape: tuple[int, int]
    of_float: Site
    of_quantized: Site | str
    output: ir.Value
    input: ir.Value | None
    smoothing: Smoothing

    @property
    def operator(self) -> str:
        """The quantized model's operator; the float one's where that cannot be told."""
        site = self.of_float if isinstance(self.of_quantized, str) else self.of_quantized
        return site.operator

    @property
    def quantized(self) -> bool:
        """Whether its weight is stored as codes."""
        return isinstance(self.of_quantized, Site) and self.of_quantized.quantized


@dataclass(frozen=True)
class Matching:
    """The layers of a pair of models.

    Attributes:
        layers: those that both have, in the float model's order.
        unmatched: why a layer of the float model is not compared, by its node's name.
    """

    layers: tuple[Layer, ...]
    unmatched: dict[str, str]


def match_layers(model: ir.Model, quantized: ir.Model) -> Matching:
    """Match by what the passes wrote down, by the name of the output value, then by that of the node.

    Args:
        model: the float model, normalized.
        quantized: what was made of it, by zq2onnx or another tool.
    """
    finder = _Finder(model, quantized)
    block_of = _block_numbers(model)
    smoothing = find_smoothing(model, quantized)
    layers: list[Layer] = []
    unmatched: dict[str, str] = {}
    for candidate in find_candidates(model):
        name = candidate.node.name or ""
        if not isinstance(candidate.view, WeightView):
            continue
        found = finder.find(candidate)
        if isinstance(found, str):
            unmatched[name] = found
            continue
        of_float, of_quantized, output = found
        if candidate.role == EMBEDDING and not (isinstance(of_quantized, Site) and of_quantized.quantized):
            continue  # a float table is no layer that quantization could have changed
        layers.append(
            Layer(
                name=name,
                block=None if candidate.role in (EMBEDDING, LM_HEAD) else block_of.get(candidate.node),
                embedding=candidate.role == EMBEDDING,
                shape=(candidate.view.k, candidate.view.n),
                of_float=of_float,
                of_quantized=of_quantized,
                output=output,
                input=finder.values.get(of_float.input.name or ""),
                smoothing=smoothing.get(name, Smoothing()),
            )
        )
    return Matching(tuple(layers), unmatched)


class _Finder:
    """Looks a float node up in the quantized model."""

    def __init__(self, model: ir.Model, quantized: ir.Model) -> None:
        self._main = model.graph
        self._floats = _values(model)
        self.values = _values(quantized)
        self._nodes = {node.name: node for node in quantized.graph}
        self._groups: dict[str, list[ir.Node]] = defaultdict(list)
        for node in quantized.graph:
            if key := node.metadata_props.get(GROUP_KEY):
                self._groups[key].append(node)

    def find(self, candidate: Candidate) -> tuple[Site, Site | str, ir.Value] | str:
        """The layer in both models and its output in the quantized one, or why it is not compared."""
        node = candidate.node
        if node.graph is not self._main:
            return "it is in a subgraph"
        output = self._output(node)
        if output is None:
            return "the quantized model has neither its output value nor a node of its name"
        # A rewritten node may stand for the product and for the bias behind it.
        counterpart = self._floats.get(output.name or "", node.outputs[0])
        activation = node.inputs[1] if candidate.role == EMBEDDING else node.inputs[0]
        name = "" if activation is None else activation.name or ""
        of_float = find_site(counterpart, self._floats, name)
        if isinstance(of_float, str):
            return f"in the float model, {of_float}"
        return of_float, find_site(output, self.values, name), output

    def _output(self, node: ir.Node) -> ir.Value | None:
        """What the quantized model has in the place of a node's output."""
        group = self._groups.get(node.name or "", ())
        own = node.outputs[0].name or ""
        if (value := _group_output(group)) is not None and value.name in self._floats:
            return value
        if own in self.values:
            return self.values[own]
        named = (self._nodes.get(f"{node.name}{suffix}") for suffix in _SUFFIXES)
        return next((found.outputs[0] for found in named if found is not None), None)


def _group_output(group: Sequence[ir.Node]) -> ir.Value | None:
    """The last value of a group that none of its nodes reads."""
    members = set(group)
    for node in reversed(group):
        for value in node.outputs:
            if members.isdisjoint(value.consumers()):
                return value
    return None


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """The main graph's inputs and all that its nodes make, by name."""
    made = [value for node in model.graph for value in node.outputs]
    return {value.name: value for value in (*model.graph.inputs, *made) if value.name}


def _block_numbers(model: ir.Model) -> dict[ir.Node, int]:
    """The transformer block of each node; nodes of none are left out."""
    numbers: dict[ir.Node, int] = {}
    number = 0
    for block in blocks(partition(model)):
        if any(piece.attention for piece in block):
            numbers.update((node, number) for piece in block for node in piece.nodes)
            number += 1
    return numbers
