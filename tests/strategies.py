"""What Hypothesis draws: tensors of any shape and in any place in memory, and the other arguments of a call.

Values come from a seed, not from Hypothesis: it is shapes, strides and options that break kernels, and what breaks is
made smaller by these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from hypothesis import strategies as st

from tests.data_for_tests import nan_like, read_only

JIT = not numba.config.DISABLE_JIT
DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 2**32 - 1)
SMALL, TAILS = (0, 1, 2, 3, 5), (8, 15, 16, 17, 31, 33, 64, 70)
"""Lengths: few values, and around registers of 8 and 16."""


def _contiguous(values, rng):
    return values.copy()


def _fortran(values, rng):
    return np.asfortranarray(values)


def _permuted(values, rng):
    order = rng.permutation(values.ndim)
    return np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))


def _reversed(values, rng):
    flip = tuple(slice(None, None, rng.choice([-1, 1])) for _ in values.shape)
    return np.ascontiguousarray(values[flip])[flip]


def _stepped(values, rng):
    steps = rng.integers(1, 4, values.ndim)
    wide = np.full([n * step for n, step in zip(values.shape, steps, strict=True)], np.nan, values.dtype)
    view = wide[tuple(slice(None, None, step) for step in steps)]
    view[...] = values
    return view


def _misaligned(values, rng):
    offset = rng.integers(1, values.itemsize)
    raw = np.empty(values.nbytes + offset, np.uint8)
    view = raw[offset:].view(values.dtype).reshape(values.shape)
    view[...] = values
    return view


def _moved(values, rng):
    """Contiguous, at any distance from a cache line."""
    offset = rng.integers(0, 64)
    raw = np.full(values.size + offset, np.nan, values.dtype)
    view = raw[offset:].reshape(values.shape)
    view[...] = values
    return view


PLACES = [_contiguous, _moved, _fortran, _permuted, _reversed, _stepped, _misaligned]


def placed(values, place, seed):
    """The same values elsewhere in memory; ``place`` is one of ``PLACES``, or an axis that is to be last."""
    if callable(place):
        return place(values, np.random.default_rng(seed))
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, place, -1)), -1, place)


def places(axis):
    """Channels last among them, as it has kernels of its own."""
    return st.one_of(st.sampled_from([_contiguous, axis]), st.sampled_from(PLACES))


@st.composite
def shapes(draw, least=0):
    """Two to five dimensions, one of which may be long."""
    ndim = draw(st.integers(2, 5))
    shape = [draw(st.sampled_from([n for n in SMALL if n >= least])) for _ in range(ndim)]
    if draw(st.booleans()):
        shape[draw(st.integers(0, ndim - 1))] = draw(st.sampled_from(TAILS if JIT else TAILS[:4]))
    return tuple(shape)


@st.composite
def large_shapes(draw):
    """Shapes around the least for threads: both twins, segments, tiles, groups of channels, long rows."""
    target = draw(st.sampled_from([1 << 15, 3 << 14, (1 << 16) - 1, 1 << 16, 3 << 15, 1 << 17, 5 << 16]))
    channels = draw(st.sampled_from([1, 2, 3, 15, 16, 17, 65, 300, 1025]))
    inner = draw(st.sampled_from([1, 1, 2, 9, 15, 16, 49, 196, 4097, 20000]))
    outer = max(1, target // (channels * inner) + draw(st.integers(0, 2)))
    return (outer, channels) if inner == 1 else (outer, channels, inner)


@dataclass
class Case:
    """A sound call. ``x``, ``dout``, ``gamma``, ``beta`` and ``running`` lie anywhere; the plain ones are C order."""

    axis: int
    x: np.ndarray
    dout: np.ndarray
    gamma: np.ndarray | None
    beta: np.ndarray | None
    running: tuple[np.ndarray, np.ndarray] | None
    eps: float
    momentum: float
    correction: float
    out: object
    seed: int

    @property
    def channels(self):
        return self.x.shape[self.axis]

    @property
    def count(self):
        """Values a channel."""
        return math.prod(n for i, n in enumerate(self.x.shape) if i != self.axis % self.x.ndim)

    def buffer(self, like=None):
        """``out``: nothing, or NaN somewhere in memory."""
        if self.out is None:
            return None
        return placed(nan_like(np.ascontiguousarray(self.x if like is None else like)), self.out, self.seed)

    def copied_running(self):
        """Running arrays to be updated, in strides of their own."""
        if self.running is None:
            return {}
        copies = [np.repeat(a, 2)[::2] if self.seed % 3 == 0 else a.copy() for a in self.running]
        return dict(zip(("running_mean", "running_var"), copies, strict=True))

    @property
    def parameters(self):
        return {"gamma": self.gamma, "beta": self.beta}

    @property
    def options(self):
        return {"eps": self.eps, "axis": self.axis}


def _data(rng, shape, axis, dtype, kind):
    """Values of which some channels are ill-conditioned."""
    mean, scale = {"plain": (0.0, 1.0), "shifted": (300.0, 2.0), "far": (1e4, 1.0), "small": (0.0, 1e-3)}[kind]
    values = rng.standard_normal(shape) * scale + mean
    channels = np.moveaxis(values, axis, 0)
    if len(channels) and rng.random() < 0.3:
        channels[rng.integers(len(channels))] = rng.choice([0.0, 0.1, 7.0])  # a constant one
    return values.astype(dtype)


@st.composite
def cases(draw, shape=None, training=True):
    """Arguments that are not refused."""
    shape = draw(shapes() if shape is None else shape)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    channels = shape[axis]
    count = math.prod(shape) // channels if channels else 0
    if training and count == 1:
        shape = (*shape, 2)
        axis, count = axis % (len(shape) - 1), 2
    dtype, seed = draw(DTYPES), draw(SEEDS)
    rng = np.random.default_rng(seed)
    kind = draw(st.sampled_from(["plain", "shifted", "far", "small"]))

    def parameter(low, high):
        if not draw(st.booleans()):
            return None
        values = rng.uniform(low, high, channels).astype(draw(DTYPES))
        return read_only(values[::-1].copy()[::-1] if seed % 2 else values)

    def anywhere(values):
        array = placed(values, draw(places(axis)), seed)
        return read_only(array) if draw(st.booleans()) else array

    x = anywhere(_data(rng, shape, axis, dtype, kind))
    dout = anywhere(rng.standard_normal(shape).astype(dtype))
    gamma, beta = parameter(-2.0, 2.0), parameter(-2.0, 2.0)
    running = None
    if draw(st.booleans()) or not training:
        running = (rng.standard_normal(channels).astype(draw(DTYPES)), rng.uniform(0.0, 2.0, channels))
        running = running[0], running[1].astype(draw(DTYPES))
    corrections = [0, 1, 0.5] if training and count > 1 else [0]
    return Case(
        axis,
        x,
        dout,
        gamma,
        beta,
        running,
        draw(st.sampled_from([1e-5, 1e-3, 1, 1e-8] + ([] if training else [0.05]))),
        draw(st.sampled_from([0.1, 0, 1, 0.9, 1e-3])),
        draw(st.sampled_from(corrections)),
        draw(st.one_of(st.none(), places(axis))),
        seed,
    )


def broadcast_tensors():
    """Read-only tensors, some of whose strides are 0."""

    @st.composite
    def make(draw):
        shape = draw(shapes())
        seed, dtype = draw(SEEDS), draw(DTYPES)
        flags = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
        small = [1 if flat else n for n, flat in zip(shape, flags, strict=True)]
        values = np.random.default_rng(seed).standard_normal(small).astype(dtype)
        return np.broadcast_to(values, shape), draw(st.integers(-len(shape), len(shape) - 1))

    return make()
