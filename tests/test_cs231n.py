"""The course's functions: its own checks, its formulas, and what happens to ``bn_param``."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

import fastbn
from fastbn import cs231n
from tests.data_for_tests import read_only, same_bits, tensor
from tests.interrupts import interrupted_before
from tests.origins import course
from tests.origins.compare import difference, largest_differences, parameters
from tests.origins.cs231n import cases
from tests.tolerances import CENTRAL_DIFFERENCE, ORIGINS

FORWARD = [(cs231n.batchnorm_forward, (9, 4)), (cs231n.spatial_batchnorm_forward, (2, 4, 3, 3))]
EXACT = ORIGINS[np.float64]


def moments_of(out):
    axes = (0, *range(2, out.ndim))
    return out.mean(axes), out.std(axes)


@pytest.mark.parametrize(("forward", "shape"), FORWARD)
def test_training_gives_mean_0_and_deviation_1(rng, forward, shape):
    x = tensor(rng, (200, *shape[1:]), np.float64, mean=12.0, scale=5.0)
    mean, std = moments_of(forward(x, np.ones(4), np.zeros(4), {"mode": "train"})[0])
    assert np.abs(mean).max() < 1e-13
    np.testing.assert_allclose(std, 1.0, atol=1e-5 / 5**2)  # eps over the variance

    gamma, beta = np.array([1.0, 2.0, 3.0, 4.0]), np.array([11.0, 12.0, 13.0, 14.0])
    mean, std = moments_of(forward(x, gamma, beta, {"mode": "train"})[0])
    np.testing.assert_allclose(mean, beta, rtol=1e-13)
    np.testing.assert_allclose(std, gamma, rtol=1e-5 / 5**2)


@pytest.mark.parametrize(("forward", "shape"), FORWARD)
def test_test_mode_after_50_batches(rng, forward, shape):
    """Noisier, as the running values come from other batches: four deviations of a batch's mean."""
    bn_param = {"mode": "train"}
    for _ in range(50):
        forward(tensor(rng, (200, *shape[1:]), np.float64, mean=12.0, scale=5.0), np.ones(4), np.zeros(4), bn_param)
    bn_param["mode"] = "test"
    x = tensor(rng, (200, *shape[1:]), np.float64, mean=12.0, scale=5.0)
    mean, std = moments_of(forward(x, np.ones(4), np.zeros(4), bn_param)[0])
    assert np.abs(mean).max() < 4 / np.sqrt(200)
    np.testing.assert_allclose(std, 1.0, atol=4 / np.sqrt(200))


def numeric_gradient(function, x, dout, step=1e-5):
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        gradient[index] = ((function(moved[0]) - function(moved[1])) * dout).sum() / (2 * step)
    return gradient


@pytest.mark.parametrize(
    ("forward", "backward", "shape"),
    [
        (cs231n.batchnorm_forward, cs231n.batchnorm_backward, (4, 5)),
        (cs231n.batchnorm_forward, cs231n.batchnorm_backward_alt, (4, 5)),
        (cs231n.spatial_batchnorm_forward, cs231n.spatial_batchnorm_backward, (2, 3, 4, 5)),
    ],
)
def test_gradients_are_central_differences(rng, forward, backward, shape):
    x, dout = tensor(rng, shape, np.float64, mean=12.0, scale=5.0), tensor(rng, shape, np.float64)
    gamma, beta = rng.standard_normal(shape[1]), rng.standard_normal(shape[1])
    arguments = [x, gamma, beta]
    gradients = backward(dout, forward(*arguments, {"mode": "train"})[1])
    for position, gradient in enumerate(gradients):

        def out(value, position=position):
            changed = [*arguments[:position], value, *arguments[position + 1 :]]
            return forward(*changed, {"mode": "train"})[0]

        assert difference(gradient, numeric_gradient(out, arguments[position], dout)) < CENTRAL_DIFFERENCE


@pytest.mark.parametrize("dtype", ORIGINS, ids=lambda dtype: dtype.__name__)
def test_ten_steps_are_those_of_the_formulas(dtype):
    for quantity, value in largest_differences(cases(dtype), dtype).items():
        assert value <= ORIGINS[dtype][quantity]


def test_both_ways_to_the_gradient(rng):
    x, dout = tensor(rng, (50, 4), np.float64, mean=12.0, scale=5.0), tensor(rng, (50, 4), np.float64)
    gamma, beta = parameters(4, np.float64)
    _, cache = cs231n.batchnorm_forward(x, gamma, beta, {"mode": "train"})
    _, theirs = course.batchnorm_forward(x, gamma, beta, {"mode": "train"})
    ours = cs231n.batchnorm_backward(dout, cache)
    for a, b in zip(ours, cs231n.batchnorm_backward_alt(dout, cache), strict=True):
        assert same_bits(a, b)
    for oracle in (course.batchnorm_backward, course.batchnorm_backward_alt):
        for a, b in zip(ours, oracle(dout, theirs), strict=True):
            assert difference(a, b) <= EXACT["gradients"]


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.0, 1.0])
def test_momentum_is_the_weight_of_the_old_values(rng, momentum):
    x = tensor(rng, (9, 4), np.float64)
    old = np.arange(4.0), np.arange(1.0, 5.0)
    bn_param = {"mode": "train", "momentum": momentum, "running_mean": old[0], "running_var": old[1]}
    cs231n.batchnorm_forward(x, np.ones(4), np.zeros(4), bn_param)
    np.testing.assert_allclose(bn_param["running_mean"], momentum * old[0] + (1 - momentum) * x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(bn_param["running_var"], momentum * old[1] + (1 - momentum) * x.var(0), rtol=1e-14)


@pytest.mark.parametrize(("forward", "shape"), FORWARD)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_running_values_are_created_and_stored_back(rng, forward, shape, dtype, mode):
    bn_param = {"mode": mode, "momentum": 1.0, "learning_rate": "not ours"}
    out, cache = forward(tensor(rng, shape, dtype), np.ones(4), np.zeros(4), bn_param)
    assert list(bn_param) == ["mode", "momentum", "learning_rate", "running_mean", "running_var"]
    for name in ("running_mean", "running_var"):
        assert same_bits(bn_param[name], np.zeros(4, dtype))
    assert out.dtype == dtype
    assert cache.training == (mode == "train")


def test_running_values_are_replaced_not_changed(rng):
    """As in the course: what the caller holds keeps its values, so it may also be read-only."""
    x = tensor(rng, (9, 4), np.float64)
    mean, var = read_only(np.zeros(4)), read_only(np.ones(4))
    bn_param = {"mode": "train", "running_mean": mean, "running_var": var}
    for _ in range(2):
        cs231n.batchnorm_forward(x, np.ones(4), np.zeros(4), bn_param)
    assert (mean == 0).all()
    assert (var == 1).all()
    assert (bn_param["running_mean"] != mean).all()
    bn_param["mode"] = "test"
    kept = bn_param["running_mean"]
    cs231n.batchnorm_forward(x, np.ones(4), np.zeros(4), bn_param)
    assert bn_param["running_mean"] is kept


def test_test_mode_has_the_gradient_of_a_fixed_layer(rng):
    x, dout = tensor(rng, (9, 4), np.float64), tensor(rng, (9, 4), np.float64)
    gamma, beta = parameters(4, np.float64)
    running = {"running_mean": np.arange(4.0), "running_var": np.arange(1.0, 5.0)}
    _, cache = cs231n.batchnorm_forward(x, gamma, beta, {"mode": "test", **running})
    dx, _, dbeta = cs231n.batchnorm_backward(dout, cache)
    np.testing.assert_allclose(dx, dout * gamma / np.sqrt(running["running_var"] + 1e-5), rtol=1e-13)
    np.testing.assert_allclose(dbeta, dout.sum(0), rtol=1e-13)


@pytest.mark.parametrize("mode", [None, "eval", "TRAIN", b"train", True, 1, ["train"], np.array(["train", "test"])])
def test_other_modes_are_refused(mode):
    for forward, shape in FORWARD:
        with pytest.raises(ValueError, match=r"bn_param\['mode'\]: expected 'train' or 'test', got"):
            forward(np.ones(shape), np.ones(4), np.zeros(4), {"mode": mode})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mode": ...}, ValueError, r"bn_param\['mode'\]: expected 'train' or 'test', got no such key"),
        ({"momentum": 1.5}, ValueError, "momentum: expected 0 to 1, got 1.5"),
        ({"momentum": None}, TypeError, "momentum: expected a number"),
        ({"eps": 0.0}, ValueError, "eps: expected a finite number above 0"),
        ({"running_mean": np.zeros(3)}, ValueError, r"running_mean: expected shape \(4,\)"),
        ({"running_var": np.zeros((4, 1))}, ValueError, r"running_var: expected shape \(4,\)"),
        ({"running_var": -np.ones(4)}, ValueError, "running_var: expected no value below"),
        ({"running_mean": None}, TypeError, "running_mean: expected dtype"),
        ({"x": np.ones((9, 4), int)}, TypeError, "x: expected dtype float32 or float64, got int64"),
        ({"x": np.ones((1, 4))}, ValueError, "x: expected more than 1 value per channel"),
        ({"x": np.ones(4)}, ValueError, "x: expected 2 or more dimensions"),
        ({"x": np.ones((9, 4, 1))}, ValueError, r"x: expected 2 dimensions, got shape \(9, 4, 1\)"),
        ({"gamma": np.ones(3)}, ValueError, r"gamma: expected shape \(4,\)"),
    ],
)
def test_refused_calls_leave_no_trace(rng, changes, error, message):
    running = {"running_mean": np.zeros(4), "running_var": np.ones(4)}
    bn_param = {"mode": "train", **running, **{name: value for name, value in changes.items() if name not in "x gamma"}}
    bn_param = {name: value for name, value in bn_param.items() if value is not ...}
    before = dict(bn_param)
    x, gamma = changes.get("x", tensor(rng, (9, 4), np.float64)), changes.get("gamma", np.ones(4))
    with pytest.raises(error, match=message):
        cs231n.batchnorm_forward(x, gamma, np.zeros(4), bn_param)
    assert bn_param.keys() == before.keys()
    assert all(bn_param[name] is before[name] for name in before)
    assert (running["running_mean"] == 0).all()
    assert (running["running_var"] == 1).all()


def test_refused_arguments(rng):
    x = tensor(rng, (9, 4), np.float64)
    with pytest.raises(TypeError, match="bn_param: expected a dict, got list"):
        cs231n.batchnorm_forward(x, np.ones(4), np.zeros(4), [("mode", "train")])
    with pytest.raises(ValueError, match="x: expected 4 dimensions"):
        cs231n.spatial_batchnorm_forward(x, np.ones(4), np.zeros(4), {"mode": "train"})
    for backward in (cs231n.batchnorm_backward, cs231n.batchnorm_backward_alt, cs231n.spatial_batchnorm_backward):
        with pytest.raises(TypeError, match="cache: expected a Cache, got tuple"):
            backward(x, (x, np.ones(4)))


def test_an_empty_batch_changes_no_value():
    mean, var = np.arange(4.0), np.arange(1.0, 5.0)
    bn_param = OrderedDict(mode="train", running_mean=mean, running_var=var)
    out, _ = cs231n.batchnorm_forward(np.empty((0, 4)), np.ones(4), np.zeros(4), bn_param)
    assert out.shape == (0, 4)
    assert same_bits(bn_param["running_mean"], mean)
    assert same_bits(bn_param["running_var"], var)


def test_every_line_of_a_call_can_be_interrupted(rng):
    """KeyboardInterrupt before each line of fastbn that a call runs: both running arrays are old, or both new."""
    x = tensor(rng, (9, 4), np.float64, mean=3.0)
    interrupted, changed = 0, False
    while not changed:
        bn_param = {"mode": "train", "running_mean": np.zeros(4), "running_var": np.ones(4)}
        before = dict(bn_param)
        interrupted_before(
            interrupted, lambda given=bn_param: cs231n.batchnorm_forward(x, np.ones(4), np.zeros(4), given)
        )
        changes = [bn_param[name] is not before[name] for name in ("running_mean", "running_var")]
        assert changes in ([False, False], [True, True])
        assert (before["running_mean"] == 0).all()
        assert (before["running_var"] == 1).all()
        changed = changes[0]
        interrupted += 1
    assert interrupted > 50


def variant(x, gamma, beta, bn_param):
    """In circulation: ``eps`` enters the running variance at the update, and is left out at test time."""
    eps, momentum = bn_param.get("eps", 1e-5), bn_param.get("momentum", 0.9)
    mean, var = x.mean(axis=0), x.var(axis=0) + eps
    if bn_param["mode"] == "test":
        return gamma * (x - bn_param["running_mean"]) / np.sqrt(bn_param["running_var"]) + beta
    for name, batch in (("running_mean", mean), ("running_var", var)):
        bn_param[name] = momentum * bn_param.get(name, 0.0) + (1 - momentum) * batch
    return gamma * (x - mean) / np.sqrt(var) + beta


def test_the_variant_with_eps_in_the_running_variance(rng):
    """The recipe of docs/from_cs231n.md: add ``eps`` after the step, and give ``eps=0`` at test time."""
    gamma, beta = parameters(4, np.float64)
    eps, momentum = 0.1, 0.8  # large, to be seen
    ours = {"mode": "train", "eps": eps, "momentum": momentum}
    theirs = dict(ours)
    for _ in range(10):
        x = tensor(rng, (9, 4), np.float64)
        out, _ = cs231n.batchnorm_forward(x, gamma, beta, ours)
        ours["running_var"] = ours["running_var"] + (1 - momentum) * eps
        assert difference(out, variant(x, gamma, beta, theirs)) <= EXACT["training output"]
    assert difference(ours["running_var"], theirs["running_var"]) <= EXACT["running statistics after ten steps"]
    test = {**ours, "mode": "test"}
    expected = variant(x, gamma, beta, {**theirs, "mode": "test"})
    assert difference(cs231n.batchnorm_forward(x, gamma, beta, {**test, "eps": 0.0})[0], expected) < 1e-14
    assert difference(cs231n.batchnorm_forward(x, gamma, beta, test)[0], expected) > 1e-3  # what it is about


def test_star_import_brings_the_five_functions():
    names = {}
    exec("from fastbn.cs231n import *", names)
    assert {name for name in names if name != "__builtins__"} == {
        "batchnorm_backward",
        "batchnorm_backward_alt",
        "batchnorm_forward",
        "spatial_batchnorm_backward",
        "spatial_batchnorm_forward",
    }
    assert fastbn.cs231n is cs231n
