"""Which shapes models are run on, and what they are fed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import zoo
from zq2onnx.benchmark import Shape, plan_benchmark
from zq2onnx.benchmark.shapes import Limits, Wishes, choose_shapes
from zq2onnx.errors import UserError

FREE = Limits("free.onnx", batch=None, length=None, context=None, cache=False)
CACHED = Limits("cached.onnx", batch=None, length=None, context=2048, cache=True)
SHORT = Limits("short.onnx", batch=None, length=None, context=64, cache=True)
FIXED = Limits("fixed.onnx", batch=2, length=16, context=None, cache=False)
STEP = Limits("step.onnx", batch=None, length=1, context=None, cache=True)


@pytest.mark.parametrize(
    ("limits", "wishes", "shapes"),
    [
        ([FREE], Wishes(), [Shape(1, 128), Shape(1, 1)]),
        ([FREE], Wishes((1,)), [Shape(1, 1)]),
        ([FREE], Wishes((32, 512), batch=4), [Shape(4, 32), Shape(4, 512), Shape(4, 1)]),
        ([CACHED], Wishes(), [Shape(1, 128), Shape(1, 1, 512)]),
        ([CACHED], Wishes((1,), past=7), [Shape(1, 1), Shape(1, 1, 7)]),
        ([CACHED], Wishes((1,), past=0), [Shape(1, 1)]),
        ([SHORT], Wishes(), [Shape(1, 64), Shape(1, 1, 63)]),
        ([SHORT, CACHED], Wishes((9,)), [Shape(1, 9), Shape(1, 1, 63)]),
        ([FIXED], Wishes(), [Shape(2, 16)]),
        ([FREE, FIXED], Wishes((16,), batch=2), [Shape(2, 16)]),
        ([STEP], Wishes(past=3), [Shape(1, 1, 3)]),
    ],
)
def test_what_is_run(limits: list[Limits], wishes: Wishes, shapes: list[Shape]) -> None:
    assert choose_shapes(limits, wishes) == tuple(shapes)


@pytest.mark.parametrize(
    ("limits", "wishes", "message"),
    [
        ([FREE], Wishes(past=5), r"--past 5: free.onnx has no KV cache; leave --past out"),
        ([CACHED, FREE], Wishes(past=5), r"--past 5: free.onnx has no KV cache"),
        ([FIXED], Wishes((32,)), r"fixed.onnx: its graph takes 16 tokens, not 32; --prompt 16"),
        ([FIXED], Wishes(batch=1), r"fixed.onnx: its graph takes a batch of 2, not 1; --batch 2"),
        ([SHORT], Wishes((65,)), r"short.onnx: 65 tokens; required: at most 64 in all, .*smaller --prompt"),
        ([SHORT], Wishes(past=64), r"short.onnx: 1 token after 64; required: at most 64 .*smaller --past"),
        ([SHORT, CACHED], Wishes((65,)), r"short.onnx: 65 tokens"),
    ],
)
def test_what_a_model_cannot_take_is_refused(limits: list[Limits], wishes: Wishes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_shapes(limits, wishes)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"prompts": (8, 0)}, "--prompt 0; required: at least 1"),
        ({"batch": 0}, "--batch 0; required: at least 1"),
        ({"past": -1}, "--past -1; required: at least 0"),
    ],
)
def test_numbers_that_are_none_are_refused(wishes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Wishes(**wishes)  # type: ignore[arg-type]


def test_a_cache_holds_what_comes_before_the_token() -> None:
    path = zoo.model("llama-cache-fp16")
    plan = plan_benchmark(path, prompts=[6], past=5, batch=2)
    (subject,) = plan.subjects
    assert plan.shapes == (Shape(2, 6), Shape(2, 1, 5))
    prompt, step = (subject.inputs(shape) for shape in plan.shapes)
    caches = {f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")}
    assert set(prompt) == set(step) == {"input_ids", "attention_mask", "position_ids", *caches}
    for name in caches:
        assert prompt[name].shape == (2, 2, 0, 16) and step[name].shape == (2, 2, 5, 16)
        assert step[name].dtype == np.float16
        assert step[name].std() > 0.5  # zeros would hide what a kernel does with them
    assert prompt["input_ids"].shape == (2, 6) and step["input_ids"].shape == (2, 1)
    assert prompt["input_ids"].max() < zoo.VOCABULARY
    np.testing.assert_array_equal(step["attention_mask"], np.ones((2, 6), np.int64))
    again = subject.inputs(plan.shapes[1])
    assert all(np.array_equal(again[name], step[name]) for name in step)


def test_bfloat16_is_fed_as_its_copy_reads_it() -> None:
    plan = plan_benchmark(zoo.model("opt-cache-bf16"), past=3)
    feeds = plan.subjects[0].inputs(plan.shapes[1])
    assert feeds["past_key_values.0.key"].dtype == np.float32


def test_an_archive_gives_its_first_samples(tmp_path: Path) -> None:
    path = zoo.model("opt")
    ids = np.arange(15).reshape(3, 5)
    np.savez(tmp_path / "x.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    plan = plan_benchmark(path, npz=tmp_path / "x.npz", batch=2)
    assert plan.shapes == (Shape(2, None),) and plan.shapes[0].amount == 2
    np.testing.assert_array_equal(plan.subjects[0].inputs(plan.shapes[0])["input_ids"], ids[:2])
    with pytest.raises(UserError, match=r"x.npz: 3 samples; required: 4"):
        plan_benchmark(path, npz=tmp_path / "x.npz", batch=4)
    with pytest.raises(UserError, match=r"--prompt with --npz"):
        plan_benchmark(path, npz=tmp_path / "x.npz", prompts=[4])
