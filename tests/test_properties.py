"""Every operation on whatever Hypothesis draws: against the reference in float64, and against itself.

``--hypothesis-profile=thorough`` draws 10,000 examples for each test instead of the few of a usual run.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
from fastbn import compiled, cs231n, functional
from fastbn.kernels import calls, columns, tiles
from fastbn.kernels.columns import LEAST_CHUNKS
from tests import strategies as some
from tests.data_for_tests import nan_like, other_plans, same_bits, streamed_from, threads_for_eight
from tests.error_model import Exact, assert_close, rounded_to
from tests.tolerances import ELEMENT

LARGE = [
    pytest.param(False, id="small"),
    pytest.param(True, id="large", marks=pytest.mark.large),
]


@contextlib.contextmanager
def general_way():
    """Nothing is done by the compiled functions of whole calls."""
    with mock.patch.object(calls, "WAY", [lambda *_: -1]), mock.patch.object(calls, "UPDATE", [lambda *_: False] * 2):
        yield


CUTS = {"pay": threads_for_eight, "TASKS": 5, "MIN_ROWS": 2}
TILES = {"pay": threads_for_eight, "WIDE_ROW": 4, "TILE": 24}
"""Thresholds of the dispatch table at which small tensors are cut, tiled and spread over threads."""


@contextlib.contextmanager
def small_plans(stream):
    """The general way with plans that are meant for large tensors, results streamed or not."""
    chunks = 1 if stream else LEAST_CHUNKS  # written at once where there is one segment, or in phases
    thresholds = {**CUTS, "LEAST_CHUNKS": chunks, **streamed_from(1 if stream else 1 << 60)}
    with general_way(), mock.patch.multiple(tiles, **TILES), other_plans(**thresholds):
        yield


def untouched(*arrays):
    """The bits of what is only read, to be compared afterwards."""
    return [None if a is None else a.tobytes() for a in arrays]


def check_forward(case):
    read = case.x, case.gamma, case.beta
    before, running, out = untouched(*read), case.copied_running(), case.buffer()
    result, cache = fastbn.forward(
        case.x,
        **case.parameters,
        **running,
        **case.options,
        momentum=case.momentum,
        correction=case.correction,
        out=out,
    )
    assert untouched(*read) == before
    assert result.shape == case.x.shape
    assert result.dtype == case.x.dtype
    assert out is None or result is out
    assert (cache.axis, cache.training) == (case.axis % case.x.ndim, True)
    if not case.x.size:
        for new, old in zip(running.values(), case.running or (), strict=True):
            assert same_bits(new, old)
        return
    exact = Exact.of_batch(case.x, case.axis, case.eps)
    assert_close(result, exact.out(case.gamma, case.beta), case.axis)
    assert_close(cache.mean, (exact.mean, exact.mean_error))
    assert_close(cache.inv_std, (exact.inv_std, exact.relative * exact.inv_std))
    factor = case.count / (case.count - case.correction) if case.running else 1.0
    batch = (exact.mean, exact.mean_error), (exact.var * factor, exact.var_error * factor)
    for (new, old), (values, error) in zip(zip(running.values(), case.running or (), strict=True), batch, strict=False):
        kept = (1 - case.momentum) * old.astype(np.float64).reshape(-1, 1)
        u = np.finfo(new.dtype).eps * (np.abs(kept) + np.abs(values))
        assert_close(new, (kept + case.momentum * values, case.momentum * error + u))


@given(some.cases())
def test_forward(case):
    check_forward(case)


def check_backward(case):
    cache = fastbn.forward(case.x, **case.parameters, **case.options).cache
    read = case.x, case.dout, case.gamma
    before, out = untouched(*read), case.buffer()
    dx, dgamma, dbeta = fastbn.backward(case.dout, cache, out=out)
    assert untouched(*read) == before
    assert out is None or dx is out
    assert (dx.shape, dx.dtype) == (case.x.shape, case.x.dtype)
    assert [None if a is None else a.dtype for a in (dgamma, dbeta)] == [
        None if a is None else a.dtype for a in (case.gamma, case.beta)
    ]
    if not case.x.size:
        return
    exact = Exact.of_batch(case.x, case.axis, case.eps)
    assert_close(dx, exact.dx(case.dout, case.axis, case.gamma), case.axis)
    for gradient, expected in zip((dbeta, dgamma), exact.sums(case.dout, case.axis), strict=True):
        if gradient is not None:
            assert_close(gradient, rounded_to(gradient.dtype, expected))
    in_place = case.dout.copy()
    assert same_bits(fastbn.backward(in_place, cache, out=in_place).dx, dx)
    # what dx is free of: its sum, and its product with x_hat but for eps
    error = exact.dx(case.dout, case.axis, case.gamma)[1]
    zeros = np.zeros((case.channels, 1))
    totals = np.moveaxis(dx, case.axis, 0).reshape(case.channels, -1).astype(np.float64).sum(1)
    assert_close(totals, (zeros, error.sum(1, keepdims=True)))


@given(some.cases())
def test_backward(case):
    check_backward(case)


def check_inference(case):
    running = dict(zip(("running_mean", "running_var"), case.running, strict=True))
    read = case.x, case.gamma, case.beta, *case.running
    before, out = untouched(*read), case.buffer()
    result = fastbn.inference(case.x, **running, **case.parameters, **case.options, out=out)
    assert untouched(*read) == before
    assert out is None or result is out
    assert (result.shape, result.dtype) == (case.x.shape, case.x.dtype)
    forwarded, cache = fastbn.forward(case.x, **running, **case.parameters, **case.options, training=False)
    assert same_bits(forwarded, result)
    frozen = fastbn.FrozenBatchNorm(**running, **case.parameters, **case.options)
    assert same_bits(frozen(case.x, out=case.buffer()), result)
    in_place = case.x.copy()
    assert same_bits(fastbn.inference(in_place, **running, **case.parameters, **case.options, out=in_place), result)
    gradients = fastbn.backward(case.dout, cache)
    if not case.x.size:
        return
    exact = Exact.given(case.x, case.axis, *case.running, case.eps)
    assert_close(result, exact.out(case.gamma, case.beta), case.axis)
    sums = exact.sums(case.dout, case.axis)
    for gradient, expected in zip((gradients.dbeta, gradients.dgamma), sums, strict=True):
        if gradient is not None:
            assert_close(gradient, rounded_to(gradient.dtype, expected))
    zero = np.zeros((case.channels, 1)), np.zeros((case.channels, 1))
    assert_close(gradients.dx, exact.dx(case.dout, case.axis, case.gamma, sums=(zero, zero)), case.axis)


@given(some.cases(training=False))
def test_inference(case):
    check_inference(case)


@given(some.cases(training=False), st.data())
def test_moments(case, data):
    moments = fastbn.moments(case.x, axis=case.axis)
    assert moments.count == case.count
    ordered = np.moveaxis(case.x, case.axis, -1)
    cut = data.draw(st.integers(0, len(ordered)))
    parts = [fastbn.moments(part, axis=-1) for part in (ordered[:cut], ordered[cut:])]
    merged = [parts[0].merge(parts[1]), parts[1].merge(parts[0])]
    if not case.x.size:
        assert not moments.mean.any()
        assert not moments.var.any()
        return
    exact = Exact.of_batch(case.x, case.axis, case.eps)
    assert_close(moments.var, (exact.var, exact.var_error))
    for result in (moments, *merged):
        assert result.count == case.count
        assert_close(result.mean, (exact.mean, exact.mean_error))
        assert_close(result.var, exact.merged_var)


@given(some.cases(training=False))
def test_normalize(case):
    mean, var = case.running
    inv_std = (1 / np.sqrt(var + 1.0)).astype(var.dtype)
    out = case.buffer()
    result = fastbn.normalize(case.x, mean, inv_std, **case.parameters, axis=case.axis, out=out)
    assert out is None or result is out
    in_place = case.x.copy()
    assert same_bits(fastbn.normalize(in_place, mean, inv_std, **case.parameters, axis=case.axis, out=in_place), result)
    if case.x.size:
        exact = Exact.given(case.x, case.axis, mean, 1 / inv_std.astype(np.float64) ** 2, 0.0)
        assert_close(result, exact.out(case.gamma, case.beta), case.axis)


@given(some.cases(training=False))
def test_backward_sums(case):
    mean, var = case.running
    inv_std = (1 / np.sqrt(var + 1.0)).astype(var.dtype)
    sums = fastbn.backward_sums(case.dout, case.x, mean, inv_std, axis=case.axis)
    assert [(a.dtype, a.shape) for a in sums] == [(np.float64, (case.channels,))] * 2
    if case.x.size:
        exact = Exact.given(case.x, case.axis, mean, 1 / inv_std.astype(np.float64) ** 2, 0.0)
        for actual, expected in zip(sums, exact.sums(case.dout, case.axis), strict=True):
            assert_close(actual, expected)


@given(some.cases(training=False), st.sampled_from([1, 3.5, 1000]))
def test_backward_input(case, count):
    (mean, var), rng = case.running, np.random.default_rng(case.seed)
    inv_std = (1 / np.sqrt(var + 1.0)).astype(var.dtype)
    sums = rng.standard_normal((2, case.channels)).astype(mean.dtype)
    arguments = case.x, mean, inv_std, case.gamma, *sums, count
    out = case.buffer()
    dx = fastbn.backward_input(case.dout, *arguments, axis=case.axis, out=out)
    assert out is None or dx is out
    in_place = case.dout.copy()
    assert same_bits(fastbn.backward_input(in_place, *arguments, axis=case.axis, out=in_place), dx)
    if case.x.size:
        exact = Exact.given(case.x, case.axis, mean, 1 / inv_std.astype(np.float64) ** 2, 0.0)
        pairs = [(a.astype(np.float64).reshape(-1, 1), 0.0) for a in sums]
        assert_close(dx, exact.dx(case.dout, case.axis, case.gamma, count=count, sums=pairs), case.axis)


def check_split_phases(case):
    out, cache = fastbn.forward(case.x, **case.parameters, **case.options)
    moments = fastbn.moments(case.x, axis=case.axis)
    assert same_bits(moments.mean, cache.mean)
    with np.errstate(divide="ignore"):
        assert same_bits(1 / np.sqrt(moments.var + case.eps), cache.inv_std)
    statistics = cache.mean, cache.inv_std
    assert same_bits(fastbn.normalize(case.x, *statistics, **case.parameters, axis=case.axis), out)
    gradients = fastbn.backward(case.dout, cache)
    sums = fastbn.backward_sums(case.dout, case.x, *statistics, axis=case.axis)
    arguments = case.dout, case.x, *statistics, case.gamma, *sums, max(case.count, 1)
    assert same_bits(fastbn.backward_input(*arguments, axis=case.axis), gradients.dx)
    if case.gamma is not None:
        assert same_bits(sums[1].astype(case.gamma.dtype), gradients.dgamma)
    if case.beta is not None:
        assert same_bits(sums[0].astype(case.beta.dtype), gradients.dbeta)


@given(some.cases())
def test_fused_calls_give_the_bits_of_the_split_phases(case):
    check_split_phases(case)


def everything(case, x, dout, axis, out):
    """All results of a case for tensors that hold its values."""
    running = case.copied_running()
    options = {"eps": case.eps, "momentum": case.momentum, "correction": case.correction, "axis": axis}
    result, cache = fastbn.forward(x, **case.parameters, **running, **options, out=out)
    gradients = fastbn.backward(dout, cache)
    statistics = np.zeros(case.channels), np.ones(case.channels)
    evaluated = fastbn.inference(x, *statistics, **case.parameters, eps=case.eps, axis=axis)
    tensors = [np.moveaxis(a, axis, 0) for a in (result, gradients.dx, evaluated)]
    parameters = [a for a in gradients[1:] if a is not None]
    return [*tensors, cache.mean, cache.inv_std, *running.values(), *parameters]


@given(some.cases())
def test_places_in_memory_make_no_difference(case):
    """The bits are those of the contiguous copy, or of the channels-last one for what lies so in memory."""
    if not case.x.flags.c_contiguous and np.moveaxis(case.x, case.axis, -1).flags.c_contiguous:
        x, dout = (np.ascontiguousarray(np.moveaxis(a, case.axis, -1)) for a in (case.x, case.dout))
        axis = -1
    else:
        x, dout, axis = case.x.copy("C"), case.dout.copy("C"), case.axis
    for a, b in zip(
        everything(case, case.x, case.dout, case.axis, case.buffer()),
        everything(case, x, dout, axis, None),
        strict=True,
    ):
        assert same_bits(a, b)


@given(some.cases())
def test_channels_do_not_see_each_other(case):
    """In another order, and with NaN and infinity in one of them."""
    rng = np.random.default_rng(case.seed)
    order = rng.permutation(case.channels)
    expected = everything(case, case.x, case.dout, case.axis, None)
    x, dout = (some.placed(a.take(order, case.axis), some._contiguous, 0) for a in (case.x, case.dout))
    if not case.x.flags.c_contiguous and np.moveaxis(case.x, case.axis, -1).flags.c_contiguous:
        x, dout = (some.placed(a, case.axis, 0) for a in (x, dout))
    take = lambda a: None if a is None else a[order]  # noqa: E731
    running = None if case.running is None else tuple(map(take, case.running))
    turned = some.Case(
        case.axis,
        x,
        dout,
        take(case.gamma),
        take(case.beta),
        running,
        *(case.eps, case.momentum, case.correction, None, case.seed),
    )
    for a, b in zip(everything(turned, x, dout, case.axis, None), expected, strict=True):
        assert same_bits(a, b[order])
    if not case.x.size:
        return
    bad = rng.integers(case.channels)
    x = x.copy("K")
    np.moveaxis(x, case.axis, 0)[bad].flat[0] = rng.choice([np.nan, np.inf, -np.inf])
    for a, b in zip(everything(turned, x, dout, case.axis, None), expected, strict=True):
        assert same_bits(np.delete(a, bad, 0), np.delete(b[order], bad, 0))


@given(some.cases(), st.integers(-8, 8))
def test_powers_of_two_scale_exactly(case, power):
    """``x * 2**k`` with ``eps * 4**k`` gives the bits of ``x``, and gradients divided by ``2**k``."""
    a, b = (
        fastbn.forward(case.x * case.x.dtype.type(2.0**k), **case.parameters, eps=case.eps * 4.0**k, axis=case.axis)
        for k in (0, power)
    )
    assert same_bits(a.out, b.out)
    dx, scaled = (fastbn.backward(case.dout, result.cache).dx for result in (a, b))
    assert same_bits(dx, scaled * dx.dtype.type(2.0**power))


@given(some.broadcast_tensors())
def test_broadcast_tensors(tensor):
    """Strides of zero are read like any others."""
    x, axis = tensor
    filled = np.ascontiguousarray(x)
    channels = x.shape[axis]
    statistics = np.zeros(channels), np.ones(channels)
    assert same_bits(fastbn.inference(x, *statistics, axis=axis), fastbn.inference(filled, *statistics, axis=axis))
    a, b = (fastbn.moments(each, axis=axis) for each in (x, filled))
    assert same_bits(a.mean, b.mean)
    assert same_bits(a.var, b.var)
    if x.size // max(channels, 1) > 1 or not x.size:
        assert same_bits(fastbn.forward(x, axis=axis).out, fastbn.forward(filled, axis=axis).out)


def check_both_ways(case):
    """Whole calls give the bits, and the places in memory, of the general way."""

    def results():
        running, out = case.copied_running(), case.buffer()
        options = {"momentum": case.momentum, "correction": case.correction, **case.options}
        result, cache = fastbn.forward(case.x, **case.parameters, **running, **options, out=out)
        gradients = fastbn.backward(case.dout, cache)
        arrays = [result, cache.mean, cache.inv_std, *gradients, *running.values()]
        if case.running is not None:
            arrays += [fastbn.inference(case.x, *case.running, **case.parameters, **case.options)]
            arrays += [fastbn.FrozenBatchNorm(*case.running, **case.parameters, **case.options)(case.x)]
        return [a for a in arrays if a is not None]

    quick = results()
    with general_way():
        general = results()
    for a, b in zip(quick, general, strict=True):
        assert same_bits(a, b)
        assert [s for s, n in zip(a.strides, a.shape, strict=True) if n > 1] == [
            s for s, n in zip(b.strides, b.shape, strict=True) if n > 1
        ]


@given(some.cases())
def test_both_ways_give_the_same_bits(case):
    check_both_ways(case)


@given(some.cases(), st.booleans())
def test_cut_tiled_and_streamed(case, stream):
    """Plans for large tensors, on small ones."""
    with small_plans(stream):
        check_forward(case)
        check_backward(case)
        if case.running is not None:
            check_inference(case)


@given(some.cases(), st.booleans())
def test_cut_tiled_and_streamed_in_phases(case, stream):
    with small_plans(stream):
        check_split_phases(case)
        everything_read_once = everything(case, case.x, case.dout, case.axis, case.buffer())
        for a, b in zip(everything_read_once, everything(case, case.x, case.dout, case.axis, None), strict=True):
            assert same_bits(a, b)


@pytest.mark.skipif(some.JIT, reason="compiled, the threshold is a constant")
@given(some.cases())
def test_far_from_the_caches(case):
    """What is else done for tensors of millions of values."""
    with mock.patch.object(columns, "FAR", 8):
        check_forward(case)
        check_backward(case)
        check_split_phases(case)


@pytest.mark.large
@settings(max_examples=settings.default.max_examples // 2)  # they take long
@given(some.large_shapes().flatmap(lambda shape: some.cases(shape=st.just(shape))))
def test_large_tensors(case):
    """Both sides of the threshold from which there are threads, in every kernel."""
    check_forward(case)
    check_backward(case)
    check_both_ways(case)
    check_split_phases(case)


@given(some.cases())
def test_layers(case):
    """A layer is the functions with its own arrays; its counter counts batches that are not empty."""
    channels = case.channels
    layer = fastbn.BatchNorm(
        channels, axis=case.axis, eps=case.eps, momentum=case.momentum, correction=case.correction, dtype=np.float64
    )
    if case.gamma is not None:
        layer.gamma = case.gamma
    if case.running is not None:
        layer.running_mean, layer.running_var = (a.copy() for a in case.running)
    running = layer.running_mean.copy(), layer.running_var.copy()
    if case.x.size and case.count <= case.correction:
        return
    options = {"momentum": case.momentum, "correction": case.correction, **case.options}
    expected, cache = fastbn.forward(case.x, layer.gamma, layer.beta, *running, **options)
    assert same_bits(layer(case.x, out=case.buffer()), expected)
    assert layer.num_batches_tracked == (case.x.size > 0)
    assert same_bits(layer.running_mean, running[0])
    assert same_bits(layer.running_var, running[1])
    gradients = fastbn.backward(case.dout, cache)
    assert same_bits(layer.backward(case.dout), gradients.dx)
    assert same_bits(layer.dgamma, gradients.dgamma)
    expected = fastbn.inference(case.x, *running, layer.gamma, layer.beta, **case.options)
    assert same_bits(layer.eval()(case.x), expected)
    assert same_bits(layer.freeze()(case.x), expected)


@given(some.cases())
def test_compiled(case):
    """From compiled code: what ``inner`` and ``outer`` are is up to the caller."""
    axis = case.axis % case.x.ndim
    x, dout = (
        np.array(a, order="C").reshape(np.prod(a.shape[:axis], dtype=int), a.shape[axis], -1)
        if a.size
        else np.empty((0, case.channels, 1), a.dtype)
        for a in (case.x, case.dout)
    )
    gamma = np.ones(case.channels) if case.gamma is None else case.gamma.copy()
    beta = (np.zeros(case.channels) if case.beta is None else case.beta).astype(gamma.dtype)
    out, dx = nan_like(x), nan_like(x)
    mean, _, inv_std = compiled.forward(x, gamma, beta, case.eps, out)
    expected, cache = fastbn.forward(x, gamma, beta, eps=case.eps)
    assert same_bits(out, expected)
    assert same_bits(mean, cache.mean)
    assert same_bits(inv_std, cache.inv_std)
    dgamma, dbeta = compiled.backward(dout, x, gamma, mean, inv_std, dx)
    gradients = fastbn.backward(dout, cache)
    for a, b in zip((dx, dgamma.astype(gamma.dtype), dbeta.astype(gamma.dtype)), gradients, strict=True):
        assert same_bits(a, b)


@given(some.cases(shape=some.shapes().map(lambda shape: shape[:2] if len(shape) % 2 else (*shape, 2, 3)[:4])))
def test_course(case):
    """The course's functions are ``forward`` with its names, channels on axis 1."""
    if case.gamma is None or case.beta is None:
        return
    spatial = case.x.ndim != 2
    x, dout = (np.moveaxis(a, case.axis, 1) for a in (case.x, case.dout))
    if x.ndim not in (2, 4):
        return
    running = case.running or (np.zeros(case.channels, x.dtype), np.zeros(case.channels, x.dtype))
    expected_running = tuple(a.copy() for a in running)
    parameters = {"mode": "train", "momentum": 1 - case.momentum, "eps": case.eps}
    if case.running is not None:
        parameters |= {"running_mean": running[0], "running_var": running[1]}
    forward = cs231n.spatial_batchnorm_forward if spatial else cs231n.batchnorm_forward
    backward = cs231n.spatial_batchnorm_backward if spatial else cs231n.batchnorm_backward
    out, cache = forward(x, case.gamma, case.beta, parameters)
    momentum = 1.0 - (1 - case.momentum)
    expected = functional.forward(
        x, case.gamma, case.beta, *expected_running, momentum=momentum, eps=case.eps, correction=0
    )
    assert same_bits(out, expected.out)
    assert same_bits(backward(dout, cache).dx, fastbn.backward(dout, expected.cache).dx)
    for name, values in zip(("running_mean", "running_var"), expected_running, strict=True):
        assert same_bits(parameters[name], values)
    out, _ = forward(x, case.gamma, case.beta, {**parameters, "mode": "test"})
    assert same_bits(out, fastbn.inference(x, *expected_running, case.gamma, case.beta, eps=case.eps))


@given(some.cases(training=False), st.integers(1, 5), st.booleans())
def test_fold(case, features, convolution):
    """The folded layer does what the two do one after another."""
    channels, rng = case.channels, np.random.default_rng(case.seed)
    bn = fastbn.FrozenBatchNorm(*case.running, **case.parameters, eps=case.eps)
    shape = (channels, features, 1) if convolution else (channels, features)
    weight, bias = rng.standard_normal(shape).astype(case.x.dtype), rng.standard_normal(channels)
    folded = (fastbn.fold.conv if convolution else fastbn.fold.linear)(weight, bias, bn)
    assert [a.dtype for a in folded] == [weight.dtype] * 2
    x = rng.standard_normal((4, features))
    flat = [np.asarray(w, np.float64).reshape(channels, features) for w in (weight, folded[0])]
    plain = x @ flat[0].T + bias
    exact = Exact.given(plain, 1, *case.running, case.eps)
    expected, error = exact.out(case.gamma, case.beta)
    scale = np.abs(bn.gamma * bn.inv_std)
    terms = np.abs(x) @ np.abs(flat[1]).T + scale * (np.abs(bias) + np.abs(bn.mean))
    error = error + ELEMENT * np.finfo(weight.dtype).eps * (terms + np.abs(bn.beta)).T
    assert_close(x @ flat[1].T + folded[1].astype(np.float64), (expected, error), 1)


@given(some.cases(training=False), st.lists(st.integers(0, 5), max_size=4))
def test_recalibrate(case, cuts):
    """However the data are cut into batches, the statistics are those of all of them."""
    ordered = np.moveaxis(case.x, case.axis, -1)
    batches = np.split(ordered, sorted(min(cut, len(ordered)) for cut in cuts))
    layer = fastbn.BatchNorm(case.channels, axis=-1, dtype=np.float64, correction=0)
    before = layer.state_dict()
    if not case.count:
        with pytest.raises(ValueError, match="batches: expected data for every layer"):
            fastbn.recalibrate(layer, batches, progress=False)
        assert all(same_bits(a, before[name]) for name, a in layer.state_dict().items())
        return
    fastbn.recalibrate(layer, batches, progress=False)
    assert (
        layer.num_batches_tracked == sum(batch.size // max(case.channels, 1) > 0 for batch in batches)
        or not case.x.size
    )
    if case.x.size:
        exact = Exact.of_batch(case.x, case.axis, case.eps)
        assert_close(layer.running_mean, (exact.mean, exact.mean_error))
        assert_close(layer.running_var, exact.merged_var)
