from __future__ import annotations

import builtins
import io
import sys
import tracemalloc

import numpy as np
import pytest

import fastbn
from fastbn import _state
from tests.data_for_tests import same_bits, tensor
from tests.interrupts import interrupted_before

EXACT = 1e-12
"""Relative to the deviation, and for the variance to itself: float64 against float64, at means up to 1e4 deviations."""


def state_of(layer):
    return {name: value.tobytes() for name, value in layer.state_dict().items()}


def population(batches, axis, correction):
    """Mean and variance of all values of all batches, in float64 NumPy."""
    values = np.concatenate([np.moveaxis(np.float64(x), axis, 0).reshape(x.shape[axis], -1) for x in batches], axis=1)
    return values.mean(axis=1), values.var(axis=1, ddof=correction)


def assert_exact(layer, batches, *, calls=None):
    mean, var = population(batches, layer.axis, layer.correction)
    deviation = np.sqrt(var)
    rounding = np.finfo(layer.dtype).eps if layer.dtype == np.float32 else EXACT
    assert (np.abs(layer.running_mean - mean) <= rounding * np.abs(mean) + EXACT * deviation).all()
    assert (np.abs(layer.running_var - var) <= (rounding + EXACT) * var).all()
    assert layer.num_batches_tracked == (len(batches) if calls is None else calls)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("options", [{}, {"correction": 0}, {"momentum": None, "affine": False}], ids=str)
@pytest.mark.parametrize(
    ("kind", "shape", "axis"),
    [
        (fastbn.BatchNorm1d, (3,), 1),
        (fastbn.BatchNorm1d, (3, 5), 1),
        (fastbn.BatchNorm2d, (3, 4, 5), 1),
        (fastbn.BatchNorm3d, (3, 2, 4, 5), 1),
        (fastbn.BatchNorm, (4, 5, 3), -1),
    ],
)
def test_one_layer(rng, kind, shape, axis, options, mean, dtype):
    """Batches of 1 to 9 examples, of any dtype: a stream, gone over once."""
    layer = kind(3, axis=axis, dtype=np.float64, **options)
    layer(tensor(rng, (4, *shape)))
    sizes = 5, 1, 9, 2, 2
    batches = [tensor(rng, (n, *shape), dtype, mean=mean + n, scale=1 + 0.1 * n) for n in sizes]
    training = layer.training
    fastbn.recalibrate(layer, iter(batches))
    assert_exact(layer, batches)
    assert layer.training is training


def test_float32_layers_are_rounded_once(rng):
    layer = fastbn.BatchNorm1d(3)
    arrays = layer.running_mean, layer.running_var
    batches = [tensor(rng, (n, 3), mean=100.0) for n in (5, 7)]
    fastbn.recalibrate(layer, batches)
    mean, var = population(batches, 1, 1)
    assert layer.running_mean is arrays[0]  # in place
    assert layer.running_var is arrays[1]
    np.testing.assert_array_max_ulp(layer.running_mean, mean.astype(np.float32), 1)
    np.testing.assert_array_max_ulp(layer.running_var, var.astype(np.float32), 1)


def test_averages_of_averages_are_something_else(rng):
    """What the cumulative average gives for batches of several sizes, and what the data has."""
    batches = [tensor(rng, (2, 3), np.float64, mean=10.0), tensor(rng, (200, 3), np.float64)]
    average, exact = (fastbn.BatchNorm1d(3, momentum=None, correction=0, dtype=np.float64) for _ in range(2))
    for x in batches:
        average(x)
    fastbn.recalibrate(exact, batches)
    mean, var = population(batches, 1, 0)
    assert (np.abs(average.running_mean - mean) > 4).all()  # about 5 instead of 0.1
    assert (np.abs(average.running_var / var - 1) > 0.2).all()
    assert_exact(exact, batches)
    equal = np.split(np.concatenate([tensor(rng, (50, 3), np.float64, mean=m) for m in (0.0, 10.0)]), 2)
    for layer in (average, exact):
        layer.num_batches_tracked = 0
    for x in equal:
        average(x)
    fastbn.recalibrate(exact, equal)
    np.testing.assert_allclose(average.running_mean, exact.running_mean, rtol=1e-12)
    assert (exact.running_var > 10 * average.running_var).all()  # the means' own variance, 25, is not in the average


def test_the_order_and_the_cuts_make_no_difference(rng):
    x = tensor(rng, (60, 3, 4), np.float64, mean=1e4)
    layers = []
    for cuts in ([], [1], [7, 8, 30], list(range(1, 60))):
        for turn in (1, -1):
            layers.append(fastbn.BatchNorm1d(3, dtype=np.float64))
            fastbn.recalibrate(layers[-1], np.split(x, cuts)[::turn])
    for layer in layers:
        np.testing.assert_allclose(layer.running_mean, layers[0].running_mean, rtol=1e-14)
        np.testing.assert_allclose(layer.running_var, layers[0].running_var, rtol=1e-11)


@pytest.mark.large
def test_data_larger_than_what_is_held(rng, tmp_path):
    """A memory map of 64 MB in batches of 1 MB: never more than a few batches in memory."""
    path = tmp_path / "data.npy"
    shape, size = (64 * 1024, 256), 1024
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, shape[0], size):
        written[start : start + size] = rng.standard_normal((size, shape[1])) + np.arange(shape[1]) + start / shape[0]
    written.flush()
    data = np.load(path, mmap_mode="r")
    layer = fastbn.BatchNorm1d(256, dtype=np.float64)
    fastbn.recalibrate(layer, [data[:size]])  # compiles
    tracemalloc.start()
    fastbn.recalibrate(layer, (data[start : start + size] for start in range(0, shape[0], size)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert layer.num_batches_tracked == 64
    np.testing.assert_allclose(layer.running_mean, data.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, data.var(axis=0, ddof=1, dtype=np.float64), rtol=1e-12)


class Network:
    """Two normalised layers; the second is used twice."""

    def __init__(self, rng, dtype=np.float64):
        self.first, self.second = fastbn.BatchNorm1d(3, dtype=dtype), fastbn.BatchNorm1d(4, dtype=dtype)
        self.first.gamma[:], self.first.beta[:] = rng.standard_normal(3), rng.standard_normal(3)
        self.weights = rng.standard_normal((3, 4)), rng.standard_normal((4, 4))

    @property
    def layers(self):
        return self.first, self.second

    def __call__(self, x):
        z = np.maximum(self.first(x), 0) @ self.weights[0]
        return self.second.forward(self.second(z) @ self.weights[1])


@pytest.mark.parametrize("training", [True, False])
def test_a_network(rng, training):
    """Every layer has the moments of what it saw: inputs normalised by batches."""
    network = Network(rng)
    batches = [tensor(rng, (n, 3), np.float64, mean=n, scale=2.0) for n in (4, 9, 6)]
    seen, outs = [], []
    eps = network.first.eps
    for x in batches:
        out = np.maximum(fastbn.forward(x, network.first.gamma, network.first.beta, eps=eps).out, 0)
        seen.append(out @ network.weights[0])
        seen.append(fastbn.forward(seen[-1]).out @ network.weights[1])
        outs.append(fastbn.forward(seen[-1]).out)
    for layer in network.layers:
        layer.train(training)
    before = {name: {**vars(layer)} for name, layer in vars(network).items() if isinstance(layer, fastbn.BatchNorm)}
    results = []
    fastbn.recalibrate(network.layers, batches, lambda x: results.append(network(x)), progress=False)
    assert_exact(network.first, batches)
    assert_exact(network.second, seen, calls=6)
    assert all(same_bits(a, b) for a, b in zip(results, outs, strict=True))  # as in training
    for name, attributes in before.items():  # nothing is left behind, and nothing else changed
        after = vars(getattr(network, name))
        assert after.keys() == attributes.keys()
        assert all(after[key] is attributes[key] for key in after)


def test_one_layer_after_the_other(rng):
    """Stages: the statistics of what each layer sees in evaluation mode."""
    network = Network(rng)
    for layer in network.layers:
        layer.eval()
    batches = [tensor(rng, (n, 3), np.float64, mean=n, scale=2.0) for n in (4, 9, 6)]
    fastbn.recalibrate(network.first, batches)
    seen = [np.maximum(network.first(x), 0) @ network.weights[0] for x in batches]
    calls = []
    fastbn.recalibrate(network.second, batches, lambda x: calls.append(network(x)))
    twice = [z for x in seen for z in (x, fastbn.forward(x).out @ network.weights[1])]
    assert_exact(network.second, twice)
    assert_exact(network.first, batches)  # no part of the second pass


def test_out_within_a_network(rng):
    layer = fastbn.BatchNorm1d(3, dtype=np.float64)
    batches = [tensor(rng, (5, 3)) for _ in range(3)]
    buffer = np.empty_like(batches[0])

    def run(x):
        assert layer(x, out=buffer) is buffer
        np.testing.assert_allclose(buffer.mean(axis=0), 0, atol=1e-6)

    fastbn.recalibrate([layer], batches, run)
    assert_exact(layer, batches)


def test_anything_may_be_a_batch(rng):
    layer = fastbn.BatchNorm1d(3, dtype=np.float64)
    pairs = [(tensor(rng, (5, 3)), "label") for _ in range(3)]
    fastbn.recalibrate(layer, pairs, lambda pair: layer(pair[0]))
    assert_exact(layer, [x for x, _ in pairs])


def test_empty_batches_are_not_counted(rng):
    layer = fastbn.BatchNorm1d(3, dtype=np.float64)
    batches = [np.empty((0, 3)), tensor(rng, (5, 3)), np.empty((0, 3)), tensor(rng, (1, 3))]
    fastbn.recalibrate(layer, batches)
    assert_exact(layer, batches, calls=2)
    fastbn.recalibrate(layer, batches[:3], layer)
    assert_exact(layer, batches[:3], calls=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_policy(rng, bad):
    batches = [tensor(rng, (5, 3)).copy() for _ in range(3)]
    batches[1][2, 0] = bad
    layer = fastbn.BatchNorm1d(3)
    layer.running_mean[1] = np.nan  # the past is forgotten
    fastbn.recalibrate(layer, batches)
    assert not np.isfinite(layer.running_mean[0])
    assert np.isfinite(layer.running_mean[1:]).all()
    assert np.isfinite(layer.running_var[1:]).all()
    strict = fastbn.BatchNorm1d(3, nan_policy="raise")
    before = state_of(strict)
    with pytest.raises(ValueError, match=r"x: expected finite values .* channel 0"):
        fastbn.recalibrate(strict, batches)
    assert state_of(strict) == before


def test_values_out_of_float32s_range():
    layer = fastbn.BatchNorm1d(2)
    fastbn.recalibrate(layer, [np.array([[1e30, 1.0], [-1e30, 3.0]])])
    assert np.isinf(layer.running_var[0])
    assert layer.running_var[1] == 2.0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, ValueError, GeneratorExit])
@pytest.mark.parametrize("place", ["batches", "run", "layer", "assignment"])
def test_all_layers_or_none(rng, monkeypatch, place, error):
    network = Network(rng)
    for _ in range(2):
        network(tensor(rng, (5, 3)))
    before = [state_of(layer) for layer in network.layers]
    batches = [tensor(rng, (n, 3)) for n in (4, 9, 6)]

    def stream():
        for i, x in enumerate(batches):
            if place == "batches" and i == 2:
                raise error
            yield x

    def run(x):
        network(x)
        if place == "run" and len(x) == 6:
            raise error
        if place == "layer" and len(x) == 6:
            network.second(np.ones((4, 5)))  # a shape that the layer refuses

    if place == "assignment":
        copy_each, calls = _state._copy_each, []

        def copy_some(targets, values):
            calls.append(None)
            assert len(targets) == 6
            copy_each(targets[:4], values[:4]) if len(calls) == 1 else copy_each(targets, values)
            if len(calls) == 1:
                raise error

        monkeypatch.setattr(_state, "_copy_each", copy_some)
    with pytest.raises(ValueError if place == "layer" else error):
        fastbn.recalibrate(network.layers, stream(), run)
    assert [state_of(layer) for layer in network.layers] == before
    assert all("forward" not in vars(layer) for layer in network.layers)
    monkeypatch.undo()
    fastbn.recalibrate(network.layers, batches, network)
    assert_exact(network.first, batches)


def test_every_line_can_be_interrupted(rng):
    """KeyboardInterrupt before each line of a recalibration: the layers are as before, or it is over."""
    network = Network(rng)
    batches = [tensor(rng, (n, 3)) for n in (4, 5)]
    fastbn.recalibrate(network.layers, batches, network)
    old = [layer.running_mean.copy() for layer in network.layers]

    def recalibrate():
        fastbn.recalibrate(network.layers, batches, network)

    interrupted = 0
    while True:
        for layer, mean in zip(network.layers, old, strict=True):
            layer.running_mean[:] = mean + 1
        before = [state_of(layer) for layer in network.layers]
        if not interrupted_before(interrupted, recalibrate, files="recalibration.py"):
            break
        assert [state_of(layer) for layer in network.layers] == before
        assert all("forward" not in vars(layer) for layer in network.layers)
        interrupted += 1
    assert interrupted > 50
    np.testing.assert_array_equal(network.first.running_mean, old[0])


UNTRACKED = fastbn.BatchNorm1d(3, track_running_stats=False)
LAYER = fastbn.BatchNorm1d(3)
X = np.ones((4, 3)) * np.arange(4.0).reshape(4, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, [X]), TypeError, "layers: expected several BatchNorm, got NoneType"),
        (([LAYER, None], [X], len), TypeError, r"layers\[1\]: expected a BatchNorm, got NoneType"),
        ((LAYER.freeze(), [X]), TypeError, "layers: expected several BatchNorm, got FrozenBatchNorm"),
        ((UNTRACKED, [X]), ValueError, r"layers\[0\].track_running_stats: expected True"),
        (([], [X], len), ValueError, "layers: expected at least one layer"),
        (([LAYER, LAYER], [X], len), ValueError, "layers: expected at least one layer, and each of them once"),
        (([LAYER, fastbn.BatchNorm1d(3)], [X]), TypeError, "run: expected a function, as there are 2 layers, got None"),
        ((LAYER, [X], 3), TypeError, "run: expected a function, got int 3"),
        ((LAYER, X), TypeError, "batches: expected an iterable of arrays, got an array of shape"),
        ((LAYER, 3), TypeError, "batches: expected an iterable of batches, got int 3"),
        ((LAYER, []), ValueError, "batches: expected data for every layer, got none"),
        ((LAYER, [X[:0]]), ValueError, "batches: expected data for every layer, got none"),
        ((LAYER, [X], lambda x: None), ValueError, "batches: expected data for every layer, got none"),
        ((LAYER, [X[:1]]), ValueError, "correction: expected less than the 1 values per channel, got 1"),
        ((LAYER, [X, X[:1]], LAYER), ValueError, "x: expected more than 1 value per channel"),
        ((LAYER, [X, X[:, :2]]), ValueError, r"x: expected 3 channels on axis 1, got 2"),
        ((LAYER, [X, X.astype(int)]), TypeError, "x: expected dtype float32 or float64"),
        ((LAYER, [X, X[0]]), ValueError, "x: expected 2 or more dimensions"),
    ],
)
def test_refused(arguments, error, message):
    before = state_of(LAYER)
    with pytest.raises(error, match=message):
        fastbn.recalibrate(*arguments)
    assert state_of(LAYER) == before
    assert "forward" not in vars(LAYER)


def test_replaced_arrays_are_checked():
    layer = fastbn.BatchNorm1d(3)
    layer.running_var = np.ones(4)
    batches = iter([X])
    with pytest.raises(ValueError, match=r"running_var: expected shape \(3,\)"):
        fastbn.recalibrate(layer, batches)
    assert (layer.running_mean == 0).all()
    assert next(batches) is X  # before the data are gone over


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("progress", "stream", "shown"),
    [(True, io.StringIO, True), (False, Terminal, False), (None, Terminal, True), (None, io.StringIO, False)],
)
def test_progress_bar(rng, monkeypatch, progress, stream, shown):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", stream())
    layer = fastbn.BatchNorm1d(3)
    fastbn.recalibrate(layer, [X, X], progress=progress)
    assert ("2/2" in sys.stderr.getvalue()) is shown
    assert layer.num_batches_tracked == 2


def test_without_tqdm(monkeypatch):
    imported = builtins.__import__

    def without_tqdm(name, *arguments, **options):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_tqdm)
    monkeypatch.setattr(sys, "stderr", Terminal())
    layer = fastbn.BatchNorm1d(3)
    fastbn.recalibrate(layer, [X])
    assert layer.num_batches_tracked == 1
    assert not sys.stderr.getvalue()
    with pytest.raises(ImportError, match=r"progress: expected tqdm to be installed \(pip install tqdm\)"):
        fastbn.recalibrate(layer, [X, X], progress=True)
    with pytest.raises(TypeError, match="progress: expected True or False"):
        fastbn.recalibrate(layer, [X, X], progress=1)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize(
    "batch",
    [
        (np.ones((5, 5), np.float32), np.ones((5, 5), np.float32)),  # as one array it would fit: (2, 5, 5)
        [np.ones((5, 5), np.float32), np.ones(5)],
        {"x": np.ones((5, 5), np.float32)},
    ],
    ids=["two arrays that fit together", "data and labels", "a dictionary"],
)
def test_only_arrays_are_batches(batch):
    layer = fastbn.BatchNorm(5)
    before = layer.state_dict()
    message = r"batches\[1\]: expected an array, got \w+ of length \d; .*give run, such as run=lambda batch: layer"
    with pytest.raises(TypeError, match=message):
        fastbn.recalibrate(layer, [np.ones((4, 5), np.float32), batch], progress=False)
    for name, value in layer.state_dict().items():
        assert same_bits(value, before[name])
    if not isinstance(batch, dict):
        fastbn.recalibrate(layer, [batch], lambda batch: layer(batch[0]), progress=False)
        assert (layer.running_mean == 1).all()


def test_a_layer_without_data_is_named():
    layers = [fastbn.BatchNorm(3), fastbn.BatchNorm(4, eps=0.5)]
    with pytest.raises(ValueError, match=r"got none for layers\[1\], BatchNorm\(4, .*eps=0.5"):
        fastbn.recalibrate(layers, [np.ones((5, 3))], lambda x: layers[0](x + np.arange(5)[:, None]), progress=False)
