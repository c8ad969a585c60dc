"""Training in one cooperative launch, group by group: which shapes, and the same bits as the phases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import fastbn
from bench.shapes import RESNET50
from fastbn import reference
from tests.data_for_tests import channels_last, tensor
from tests.device import INSTALLED, SIMULATED, get, nan_like, needs_device, put, put_askew
from tests.test_cuda import DTYPES, check_backward, check_forward, parameters
from tests.tolerances import ULPS, ulps

if INSTALLED:
    from fastbn.cuda import _driver, _engine, _plan

gpu = pytest.mark.gpu

# ---------------------------------------------------------------------------------------------------------------------
# The plan

TRAFFIC = {"fused": (2, 3), "grouped": (2, 3), "phases": (3, 5), "phases in the cache": (2, 3)}
"""Tensors that memory moves, forward and backward."""

# ResNet-50 at 128 images, float32: (channels, side): (forward, groups), (backward, groups)
NCHW = {
    (64, 112): (("grouped", 22), ("grouped", 64)),
    (256, 56): (("grouped", 19), ("grouped", 37)),
    (64, 56): (("grouped", 5), ("grouped", 10)),
    (512, 28): (("grouped", 9), ("grouped", 18)),
    (128, 28): (("grouped", 3), ("grouped", 5)),
    (1024, 14): (("grouped", 5), ("grouped", 9)),
    (256, 14): (("grouped", 2), ("grouped", 3)),
    (2048, 7): (("fused", 1), ("fused", 1)),
    (512, 7): (("fused", 1), ("fused", 1)),
}
NHWC = {
    (64, 112): (("phases", 1), ("phases", 1)),
    (256, 56): (("phases", 1), ("phases", 1)),
    (64, 56): (("phases", 1), ("phases", 1)),
    (512, 28): (("grouped", 10), ("grouped", 22)),
    (128, 28): (("grouped", 3), ("grouped", 6)),
    (1024, 14): (("grouped", 5), ("grouped", 10)),
    (256, 14): (("grouped", 2), ("grouped", 3)),
    (2048, 7): (("grouped", 3), ("grouped", 5)),
    (512, 7): (("phases in the cache", 1), ("grouped", 2)),
}


@pytest.fixture
def planned(monkeypatch):
    """Plans with the limits of a GPU."""
    if not INSTALLED:
        pytest.skip("needs numba-cuda")
    monkeypatch.setattr(_plan, "LIMITS", _plan.GPU)
    return _plan.plan.__wrapped__


def units_of(cut):
    """How many channels of planes, or chunks of columns, and how many segments of each."""
    return cut.cuts[2] if len(cut.shape) == 4 else cut.shape[1], cut.cuts[0]


def way(cut, fused, nbytes):
    if fused:
        return "fused", 1
    if cut.group:
        return "grouped", -(-units_of(cut)[0] // cut.group)
    return ("phases in the cache" if nbytes <= _plan.GPU.cache else "phases"), 1


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("problem", [each.with_images(128) for each in RESNET50], ids=lambda each: each.name)
def test_the_way_of_each_shape_of_resnet50(planned, problem, last):
    n, c, h, w = problem.shape
    how = planned((n * h * w, c, 1) if last else (n, c, h * w), np.dtype(np.float32), True)
    nbytes = 4 * n * c * h * w
    forward, backward = way(how.forward, how.fused_forward, nbytes), way(how.backward, how.fused_backward, 2 * nbytes)
    assert (forward, backward) == (NHWC if last else NCHW)[c, h]
    for cut, (name, groups), tensors in ((how.forward, forward, 1), (how.backward, backward, 2)):
        moved = TRAFFIC[name][tensors - 1] * nbytes
        assert moved == (tensors + 1 if name != "phases" else 2 * tensors + 1) * nbytes
        if name != "grouped":
            continue
        units, segments = units_of(cut)
        held = tensors * nbytes * cut.group // units
        assert held <= 24_000_000  # stays in the cache
        assert tensors * nbytes / groups > 12_000_000  # the memory's time is worth a wait
        assert 132 < cut.group * segments <= 264  # a block or two for each multiprocessor
        assert cut.group * segments * 256 * 16 * 4 <= held  # each goes through its loop of four accesses
        if last:
            assert cut.cuts[1] * 16 >= 32  # whole sectors
            assert cut.team * cut.cuts[1] * 4 == 256
            assert segments <= 4 * cut.team


def test_what_stays_in_phases(planned):
    def groups(shape, dtype=np.float32):
        how = planned(shape, np.dtype(dtype), True)
        assert how.forward is how.phases or how.forward.group
        assert how.backward is how.phases or how.backward.group
        return how.forward.group, how.backward.group

    assert groups((128, 1, 10**6)) == (0, 0)  # a channel larger than the cache
    assert groups((1, 64, 4_000_000)) == (1, 0)  # or that of two tensors
    assert groups((64, 64, 1024)) == (0, 32)  # all in the cache
    assert groups((64, 3, 40_000)) == (2, 1)
    assert groups((100_000, 100, 1)) == (0, 0)  # no whole sectors
    assert groups((100_000, 104, 1)) == (7, 3)
    assert groups((2_000_000, 64, 9)) == (0, 0)  # short planes
    assert groups((64, 1_000_000, 1)) == (0, 261)  # groups of 8.6 MB, and of 17.1


# ---------------------------------------------------------------------------------------------------------------------
# The kernels

GROUPED = [
    (3, 3, 24, 12),
    (2, 7, 21, 13),
    (3, 5, 21, 9),
    (3, 9, 8, 10),
    (100, 24),
    (60, 32),
    (52, 36),
    (250, 10),
]
LARGE = [(64, 64, 56, 56), (20, 7, 223, 223), (128, 256, 14, 14), (100_352, 128), (6_272, 2048)]
SHAPES = GROUPED if SIMULATED else LARGE


@pytest.fixture
def started(monkeypatch):
    """The kernels that training starts, in order."""
    names = []
    launch = _driver.Stream.launch

    def noted(self, kernel, grid, threads, *arguments):
        names.append(kernel.__name__.partition("_float")[0])
        launch(self, kernel, grid, threads, *arguments)

    monkeypatch.setattr(_driver.Stream, "launch", noted)
    return names


@pytest.fixture
def at_once(monkeypatch):
    """Sets how many blocks the device runs at once; a GPU runs no more than it can."""
    actual = _driver._at_once

    def change(blocks):
        monkeypatch.setattr(_driver, "_at_once", lambda *about: blocks if SIMULATED else min(blocks, actual(*about)))

    return change


def arrays(rng, shape, dtype, last=False):
    x, dout = tensor(rng, shape, dtype, mean=1.0), tensor(rng, shape, dtype)
    x, dout = (channels_last(x), channels_last(dout)) if last else (x, dout)
    return x, dout, *parameters(rng, shape[1], dtype)


def train(x, dout, gamma, beta, running_mean, running_var, axis=1, place=put):
    """All that training writes; dx over dout."""
    running = put(running_mean), put(running_var)
    out, cache = fastbn.forward(place(x), put(gamma), put(beta), *running, axis=axis, out=nan_like(x))
    over = place(dout)
    gradients = fastbn.backward(over, cache, out=over)
    assert gradients.dx is over
    return out, cache, running, gradients


def bits(result):
    out, cache, running, gradients = result
    return b"".join(get(each).tobytes() for each in (out, cache.mean, cache.inv_std, *running, *gradients))


@gpu
@needs_device
@pytest.mark.skipif(not SIMULATED, reason="the simulator's limits")
def test_shapes_are_grouped_in_every_way():
    kinds = set()
    for shape in GROUPED:
        sizes = (shape[0], shape[1], int(np.prod(shape[2:])))
        for dtype in DTYPES:
            how = _plan.plan(sizes, np.dtype(dtype), True)
            for cut in (how.forward, how.backward):
                if cut.group:
                    units, segments = units_of(cut)
                    family = "columns" if len(cut.shape) == 4 else "planes"
                    kinds.add(f"{family}, {'one a group' if cut.group == 1 else 'several a group'}")
                    kinds.add(f"{family}, {'the last group smaller' if units % cut.group else 'groups alike'}")
                    kinds.add(f"{family}, {'one segment' if segments == 1 else 'several segments'}")
                    kinds.add(f"{family}, {'a thread' if cut.team == 1 else 'several threads'} a channel")
    assert kinds == {
        "planes, one a group",
        "planes, several a group",
        "planes, the last group smaller",
        "planes, groups alike",
        "planes, one segment",
        "planes, several segments",
        "planes, several threads a channel",
        "columns, one a group",
        "columns, several a group",
        "columns, the last group smaller",
        "columns, groups alike",
        "columns, one segment",
        "columns, several segments",
        "columns, a thread a channel",
        "columns, several threads a channel",
    }


@gpu
@needs_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_grouped_training(rng, shape, dtype):
    x, dout, gamma, beta, running_mean, running_var = given = arrays(rng, shape, dtype)
    out, cache, running, gradients = train(*given)
    check_forward(out, cache, x, gamma, beta, 1)
    check_backward(gradients, dout, x, gamma, 1)
    mean, var = reference.moments(x)
    count = x.size / mean.size
    wanted = reference.running(running_mean, mean, 0.1), reference.running(running_var, var * count / (count - 1), 0.1)
    for array, value in zip(running, wanted, strict=True):
        assert ulps(get(array), value, dtype) <= ULPS[dtype]["running"]


PHASES = ["batch_stats", "merge_stats", "normalize", "update_running"], ["backward_sums", "add_sums", "backward_input"]
ONE = ["forward_grouped", "update_running"], ["backward_grouped"]


@gpu
@needs_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_as_the_phases(rng, started, at_once, shape, dtype):
    """Whatever number of blocks the device runs at once; with none, it runs the phases."""
    given = arrays(rng, shape, dtype)
    how = _plan.plan((shape[0], shape[1], int(np.prod(shape[2:]))), np.dtype(dtype), True)
    grouped = bool(how.forward.group), bool(how.backward.group)
    found = {}
    for blocks in (0, 1, 5) if SIMULATED else (0, 1, 100, 1000):
        at_once(blocks)
        started.clear()
        found[blocks] = bits(train(*given))
        ways = ONE if blocks else PHASES
        assert started == (ways if grouped[0] else PHASES)[0] + (ways if grouped[1] else PHASES)[1]
    assert len(set(found.values())) == 1


@gpu
@needs_device
@pytest.mark.skipif(not SIMULATED, reason="a GPU's limits are another's")
@pytest.mark.parametrize("shape", [(2, 7, 21, 13), (60, 32)])
def test_the_same_bits_in_groups_of_any_size(rng, monkeypatch, shape):
    """One group of all among them."""
    given = arrays(rng, shape, np.float32)
    wanted = bits(train(*given))
    plan = _plan.plan

    for group in (1, 2, 5, 100):

        def other(*arguments, group=group):
            how = plan(*arguments)
            cuts = (dataclasses.replace(cut, group=group) for cut in (how.forward, how.backward))
            return dataclasses.replace(how, **dict(zip(("forward", "backward"), cuts, strict=True)))

        monkeypatch.setattr(_engine, "plan", other)
        assert bits(train(*given)) == wanted


@gpu
@needs_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_partials_are_read_when_all_are_written(rng, monkeypatch, shape, dtype):
    """What an earlier call has left there would do without the wait."""
    given = arrays(rng, shape, dtype)
    wanted = bits(train(*given))
    scratch = _driver.Stream.scratch

    def spoilt(self, size):
        place = scratch(self, size)
        for kept in _driver._scratch.kept.values():
            kept.copy_to_device(np.full(kept.size, np.nan))
        return place

    monkeypatch.setattr(_driver.Stream, "scratch", spoilt)
    for _ in range(1 if SIMULATED else 3):
        assert bits(train(*given)) == wanted


@gpu
@needs_device
@pytest.mark.parametrize("shape", [(2, 7, 21, 13), (3, 3, 36, 12), (60, 32)])
def test_memory_that_is_not_aligned(rng, shape):
    given = arrays(rng, shape, np.float32)
    assert bits(train(*given)) == bits(train(*given, place=put_askew))


@gpu
@needs_device
def test_channels_last_by_strides(rng):
    x, dout, gamma, beta, *running = given = arrays(rng, (3, 32, 5, 4), np.float32, last=True)
    out, cache, _, gradients = result = train(*given)
    assert _plan.plan((60, 32, 1), np.dtype(np.float32), True).forward.group or not SIMULATED
    check_forward(out, cache, x, gamma, beta, 1)
    check_backward(gradients, dout, x, gamma, 1)
    moved = [np.ascontiguousarray(np.moveaxis(each, 1, -1)) for each in (x, dout)]
    other = train(*moved, gamma, beta, *running, -1)
    assert np.array_equal(get(result[0]), np.moveaxis(get(other[0]), -1, 1))
    assert np.array_equal(get(gradients.dx), np.moveaxis(get(other[3].dx), -1, 1))


@gpu
@needs_device
@pytest.mark.parametrize("shape", [(2, 7, 21, 13), (60, 32)])
def test_without_parameters(rng, shape):
    x, dout = tensor(rng, shape, np.float32, mean=1.0), tensor(rng, shape, np.float32)
    out, cache = fastbn.forward(put(x))
    check_forward(out, cache, x, 1.0, 0.0, 1)
    dx, dgamma, dbeta = fastbn.backward(put(dout), cache)
    assert (dgamma, dbeta) == (None, None)
    wanted = reference.backward(dout, x)[0]
    assert ulps(get(dx), wanted, np.float32, np.abs(dout).max() * 2) <= ULPS[np.float32]["dx"]
