"""What could be chosen for each layer: schemes, with what each costs and what it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.knapsack import Item
from zq2onnx.passes.candidates import Candidate
from zq2onnx.planning.sizes import Sizes
from zq2onnx.planning.survey import Survey
from zq2onnx.scheme import WEIGHT_BITS, Granularity, PerBlock, PerChannel, Scheme

GROUPS: tuple[Granularity, ...] = (PerBlock(64), PerBlock(128), PerChannel())
"""What is tried where nobody says: the scales of smaller blocks take as much as one more bit of the codes."""

COARSE_BITS = 8
"""Codes of so many bits are all but exact: of groups only the coarsest is tried."""

RANKS = (0, 8, 16, 32, 64)
"""Of low-rank branches, below the greatest that is allowed."""


@dataclass(frozen=True, eq=False)
class Alternatives:
    """One weight, and what could be chosen for it.

    Attributes:
        nodes: the names of the layers that read it.
        schemes: what could be chosen, with the rank of the branch.
        costs: of each, float64: estimated divergence of the predictions, in nats.
        sizes: of each, int64: bytes of codes, scales, zero points and factors.
    """

    nodes: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    costs: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.int64]

    @property
    def item(self) -> Item:
        """As the knapsack takes it."""
        return Item(self.costs, self.sizes)


@dataclass(frozen=True, eq=False)
class Grid:
    """Bits and groups that are tried, and what they mean for each node.

    Attributes:
        uniform: one scheme for all, for each combination; with the greatest rank.
        of_node: the same combinations by node, with what the recipe has to say of it.
        ranks: that are tried, by node.
    """

    uniform: tuple[Scheme, ...]
    of_node: Mapping[str, tuple[Scheme, ...]]
    ranks: Mapping[str, tuple[int, ...]]

    def schemes(self, node: str) -> tuple[Scheme, ...]:
        """What is to be tried on a node, each once."""
        return tuple(dict.fromkeys(self.of_node[node]))

    @property
    def all_ranks(self) -> tuple[int, ...]:
        """Every rank that is tried somewhere."""
        return tuple(sorted({rank for ranks in self.ranks.values() for rank in ranks}))


def make_grid(found: Survey, group: Granularity | None) -> Grid:
    """Choose what to try.

    Args:
        found: the model.
        group: the one group size that is wanted; None tries `GROUPS`.
    """
    policy, groups = found.options.policy, GROUPS if group is None else (group,)
    uniform = tuple(
        dataclasses.replace(policy.scheme, bits=bits, granularity=size)
        for bits in WEIGHT_BITS
        for size in (groups[-1:] if bits == COARSE_BITS else groups)
    )
    of_node, ranks = {}, {}
    for name, candidate in found.candidates.items():
        rules = [rule for rule in policy.rules if candidate.matches(rule.match)]
        of_node[name] = tuple(_refined(scheme, candidate, found) for scheme in uniform)
        fixed = any("lorc_rank" in rule.overrides for rule in rules)
        most = of_node[name][0].lorc_rank
        ranks[name] = (most,) if fixed else ranks_up_to(most)
    return Grid(uniform, of_node, ranks)


def _refined(scheme: Scheme, candidate: Candidate, found: Survey) -> Scheme:
    """A scheme with what the recipe's tables say of a node."""
    for rule in found.options.policy.rules:
        if candidate.matches(rule.match):
            scheme = dataclasses.replace(scheme, **rule.overrides)
    return scheme


def ranks_up_to(most: int) -> tuple[int, ...]:
    """The ranks to try where `most` is allowed.

    >>> ranks_up_to(0), ranks_up_to(8), ranks_up_to(24)
    ((0,), (0, 8), (0, 8, 16, 24))
    """
    return tuple(sorted({rank for rank in RANKS if rank < most} | {0, most}))


def list_alternatives(
    found: Survey,
    grid: Grid,
    costs: Mapping[tuple[str, Scheme], Mapping[int, float]],
    sizes: Sequence[Sizes],
) -> list[Alternatives]:
    """What could be chosen for each weight of which costs are known.

    Args:
        found: the model.
        grid: what was tried.
        costs: by node and its scheme, the cost by rank of the branch.
        sizes: for each scheme of `grid.uniform`, those of a conversion by it.
    """
    sharing: dict[tuple[object, ...], list[str]] = {}
    for name, view in found.views.items():
        if any((name, scheme) in costs for scheme in grid.of_node[name]):
            sharing.setdefault((view.key, grid.of_node[name]), []).append(name)
    return [_alternatives(tuple(nodes), found, grid, costs, sizes) for nodes in sharing.values()]


def _alternatives(
    nodes: tuple[str, ...],
    found: Survey,
    grid: Grid,
    costs: Mapping[tuple[str, Scheme], Mapping[int, float]],
    sizes: Sequence[Sizes],
) -> Alternatives:
    first = nodes[0]
    view = found.views[first]
    made: dict[Scheme, tuple[float, int]] = {}
    for scheme, size in zip(grid.of_node[first], sizes, strict=True):
        most = min(scheme.lorc_rank, view.k, view.n)
        for rank in grid.ranks[first]:
            share = min(rank, most) / most if most else 0
            cost = sum(costs[node, scheme][rank] for node in nodes)
            chosen = dataclasses.replace(scheme, lorc_rank=rank)
            made[chosen] = (cost, size.codes[first] + round(size.factors[first] * share))
    return Alternatives(
        nodes,
        tuple(made),
        np.array([cost for cost, _ in made.values()], np.float64),
        np.array([size for _, size in made.values()], np.int64),
    )
