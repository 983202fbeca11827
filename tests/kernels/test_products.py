"""Every configuration of every kernel, run by Triton's interpreter, against the oracle."""

from __future__ import annotations

import dataclasses

import pytest

from tests.kernels.interpreted import check, kernels_of, run
from tests.kernels.problems import for_product, make, named
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime.kernels.choice import may_run
from zq2onnx.runtime.kernels.configuration import Configuration
from zq2onnx.runtime.kernels.configurations import ARCHITECTURES, configurations, products, prologues
from zq2onnx.runtime.kernels.launches import plan

DISTINCT = {made.name: made for name in ARCHITECTURES for made in products(name)}


@named(DISTINCT.values())
def test_product_is_the_oracle(configuration: Configuration) -> None:
    problem, inputs = for_product(configuration, lorc=True, int8_factors=True)
    assert may_run(configuration, problem)
    check(problem, inputs, run(problem, inputs, configuration), configuration)


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
