"""Spends a budget of bits or bytes where that lowers the estimated divergence most."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from zq2onnx.conversion.choices import Choices
from zq2onnx.conversion.identity import journal_header
from zq2onnx.conversion.options import Options
from zq2onnx.conversion.recipe import read_recipe
from zq2onnx.errors import UserError
from zq2onnx.numerics.knapsack import choose_options
from zq2onnx.passes.select_nodes import NodeRule
from zq2onnx.planning.alternatives import Alternatives, list_alternatives, make_grid
from zq2onnx.planning.budget import Bits, Bytes
from zq2onnx.planning.costs import OTHER
from zq2onnx.planning.estimate import estimate_costs
from zq2onnx.planning.layers import Place, find_places
from zq2onnx.planning.plan import Plan, PlannedLayer, exactly
from zq2onnx.planning.sizes import Sizes, foresee_sizes
from zq2onnx.planning.survey import Steps, survey
from zq2onnx.scheme import Scheme, parse_granularity

MOST_ROUNDS = 8
"""How often a plan is made smaller for what a file holds beside weights: alignment, names, bodies."""


class Planner:
    """A model whose layers are sized up once, for any number of budgets.

    Args:
        model: ONNX file.
        said: the options of the conversion. `scheme` gives the kind of activations, `group_size` the one
            group size to try, `lorc_rank` the greatest rank.
        calib: calibration data.
        tokenizer: the model's `tokenizer.json`, or the folder that holds it.
        recipe: options in TOML; what its tables fix for a node is kept.
        output: the file that is to be written.

    Attributes:
        origin: what the plans are made of: equal for equal input and options.
        warnings: one line each.

    Raises:
        UserError: as `convert` does.
    """

    def __init__(
        self,
        model: Path,
        said: Choices,
        calib: Path,
        tokenizer: Path | None,
        recipe: Path | None,
        output: Path,
    ) -> None:
        in_recipe = Choices() if recipe is None else read_recipe(recipe, calibrated=True)[0]
        group = said.over(in_recipe).group_size
        self._group = None if group is None else parse_granularity(group)
        self._found = survey(model, said, calib, tokenizer, recipe)
        self._output = output
        self._alternatives: list[Alternatives] = []
        header = journal_header(self._found.source, self._found.options, self._found.samples)
        self.origin = hashlib.sha256(json.dumps([header, str(self._group)]).encode()).hexdigest()
        self.warnings = list(self._found.warnings)

    def size_up(self, steps: Steps) -> None:
        """Quantize every layer in every way.

        Raises:
            UserError: ONNX Runtime or torch cannot run the model, or its weights are not finite.
        """
        grid = make_grid(self._found, self._group)
        costs = estimate_costs(self._found, grid, steps, self.warnings)
        self._alternatives = list_alternatives(self._found, grid, costs, self._output)
        if not self._alternatives:
            raise UserError(
                f"{self._found.source.path}: calibration reaches none of its layers", "one at least"
            )

    def extremes(self, label: str) -> tuple[Plan, Plan]:
        """The smallest plan, and the one that costs least, whatever its size."""
        smallest = [int(each.sizes.argmin()) for each in self._alternatives]
        nearest = [int(each.costs.argmin()) for each in self._alternatives]
        return self._planned(label, smallest), self._planned(label, nearest)

    def plan(self, budget: Bits | Bytes, label: str = "") -> Plan:
        """Choose a scheme for each layer, after `size_up`.

        Args:
            budget: what to keep to.
            label: what the plan says its budget is, if it was asked for in other words.

        Raises:
            UserError: the budget is below what the smallest schemes take, or not below the float model.
        """
        self._check_below_float(budget)
        label = label or str(budget)
        least = self._planned(label, [int(each.sizes.argmin()) for each in self._alternatives])
        if (missing := _excess(budget, least)) > 0:
            raise UserError(f"--budget {budget}: {_short(budget, missing, least)}", "as much at least")
        room = -_excess(budget, least)
        for _ in range(MOST_ROUNDS):
            capacity = room + sum(int(each.sizes.min()) for each in self._alternatives)
            chosen = choose_options([each.item for each in self._alternatives], capacity)
            plan = self._planned(label, chosen)
            if (over := _excess(budget, plan)) <= 0:
                return plan
            room = max(0, room - over)
        return least

    def _check_below_float(self, budget: Bits | Bytes) -> None:
        path = self._found.source.path
        widest = max(8 * view.dtype.itemsize for view in self._found.views.values())
        if isinstance(budget, Bits) and budget.limit >= widest:
            raise UserError(f"--budget {budget}: {path} has {widest:g} bits per weight", "less than that")
        if isinstance(budget, Bytes) and budget.limit >= self._found.source.nbytes:
            whole = Bytes(self._found.source.nbytes)
            raise UserError(f"--budget {budget}: {path} has {whole}", "less than that")

    def _planned(self, label: str, chosen: Sequence[int]) -> Plan:
        """The plan of one choice for each weight, with its exact sizes."""
        pairs = list(zip(self._alternatives, chosen, strict=True))
        schemes = {node: each.schemes[option] for each, option in pairs for node in each.nodes}
        options = self._options(schemes)
        sizes = foresee_sizes(self._found, options, self._output)
        places, found = find_places(self._found.model), self._found
        return Plan(
            label,
            {**found.options.describe(), **options.policy.scheme.describe()},
            tuple(
                self._layer(node, each, option, sizes, places)
                for each, option in pairs
                for node in each.nodes
            ),
            sizes.total,
            sizes.stored,
            sizes.weights,
            sum(float(each.costs[option]) for each, option in pairs),
            tuple(self.warnings),
        )

    def _options(self, schemes: Mapping[str, Scheme]) -> Options:
        """The options of a conversion that chooses these schemes."""
        policy = self._found.options.policy
        common, _ = Counter(schemes.values()).most_common(1)[0]
        base = dataclasses.replace(
            policy.scheme, bits=common.bits, granularity=common.granularity, lorc_rank=common.lorc_rank
        )
        rules = tuple(_rule(node, scheme) for node, scheme in schemes.items())
        policy = dataclasses.replace(policy, scheme=base, rules=(*policy.rules, *rules))
        return dataclasses.replace(self._found.options, policy=policy)

    def _layer(
        self, node: str, each: Alternatives, option: int, sizes: Sizes, places: Mapping[str, Place]
    ) -> PlannedLayer:
        view = self._found.views[node]
        return PlannedLayer(
            node,
            places.get(node, Place(OTHER, 0)),
            each.schemes[option],
            8 * (sizes.codes[node] + sizes.factors[node]) / (view.k * view.n),
            float(each.costs[option]) / len(each.nodes),
        )


def _rule(node: str, scheme: Scheme) -> NodeRule:
    fields = {
        "bits": scheme.bits,
        "activation": scheme.activation,
        "granularity": scheme.granularity,
        "lorc_rank": scheme.lorc_rank,
    }
    return NodeRule(exactly(node), fields)


def _excess(budget: Bits | Bytes, plan: Plan) -> int:
    """Bytes by which a plan exceeds its budget; less than 0 where there is room."""
    if isinstance(budget, Bytes):
        return plan.bytes - budget.limit
    return plan.stored - int(budget.limit * plan.weights / 8)


def _short(budget: Bits | Bytes, missing: int, least: Plan) -> str:
    """What the smallest plan has."""
    has = f"{least.bytes / 1e6:.3f} MB" if isinstance(budget, Bytes) else f"{least.bits:.3f} bits per weight"
    return f"{missing} bytes short, the smallest schemes come to {has}"
