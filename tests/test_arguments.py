"""Arguments of any kind: the compiled way in and the general one agree on each call, and a refusal leaves no trace.

All arrays of a call are views of one piece of memory, so that they may overlap by any number of bytes, and so that one
comparison shows whether anything was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
from fastbn.kernels import calls
from tests.test_properties import general_way

SLOT = 4096
"""Bytes of memory for an argument."""

SLOTS = ("x", "out", "dout", "gamma", "beta", "running_mean", "running_var")
SHAPES = [(2, 3), (4, 3, 5), (2, 3, 2, 2), (3, 1, 4), (3, 16, 2), (1, 3, 17), (1, 3), (2, 0, 3), (0, 3)]
NAMES = r"(x|dout|gamma|beta|running_mean|running_var|out|eps|momentum|axis|correction|training): "
LAYOUTS = ["C", "last", "reversed", "stepped", "broadcast", "Fortran"]
DTYPES = ["float32", "float64"]
ODD_DTYPES = [*DTYPES, ">f4", ">f8", "float16", "int64", "bool", "complex64", "M8[s]"]
OTHER = [None, 1.5, "text", object(), [[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]], [1.0, 2.0, 3.0], [[1, 2], [3]], ()]
NUMBERS = {
    "eps": [1e-5, 1, 0, 0.0, -1e-9, np.nan, np.inf, True, "1", None, np.float32(0.5), 10**400, 2**63, 1e-300],
    "momentum": [0.1, 0, 1, 1.5, -0.5, np.nan, False, None, np.float64(0.5), -(2**63), 2**64, 5e-324],
    "correction": [0, 1, 0.5, 2, 4, 5, 8, 2**70, -1, np.inf, np.nan, "0", np.int8(1), None],
    "axis": [1, 0, -1, -2, 2, 7, -7, 1.0, None, True, np.int64(1), 2**63, -(2**63), 2**80],
    "training": [True, False, 1, None, np.True_],
}
CHANGES = ["other", "layout", "dtype", "shape", "readonly", "kind"]
USUAL = {"eps": 1e-5, "momentum": 0.1, "correction": 1, "axis": 1, "training": True}


@dataclass
class View:
    """An array in the shared memory."""

    slot: str
    offset: int
    shape: tuple[int, ...]
    dtype: str
    layout: str
    writeable: bool
    kind: type = np.ndarray

    def build(self, memory):
        base = SLOT * SLOTS.index(self.slot) + SLOT + self.offset
        size = np.dtype(self.dtype).itemsize
        shape, strides = self.shape, list(np.empty(self.shape, np.uint8).strides)
        if self.layout == "last" and len(shape) > 2:
            moved = np.moveaxis(np.empty((*shape[:1], *shape[2:], shape[1]), np.uint8), -1, 1)
            strides = list(moved.strides)
        elif self.layout == "Fortran":
            strides = list(np.empty(shape, np.uint8, order="F").strides)
        elif self.layout == "stepped":
            strides = [2 * step for step in strides]
        elif self.layout == "broadcast" and shape:
            strides[0] = 0
        elif self.layout == "reversed" and shape:
            base += max(shape[-1] - 1, 0) * size
            strides[-1] = -strides[-1]
        array = np.ndarray(shape, self.dtype, memory.data, base, [step * size for step in strides])
        array.flags.writeable = self.writeable
        return array if self.kind is np.ndarray else array.view(self.kind)


def build(spec, memory):
    return spec.build(memory) if isinstance(spec, View) else spec


@dataclass
class Call:
    """What is called, and with what."""

    function: str
    arrays: dict[str, Any]
    options: dict[str, Any]
    negative: bool

    def run(self):
        """The outcome, as bytes and strides or as an exception's type and message, and the memory afterwards."""
        memory = np.random.default_rng(0).standard_normal(SLOT * (len(SLOTS) + 2) // 4).astype(np.float32)
        np.abs(memory, out=memory)
        if self.negative:  # variances among them
            memory[::7] *= -1
        before = memory.tobytes()
        arrays = {name: build(spec, memory) for name, spec in self.arrays.items()}
        try:
            results = FUNCTIONS[self.function](arrays, self.options)
        except (ValueError, TypeError) as error:
            refusal = type(error), str(error)
        else:
            return [describe(value, arrays) for value in results], None, memory.tobytes()
        assert refusal[0] in (ValueError, TypeError)  # no subclass, such as NumPy's AxisError
        assert re.match(NAMES, refusal[1]), refusal
        assert memory.tobytes() == before
        return refusal


def describe(value, arrays):
    """What matters of a result: its bits, how it lies in memory, and whether it is one of the arguments."""
    if not isinstance(value, np.ndarray):
        return value
    strides = [step for step, n in zip(value.strides, value.shape, strict=True) if n > 1] if value.size else []
    names = [name for name, array in arrays.items() if array is value]
    return value.tobytes(), value.dtype, value.shape, strides, names


def pick(options, *names):
    return {name: options[name] for name in names}


def forward(a, options):
    names = "x", "gamma", "beta", "running_mean", "running_var"
    out, cache = fastbn.forward(*(a[name] for name in names), out=a["out"], **options)
    return out, cache.mean, cache.inv_std, cache.axis, cache.training, cache.beta_dtype, cache.x


def inference(a, options):
    names = "x", "running_mean", "running_var", "gamma", "beta"
    return (fastbn.inference(*(a[name] for name in names), out=a["out"], **pick(options, "eps", "axis")),)


def backward(a, options):
    x = np.array(a["x"]) if isinstance(a["x"], np.ndarray) else None
    cache = fastbn.forward(x, a["gamma"], a["beta"], axis=options["axis"]).cache
    if a["x"].dtype.isnative:
        cache = cache._replace(x=np.asarray(a["x"]))
    return fastbn.backward(a["dout"], cache, out=a["out"])


def layer(a, options):
    made = fastbn.BatchNorm(3)
    made.axis, made.eps, made.momentum, made.correction = (
        options[name] for name in ("axis", "eps", "momentum", "correction")
    )
    made.training = options["training"] is True
    made.keep_for_backward = True
    made.gamma, made.beta, made.running_mean, made.running_var = (
        a[name] for name in ("gamma", "beta", "running_mean", "running_var")
    )
    out = made(a["x"], out=a["out"])
    return out, made.num_batches_tracked, made.backward(np.ones(out.shape, out.dtype)), made.dgamma, made.dbeta


def frozen(a, options):
    made = fastbn.FrozenBatchNorm(np.arange(3.0), np.ones(3))
    made.axis = options["axis"] if isinstance(options["axis"], int) else 1
    return (made(a["x"], out=a["out"]),)


FUNCTIONS = {each.__name__: each for each in (forward, inference, backward, layer, frozen)}
STATISTICS = ("gamma", "beta", "running_mean", "running_var")
USED = {
    "forward": (("x", "out", *STATISTICS), tuple(NUMBERS)),
    "inference": (("x", "out", *STATISTICS), ("eps", "axis")),
    "backward": (("x", "dout", "out", "gamma"), ("axis",)),
    "layer": (("x", "out", *STATISTICS), ("eps", "axis", "momentum", "correction")),
    "frozen": (("x", "out"), ("axis",)),
}
"""Which arrays and numbers matter to a function."""


@st.composite
def arguments(draw):
    """Sound arguments but for a few; sometimes none."""
    function = draw(st.sampled_from(["forward", "inference", *FUNCTIONS]))
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    layout = draw(st.sampled_from(["C", "C", "last"]))
    options = dict(USUAL)
    options["training"] = draw(st.sampled_from([True, True, True, False]))
    channels = shape[1]
    arrays = {}
    for name in SLOTS:
        tensor = name in ("x", "out", "dout")
        arrays[name] = View(name, 0, shape if tensor else (channels,), dtype, layout if tensor else "C", True)
    for name in ("out", "gamma", "beta"):
        if draw(st.integers(0, 3)) == 0:
            arrays[name] = None
    if draw(st.integers(0, 3)) == 0:
        arrays["running_mean"] = arrays["running_var"] = None
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 0, 2, 3]))):
        change(draw, function, arrays, options)
    return Call(function, arrays, options, draw(st.sampled_from([False, False, True])))


def change(draw, function, arrays, options):
    """One argument is no longer what it was."""
    used, numbers = USED[function]
    how = draw(st.sampled_from([*["overlap"] * 8, *["number"] * 3, *CHANGES]))
    if how == "number":
        name = draw(st.sampled_from(numbers))
        options[name] = draw(st.sampled_from(NUMBERS[name]))
        return
    name = draw(st.sampled_from(used))
    given = arrays[name]
    if how == "other" or not isinstance(given, View):
        arrays[name] = draw(st.sampled_from(OTHER))
    elif how == "overlap":
        given.slot = draw(st.sampled_from([slot for slot in used if slot != name]))
        sizes = [int(np.prod(each.shape)) * 4 for each in (given, arrays[given.slot]) if isinstance(each, View)]
        end = draw(st.sampled_from(sizes))  # in float32
        given.offset = draw(st.sampled_from([0, 0, 1, 4, -4, end, end - 4, -end, 4 - end]))
    elif how == "layout":
        given.layout = draw(st.sampled_from(LAYOUTS))
    elif how == "dtype":
        given.dtype = draw(st.sampled_from(ODD_DTYPES))
    elif how == "shape":
        given.shape = draw(st.sampled_from([*SHAPES, (3,), (), (4,), (3, 1), (2, 3, 2, 2, 1), (16,)]))
    elif how == "readonly":
        given.writeable = False
    else:
        given.kind = draw(st.sampled_from([np.recarray, np.memmap, np.ma.MaskedArray]))


def sizes_fit(call):
    """Whether all views lie inside the memory."""
    return all(
        int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize * 2 < SLOT and abs(spec.offset) < SLOT
        for spec in call.arrays.values()
        if isinstance(spec, View)
    )


@settings(max_examples=5 * settings.default.max_examples)  # five functions
@given(arguments().filter(sizes_fit))
def test_both_ways_agree(call):
    """On whether a call is refused, with which words, on every bit of the results, and on what was written."""
    quick = call.run()
    with general_way():
        assert call.run() == quick


def test_what_is_drawn_is_neither_always_refused_nor_never():
    """Nor always, or never, taken for an ordinary call: else the test above would say little."""
    ordinary, way = [], calls.WAY[0]
    outcomes = []

    def watched(*args):
        ordinary.append(way(*args) >= 0)
        return way(*args)

    @settings(max_examples=300, database=None, derandomize=True)
    @given(arguments().filter(sizes_fit))
    def collect(call):
        ordinary.clear()
        with mock.patch.object(calls, "WAY", [watched]):
            outcomes.append((len(call.run()) == 2, any(ordinary)))

    collect()
    for outcome in ((True, True), (True, False), (False, True), (False, False)):
        assert outcomes.count(outcome) > 10, outcome
