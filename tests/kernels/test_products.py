"""Every configuration of every kernel, run by Triton's interpreter, against the oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.kernels.interpreted import UNITS, check, kernels_of, run
from tests.kernels.problems import for_product, make, named
from zq2onnx.opset import OPERATORS, node_attributes
from zq2onnx.runtime import reference
from zq2onnx.runtime.kernels.choice import may_run
from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.configurations import ARCHITECTURES, configurations, products, prologues
from zq2onnx.runtime.kernels.launches import plan

DISTINCT = {made.name: made for name in ARCHITECTURES for made in products(name)}


@named(DISTINCT.values())
def test_product_is_the_oracle(configuration: Configuration) -> None:
    problem, inputs = for_product(configuration)
    assert may_run(configuration, problem)
    check(problem, inputs, run(problem, inputs, configuration), configuration)


@named(DISTINCT.values())
def test_whole_numbers_are_multiplied_exactly(configuration: Configuration) -> None:
    """Of powers of two for scales, and activations that int8 holds: no rounding but the result's."""
    problem, inputs = for_product(configuration, small=True)
    rng = np.random.default_rng(1)
    a = rng.integers(-4, 5, inputs["A"].shape)
    a[:, ::16] = 127  # so that 1 is the scale of every block
    inputs["A"] = a.astype(inputs["A"].dtype)
    inputs["scales"] = np.full_like(inputs["scales"], 2.0**-9)
    result = run(problem, inputs, configuration)
    expected = reference.matmul(problem.operator, node_attributes(problem.layout), inputs)
    assert np.abs(expected).max() < 60000
    assert (np.abs(result - expected) <= UNITS[problem.dtype] * np.abs(expected)).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_name_says_all_but_the_stages(architecture: str) -> None:
    made = configurations(architecture)
    assert len({one.name for one in made}) == len(made)
    for one in products(architecture):
        assert dataclasses.replace(one, stages=DISTINCT[one.name].stages) == DISTINCT[one.name]


def test_every_prologue_is_used() -> None:
    used = set()
    for operator in OPERATORS.values():
        for dtype in ("fp16", "bf16", "fp32"):
            for k in (528, 77):
                problem, _ = make(operator, 3, k, 33, 128, dtype)
                used |= set(kernels_of(plan(problem, "sm_90")))
    assert used >= {made.name for made in prologues()}
