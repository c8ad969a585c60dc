"""Whole calls: the bits of the general way, and nothing taken that it refuses."""

from __future__ import annotations

import itertools
import math
import pickle
import threading

import numba
import numpy as np
import pytest

import fastbn
from fastbn import _engine
from fastbn.kernels import calls, jit, objects, whole
from tests.data_for_tests import (
    LARGE_SHAPES,
    SHAPES,
    channels_last,
    nan_like,
    other_plans,
    read_only,
    same_bits,
    tensor,
)

DTYPES = [np.float32, np.float64]


@pytest.fixture
def general_way(monkeypatch):
    """Calls go the general way from the line on that calls this."""

    def force():
        monkeypatch.setattr(calls, "WAY", [lambda *_: -1])
        monkeypatch.setattr(calls, "UPDATE", [lambda *_: False] * 2)

    return force


def everything(x, dout, gamma, beta, axis):
    running = [np.full(x.shape[axis], value, x.dtype) for value in (0.5, 2.0)]
    out, cache = fastbn.forward(x, gamma, beta, *running, momentum=0.3, axis=axis, out=nan_like(x))
    gradients = fastbn.backward(dout, cache, out=nan_like(x))
    layer = fastbn.BatchNorm(x.shape[axis], axis=axis, dtype=x.dtype)
    layer.keep_for_backward = True
    trained, evaluated = layer(x), layer.eval()(x)
    dx, frozen = layer.backward(dout), layer.freeze()(x)
    arrays = [out, cache.mean, cache.inv_std, *gradients, *running, trained, evaluated, dx, frozen]
    arrays += [fastbn.inference(x, *running, gamma, beta, axis=axis), *layer.state_dict().values()]
    return [array for array in arrays if array is not None]


LARGE = [pytest.param(*case, marks=pytest.mark.large) for case in [((7, 300, 20), 1), *LARGE_SHAPES]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [*SHAPES, ((2, 3000), 1), ((3, 600, 2), 1), ((300, 1), 1), *LARGE])
def test_same_bits_as_the_general_way(rng, general_way, dtype, shape, axis):
    x, dout = tensor(rng, shape, dtype, mean=3.0), tensor(rng, shape, dtype)
    gamma, beta = (read_only(rng.standard_normal(shape[axis]).astype(dtype)) for _ in range(2))
    given = [(x, dout)]
    if axis == 1 and x.ndim > 2:
        given.append((channels_last(x), channels_last(dout)))
    cases = [
        (*tensors, *parameters, axis) for tensors in given for parameters in ((gamma, beta), (None, beta), (None, None))
    ]
    quick = [everything(*case) for case in cases]
    general_way()
    for case, results in zip(cases, quick, strict=True):
        for a, b in zip(results, everything(*case), strict=True):
            assert same_bits(a, b)
            assert a.strides == b.strides


def taken(monkeypatch, call):
    """Whether a call needed no help from the general way."""
    with monkeypatch.context() as patch:
        for name in ("forward", "inference", "backward", "scale"):
            patch.setattr(_engine, name, lambda *args, **kwargs: pytest.fail("the general way"))
        try:
            call()
        except pytest.fail.Exception:
            return False
    return True


SHAPE, C = (4, 8, 5, 6), 8
SOUND = math.prod(SHAPE)


def sound(rng, dtype=np.float32):
    """Arguments of every kind, each with memory of its own."""
    arrays = {name: rng.standard_normal(SHAPE).astype(dtype) for name in ("x", "out", "dout")}
    return arrays | {name: np.ones(C, dtype) for name in ("gamma", "beta", "running_mean", "running_var")}


def train(a, **options):
    names = "x", "gamma", "beta", "running_mean", "running_var"
    return fastbn.forward(*(a[name] for name in names), out=a["out"], **options)


def infer(a, **options):
    names = "x", "running_mean", "running_var", "gamma", "beta"
    return fastbn.inference(*(a[name] for name in names), out=a["out"], **options)


def differentiate(a, **options):
    cache = fastbn.forward(a["x"].copy(), a["gamma"], a["beta"]).cache
    return fastbn.backward(a["dout"], cache._replace(x=a["x"]), out=a["out"])


CALLS = {
    train: ("x", "gamma", "beta", "running_mean", "running_var", "out"),
    infer: ("x", "gamma", "beta", "running_mean", "running_var", "out"),
    differentiate: ("dout", "x", "gamma", "out"),
}
WRITTEN = {train: ("running_mean", "running_var", "out"), infer: ("out",), differentiate: ("out",)}
FUNCTIONS = pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)


@FUNCTIONS
@pytest.mark.parametrize("dtype", DTYPES)
def test_ordinary_calls_are_taken(rng, monkeypatch, function, dtype):
    a = sound(rng, dtype)
    assert taken(monkeypatch, lambda: function(a))
    for name in CALLS[function]:  # what is only read may be read-only
        a[name].flags.writeable = name in WRITTEN[function]
    assert taken(monkeypatch, lambda: function(a))
    assert taken(monkeypatch, lambda: function({**a, "gamma": None, "beta": None}))
    last = {name: channels_last(a[name]).copy("K") for name in ("x", "out", "dout")}
    assert not last["x"].flags.c_contiguous
    assert taken(monkeypatch, lambda: function({**a, **last}))


def test_the_first_axis_is_taken(rng, monkeypatch):
    x = tensor(rng, (3, 4))
    statistics = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert taken(monkeypatch, lambda: fastbn.inference(x, *statistics, axis=0))


@FUNCTIONS
@pytest.mark.parametrize("turn", [np.s_[:, ::-1], np.s_[::-1], np.s_[:, :, ::-1], np.s_[..., ::-1]], ids=str)
def test_channels_last_backwards(rng, function, turn):
    """The strides are those of channels last but for a sign."""
    a, b = (sound(np.random.default_rng(0)) for _ in range(2))
    for name in ("x", "dout"):
        a[name] = channels_last(a[name][turn].copy())[turn]
        b[name] = channels_last(b[name]).copy("C")
        assert (a[name] == b[name]).all()
    result, expected = function(a), function(b)
    if function is not infer:
        result, expected = result[0], expected[0]
    assert same_bits(result, expected)


@FUNCTIONS
def test_pickled_arrays_are_taken(rng, monkeypatch, function):
    """Their dtypes are objects of their own."""
    a = {name: pickle.loads(pickle.dumps(array)) for name, array in sound(rng).items()}
    assert taken(monkeypatch, lambda: function(a))
    swapped = {**a, "x": a["x"].astype(">f4")}
    assert function is differentiate or not taken(monkeypatch, lambda: function(swapped))


def test_numbers_that_are_taken(rng, monkeypatch):
    a = sound(rng)
    for options in ({"momentum": 1}, {"momentum": 0}, {"eps": 1}, {"axis": -3}, {"correction": 0.5}):
        assert taken(monkeypatch, lambda options=options: train(a, **options)), options
    assert taken(monkeypatch, lambda: train(a, eps=np.float64(0.5), momentum=np.float64(0.5)))
    for options in ({"eps": np.float32(0.5)}, {"axis": np.int64(1)}, {"correction": np.float32(1)}):
        assert not taken(monkeypatch, lambda options=options: train(a, **options)), options


@pytest.mark.parametrize("axis", [np.int64(1), np.array(1)], ids=["scalar", "array"])
def test_numbers_with_a_dtype_beside_other_things(axis):
    """They are no reason to take the rest for an array."""
    statistics = np.zeros(2), np.ones(2)
    expected = fastbn.inference(np.array([[1.0, 2.0]]), *statistics)
    assert same_bits(fastbn.inference([[1.0, 2.0]], *statistics, axis=axis), expected)
    with pytest.raises(TypeError, match=r"^x: expected dtype float32 or float64, got object"):
        fastbn.inference(None, *statistics, axis=axis)


@FUNCTIONS
def test_every_pair_of_arrays_that_overlap(rng, monkeypatch, function):
    """Refused for as little as one value, accepted side by side; what may be one is, and only read memory is shared."""
    for name, other in itertools.permutations(CALLS[function], 2):
        if name not in WRITTEN[function]:
            continue
        a = sound(rng)
        sizes = a[name].size, a[other].size
        for shift in (0, 1, sizes[0] - 1, sizes[0], 1 - sizes[1], -sizes[1]):
            memory = np.ones(2 * sum(sizes), np.float32)
            parts = {name: (sum(sizes), a[name]), other: (sum(sizes) + shift, a[other])}
            views = {key: memory[at : at + like.size].reshape(like.shape) for key, (at, like) in parts.items()}
            for key, view in views.items():
                view[...] = a[key] if key == name else 1
            if function is train:
                memory[::3] += 1  # no constant channels
            before, given = memory.copy(), {**a, **views}
            apart = shift in (sizes[0], -sizes[1])
            one = shift == 0 and {name, other} in ({"out", "x"}, {"out", "dout"}) and function is not train
            one = one and (function is infer or other == "dout")
            if apart or one:
                assert taken(monkeypatch, lambda given=given: function(given)), (name, other, shift)
            else:
                with pytest.raises(ValueError, match=r"overlap with|memory of its own"):
                    function(given)
                assert same_bits(memory, before), (name, other, shift)


PER_CHANNEL = "gamma", "beta", "running_mean", "running_var"


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="interpreted, these go the general way")
@FUNCTIONS
@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_of_the_other_dtype_are_taken(monkeypatch, general_way, function, dtype):
    """As NumPy makes them if nothing is said: float64, beside float32 data."""
    other = DTYPES[dtype == np.float32]
    given = [name for name in PER_CHANNEL if name in CALLS[function]]

    def case(changed):
        a = sound(np.random.default_rng(0), dtype)
        return {name: array.astype(other) if name in changed else array for name, array in a.items()}

    def results(a):
        result = function(a)
        result = (result,) if isinstance(result, np.ndarray) else result
        statistics = [result.cache.mean, result.cache.inv_std] if function is train else []
        arrays = [each for each in result if isinstance(each, np.ndarray)]
        return arrays + statistics + [a[name] for name in PER_CHANNEL]

    cases = [*((name,) for name in given), given]
    for changed in cases:
        assert taken(monkeypatch, lambda changed=changed: function(case(changed))), changed
    quick = [results(case(changed)) for changed in cases]
    general_way()
    for changed, arrays in zip(cases, quick, strict=True):
        for a, b in zip(arrays, results(case(changed)), strict=True):
            assert a.dtype == b.dtype
            assert same_bits(a, b), changed


@FUNCTIONS
def test_parameters_of_the_other_dtype_may_not_overlap(rng, function):
    """By as little as one value."""
    for name in PER_CHANNEL:
        if name not in CALLS[function]:
            continue
        for shift in (8 - 8 * C, -4 * C, 8, 4 * SOUND - 8):
            a = sound(rng)
            memory = np.ones(SOUND + 4 * C, np.float32)
            a["out"] = memory[2 * C : 2 * C + SOUND].reshape(SHAPE)
            a[name] = np.ndarray(C, np.float64, memory, 8 * C + shift)
            a[name][...] = 1
            before = memory.copy()
            with pytest.raises(ValueError, match=r"overlap with|memory of its own"):
                function(a)
            assert same_bits(memory, before), (name, shift)


def misaligned(array):
    raw = np.empty(array.nbytes + 1, np.uint8)
    moved = raw[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


RARE = {
    "strided": lambda array: np.repeat(array, 2, -1)[..., ::2],
    "misaligned": misaligned,
    "reversed": lambda array: array[::-1].copy()[::-1],
    "Fortran": np.asfortranarray,
}


@FUNCTIONS
@pytest.mark.parametrize("change", RARE)
def test_rare_arrays_go_the_general_way(rng, monkeypatch, function, change):
    for name in CALLS[function]:
        a, b = sound(np.random.default_rng(0)), sound(np.random.default_rng(0))
        a[name] = RARE[change](a[name])
        if a[name].flags.carray:
            continue
        assert not taken(monkeypatch, lambda a=a: function(a)), name
        a[name] = RARE[change](sound(np.random.default_rng(0))[name])
        results = (function(a), function(b))
        results = [result if isinstance(result, np.ndarray) else result[0] for result in results]
        assert same_bits(*results), name
        for array in WRITTEN[function]:
            assert same_bits(a[array], b[array])


@FUNCTIONS
def test_arguments_that_do_not_fit(rng, function):
    """Each is refused by name, and nothing is written."""
    for name in CALLS[function]:
        a = sound(rng)
        wrong = [a[name][:-1], a[name][None], a[name][..., None], np.stack([a[name]] * 2, -1)]
        wrong += [a[name].astype(np.int32), "text", object()]
        if name in WRITTEN[function]:
            wrong.append(read_only(a[name].copy()))
        if name == "x" and function is differentiate:
            continue  # the cache's own
        for value in wrong:
            given = {**a, name: value}
            if name == "gamma" and function is differentiate:
                continue
            if name in ("x", "dout") and isinstance(value, np.ndarray) and value.dtype == np.float32:
                given["out"] = a["out"]
            before = {key: array.tobytes() for key, array in a.items()}
            with pytest.raises((ValueError, TypeError), match=r"^(x|dout|gamma|beta|running_mean|running_var|out): "):
                function(given)
            assert before == {key: array.tobytes() for key, array in a.items()}


def test_values_that_do_not_fit(rng):
    cases = [
        ({"eps": 0.0}, ValueError),
        ({"eps": np.nan}, ValueError),
        ({"eps": np.inf}, ValueError),
        ({"eps": True}, TypeError),
        ({"momentum": 1.5}, ValueError),
        ({"momentum": -(2**70)}, ValueError),
        ({"momentum": None}, TypeError),
        ({"correction": 120}, ValueError),
        ({"correction": 2**70}, ValueError),
        ({"correction": "1"}, TypeError),
        ({"axis": 2**70}, ValueError),
        ({"axis": -(2**63)}, ValueError),
        ({"axis": 4}, ValueError),
        ({"axis": 1.0}, TypeError),
        ({"training": 1}, TypeError),
    ]
    for options, error in cases:
        a = sound(rng)
        before = {key: array.tobytes() for key, array in a.items()}
        with pytest.raises(error, match=rf"^{next(iter(options))}: "):
            train(a, **options)
        assert before == {key: array.tobytes() for key, array in a.items()}
    a = sound(rng)
    a["running_var"][-1] = -1e-3
    for function in (train, infer):
        before = a["out"].tobytes()
        with pytest.raises(ValueError, match="running_var: expected no value below"):
            function(a)
        assert a["out"].tobytes() == before
    a["running_var"][-1] = np.nan
    assert np.isnan(infer(a)[:, -1]).all()
    train(a)
    assert np.isnan(a["running_var"]).tolist() == [False] * 7 + [True]


def test_layers_check_shapes(rng):
    layer = fastbn.BatchNorm2d(C)
    for made in (layer, layer.freeze(), fastbn.BatchNorm2d(C).eval()):
        for shape in ((4, 7, 5, 6), (4, C, 5), (4, C)):
            with pytest.raises(ValueError, match=r"^x: expected"):
                made(np.ones(shape, np.float32))
    with pytest.raises(ValueError, match="momentum: expected 0 to 1"):
        layer.momentum = 2.0
        layer(np.ones(SHAPE, np.float32))


def test_unknown_headers_are_not_looked_at(rng):
    """What ``objects`` expects of NumPy and Python is so here."""
    assert objects.KNOWN


@numba.njit
def out_of_memory(x, shape, segments, eps, gamma, beta, out, mean, var, inv_std, streaming):
    if x.size:
        raise MemoryError


@numba.njit
def out_of_memory_backward(dout, x, shape, segments, mean, inv_std, gamma, sum_dout, sum_dout_xhat, dx, streaming):
    if x.size:
        raise MemoryError


@numba.njit
def out_of_memory_normalize(x, shape, coefficients, out, streaming):
    if x.size:
        raise MemoryError


@pytest.mark.parametrize("size", [2, pytest.param(objects.RELEASED, marks=pytest.mark.large)])
def test_a_kernel_that_raises(rng, size):
    """Memory can run out; the lock is taken back before the exception is made."""
    x, three = tensor(rng, (size, 1, 20)), np.ones((3, 1), np.float32)
    c = three[0]
    cases = {
        whole.forward: (out_of_memory, (x, 1, None, None, None, None, 0.1, 1e-5, 1, nan_like(x), np.empty((3, 1)))),
        whole.backward: (
            out_of_memory_backward,
            (x, x, 1, np.ones(1), np.ones(1), c, nan_like(x), c.copy(), c.copy()),
        ),
        whole.inference: (out_of_memory_normalize, (x, 1, c, c, c, c, 1e-5, nan_like(x), np.empty((2, 1)))),
        whole.scale: (out_of_memory_normalize, (x, 1, three, nan_like(x))),
    }
    for function, (kernel, arguments) in cases.items():
        values = {"_kernel": kernel, "_kernel_shape": calls._as_it_is, "_columns": False}
        entries = jit.Entries(jit.with_globals(function, "raising", values))
        with pytest.raises(MemoryError):
            entries[0](*arguments, 1, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_update(rng, dtype):
    """Where nothing is compiled, no layer takes it."""
    x, statistics = tensor(rng, (4, 3, 5), dtype), np.abs(rng.standard_normal((3, 3)))
    running, counter = (np.ones(3, dtype), np.full(3, 2.0, dtype)), np.zeros((), np.int64)
    update = jit.Entries(whole.update)[DTYPES.index(dtype)]
    assert not update(running[0], running[1][::-1], statistics, x, 0.25, 1, counter)
    assert not update(read_only(running[0].copy()), running[1], statistics, x, 0.25, 1, counter)
    assert (running[0] == 1).all()
    assert update(*running, statistics, x, 0.25, 1, counter)
    assert update(*running, statistics, x, 0, 1, None)
    np.testing.assert_allclose(running[0], 0.75 + 0.25 * statistics[0], rtol=1e-6)
    np.testing.assert_allclose(running[1], 1.5 + 0.25 * statistics[2] * 20 / 19, rtol=1e-6)
    assert counter == 1


def test_the_interpreters_lock_is_given_away_for_long_work(rng):
    """Other threads, calls of fastbn among them, go on meanwhile."""
    assert objects.RELEASED < 1 << 16
    x = tensor(rng, (2, 16, 40, 40) if not numba.config.DISABLE_JIT else (2, 16, 3, 3))
    layer = fastbn.BatchNorm2d(16).eval()
    expected, failures = layer(x), []
    training = [fastbn.BatchNorm2d(16) for _ in range(4)]

    def work(own):
        for _ in range(50 if not numba.config.DISABLE_JIT else 2):
            failures.append(not same_bits(layer(x), expected))
            own.backward(own(x))

    threads = [threading.Thread(target=work, args=(own,)) for own in training]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(failures)
    assert len({own.running_var.tobytes() for own in training}) == 1


@pytest.mark.large
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one core")
@pytest.mark.parametrize(("threads", "streaming"), [(1, 1), (2, 0)])
def test_streaming_is_decided_by_the_threads_at_hand(monkeypatch, threads, streaming):
    """On any processor: of the two thresholds, that of one thread is below the size here."""
    x, seen = np.zeros((32, 128, 28, 28), np.float32), []

    def entry(*arguments):
        seen.append(arguments[-1])
        return True

    monkeypatch.setattr(calls, "INFERENCE", [entry] * len(calls.INFERENCE))
    numba.set_num_threads(threads)
    with other_plans(STREAM_ONCE=(2 * x.nbytes, 2 * x.nbytes + 1)):
        fastbn.inference(x, np.zeros(128), np.ones(128), out=x)
    assert seen == [streaming]
