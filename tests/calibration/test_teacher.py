"""A walk can keep the float model's inputs beside the current ones."""

from __future__ import annotations

import numpy as np
import pytest

from tests import zoo
from tests.calibration.walking import (
    changed,
    run_whole,
    walk_of,
)


def test_a_teacher_goes_beside_the_current_stream() -> None:
    path = zoo.model("opt")
    weights: dict[str, np.ndarray] = {}
    with walk_of("opt", keep_teacher=True) as walk:
        for step in walk.steps():
            names = [value.name or "" for value in step.piece.inputs]
            batches = list(step.batches())
            assert [held_out for *_, held_out in batches] == [False, False, True]
            for feeds, (current, teacher, _) in zip(walk.samples.batches, batches, strict=True):
                assert set(current) == set(teacher) == set(names)
                for found, with_weights in ((current, weights), (teacher, {})):
                    whole = feeds if step.index == 0 else run_whole(path, feeds, names, with_weights)
                    for name in names:
                        np.testing.assert_allclose(found[name], whole[name], rtol=1e-3, atol=1e-3)
            new = changed(step)
            step.advance(new)
            weights |= new


def test_two_pieces_that_make_one_block_are_given_the_inputs_of_both() -> None:
    with walk_of("opt", quantized_inputs=False) as walk:
        steps = walk.steps()
        next(steps)
        next(steps)
        step = next(steps)
        mlp = walk.pieces[3]
        own, both = next(step.batches())[0], next(step.batches([mlp]))[0]
        made = {value.name for value in step.piece.outputs}
        assert set(both) == set(own) | ({value.name for value in mlp.inputs} - made)
        assert not made & set(both)


def test_without_a_teacher_its_inputs_cannot_be_had() -> None:
    with walk_of("opt") as walk, pytest.raises(ValueError, match="keep_teacher"):
        next(next(walk.steps()).batches())
