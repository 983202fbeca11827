"""Chooses one option of each item, so that a sum of costs is least and a sum of sizes is in bounds.

The multiple-choice knapsack problem: greedy along each item's lower convex hull, which solves its linear
relaxation (Sinha and Zoltners, "The multiple-choice knapsack problem", 1979), then exchanges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Item:
    """Something of which one option is to be chosen.

    Attributes:
        costs: float64 `[options]`, finite.
        sizes: int64 `[options]`.
    """

    costs: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.int64]


def choose_options(items: Sequence[Item], capacity: int) -> list[int]:
    """Choose one option of each item.

    The sum of costs is above the least possible one by no more than what one step along one item's hull
    gains, and mostly by far less. Equal input, equal output.

    Args:
        items: each with one option at least.
        capacity: what the sum of sizes must not exceed.

    Raises:
        ValueError: even the smallest options exceed it.
    """
    chosen = [_smallest(item) for item in items]
    room = capacity - sum(int(item.sizes[option]) for item, option in zip(items, chosen, strict=True))
    if room < 0:
        raise ValueError(f"the smallest options take {capacity - room}, more than {capacity}")
    room = _climb(items, chosen, room)
    while True:
        gained = _refine(items, chosen, room)
        if gained is None:
            gained = _exchange(items, chosen, room)
        if gained is None:
            return chosen
        room = gained


def _smallest(item: Item) -> int:
    """The least size; of equals the least cost."""
    return int(np.lexsort((item.costs, item.sizes))[0])


def _hull(item: Item) -> list[int]:
    """The options on the lower convex hull of cost over size, smallest first, costs falling."""
    hull: list[int] = []
    for option in np.lexsort((item.costs, item.sizes)):
        if hull and item.costs[option] >= item.costs[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(item, hull[-2], hull[-1]) <= _slope(item, hull[-2], int(option)):
            hull.pop()
        hull.append(int(option))
    return hull


def _slope(item: Item, old: int, new: int) -> float:
    """Cost saved for each unit of size."""
    size = int(item.sizes[new] - item.sizes[old])
    return float(item.costs[old] - item.costs[new]) / size if size > 0 else np.inf


def _climb(items: Sequence[Item], chosen: list[int], room: int) -> int:
    """Take the steps along the hulls that fit, the best for their size first; the room that is left."""
    steps = [
        (-_slope(item, old, new), index, step, old, new)
        for index, item in enumerate(items)
        for step, (old, new) in enumerate(pairwise(_hull(item)))
    ]
    for _, index, _, old, new in sorted(steps):
        grown = int(items[index].sizes[new] - items[index].sizes[old])
        if chosen[index] == old and grown <= room:
            chosen[index] = new
            room -= grown
    return room


def _refine(items: Sequence[Item], chosen: list[int], room: int) -> int | None:
    """Take the one better option that saves most and fits; the room that is left, None where none does."""
    best, saving = None, 0.0
    for index, item in enumerate(items):
        saved = item.costs[chosen[index]] - item.costs
        saved[item.sizes - item.sizes[chosen[index]] > room] = -np.inf
        option = int(saved.argmax())
        if saved[option] > saving + _negligible(item):
            best, saving = (index, option), float(saved[option])
    if best is None:
        return None
    index, option = best
    room -= int(items[index].sizes[option] - items[index].sizes[chosen[index]])
    chosen[index] = option
    return room


def _exchange(items: Sequence[Item], chosen: list[int], room: int) -> int | None:
    """Make one item smaller and another larger where that saves; the room that is left, or None."""
    rows = [
        (index, option, item.sizes[option] - item.sizes[now], item.costs[now] - item.costs[option])
        for index, (item, now) in enumerate(zip(items, chosen, strict=True))
        for option in range(len(item.costs))
        if option != now
    ]
    if not rows:
        return None
    owner, option, growth, saved = (np.array(column) for column in zip(*rows, strict=True))
    larger, smaller = np.flatnonzero(saved > 0), np.flatnonzero(growth < 0)
    best, saving = None, 0.0
    for one in larger:
        total = saved[one] + saved[smaller]
        total[(owner[smaller] == owner[one]) | (growth[one] + growth[smaller] > room)] = -np.inf
        if len(total) and total.max() > saving + _negligible(items[owner[one]]):
            best, saving = (one, smaller[int(total.argmax())]), float(total.max())
    if best is None:
        return None
    for row in best:
        chosen[owner[row]] = int(option[row])
    return room - int(growth[list(best)].sum())


def _negligible(item: Item) -> float:
    """Savings below this are rounding errors: with them, exchanges might never end."""
    return 1e-12 * float(np.abs(item.costs).max())
