"""The specification against sources that nobody here wrote, and against itself in another form."""

from __future__ import annotations

import numpy as np
import pytest

from fastbn import reference
from tests.data_for_tests import SHAPES, tensor
from tests.tolerances import CENTRAL_DIFFERENCE


def arguments(rng, shape, axis):
    channels = shape[axis]
    x = tensor(rng, shape, np.float64, mean=3.0)
    dout = tensor(rng, shape, np.float64)
    return x, dout, rng.standard_normal(channels), rng.standard_normal(channels)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_closed_form_is_the_chain_rule(rng, shape, axis):
    x, dout, gamma, _ = arguments(rng, shape, axis)
    closed = reference.backward(dout, x, gamma, axis=axis)
    steps = reference.backward_by_chain_rule(dout, x, gamma, axis=axis)
    for a, b in zip(closed, steps, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backward", [reference.backward, reference.backward_by_chain_rule])
def test_gradients_are_central_differences(rng, backward):
    x, dout, gamma, beta = arguments(rng, (3, 4, 2, 2), 1)
    gradients = backward(dout, x, gamma)
    for position, gradient in enumerate(gradients):
        inputs = [x, gamma, beta]
        numeric = np.empty_like(gradient)
        for index in np.ndindex(gradient.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = inputs[position].copy()
                moved[index] += step
                shifted = [moved if i == position else value for i, value in enumerate(inputs)]
                values.append((reference.forward(*shifted)[0] * dout).sum())
            numeric[index] = (values[0] - values[1]) / 2e-5
        error = np.abs(numeric - gradient).max() / np.abs(gradient).max()
        assert error < CENTRAL_DIFFERENCE


@pytest.mark.peers
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_agrees_with_pytorch_in_float64(rng, shape, axis):
    torch = pytest.importorskip("torch")
    x, dout, gamma, beta = arguments(rng, shape, axis)
    moved = [torch.tensor(np.moveaxis(a, axis, 1).copy()) for a in (x, dout)]
    tx, tgamma, tbeta = moved[0].requires_grad_(), torch.tensor(gamma), torch.tensor(beta)
    tgamma.requires_grad_(), tbeta.requires_grad_()
    running_mean, running_var = torch.zeros(gamma.size).double(), torch.ones(gamma.size).double()
    tout = torch.nn.functional.batch_norm(tx, running_mean, running_var, tgamma, tbeta, training=True, momentum=0.3)
    tout.backward(moved[1])

    out, mean, var = reference.forward(x, gamma, beta, axis=axis)
    dx, dgamma, dbeta = reference.backward(dout, x, gamma, axis=axis)
    m = x.size // gamma.size
    for ours, theirs in (
        (np.moveaxis(out, axis, 1), tout),
        (np.moveaxis(dx, axis, 1), tx.grad),
        (dgamma, tgamma.grad),
        (dbeta, tbeta.grad),
        (reference.running(np.zeros(gamma.size), mean, 0.3), running_mean),
        (reference.running(np.ones(gamma.size), var * m / (m - 1), 0.3), running_var),
    ):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-10, atol=1e-10)


def test_known_numbers():
    """Worked by hand: one channel with the values 1, 2, 3, 6."""
    x = np.array([[1.0], [2.0], [3.0], [6.0]])
    mean, var = reference.moments(x)
    assert mean == [3.0]
    assert var == [3.5]
    out, _, _ = reference.forward(x, [2.0], [1.0], eps=0.5)
    np.testing.assert_allclose(out[:, 0], [-1.0, 0.0, 1.0, 4.0])
    dx, dgamma, dbeta = reference.backward(np.array([[1.0], [0.0], [0.0], [0.0]]), x, [2.0], eps=0.5)
    np.testing.assert_allclose(dbeta, [1.0])
    np.testing.assert_allclose(dgamma, [-1.0])
    np.testing.assert_allclose(dx[:, 0], [0.5, -0.375, -0.25, 0.125])


def test_inference_uses_given_statistics(rng):
    x = tensor(rng, (4, 3), np.float64)
    out = reference.inference(x, [1.0, 2.0, 3.0], [4.0, 9.0, 16.0], [2.0, 3.0, 4.0], [5.0, 6.0, 7.0], eps=0.0)
    np.testing.assert_allclose(out, (x - [1, 2, 3]) + [5, 6, 7], rtol=1e-14)
