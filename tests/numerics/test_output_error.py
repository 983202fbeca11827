"""What an error does to the output, against the outputs themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.numerics.layers import correlated, loss, moments, second, weights
from zq2onnx.numerics import output_error
from zq2onnx.numerics.output_error import branch_gain, output_loss, row_losses


@pytest.mark.parametrize("rows", [1, 100, 1 << 22])
def test_a_rows_loss_is_its_outputs_mean_square(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_error, "ROWS", rows)
    x, error = correlated(500, 30), weights(17, 30)
    found = row_losses(error, moments(x).second)
    expected = ((x.astype(np.float64) @ error.T.astype(np.float64)) ** 2).mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == np.float64
    assert output_loss(error, moments(x).second) == pytest.approx(expected.sum(), rel=1e-5)


def test_gradients_weigh_the_outputs() -> None:
    """With one gradient the loss is the mean square of what the error adds to the loss."""
    x, error = correlated(500, 30), weights(17, 30)
    gradient = np.random.default_rng(3).standard_normal(17).astype(np.float32)
    found = output_loss(error, moments(x).second, np.outer(gradient, gradient))
    expected = ((x.astype(np.float64) @ error.T.astype(np.float64) @ gradient) ** 2).mean()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("both_sides", [False, True])
def test_what_a_branch_gains(both_sides: bool) -> None:
    error, moment = weights(20, 30), second(30)
    gradients = second(20, 4) if both_sides else None
    u, v = weights(30, 5, 1) / 4, weights(5, 20, 2)
    expected = loss(error, moment, gradients) - loss(error - (u @ v).T, moment, gradients)
    assert branch_gain(error, u, v, moment, gradients) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("size", [2.0**-70, 2.0**-30, 2.0**30, 2.0**60])
def test_errors_of_any_size(both_sides: bool, size: float) -> None:
    error, moment = weights(20, 30), second(30)
    gradients = second(20, 4) if both_sides else None
    u, v = weights(30, 5, 1), weights(5, 20, 2)
    part, root = np.float32(size), np.float32(np.sqrt(size))
    np.testing.assert_allclose(row_losses(error * part, moment), row_losses(error, moment) * size**2)
    whole = output_loss(error, moment, gradients)
    assert output_loss(error * part, moment, gradients) == pytest.approx(whole * size**2, rel=1e-6)
    gain = branch_gain(error, u, v, moment, gradients)
    found = branch_gain(error * part, u * root, v * root, moment, gradients)
    assert found == pytest.approx(gain * size**2, rel=1e-5)


def test_no_error_has_no_loss() -> None:
    zeros = np.zeros((4, 6), np.float32)
    assert output_loss(zeros, second(6)) == 0
    assert not row_losses(zeros, second(6)).any()
    assert branch_gain(zeros, zeros.T[:, :2], zeros[:2, :4], second(6)) == 0


def test_no_loss_is_negative() -> None:
    """An error that inputs do not see may come out below zero in float32."""
    x = np.ones((9, 40), np.float32) * 1000
    error = weights(500, 40)
    error -= error.mean(axis=1, keepdims=True)
    assert (row_losses(error, moments(x).second) >= 0).all()
