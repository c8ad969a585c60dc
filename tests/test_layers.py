from __future__ import annotations

import copy
import pickle
import signal

import numpy as np
import pytest

import fastbn
from fastbn import _state, functional
from fastbn.kernels import calls
from tests.data_for_tests import same_bits, tensor
from tests.interrupts import interrupted_before

LAYERS = [
    (fastbn.BatchNorm, (4, 3)),
    (fastbn.BatchNorm1d, (4, 3)),
    (fastbn.BatchNorm1d, (4, 3, 5)),
    (fastbn.BatchNorm2d, (4, 3, 5, 6)),
    (fastbn.BatchNorm3d, (4, 3, 2, 5, 6)),
]


def state_of(layer):
    return {name: value.tobytes() for name, value in layer.state_dict().items()}


@pytest.mark.parametrize(("kind", "shape"), LAYERS)
def test_training_and_evaluation(rng, kind, shape):
    layer = kind(3, momentum=0.2, eps=1e-3)
    layer.gamma[:], layer.beta[:] = [1, 2, 3], [4, 5, 6]
    running = np.zeros(3, np.float32), np.ones(3, np.float32)
    for step in range(3):
        x, dout = tensor(rng, shape), tensor(rng, shape)
        out, cache = fastbn.forward(x, layer.gamma, layer.beta, *running, momentum=0.2, eps=1e-3)
        assert same_bits(layer(x) if step else layer.forward(x), out)
        gradients = fastbn.backward(dout, cache)
        assert same_bits(layer.backward(dout), gradients.dx)
        assert same_bits(layer.dgamma, gradients.dgamma)
        assert same_bits(layer.dbeta, gradients.dbeta)
        assert same_bits(layer.running_mean, running[0])
        assert same_bits(layer.running_var, running[1])
        assert layer.num_batches_tracked == step + 1
    assert layer.eval() is layer
    assert layer.training is False
    layer.keep_for_backward = True
    before = state_of(layer)
    out, cache = fastbn.forward(x, layer.gamma, layer.beta, *running, training=False, eps=1e-3)
    assert same_bits(layer(x), out)
    assert same_bits(layer.backward(dout), fastbn.backward(dout, cache).dx)
    assert state_of(layer) == before
    assert layer.train() is layer
    assert layer.training is True
    assert layer.train(False).training is False


def test_channels_last(rng):
    layer = fastbn.BatchNorm2d(3, axis=-1)
    x = tensor(rng, (4, 5, 6, 3))
    assert same_bits(layer(x), fastbn.forward(x, axis=-1).out)
    nchw = fastbn.BatchNorm2d(3)(x.transpose(0, 3, 1, 2))
    assert same_bits(nchw.transpose(0, 2, 3, 1), fastbn.forward(x, axis=-1).out)


def test_cumulative_average(rng):
    layer = fastbn.BatchNorm1d(3, momentum=None, correction=0, dtype=np.float64)
    batches = [tensor(rng, (6, 3), np.float64, mean=i) for i in range(5)]
    for x in batches:
        layer(x)
    np.testing.assert_allclose(layer.running_mean, np.mean([x.mean(0) for x in batches], 0), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, np.mean([x.var(0) for x in batches], 0), rtol=1e-12)


def test_without_affine_and_tracking(rng):
    layer = fastbn.BatchNorm1d(3, affine=False, track_running_stats=False)
    assert layer.gamma is layer.beta is layer.running_mean is layer.running_var is layer.num_batches_tracked is None
    x = tensor(rng, (6, 3), mean=3.0)
    expected = fastbn.forward(x).out
    assert same_bits(layer(x), expected)
    assert same_bits(layer.eval()(x), expected)
    layer.backward(x)
    assert layer.dgamma is None
    assert layer.dbeta is None
    assert layer.state_dict() == {}
    with pytest.raises(ValueError, match=r"freeze: expected a layer with running statistics"):
        layer.freeze()
    with pytest.raises(ValueError, match=r"more than 1 value per channel"):
        layer(x[:1])


@pytest.mark.parametrize(("affine", "missing", "key"), [("gamma", "beta", "weight"), ("beta", "gamma", "bias")])
def test_one_parameter_alone(rng, affine, missing, key):
    layer = fastbn.BatchNorm1d(3, affine=affine)
    assert getattr(layer, missing) is None
    parameter = getattr(layer, affine)
    np.testing.assert_array_equal(parameter, affine == "gamma")
    parameter[:] = [1, 2, 3]
    x, dout = tensor(rng, (6, 3)), tensor(rng, (6, 3))
    out, cache = fastbn.forward(x, **{affine: parameter})
    assert same_bits(layer(x), out)
    dx, *gradients = fastbn.backward(dout, cache)
    assert same_bits(layer.backward(dout), dx)
    assert same_bits(getattr(layer, f"d{affine}"), gradients[affine == "beta"])
    assert getattr(layer, f"d{missing}") is None
    assert list(layer.state_dict()) == [key, "running_mean", "running_var", "num_batches_tracked"]
    other = fastbn.BatchNorm1d(3, affine=affine)
    other.load_state_dict(layer.state_dict())
    assert same_bits(other.eval()(x), layer.eval()(x))
    assert same_bits(layer.freeze()(x), layer(x))
    assert f"affine={affine!r}" in repr(layer)
    with pytest.raises(ValueError, match="state: expected the keys"):
        fastbn.BatchNorm1d(3).load_state_dict(layer.state_dict())


def test_float64_layer(rng):
    layer = fastbn.BatchNorm1d(3, dtype="float64")
    assert {value.dtype for name, value in layer.state_dict().items() if name != "num_batches_tracked"} == {
        np.dtype(np.float64)
    }
    assert layer(tensor(rng, (4, 3))).dtype == np.float32
    assert layer.backward(tensor(rng, (4, 3))).dtype == np.float32
    assert layer.dgamma.dtype == np.float64


def test_out(rng):
    layer, x = fastbn.BatchNorm1d(3), tensor(rng, (6, 3))
    buffer = np.full_like(x, np.nan)
    assert layer(x, out=buffer) is buffer
    assert same_bits(buffer, fastbn.forward(x).out)
    dout = x.copy()
    assert layer.backward(dout, out=dout) is dout
    buffer = x.copy()
    assert layer.eval()(buffer, out=buffer) is buffer


def test_replaced_arrays_are_used_and_checked(rng):
    layer, x = fastbn.BatchNorm1d(3), tensor(rng, (6, 3))
    layer.gamma = np.array([1.0, 2.0, 3.0])
    assert same_bits(layer(x), fastbn.forward(x, layer.gamma, layer.beta).out)
    before = state_of(layer)
    layer.gamma = np.ones(4)
    with pytest.raises(ValueError, match=r"gamma: expected shape \(3,\)"):
        layer(x)
    layer.gamma = np.array([1.0, 2.0, 3.0])
    assert state_of(layer) == before


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (fastbn.BatchNorm1d, (2, 3, 4, 4)),
        (fastbn.BatchNorm2d, (2, 3, 4)),
        (fastbn.BatchNorm2d, (2, 3, 4, 4, 4)),
        (fastbn.BatchNorm3d, (2, 3, 4, 4)),
    ],
)
def test_wrong_number_of_dimensions(kind, shape):
    layer = kind(3)
    before = state_of(layer)
    for call in (layer, layer.freeze()):
        with pytest.raises(ValueError, match=rf"x: expected .* dimensions, got {len(shape)}"):
            call(np.ones(shape))
    assert state_of(layer) == before


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((4, 2)), ValueError, r"x: expected 3 channels on axis 1, got 2 in shape \(4, 2\)"),
        (np.ones((1, 3)), ValueError, "more than 1 value per channel"),
        (np.ones((4, 3), int), TypeError, "x: expected dtype float32 or float64"),
        (np.ma.ones((4, 3)), TypeError, "masked"),
        (np.ones(3), ValueError, "2 or more dimensions"),
    ],
)
def test_refused_calls_leave_no_trace(x, error, message):
    layer = fastbn.BatchNorm(3)
    before = state_of(layer)
    with pytest.raises(error, match=message):
        layer(x)
    assert state_of(layer) == before
    with pytest.raises(RuntimeError, match="backward: expected a call of forward"):
        layer.backward(np.ones((4, 3)))


def test_empty_batches_are_not_counted():
    layer = fastbn.BatchNorm1d(3)
    before = state_of(layer)
    assert layer(np.empty((0, 3))).shape == (0, 3)
    assert state_of(layer) == before
    assert layer.backward(np.empty((0, 3))).shape == (0, 3)
    assert (layer.dgamma == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_policy(rng, bad):
    x = tensor(rng, (6, 3)).copy()
    x[2, 1] = bad
    spoiled = fastbn.BatchNorm1d(3)
    spoiled(x)
    assert not np.isfinite(spoiled.running_mean[1])
    assert np.isfinite(spoiled.running_mean[[0, 2]]).all()
    assert spoiled.num_batches_tracked == 1

    strict = fastbn.BatchNorm1d(3, nan_policy="raise")
    out = np.full_like(x, 7.0)
    before = state_of(strict)
    for layer in (strict, strict.eval()):
        with pytest.raises(ValueError, match=r"x: expected finite values .* channel 1"):
            layer(x, out=out)
    assert state_of(strict) == before
    assert (out == 7.0).all()
    good = x[3:]
    assert same_bits(strict.train()(good), fastbn.forward(good).out)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_features": -1}, ValueError, "num_features: expected an integer not below 0"),
        ({"num_features": 2**63}, ValueError, r"num_features: .* below 2\*\*62"),
        ({"num_features": True}, TypeError, "num_features: expected an integer, got bool True"),
        ({"eps": 10**400}, ValueError, "eps: expected a number in float64's range"),
        ({"num_features": 3.0}, TypeError, "num_features: expected an integer"),
        ({"axis": "1"}, TypeError, "axis: expected an integer"),
        ({"eps": 0.0}, ValueError, "eps: expected a finite number above 0"),
        ({"eps": None}, TypeError, "eps: expected a number"),
        ({"momentum": 1.5}, ValueError, "momentum: expected 0 to 1, got 1.5"),
        ({"momentum": "0.1"}, TypeError, "momentum: expected a number"),
        ({"affine": 1}, TypeError, "affine: expected True or False, or 'gamma' or 'beta' .*, got int 1"),
        ({"affine": "alpha"}, ValueError, "affine: expected True or False, or 'gamma' or 'beta' .*, got 'alpha'"),
        ({"track_running_stats": None}, TypeError, "track_running_stats: expected True or False"),
        ({"correction": -1}, ValueError, "correction: expected a finite number not below 0"),
        ({"dtype": np.float16}, TypeError, "dtype: expected dtype float32 or float64, got float16: half"),
        ({"dtype": "no such"}, TypeError, "dtype: expected dtype float32 or float64"),
        ({"nan_policy": "ignore"}, ValueError, "nan_policy: expected one of"),
        ({"nan_policy": None}, TypeError, "nan_policy: expected one of"),
    ],
)
def test_refused_options(options, error, message):
    with pytest.raises(error, match=message):
        fastbn.BatchNorm(**{"num_features": 3, **options})


def test_state_dict_is_a_copy(rng):
    layer = fastbn.BatchNorm1d(3)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    for value in state.values():
        value[...] = 7
    assert (layer.gamma == 1).all()
    assert layer.num_batches_tracked == 0


def test_load_state_dict(rng):
    layer, other = fastbn.BatchNorm1d(3), fastbn.BatchNorm1d(3, dtype=np.float64)
    layer.gamma[:] = [1, 2, 3]
    layer(tensor(rng, (6, 3)))
    arrays = [layer.gamma, layer.running_mean]
    other.load_state_dict(layer.state_dict())
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, layer.state_dict()[name])
    assert arrays[0] is layer.gamma
    with pytest.raises(TypeError, match=r"state\['weight'\]: expected dtype float32.* narrowed"):
        layer.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("bias"), ValueError, r"state: expected the keys \['bias', .*, got"),
        (lambda s: s.update(more=1), ValueError, "state: expected the keys"),
        (lambda s: s.update(running_var=np.ones(4)), ValueError, r"state\['running_var'\]: expected shape"),
        (lambda s: s.update(running_var=np.ones((3, 1))), ValueError, r"state\['running_var'\]: expected shape"),
        (lambda s: s.update(running_var=[1, 2, 3]), TypeError, r"state\['running_var'\]: expected dtype"),
        (
            lambda s: s.update(running_var=-np.ones(3, np.float32)),
            ValueError,
            r"state\['running_var'\]: expected no value",
        ),
        (lambda s: s.update(num_batches_tracked=-1), ValueError, r"state\['num_batches_tracked'\]"),
        (lambda s: s.update(num_batches_tracked=1.5), TypeError, r"state\['num_batches_tracked'\]"),
    ],
)
def test_refused_states_change_nothing(rng, change, error, message):
    layer = fastbn.BatchNorm1d(3)
    layer(tensor(rng, (6, 3)))
    before = state_of(layer)
    state = {name: value + 1 for name, value in layer.state_dict().items()}
    change(state)
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    assert state_of(layer) == before
    with pytest.raises(TypeError, match="state: expected a mapping, got list"):
        layer.load_state_dict([])


def test_counter_can_be_set(rng):
    layer = fastbn.BatchNorm1d(3, momentum=None)
    layer(tensor(rng, (6, 3)))
    layer.num_batches_tracked = 0
    x = tensor(rng, (6, 3))
    layer(x)
    np.testing.assert_allclose(layer.running_mean, x.mean(0), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="num_batches_tracked: expected an integer not below 0"):
        layer.num_batches_tracked = -1
    assert layer.num_batches_tracked == 1


def test_copies_carry_no_tensors(rng):
    layer = fastbn.BatchNorm1d(3)
    layer(tensor(rng, (60_000, 3)))
    assert len(pickle.dumps(layer)) < 10_000
    with pytest.raises(RuntimeError, match="backward: expected a call of forward"):
        copy.deepcopy(layer).backward(np.ones((6, 3), np.float32))


def test_replaced_arrays_that_do_not_fit_are_not_saved(tmp_path):
    layer = fastbn.BatchNorm1d(3)
    for attribute, value, error in (
        ("gamma", [1.0, 2.0, 3.0], TypeError),
        ("gamma", np.ones(3), TypeError),
        ("beta", None, TypeError),
        ("running_var", np.ones(4, np.float32), ValueError),
    ):
        broken = copy.deepcopy(layer)
        setattr(broken, attribute, value)
        with pytest.raises(error, match=r"gamma|weight|beta|running_var"):
            broken.save(tmp_path / "layer.npz")
        assert not list(tmp_path.iterdir())


def test_repr_names_every_option():
    text = repr(fastbn.BatchNorm3d(7, momentum=None))
    assert text.startswith("BatchNorm3d(7, axis=1, eps=1e-05, momentum=None, affine=True")
    assert "float32" in text
    assert repr(fastbn.BatchNorm3d(7).freeze()) == "FrozenBatchNorm(7, axis=1)"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_independent(rng, duplicate):
    layer, x = fastbn.BatchNorm1d(3), tensor(rng, (6, 3))
    layer(x)
    twin = duplicate(layer)
    before = state_of(layer)
    assert state_of(twin) == before
    twin(x)
    assert state_of(layer) == before
    assert same_bits(twin.freeze()(x), duplicate(twin.freeze())(x))


def ordinary(kind, channels, **options):
    """A layer whose calls on float32 tensors are one compiled function's work (``kernels.calls``)."""
    return kind(channels, **options)


def general(kind, channels, **options):
    """One that goes the general way: its gamma is not contiguous."""
    layer = kind(channels, **options)
    layer.gamma = np.ones(2 * channels, np.float32)[::2]
    return layer


LINES = {ordinary: 15, general: 100}
"""Fewest lines of fastbn that a call runs."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("place", ["call", "engine", "update", "assignment"])
def test_state_changes_together_or_not_at_all(rng, monkeypatch, error, place):
    """Whatever is raised, wherever, the layer is as before."""
    layer = (ordinary if place == "call" else general)(fastbn.BatchNorm1d, 3)
    x = tensor(rng, (6, 3))
    layer(x)
    before = state_of(layer)

    def fail(*args, **kwargs):
        raise error

    dout = np.ones_like(x)
    dx = layer.backward(dout)
    if place == "call":
        monkeypatch.setattr(calls, "FORWARD", [fail] * 8)
    elif place == "engine":
        monkeypatch.setattr(functional._engine, "forward", fail)
    elif place == "update":
        monkeypatch.setattr(_state, "update", fail)
    else:
        copy_each, copies = _state._copy_each, []

        def copy_some(targets, values):
            copies.append(None)
            copy_each(targets[:2], values[:2]) if len(copies) == 1 else copy_each(targets, values)
            if len(copies) == 1:
                raise error

        monkeypatch.setattr(_state, "_copy_each", copy_some)
        layer.running_var = np.ones(6)[::2]  # no compiled call updates it
        before = state_of(layer)
    with pytest.raises(error):
        layer(x + 1)
    assert state_of(layer) == before
    assert place in ("update", "assignment") or same_bits(layer.backward(dout), dx)


@pytest.mark.parametrize("make", LINES, ids=lambda make: make.__name__)
def test_every_line_of_a_call_can_be_interrupted(rng, make):
    """KeyboardInterrupt before each line of fastbn that a call runs: the layer is as before, or the call is over."""
    layer, x = make(fastbn.BatchNorm1d, 3), tensor(rng, (6, 3))
    layer(x)
    interrupted, before = 0, state_of(layer)
    while interrupted_before(interrupted, lambda: layer(x)):
        assert state_of(layer) == before or interrupted_at_return(layer, before)
        interrupted, before = interrupted + 1, state_of(layer)
    assert interrupted > LINES[make]


def interrupted_at_return(layer, before):
    """Only the ``return`` after the assignment may find the new state, whole: a line, but nothing can interrupt it."""
    return layer.num_batches_tracked == int.from_bytes(before["num_batches_tracked"], "little") + 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("make", LINES, ids=lambda make: make.__name__)
def test_interrupts_from_outside(make):
    """SIGINT at many moments of a call: the three parts of the state always belong together."""
    layer = make(fastbn.BatchNorm1d, 512, momentum=None, correction=0)
    x = np.full((4, 512), [[1], [3], [1], [3]], np.float32)  # mean 2, variance 1, whatever the average
    layer.running_mean[:] = layer.running_var[:] = 0
    interrupted = 0
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for step in range(400):
            before = state_of(layer)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + step * 5e-7)
                layer(x)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            after = state_of(layer)
            # Either nothing changed or everything did; a signal can also come when the call is over.
            assert (
                after == before
                or layer.num_batches_tracked == int.from_bytes(before["num_batches_tracked"], "little") + 1
            )
            if layer.num_batches_tracked:
                np.testing.assert_allclose(layer.running_mean, 2.0, rtol=1e-5)
                np.testing.assert_allclose(layer.running_var, 1.0, rtol=1e-5)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert interrupted
