"""Spends a budget of bits or bytes where that lowers the estimated divergence most."""

from __future__ import annotations

import dataclasses
import functools
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
        source: the model.
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
        self._found = survey(model, said, calib, tokenizer, recipe)
        profile = self._found.options.profile
        behind = Choices() if profile is None else profile.profile.choices
        group = said.over(in_recipe).over(behind).group_size
        self._group = None if group is None else parse_granularity(group)
        self._grid = make_grid(self._found, self._group)
        self._output = output
        self._alternatives: list[Alternatives] = []
        self.source = self._found.source
        header = journal_header(self._found.source, self._found.options, self._found.samples)
        self.origin = hashlib.sha256(json.dumps([header, str(self._group)]).encode()).hexdigest()
        self.warnings = list(self._found.warnings)

    def size_up(self, steps: Steps) -> None:
        """Quantize every layer in every way.

        Raises:
            UserError: ONNX Runtime or torch cannot run the model, or its weights are not finite.
        """
        costs = estimate_costs(self._found, self._grid, steps, self.warnings)
        self._alternatives = list_alternatives(self._found, self._grid, costs, self._uniform_sizes)
        self._tell_unplanned()
        if not self._alternatives:
            raise UserError(
                f"{self._found.source.path}: calibration reaches none of its layers", "one at least"
            )

    def extremes(self, label: str) -> tuple[Plan, Plan]:
        """The smallest plan, and the one that costs least, whatever its size."""
        nearest = [int(each.costs.argmin()) for each in self._alternatives]
        return self._smallest(label, self._alternatives), self._planned(label, self._alternatives, nearest)

    def check(self, budget: Bits | Bytes) -> Plan:
        """Tell a budget that no plan can keep, before anything is computed.

        Returns:
            The smallest plan, of which no costs are known.

        Raises:
            UserError: the budget is below what the smallest schemes take, or not below the float model.
        """
        self._check_below_float(budget)
        free = dict.fromkeys(self._grid.all_ranks, 0.0)
        costs = {(node, scheme): free for node in self._found.views for scheme in self._grid.of_node[node]}
        every = list_alternatives(self._found, self._grid, costs, self._uniform_sizes)
        least = self._smallest(str(budget), every)
        _check_enough(budget, least)
        return least

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
        least = self._smallest(label, self._alternatives)
        _check_enough(budget, least)
        items = [each.item for each in self._alternatives]
        floor = sum(int(item.sizes.min()) for item in items)
        capacity, step = floor - _excess(budget, least), 1
        while capacity > floor:
            chosen = choose_options(items, capacity)
            plan = self._planned(label, self._alternatives, chosen)
            if (over := _excess(budget, plan)) <= 0:
                return plan
            # What a file holds beside weights (alignment, names, bodies) is known of a whole plan alone.
            taken = sum(int(item.sizes[option]) for item, option in zip(items, chosen, strict=True))
            capacity, step = min(capacity - step * over, taken - 1), 2 * step
        return least

    def _tell_unplanned(self) -> None:
        """Warn of layers that are quantized without a choice."""
        planned = {node for each in self._alternatives for node in each.nodes}
        if left := [node for node in self._found.views if node not in planned]:
            names = ", ".join(map(repr, left[:3])) + (", .." if len(left) > 3 else "")
            self.warnings.append(
                f"calibration does not reach {len(left)} layers ({names}): they get the bits and the rank"
                " that most others have"
            )

    @functools.cached_property
    def _uniform_sizes(self) -> list[Sizes]:
        """The sizes with one scheme for all, for each of the grid."""
        options, sizes = self._found.options, []
        for scheme in self._grid.uniform:
            policy = dataclasses.replace(options.policy, scheme=scheme)
            uniform = dataclasses.replace(options, policy=policy)
            sizes.append(foresee_sizes(self._found, uniform, self._output))
        return sizes

    def _smallest(self, label: str, alternatives: Sequence[Alternatives]) -> Plan:
        return self._planned(label, alternatives, [int(each.sizes.argmin()) for each in alternatives])

    def _check_below_float(self, budget: Bits | Bytes) -> None:
        path = self._found.source.path
        widest = max(8 * view.dtype.itemsize for view in self._found.views.values())
        if isinstance(budget, Bits) and budget.limit >= widest:
            raise UserError(f"--budget {budget}: {path} has {widest:g} bits per weight", "less than that")
        if isinstance(budget, Bytes) and budget.limit >= self._found.source.nbytes:
            whole = Bytes(self._found.source.nbytes)
            raise UserError(f"--budget {budget}: {path} has {whole}", "less than that")

    def _planned(self, label: str, alternatives: Sequence[Alternatives], chosen: Sequence[int]) -> Plan:
        """The plan of one choice for each weight, with its exact sizes."""
        pairs = list(zip(alternatives, chosen, strict=True))
        choices = {node: pair for pair in pairs for node in pair[0].nodes}
        choices = {node: choices[node] for node in self._victims_last(list(choices))}
        options = self._options({node: each.schemes[option] for node, (each, option) in choices.items()})
        sizes = foresee_sizes(self._found, options, self._output)
        places, found = find_places(self._found.model), self._found
        return Plan(
            label,
            {**options.describe(), "node": found.options.describe()["node"]},
            tuple(self._layer(node, each, option, sizes, places) for node, (each, option) in choices.items()),
            sizes.total,
            sizes.stored,
            sizes.weights,
            sum(float(each.costs[option]) for each, option in pairs),
            tuple(self.warnings),
        )

    def _options(self, schemes: Mapping[str, Scheme]) -> Options:
        """The options of a conversion that chooses these schemes.

        Layers that calibration does not reach get the bits and the rank that most others have. The group
        size stays as it was said: embeddings have it too.
        """
        policy = self._found.options.policy
        common, _ = Counter(schemes.values()).most_common(1)[0]
        base = dataclasses.replace(policy.scheme, bits=common.bits, lorc_rank=common.lorc_rank)
        rules = tuple(_rule(node, scheme) for node, scheme in schemes.items())
        policy = dataclasses.replace(policy, scheme=base, rules=(*policy.rules, *rules))
        return dataclasses.replace(self._found.options, policy=policy)

    def _victims_last(self, nodes: Sequence[str]) -> list[str]:
        """The nodes in graph order, but behind those whose names they have for a weight, a module or a role.

        A rule that means such a name finds them too; their own rules come later, and win.
        """
        candidates = self._found.candidates
        seen: set[str] = set()
        ordered: list[str] = []

        def place(node: str) -> None:
            if node not in seen:
                seen.add(node)
                for text in candidates[node].texts:
                    if text in candidates and text in nodes:
                        place(text)
                ordered.append(node)

        for node in nodes:
            place(node)
        return ordered

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


def _check_enough(budget: Bits | Bytes, least: Plan) -> None:
    """Refuse a budget below the smallest plan."""
    missing = _excess(budget, least)
    if missing <= 0:
        return
    has = f"{least.bytes / 1e6:.3f} MB" if isinstance(budget, Bytes) else f"{least.bits:.3f} bits per weight"
    raise UserError(
        f"--budget {budget}: {missing} bytes short, the smallest schemes come to {has}", "as much at least"
    )
