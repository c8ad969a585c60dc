"""Every row of ``data/bad_inputs.json`` and its decision; then the rules that the table does not list."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastbn
from fastbn import _validation, reference
from tests.data_for_tests import channels_last, read_only, same_bits, tensor

TABLE = json.loads((Path(__file__).parent / "data" / "bad_inputs.json").read_text())["entries"]
ROWS: dict[str, Callable] = {}


def row(function):
    ROWS[function.__name__.removeprefix("row_")] = function
    return function


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry["id"])
def test_row(entry, rng):
    ROWS[entry["id"]](rng)


def test_no_row_is_left_over():
    assert ROWS.keys() == {entry["id"] for entry in TABLE}


SHAPE = (4, 3, 5, 6)
C = 3


def calls(x, **changes):
    """Every public function that takes a tensor, with sound arguments but for x and the changes."""
    running = {"running_mean": np.zeros(C), "running_var": np.ones(C)}
    parameters = {"gamma": np.ones(C), "beta": np.zeros(C)}
    statistics = {"mean": np.zeros(C), "inv_std": np.ones(C)}

    def pick(**arguments):
        return {**arguments, **{name: value for name, value in changes.items() if name in arguments}}

    training = pick(**parameters, **running, eps=1e-5, momentum=0.1, axis=1, out=None)
    evaluation = pick(**parameters, **running, eps=1e-5, axis=1, out=None)
    normalizing = pick(**statistics, **parameters, axis=1, out=None)
    sums = {"sum_dout": np.zeros(C), "sum_dout_xhat": np.zeros(C)}
    return {
        "forward": lambda: fastbn.forward(x, **training),
        "forward evaluation": lambda: fastbn.forward(x, training=False, **evaluation),
        "inference": lambda: fastbn.inference(x, **evaluation),
        "moments": lambda: fastbn.moments(x, **pick(axis=1)),
        "normalize": lambda: fastbn.normalize(x, **normalizing),
        "backward_sums": lambda: fastbn.backward_sums(x, x, **pick(**statistics, axis=1)),
        "backward_input": lambda: fastbn.backward_input(
            x, x, **pick(**statistics, gamma=None, **sums, count=8.0, axis=1, out=None)
        ),
        "layer": lambda: fastbn.BatchNorm(C)(x),
        "frozen": lambda: fastbn.BatchNorm(C).freeze()(x),
    }


def results(value):
    """All arrays of a result."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, fastbn.Moments):
        return [value.mean, value.var]
    if isinstance(value, fastbn.ForwardResult):
        return [value.out, value.cache.mean, value.cache.inv_std]
    return list(value)


def accepted_as(x, contiguous):
    """Every function gives for x the bits that it gives for the contiguous array."""
    expected = {name: results(call()) for name, call in calls(contiguous).items()}
    for name, call in calls(x).items():
        for a, b in zip(results(call()), expected[name], strict=True):
            assert same_bits(a, b), name
    _, cache = fastbn.forward(x)
    _, contiguous_cache = fastbn.forward(contiguous)
    dx = fastbn.backward(x, cache).dx
    assert same_bits(dx, fastbn.backward(contiguous, contiguous_cache).dx)
    return dx


def refused(x, error, message, **changes):
    for name, call in calls(x, **changes).items():
        with pytest.raises(error, match=message) as caught:
            call()
        assert caught.type is error, name  # not a subclass, such as NumPy's AxisError


def refused_where(error, message, functions, **changes):
    """As ``refused``, for the named functions with a sound x."""
    x = np.ones(SHAPE, np.float32) * np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    for name in functions:
        with pytest.raises(error, match=message):
            calls(x, **changes)[name]()


@row
def row_noncontig(rng):
    x = tensor(rng, (4, 6, 5, 6))
    accepted_as(x[:, ::2], np.ascontiguousarray(x[:, ::2]))
    for axes in ((2, 1, 0, 3), (3, 1, 0, 2), (0, 1, 3, 2)):
        turned = tensor(rng, tuple(np.array(SHAPE)[np.argsort(axes)])).transpose(axes)
        assert turned.shape == SHAPE
        accepted_as(turned, np.ascontiguousarray(turned))
    nhwc = tensor(rng, (4, 5, 6, 3))  # channels last in memory: the bits of the channels-last copy
    accepted_as(nhwc.transpose(0, 3, 1, 2), channels_last(nhwc.transpose(0, 3, 1, 2)))


@row
def row_neg_stride(rng):
    x = tensor(rng, SHAPE)
    for view in (x[::-1], x[..., ::-1], x[:, ::-1, ::-1]):
        accepted_as(view, np.ascontiguousarray(view))


@row
def row_fortran(rng):
    x = tensor(rng, SHAPE)
    accepted_as(np.asfortranarray(x), x)
    assert fastbn.forward(np.asfortranarray(x)).out.flags.c_contiguous
    assert fastbn.forward(channels_last(x)).out.strides == channels_last(x).strides


@row
def row_readonly_x(rng):
    x = rng.standard_normal(SHAPE, dtype=np.float32)
    from fastbn.kernels import channels_first, channels_last

    accepted_as(read_only(x.copy()), x)
    for module in (channels_first, channels_last):
        for kernel in (module.forward, module.batch_stats, module.normalize, module.backward):
            for twin in (kernel.serial, kernel.parallel):
                signatures = getattr(twin, "signatures", [])  # none where the code is interpreted
                assert not any("readonly" in str(signature) for signature in signatures)


@row
def row_readonly_stats(rng):
    x = tensor(rng, SHAPE)
    for name in ("running_mean", "running_var"):
        running = {"running_mean": np.zeros(C), "running_var": np.ones(C)}
        running[name].flags.writeable = False
        out = np.full(SHAPE, 7, np.float32)
        with pytest.raises(ValueError, match=f"{name}: expected a writable array, got a read-only one"):
            fastbn.forward(x, **running, out=out)
        assert (out == 7).all()
        fastbn.forward(x, **running, training=False)
        fastbn.inference(x, **running)


@row
def row_misaligned(rng):
    x = tensor(rng, SHAPE)
    for offset in (1, 2, 3):
        moved = np.frombuffer(bytes(offset) + x.tobytes(), np.uint8)[offset:].view(np.float32).reshape(SHAPE)
        assert not moved.flags.aligned
        accepted_as(moved, x)
    raw = np.empty(x.nbytes + 1, np.uint8)
    out = raw[1:].view(np.float32).reshape(SHAPE)
    assert fastbn.forward(x, out=out).out is out
    assert same_bits(out, fastbn.forward(x).out)


@row
def row_big_endian(rng):
    x = tensor(rng, SHAPE)
    swapped = x.astype(">f4")
    dx = accepted_as(swapped, x)
    assert dx.dtype.isnative
    assert fastbn.forward(swapped).out.dtype == np.dtype("=f4")
    running = {"running_mean": np.zeros(C), "running_var": np.ones(C)}
    with pytest.raises(TypeError, match="out: expected native byte order, got >f4"):
        fastbn.forward(x, out=swapped.copy())
    for name in running:
        with pytest.raises(TypeError, match=f"{name}: expected native byte order, got >f8"):
            fastbn.forward(x, **{**running, name: np.ones(C, ">f8")})
    signaling = np.frombuffer(b"\x7f\x80\0\1" * 3, ">f4")  # a NaN that is converted with a warning
    assert np.isnan(fastbn.inference(x, signaling, np.ones(C, np.float32))).all()
    gamma = np.arange(3.0)
    assert same_bits(fastbn.forward(x, gamma.astype(">f8")).out, fastbn.forward(x, gamma).out)


@row
def row_int(rng):
    for dtype in (np.int8, np.int32, np.int64, np.uint8):
        refused(np.ones(SHAPE, dtype), TypeError, f"x|dout: expected dtype float32 or float64, got {np.dtype(dtype)}")


@row
def row_bool(rng):
    refused(np.ones(SHAPE, bool), TypeError, "expected dtype float32 or float64, got bool")


@row
def row_object(rng):
    refused(np.ones(SHAPE, object), TypeError, "expected dtype float32 or float64, got object")
    refused(np.full(SHAPE, "1.0"), TypeError, "expected dtype float32 or float64, got <U3")


@row
def row_complex(rng):
    refused(np.ones(SHAPE, np.complex64), TypeError, "expected dtype float32 or float64, got complex64")


@row
def row_float16(rng):
    refused(np.ones(SHAPE, np.float16), TypeError, "got float16: half precision is not built yet")


@row
def row_longdouble(rng):
    refused(np.ones(SHAPE, np.longdouble), TypeError, "expected dtype float32 or float64, got ")


@row
def row_mixed_dtype(rng):
    x, dout = tensor(rng, SHAPE), tensor(rng, SHAPE)
    double = {"gamma": rng.uniform(1, 2, C), "beta": rng.standard_normal(C)}
    single = {name: value.astype(np.float32) for name, value in double.items()}
    for given in (double, single):
        running = np.zeros(C, given["gamma"].dtype), np.ones(C, given["gamma"].dtype)
        out, cache = fastbn.forward(x, **given, running_mean=running[0], running_var=running[1])
        _, dgamma, dbeta = fastbn.backward(dout, cache)
        assert out.dtype == np.float32
        assert dgamma.dtype == dbeta.dtype == running[0].dtype == given["gamma"].dtype
        out, cache = fastbn.forward(x.astype(np.float64), **given)
        assert out.dtype == np.float64
    with pytest.raises(TypeError, match="dout: expected dtype float64, that of x, got float32"):
        fastbn.backward(dout, cache)
    with pytest.raises(TypeError, match="out: expected dtype float32, that of x, got float64"):
        fastbn.forward(x, out=np.empty(SHAPE))


def empty(shape):
    running = np.zeros(C), np.ones(C)
    x = np.empty(shape, np.float32)
    out, cache = fastbn.forward(x, np.ones(C), np.zeros(C), *running)
    assert out.shape == shape
    assert out.dtype == np.float32
    gradients = fastbn.backward(x, cache)
    assert gradients.dx.shape == shape
    assert (gradients.dgamma == 0).all()
    assert (gradients.dbeta == 0).all()
    assert (running[0] == 0).all()
    assert (running[1] == 1).all()
    layer = fastbn.BatchNorm(C)
    layer(x)
    assert layer.num_batches_tracked == 0
    with pytest.raises(ValueError, match=r"running_var: expected shape \(3,\)"):
        fastbn.forward(x, running_mean=running[0], running_var=np.ones(4))
    with pytest.raises(TypeError, match="gamma: expected dtype"):
        fastbn.forward(x, np.ones(C, int))


@row
def row_zero_batch(rng):
    empty((0, C, 4, 4))


@row
def row_zero_spatial(rng):
    empty((2, C, 0, 4))


@row
def row_zero_channels(rng):
    out, cache = fastbn.forward(np.empty((4, 0)), np.empty(0), np.empty(0), np.empty(0), np.empty(0))
    assert out.shape == (4, 0)
    assert [a.shape for a in fastbn.backward(out, cache)] == [(4, 0), (0,), (0,)]


@row
def row_one_value(rng):
    for shape in ((1, C), (1, C, 1, 1)):
        running = np.zeros(C), np.ones(C)
        out = np.full(shape, 7.0)
        with pytest.raises(ValueError, match="x: expected more than 1 value per channel when training, got shape"):
            fastbn.forward(np.ones(shape), None, None, *running, out=out)
        assert (out == 7).all()
        assert (running[0] == 0).all()
        assert (running[1] == 1).all()
        fastbn.forward(np.ones(shape), None, None, *running, training=False)
        assert fastbn.moments(np.ones(shape)).var.tolist() == [0.0] * C


@row
def row_ndim(rng):
    refused(np.float32(1.0), ValueError, "expected 2 or more dimensions, got 0")
    refused(np.ones(C), ValueError, "expected 2 or more dimensions, got 1")
    refused(np.ones(C, np.float32), ValueError, "expected 2 or more dimensions, got 1", axis=0)
    x = tensor(rng, (2, 3, 2, 2, 2, 2))
    np.testing.assert_allclose(fastbn.forward(x).out, reference.forward(x)[0], atol=1e-6)
    for kind, good in ((fastbn.BatchNorm1d, (2, 3)), (fastbn.BatchNorm2d, (4,)), (fastbn.BatchNorm3d, (5,))):
        for ndim in range(2, 7):
            x = np.ones((2, 3, 2, 2, 2, 2)[:ndim])
            if ndim in good:
                kind(3)(x)
            else:
                with pytest.raises(ValueError, match=f"x: expected .* dimensions, got {ndim}"):
                    kind(3)(x)


@row
def row_channels(rng):
    four = np.ones(4)
    for name in ("gamma", "beta", "running_mean", "running_var"):
        refused_where(
            ValueError,
            rf"{name}: expected shape \(3,\), one value a channel, got \(4,\)",
            ["forward", "forward evaluation", "inference"],
            **{name: four},
        )
    for name in ("mean", "inv_std"):
        refused_where(ValueError, rf"{name}: expected shape \(3,\)", ["normalize", "backward_sums"], **{name: four})
    for name in ("mean", "inv_std", "gamma", "sum_dout", "sum_dout_xhat"):
        refused_where(ValueError, rf"{name}: expected shape \(3,\)", ["backward_input"], **{name: four})
    _, cache = fastbn.forward(tensor(rng, SHAPE))
    with pytest.raises(ValueError, match=re.escape("dout: expected shape (4, 3, 5, 6), that of x, got (4, 4, 5, 6)")):
        fastbn.backward(np.ones((4, 4, 5, 6), np.float32), cache)
    with pytest.raises(ValueError, match="x: expected 4 channels on axis 1, got 3"):
        fastbn.BatchNorm(4)(np.ones(SHAPE))


@row
def row_stats_2d(rng):
    for name in ("running_mean", "running_var", "gamma", "beta"):
        refused_where(
            ValueError,
            rf"{name}: expected shape \(3,\), one value a channel, got \(3, 1\)",
            ["forward", "forward evaluation", "inference"],
            **{name: np.ones((3, 1))},
        )


@row
def row_one_stat_none(rng):
    for missing, present in (("running_mean", "running_var"), ("running_var", "running_mean")):
        refused_where(
            ValueError,
            f"{missing}: expected an array, as {present} is given, got None",
            ["forward", "forward evaluation"],
            **{missing: None},
        )


@row
def row_eval_no_stats(rng):
    with pytest.raises(ValueError, match="running_mean: expected an array with training=False, got None"):
        fastbn.forward(tensor(rng, SHAPE), training=False)


def spoiled(rng, bad):
    x = tensor(rng, SHAPE).copy()
    x[1, 1, 2, 3] = bad
    running = np.zeros(C), np.ones(C)
    out, cache = fastbn.forward(x, None, None, *running)
    dx = fastbn.backward(np.ones_like(x), cache).dx
    for a in (out, dx):
        assert np.isnan(a[:, 1]).all()
        assert np.isfinite(a[:, [0, 2]]).all()
    for a in running:
        assert np.isfinite(a).tolist() == [True, False, True]
    out = fastbn.inference(x, np.zeros(C), np.ones(C))
    assert np.isfinite(out).sum() == x.size - 1
    layer = fastbn.BatchNorm(C, nan_policy="raise")
    with pytest.raises(ValueError, match="x: expected finite values"):
        layer(x)
    assert (layer.running_mean == 0).all()
    assert layer.num_batches_tracked == 0


@row
def row_nan_x(rng):
    spoiled(rng, np.nan)


@row
def row_inf_x(rng):
    spoiled(rng, np.inf)


@row
def row_neg_running_var(rng):
    bad = np.array([1.0, -1e-4, 1.0])
    refused_where(
        ValueError,
        "running_var: expected no value below -eps = -1e-05, got -0.0001",
        ["forward", "forward evaluation", "inference"],
        running_var=bad,
    )
    with pytest.raises(ValueError, match="running_var: expected no value below"):
        fastbn.FrozenBatchNorm(np.zeros(C), bad)
    hidden = np.array([-1.0, 0.0, 1.0], np.float32)
    hidden.view(np.uint32)[1] = 0x7F800001  # a signaling NaN
    with pytest.raises(ValueError, match=r"running_var: expected no value below -eps = -1e-05, got -1\.0"):
        fastbn.FrozenBatchNorm(np.zeros(C), hidden)
    with pytest.raises(ValueError, match="running_var: expected no value below"):  # by less than a float32 can tell
        fastbn.inference(tensor(rng, SHAPE), np.zeros(C), np.full(C, -np.float32(1e-3)), eps=1e-3)
    fastbn.inference(tensor(rng, SHAPE), np.zeros(C), np.array([1.0, -1e-6, 1.0]))


@row
def row_nan_running_var(rng):
    out = fastbn.inference(tensor(rng, SHAPE), np.zeros(C), np.array([1.0, np.nan, 1.0]))
    assert np.isnan(out[:, 1]).all()
    assert np.isfinite(out[:, [0, 2]]).all()


@row
def row_eps_zero(rng):
    refused_where(ValueError, "eps: expected a finite number above 0 in training, got 0.0", ["forward"], eps=0.0)
    x = tensor(rng, SHAPE)
    assert same_bits(fastbn.inference(x, np.zeros(C), np.ones(C), eps=0), x)
    fastbn.forward(x, None, None, np.zeros(C), np.ones(C), training=False, eps=0)


@row
def row_eps_negative(rng):
    refused_where(ValueError, "eps: expected .* got -1.0", ["forward", "forward evaluation", "inference"], eps=-1)


@row
def row_eps_nan_inf(rng):
    for eps in (np.nan, np.inf, -np.inf):
        refused_where(ValueError, "eps: expected", ["forward", "forward evaluation", "inference"], eps=eps)


@row
def row_momentum(rng):
    for momentum in (-0.1, 1.1, np.nan, np.inf):
        refused_where(ValueError, f"momentum: expected 0 to 1, got {momentum}", ["forward"], momentum=momentum)
    refused_where(TypeError, "momentum: expected a number, got NoneType None", ["forward"], momentum=None)
    assert fastbn.BatchNorm(C, momentum=None).momentum is None


@row
def row_alias_exact(rng):
    x = tensor(rng, SHAPE).copy()
    before = x.copy()
    with pytest.raises(ValueError, match="out: expected memory of its own, got an overlap with x"):
        fastbn.forward(x, out=x)
    _, cache = fastbn.forward(x)
    with pytest.raises(ValueError, match="out: expected memory of its own, got an overlap with x"):
        fastbn.backward(np.ones_like(x), cache, out=x)
    assert same_bits(x, before)
    assert fastbn.inference(x, np.zeros(C), np.ones(C), out=x) is x
    dout = before.copy()
    assert fastbn.backward(dout, fastbn.forward(before).cache, out=dout).dx is dout


@row
def row_alias_overlap(rng):
    base = tensor(rng, (5, 3, 5, 6)).copy()
    before = base.copy()
    x, out = base[:-1], base[1:]
    running = np.zeros(C), np.ones(C)
    _, cache = fastbn.forward(before[:-1])
    for call in (
        lambda: fastbn.forward(x, out=out),
        lambda: fastbn.inference(x, *running, out=out),
        lambda: fastbn.forward(x, None, None, *running, training=False, out=out),
        lambda: fastbn.normalize(x, *running, out=out),
        lambda: fastbn.backward(x, cache, out=out),
        lambda: fastbn.backward_input(x, before[:-1], *running, None, *running, 1, out=out),
        lambda: fastbn.inference(x, *running, out=x[:, ::-1]),
    ):
        with pytest.raises(ValueError, match=r"out: expected .* got an overlap with"):
            call()
    assert same_bits(base, before)
    # interleaved, but not one element is shared
    base = tensor(rng, (4, 3, 5, 12)).copy()
    expected = fastbn.forward(base[..., ::2].copy()).out
    assert same_bits(fastbn.forward(base[..., ::2], out=base[..., 1::2]).out, expected)


@row
def row_alias_stats(rng):
    x, stats = tensor(rng, SHAPE), np.ones(C)
    buffer = np.ones(5)
    for arguments, message in (
        ({"running_mean": stats, "running_var": stats}, "running_mean: .* overlap with running_var"),
        ({"running_mean": buffer[:3], "running_var": buffer[2:]}, "running_mean: .* overlap with running_var"),
        ({"running_mean": np.ones(C), "running_var": stats, "gamma": stats}, "running_var: .* overlap with gamma"),
        ({"running_mean": stats, "running_var": np.ones(C), "beta": stats}, "running_mean: .* overlap with beta"),
    ):
        with pytest.raises(ValueError, match=message):
            fastbn.forward(x, **arguments)
    assert (stats == 1).all()
    square = np.ones((3, 3))
    with pytest.raises(ValueError, match=r"running_mean: .* overlap with x"):
        fastbn.forward(square, None, None, square[0], np.ones(3))
    for name in ("gamma", "beta", "running_mean", "running_var"):
        arguments = {"running_mean": np.zeros(C), "running_var": np.ones(C)}
        out = np.ones((2, C))
        with pytest.raises(ValueError, match=f"out: .* overlap with {name}"):
            fastbn.forward(np.ones((2, C)), **{**arguments, name: out[0]}, out=out)


@row
def row_masked(rng):
    refused(np.ma.masked_invalid(np.ones(SHAPE)), TypeError, "expected a plain array, got a masked array")
    with pytest.raises(TypeError, match="x: expected a plain array, got a masked array"):
        fastbn.forward([np.ma.array([1.0, 2.0], mask=[1, 0]), np.ma.array([1.0, 2.0])])
    with pytest.raises(TypeError, match="gamma: expected a plain array, got a masked array"):
        fastbn.forward(tensor(rng, SHAPE), np.ma.ones(C))


@row
def row_subclass(rng):
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix(np.ones((4, 3)))
    refused(matrix, TypeError, r"expected a plain array, got numpy.*matrix")
    refused(np.ones(SHAPE).view(np.recarray), TypeError, "expected a plain array, got numpy.*recarray")
    import tempfile

    x = tensor(rng, SHAPE)
    with tempfile.NamedTemporaryFile() as file:
        file.write(x.tobytes())
        file.flush()
        for mode in ("r", "r+", "c"):
            mapped = np.memmap(file.name, np.float32, mode, shape=SHAPE)
            accepted_as(mapped, x)
            assert type(fastbn.forward(mapped).out) is np.ndarray
            if mode != "r":
                expected = fastbn.inference(x, np.zeros(C), np.ones(C))
                assert fastbn.inference(mapped, np.zeros(C), np.ones(C), out=mapped) is mapped
                assert same_bits(np.asarray(mapped), expected)
                mapped[...] = x
            del mapped


@row
def row_arraylike(rng):
    x = tensor(rng, (4, 3), np.float64)
    accepted_as(x.tolist(), x)
    assert fastbn.forward(x.tolist()).out.dtype == np.float64
    refused([[1, 2, 3], [4, 5, 6]], TypeError, "expected dtype float32 or float64, got int64")
    refused([[1.0, 2.0, 3.0], [4.0]], ValueError, "x|dout: expected an array, got list")
    assert same_bits(fastbn.forward(x, [1.0, 2.0, 3.0]).out, fastbn.forward(x, np.array([1.0, 2.0, 3.0])).out)
    for name in ("running_mean", "out"):
        arguments = {"running_mean": np.zeros(C), "running_var": np.ones(C), name: [0.0, 0.0, 0.0]}
        with pytest.raises(TypeError, match=f"{name}: expected an array to write into, got list"):
            fastbn.forward(x, **arguments)


@row
def row_broadcast(rng):
    for x in (
        np.broadcast_to(tensor(rng, (1, 3, 5, 6)), SHAPE),
        np.broadcast_to(tensor(rng, (4, 1, 5, 6)), SHAPE),
        np.broadcast_to(tensor(rng, (4, 3, 1, 1)), SHAPE),
    ):
        accepted_as(x, np.ascontiguousarray(x))
    x = tensor(rng, SHAPE)
    wide = np.lib.stride_tricks.as_strided(np.zeros((1, 3, 5, 6), np.float32), SHAPE, (0, 120, 24, 4))
    assert wide.flags.writeable
    with pytest.raises(ValueError, match="out: expected distinct elements, got strides"):
        fastbn.forward(x, out=wide)
    one = np.lib.stride_tricks.as_strided(np.zeros(1), (C,), (0,))
    for name in ("running_mean", "running_var"):
        with pytest.raises(ValueError, match=f"{name}: expected distinct elements, got strides"):
            fastbn.forward(x, **{"running_mean": np.zeros(C), "running_var": np.ones(C), name: one})


@row
def row_huge_mean(rng):
    for dtype, mean in ((np.float64, 1e8), (np.float32, 1e4)):
        x = tensor(rng, (32, 8, 20, 20), dtype, mean=mean)
        exact = (x.astype(np.float64) - mean).var((0, 2, 3))
        for given in (x, channels_last(x)):
            np.testing.assert_allclose(fastbn.moments(given).var, exact, rtol=1e-6)
    x = np.full((64, 4), 1e8, np.float32)
    x[::2] += 8
    assert (fastbn.moments(x).var == 16).all()


@row
def row_subnormal(rng):
    x = (tensor(rng, SHAPE) * np.float32(1e-39)).astype(np.float32)
    assert (np.abs(x[x != 0]) < np.finfo(np.float32).tiny).any()
    assert same_bits(fastbn.inference(x, np.zeros(C), np.ones(C), eps=0), x)
    np.testing.assert_allclose(fastbn.moments(x).var, x.astype(np.float64).var((0, 2, 3)), rtol=1e-9)


@row
def row_big(rng):
    """More than 2**31 elements; zeros are never touched by the system, so that they need no memory."""
    if not hasattr(fastbn.kernels.channels_first.batch_stats.serial, "py_func"):
        return  # interpreted, it would take an hour; the kernels' arithmetic is the same
    for shape, axis in (((3, 2, 2**29 - 3), 1), ((2**22 - 1, 1030), 1)):
        x = np.zeros(shape, np.float32)
        assert x.size > 2**31
        x[-1, -1, ...].reshape(-1)[-1] = 2.0
        moments = fastbn.moments(x, axis=axis)
        expected = np.zeros(shape[axis])
        expected[-1] = 2.0 / moments.count
        np.testing.assert_allclose(moments.mean, expected, rtol=1e-12)
        np.testing.assert_allclose(moments.var, expected * 2.0, rtol=1e-6)
        assert moments.count == x.size // shape[axis]
        sums = fastbn.backward_sums(x, x, np.zeros(shape[axis]), np.ones(shape[axis]), axis=axis)
        assert sums[0][-1] == 2.0
        assert sums[1][-1] == 4.0


@row
def row_big_channel(rng):
    """A float32 counter stops at 2**24."""
    if not hasattr(fastbn.kernels.channels_first.batch_stats.serial, "py_func"):
        return  # as above
    x = np.ones((2, 1, 2**24), np.float32)
    x[1] = 3.0
    moments = fastbn.moments(x)
    assert moments.mean == 2.0
    np.testing.assert_allclose(moments.var, 1.0, rtol=1e-12)
    assert moments.count == 2**25


@row
def row_exception_midway(rng):
    """The layers' side, with injected failures and real signals, is in test_layers; here the functional one."""
    from fastbn import _state

    mean, var, counter = np.zeros(C), np.ones(C), np.zeros((), np.int64)
    for bad in ("not a number", np.ones(4)):
        with pytest.raises((TypeError, ValueError), match=r"invalid literal|could not broadcast|sequence|array"):
            _state.assign_together([(mean, 5.0), (var, 6.0), (counter, bad)])
        assert (mean == 0).all()
        assert (var == 1).all()
        assert counter == 0


@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [
        (4, ValueError, "axis: expected -4 to 3 for 4 dimensions, got 4"),
        (-5, ValueError, "axis: expected -4 to 3 for 4 dimensions, got -5"),
        (1.0, TypeError, "axis: expected an integer, got float 1.0"),
        (None, TypeError, "axis: expected an integer, got NoneType None"),
        ((1, 2), TypeError, "axis: expected an integer, got tuple"),
    ],
)
def test_axis(axis, error, message):
    functions = ["forward", "forward evaluation", "inference", "moments", "normalize", "backward_sums"]
    refused_where(error, message, functions, axis=axis)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"training": 1}, TypeError, "training: expected True or False, got int 1"),
        ({"training": "yes"}, TypeError, "training: expected True or False"),
        ({"eps": "1e-5"}, TypeError, "eps: expected a number, got str"),
        ({"eps": True}, TypeError, "eps: expected a number, got bool True"),
        ({"eps": np.ones(2)}, TypeError, r"eps: expected a number, got an array of shape \(2,\)"),
        ({"correction": -1}, ValueError, "correction: expected a finite number not below 0, got -1.0"),
        ({"correction": np.nan}, ValueError, "correction: expected"),
        (
            {"correction": 120, "running_mean": np.zeros(C), "running_var": np.ones(C)},
            ValueError,
            "correction: expected less than the 120 values per channel, got 120.0",
        ),
        ({"out": np.ones((4, 3))}, ValueError, r"out: expected shape \(4, 3, 5, 6\), that of x, got \(4, 3\)"),
        ({"out": "x"}, TypeError, "out: expected an array to write into, got str 'x'"),
        ({"out": read_only(np.ones(SHAPE, np.float32))}, ValueError, "out: expected a writable array"),
        (
            {"running_mean": np.ones(C, np.float16), "running_var": np.ones(C, np.float16)},
            TypeError,
            "running_mean: expected dtype .* half precision is not built yet for .* updated in place",
        ),
        ({"running_mean": np.zeros(C, int), "running_var": np.ones(C)}, TypeError, "running_mean: expected dtype"),
    ],
)
def test_refused_options(options, error, message):
    x = np.ones(SHAPE, np.float32)
    with pytest.raises(error, match=message):
        fastbn.forward(x, **options)


def test_numpy_scalars_are_numbers(rng):
    x = tensor(rng, SHAPE)
    expected = fastbn.forward(x, eps=0.5).out
    for eps in (np.float32(0.5), np.float64(0.5)):
        assert same_bits(fastbn.forward(x, eps=eps, training=np.True_, axis=np.int64(1)).out, expected)


@pytest.mark.parametrize("count", [0, -1, np.nan, np.inf])
def test_count(count):
    refused_where(ValueError, "count: expected a finite number above 0", ["backward_input"], count=count)


@pytest.mark.peers
def test_tensors_of_other_libraries(rng):
    """What turns into an array is one; what refuses to is named."""
    torch = pytest.importorskip("torch")
    x = tensor(rng, SHAPE)
    assert same_bits(fastbn.forward(torch.from_numpy(x.copy())).out, fastbn.forward(x).out)
    with pytest.raises(TypeError, match="x: expected an array, got Tensor"):
        fastbn.forward(torch.ones(4, 3, requires_grad=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, np.zeros(3), np.ones(3)), ValueError, "count: expected an integer not below 0"),
        ((1.5, np.zeros(3), np.ones(3)), TypeError, "count: expected an integer"),
        ((1, np.zeros(3), np.ones(1)), ValueError, r"var: expected shape \(3,\)"),
        ((1, np.zeros(3), -np.ones(3)), ValueError, "var: expected no value below"),
        ((1, [1, 2, 3], np.ones(3)), TypeError, "mean: expected dtype"),
    ],
)
def test_moments_from_elsewhere(arguments, error, message):
    with pytest.raises(error, match=message):
        fastbn.Moments(*arguments)
    assert fastbn.Moments(3, np.zeros(3, np.float32), [1.0, 1.0, 1.0]).var.dtype == np.float64


def test_objects_of_other_kinds(rng):
    x = tensor(rng, SHAPE)
    with pytest.raises(TypeError, match="cache: expected a Cache, got tuple"):
        fastbn.backward(x, (x, None))
    with pytest.raises(TypeError, match="other: expected a Moments, got int 1"):
        fastbn.moments(x).merge(1)
    with pytest.raises(ValueError, match=r"other.mean: expected shape \(3,\)"):
        fastbn.moments(x).merge(fastbn.moments(x[:, :2]))


def test_a_refused_call_writes_nothing(rng):
    """Everything is validated before the first write: the last argument is bad, the rest is as it was."""
    x = tensor(rng, SHAPE)
    running = np.zeros(C), np.ones(C)
    out = np.full(SHAPE, 7, np.float32)
    for bad in ({"gamma": np.ones(4)}, {"correction": 1000}, {"eps": 0.0}, {"axis": 7}, {"momentum": 2}):
        with pytest.raises(ValueError, match="expected"):
            fastbn.forward(x, running_mean=running[0], running_var=running[1], out=out, **bad)
    assert (out == 7).all()
    assert (running[0] == 0).all()
    assert (running[1] == 1).all()


def test_strides_that_cannot_be_told_apart_cheaply():
    """Whether such strides overlap takes a minute to decide (NumPy's own example); what is not decided is refused."""
    raw = np.zeros(192163377, np.int8)
    a = np.lib.stride_tricks.as_strided(raw, (1049, 1049, 1049), (36674, 61119, 85569))
    b = np.lib.stride_tricks.as_strided(raw[64023025:], (1049, 1049, 1), (12223, 12224, 1))
    assert _validation.arrays._share_memory(a, b)
