"""Results do not depend on NumPy's error state, whatever the user has set, and nothing warns."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import fastbn
from fastbn import cs231n, reference

VALUES = {
    "underflow": [1e-44, 2e-44, 1e-45, 3e-44],
    "overflow": [3e38, -3e38, 1e38, 2e38],
    "infinity": [np.inf, -np.inf, 1.0, np.inf],
    "NaN": [np.nan, 1.0, 2.0, np.nan],
    "zeros": [0.0, -0.0, 0.0, 0.0],
    "float64 alone": [1e300, 1e-320, -1e300, 1e308],
    "ordinary": [1.0, 2.0, 3.0, 5.0],
}


def tensor(values, dtype, layout):
    with np.errstate(all="ignore"):
        x = np.tile(np.array(values).astype(dtype), 3).reshape(4, 3)
    return x.repeat(2, 0)[::2] if layout == "strided" else x


def layer_of(x, dtype):
    layer = fastbn.BatchNorm(3, dtype=dtype)
    layer(x)
    out = layer.eval()(x)
    layer.keep_for_backward = True
    layer(x)
    return out, layer.backward(x), layer.dgamma, *layer.state_dict().values(), layer.freeze()(x)


def differentiated(x, *, training, dtype):
    with np.errstate(all="ignore"):
        gamma, beta, mean, var = (np.full(3, value, dtype) for value in (1e-30, 1e30, 0.0, 1e-30))
    statistics = () if training else (mean, var)
    out, cache = fastbn.forward(x, gamma, beta, *statistics, training=training)
    dx, dgamma, dbeta = fastbn.backward(x, cache)
    return out, dx, dgamma, dbeta


def split(x):
    moments = fastbn.moments(x[:2]).merge(fastbn.moments(x[2:]))
    inv_std = np.full(3, 1e200)
    sums = fastbn.backward_sums(x, x, moments.mean, inv_std)
    dx = fastbn.backward_input(x, x, moments.mean, inv_std, None, *sums, 4)
    return moments.mean, moments.var, fastbn.normalize(x, moments.mean, inv_std), *sums, dx


def updated(x, dtype):
    mean, var = np.full(6, 1e-38, dtype)[::2], np.full(6, 1e38, dtype)[::2]
    fastbn.forward(x, running_mean=mean, running_var=var, momentum=1e-7)
    return mean, var


def recalibrated(x):
    layer = fastbn.BatchNorm(3)
    fastbn.recalibrate(layer, [x, x], progress=False)
    return layer.running_mean, layer.running_var


def loaded(x):
    """float64 numbers that float32 cannot hold are refused; half precision is widened."""
    layer = fastbn.BatchNorm(3, dtype=np.float64)
    with np.errstate(all="ignore"):
        state = {name: np.abs(x[0]).astype(np.float16) for name in ("weight", "bias", "running_mean", "running_var")}
    layer.load_state_dict(state)
    return tuple(layer.state_dict().values())


def folded(x):
    with np.errstate(all="ignore"):
        frozen = fastbn.FrozenBatchNorm(x[0], np.abs(x[1]), x[2], x[3])
        weight = np.tile(x[0], 3).reshape(3, 3)
    return *fastbn.fold.linear(weight, x[1], frozen), *fastbn.fold.scale_shift(frozen)


def course(x):
    out, cache = cs231n.batchnorm_forward(x, x[0], x[1], {"mode": "train"})
    return out, *cs231n.batchnorm_backward(x, cache), *cs231n.batchnorm_backward_alt(x, cache)


def specification(x):
    out, mean, var = reference.forward(x)
    return out, mean, var, *reference.backward(x, x), reference.inference(x, mean, np.abs(var))


CALLS = {
    "layer": lambda x: layer_of(x, np.float32),
    "layer in float64": lambda x: layer_of(x, np.float64),
    "training": lambda x: differentiated(x, training=True, dtype=np.float32),
    "training, parameters in float64": lambda x: differentiated(x, training=True, dtype=np.float64),
    "training, parameters in float16": lambda x: differentiated(x, training=True, dtype=np.float16),
    "frozen": lambda x: differentiated(x, training=False, dtype=np.float32),
    "split phases": split,
    "running arrays": lambda x: updated(x, np.float32),
    "running arrays in float64": lambda x: updated(x, np.float64),
    "recalibration": recalibrated,
    "states": loaded,
    "folding": folded,
    "the course's functions": course,
    "the reference": specification,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["in order", "strided"])
def test_nothing_raises_or_warns(call, dtype, layout):
    for name, values in VALUES.items():
        x = tensor(values, dtype, layout)
        results = []
        for state in ("ignore", "raise", "warn"):
            with np.errstate(all=state), warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    results.append([np.asarray(result).tobytes() for result in CALLS[call](x)])
                except FloatingPointError as error:
                    pytest.fail(f"{name}: {error}")
        assert results[0] == results[1] == results[2], name


def test_a_signaling_nan():
    x = np.array([0x7FA00000] * 8, np.uint32).view(np.float32).reshape(4, 2)
    with np.errstate(all="raise"):
        assert np.isnan(fastbn.forward(x).out).all()
        assert np.isnan(fastbn.forward(x.astype(">f4")).out).all()
        assert np.isnan(fastbn.inference(x, x[0], x[1])).all()
