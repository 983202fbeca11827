"""One option of each item, within a capacity."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zq2onnx.numerics.knapsack import Item, choose_options


def _item(*options: tuple[float, int]) -> Item:
    costs, sizes = zip(*options, strict=True)
    return Item(np.array(costs, np.float64), np.array(sizes, np.int64))


def _sums(items: list[Item], chosen: tuple[int, ...] | list[int]) -> tuple[float, int]:
    pairs = list(zip(items, chosen, strict=True))
    return sum(float(item.costs[o]) for item, o in pairs), sum(int(item.sizes[o]) for item, o in pairs)


def _best(items: list[Item], capacity: int) -> float:
    """Every combination."""
    sums = [_sums(items, chosen) for chosen in itertools.product(*(range(len(i.costs)) for i in items))]
    return min(cost for cost, size in sums if size <= capacity)


ITEMS = st.lists(
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 40)), min_size=1, max_size=5).map(
        lambda options: _item(*options)
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(items=ITEMS, slack=st.integers(0, 120))
def test_what_is_chosen_fits_and_is_near_the_best(items: list[Item], slack: int) -> None:
    capacity = sum(int(item.sizes.min()) for item in items) + slack

    chosen = choose_options(items, capacity)

    cost, size = _sums(items, chosen)
    assert size <= capacity
    largest_step = max(float(item.costs.max() - item.costs.min()) for item in items)
    assert _best(items, capacity) <= cost + 1e-9
    assert cost <= _best(items, capacity) + largest_step + 1e-9


def test_many_items_come_within_a_thousandth_of_the_relaxation() -> None:
    rng = np.random.default_rng(0)
    bits = np.array([2, 3, 4, 8])
    items = [
        Item(rng.lognormal(0, 2) * 4.0 ** -bits.astype(np.float64), bits * int(rng.integers(1000, 9000)))
        for _ in range(200)
    ]
    capacity = int(sum(item.sizes[1] for item in items))

    cost, size = _sums(items, choose_options(items, capacity))

    # Lagrange: for any price, the least of cost + price * size bounds every choice from below.
    bound = max(
        sum(float((item.costs + price * item.sizes).min()) for item in items) - price * capacity
        for price in np.geomspace(1e-9, 1e-3, 400)
    )
    assert size <= capacity
    assert bound <= cost <= 1.001 * bound


def test_exchange_mends_what_greed_missed() -> None:
    # Greed takes the first item's step (the best for its size) and has no room for the second's.
    items = [_item((10, 0), (6, 3)), _item((10, 0), (1, 9))]

    assert choose_options(items, 10) == [0, 1]


def test_dearer_options_of_more_size_are_never_chosen() -> None:
    assert choose_options([_item((1, 1), (5, 9), (1, 4))], 100) == [0]


def test_less_than_the_smallest_options_is_refused() -> None:
    with pytest.raises(ValueError, match="take 7, more than 6"):
        choose_options([_item((1, 3), (0, 9)), _item((1, 4))], 6)
