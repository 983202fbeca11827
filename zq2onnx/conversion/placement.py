"""Where every tensor of the output goes, and what has to be done to fill it; no number is computed."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

import onnx_ir as ir

from zq2onnx.opset import GROUP_KEY
from zq2onnx.passes.planned import FACTORS, PlannedTensor, QuantizedWeight, storage
from zq2onnx.storage.plan import Section

INLINE_LIMIT = 1024
"""Tensors below this many bytes stay in the model file, as ONNX's own tools do."""


@dataclass(frozen=True, eq=False)
class Copy:
    """A tensor that stays as it is."""

    name: str
    tensor: ir.TensorProtocol

    @property
    def source(self) -> ir.TensorProtocol:
        """The tensor that is read."""
        return self.tensor

    @property
    def parameters(self) -> int:
        """Number of values that are read."""
        return int(self.tensor.size)


@dataclass(frozen=True, eq=False)
class Compute:
    """A weight to quantize, and the tensors of it that the model names.

    Attributes:
        weight: what to compute; of several twins the first.
        node: name of the node, or the first of those, that it is computed for.
        parts: the tensors.
    """

    weight: QuantizedWeight
    node: str
    parts: list[PlannedTensor] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name under which the journal knows it; no tensor's own, which a `Copy` may have."""
        return f"quantized {self.weight.name}"

    @property
    def source(self) -> ir.TensorProtocol:
        """The tensor that is read."""
        return self.weight.view.tensor

    @property
    def parameters(self) -> int:
        """Number of values that are read."""
        return self.weight.view.k * self.weight.view.n


@dataclass
class Plan:
    """Every output tensor's place and the tasks that fill them.

    Attributes:
        data: regions of the data file.
        factors: regions of the low-rank factors, which follow the data once it is known which stay.
        places: initializers and the region's name of each.
    """

    data: Section = field(default_factory=Section)
    factors: Section = field(default_factory=Section)
    places: list[tuple[ir.Value, str]] = field(default_factory=list)
    tasks: list[Copy | Compute] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Number of float values that the tasks read."""
        return sum(task.parameters for task in self.tasks)


def plan_output(model: ir.Model, inline: Container[str] = ()) -> Plan:
    """Place every tensor that is planned or large. Bytes that two names share are placed once.

    Args:
        model: after the passes.
        inline: names of initializers that stay in the model file, whatever their size.
    """
    plan = Plan()
    weights: dict[QuantizedWeight, Compute] = {}
    parts: dict[tuple[object, ...], str] = {}
    copies: dict[tuple[object, ...], str] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, PlannedTensor):
                if tensor.key not in parts:
                    parts[tensor.key] = _plan_part(plan, weights, value, tensor)
                plan.places.append((value, parts[tensor.key]))
            elif tensor is not None and value.name not in inline and _outside(tensor):
                _plan_copy(plan, copies, value, tensor)
    return plan


def _outside(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor belongs in the data file rather than in the model file."""
    if isinstance(tensor, ir.ExternalTensor):
        return True
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= INLINE_LIMIT


def _plan_part(
    plan: Plan, weights: dict[QuantizedWeight, Compute], value: ir.Value, tensor: PlannedTensor
) -> str:
    """Place a tensor that no twin of it has a place for; the region's name."""
    task = weights.get(tensor.weight)
    if task is None:
        task = weights[tensor.weight] = Compute(tensor.weight, _reader(value))
        plan.tasks.append(task)
    task.parts.append(tensor)
    assert tensor.name is not None
    section = plan.factors if tensor.part in FACTORS else plan.data
    section.place(tensor.name, tensor.nbytes)
    return tensor.name


def _reader(value: ir.Value) -> str:
    """Name, in the input, of the node that reads a weight."""
    node = next((use.node for use in value.uses()), None)
    return "" if node is None else node.metadata_props.get(GROUP_KEY) or node.name or ""


def _plan_copy(
    plan: Plan, copies: dict[tuple[object, ...], str], value: ir.Value, tensor: ir.TensorProtocol
) -> None:
    key = storage(tensor)
    if key not in copies:
        name = value.name or f"tensor_{len(plan.tasks)}"
        while name in plan.data.regions:
            name += "_"
        copies[key] = name
        plan.data.place(name, tensor.nbytes)
        plan.tasks.append(Copy(name, tensor))
    plan.places.append((value, copies[key]))
