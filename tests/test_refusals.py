"""Every check of an argument by itself: what it takes, as what, and the very words with which it refuses the rest."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import fastbn
from fastbn import _validation as check
from tests.data_for_tests import same_bits

X = np.zeros((4, 3), np.float32)
ONES = np.ones(3, np.float32)
SQUARE = np.zeros((3, 3), np.float32)
WINDOWS = np.lib.stride_tricks.as_strided(np.zeros(9, np.float32), (4, 3), (8, 4))
READ_ONLY = np.ones(3)
READ_ONLY.flags.writeable = False
BROADCAST = np.lib.stride_tricks.as_strided(np.zeros(1), (3,), (0,))
LAYER = fastbn.BatchNorm(3)
UNTRACKED = fastbn.BatchNorm(3, track_running_stats=False)
FIRST, SECOND = np.zeros((2, 3))
SWAPPED = np.ones(3, ">f4")


class Refusing:
    """Raises what it likes."""

    def __array__(self, *args, **kwargs):
        raise RuntimeError("no")


class Reluctant:
    """An array in host memory that raises where it is asked for one on a device."""

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("not on a device")

    def __array__(self, *args, **kwargs):
        return X


class OnDevice:
    """What some other library has in a GPU's memory."""

    __cuda_array_interface__ = None


class NumbasOnDevice:
    """What Numba knows by another name."""

    __cuda_ndarray__ = True


class Index:
    """A whole number of another kind."""

    def __index__(self):
        return 5


REFUSED = [
    # arrays
    (lambda: check.tensor("x", ONES), ValueError, "x: expected 2 or more dimensions, got 1"),
    (lambda: check.tensor("x", 1.0), ValueError, "x: expected 2 or more dimensions, got 0"),
    (lambda: check.tensor("x", X.astype("i4")), TypeError, "x: expected dtype float32 or float64, got int32"),
    (
        lambda: check.tensor("x", X.astype("f2")),
        TypeError,
        "x: expected dtype float32 or float64, got float16: half precision is not built yet for tensors "
        "and for what is updated in place",
    ),
    (
        lambda: check.tensor("x", np.ma.ones((2, 2))),
        TypeError,
        "x: expected a plain array, got a masked array, whose mask would be ignored",
    ),
    (
        lambda: check.tensor("x", (np.ma.ones(2), np.ones(2))),
        TypeError,
        "x: expected a plain array, got a masked array, whose mask would be ignored",
    ),
    (
        lambda: check.tensor("x", X.view(np.recarray)),
        TypeError,
        f"x: expected a plain array, got {np.recarray.__module__}.recarray",
    ),
    (lambda: check.tensor("x", Refusing()), TypeError, "x: expected an array, got Refusing (no)"),
    (lambda: check.dimensional("x", X, 3), ValueError, "x: expected 3 dimensions, got shape (4, 3)"),
    (lambda: check.dimensional("x", X, 3, 4), ValueError, "x: expected 3 or 4 dimensions, got shape (4, 3)"),
    (lambda: check.dimensional("x", ONES, 1), ValueError, "x: expected 2 or more dimensions, got 1"),
    (lambda: check.tensor_like("dout", X.T, X), ValueError, "dout: expected shape (4, 3), that of x, got (3, 4)"),
    (
        lambda: check.tensor_like("dout", X.astype(np.float64), X),
        TypeError,
        "dout: expected dtype float32, that of x, got float64",
    ),
    (lambda: check.out_like("out", X.T, X), ValueError, "out: expected shape (4, 3), that of x, got (3, 4)"),
    (lambda: check.out_like("out", [], X), TypeError, "out: expected an array to write into, got list []"),
    (
        lambda: check.out_like("out", X.astype(np.float64), X),
        TypeError,
        "out: expected dtype float32, that of x, got float64",
    ),
    (
        lambda: check.out_like("out", np.lib.stride_tricks.as_strided(ONES, (2, 3), (0, 4)), X[:2]),
        ValueError,
        "out: expected distinct elements, got strides (0, 4) for shape (2, 3)",
    ),
    (
        lambda: check.out_like("out", WINDOWS, X),
        ValueError,
        "out: expected distinct elements, got strides (8, 4) for shape (4, 3)",
    ),
    (
        lambda: check.out_like("out", X, X, x=X),
        ValueError,
        "out: expected memory of its own, got an overlap with x",
    ),
    (
        lambda: check.out_like("out", X, X, may_be=X, other=X[0]),
        ValueError,
        "out: expected memory of its own, got an overlap with other",
    ),
    (
        lambda: check.out_like("out", X[::-1], X, may_be=X),
        ValueError,
        "out: expected the input itself or memory of its own, got an overlap with the input",
    ),
    (
        lambda: check.out_like("out", SQUARE[:2, :2].T, SQUARE[:2, :2], may_be=SQUARE[:2, :2]),
        ValueError,
        "out: expected the input itself or memory of its own, got an overlap with the input",
    ),
    (
        lambda: check.out_like("out", SQUARE[:2], SQUARE[:2], may_be=SQUARE),
        ValueError,
        "out: expected the input itself or memory of its own, got an overlap with the input",
    ),
    (
        lambda: check.out_like("out", SQUARE[1:], SQUARE[1:], may_be=SQUARE[:2]),
        ValueError,
        "out: expected the input itself or memory of its own, got an overlap with the input",
    ),
    (
        lambda: check.distinct({"a": FIRST, "b": None, "c": FIRST[:1]}),
        ValueError,
        "a: expected memory of its own, got an overlap with c",
    ),
    (
        lambda: check.distinct({"a": FIRST}, b=None, c=SECOND, d=FIRST[2:]),
        ValueError,
        "a: expected memory of its own, got an overlap with d",
    ),
    (
        lambda: check.features(X, 1, 4, None),
        ValueError,
        "x: expected 4 channels on axis 1, got 3 in shape (4, 3)",
    ),
    (
        lambda: check.features(X, -2, 3, None),
        ValueError,
        "x: expected 3 channels on axis -2, got 4 in shape (4, 3)",
    ),
    (lambda: check.layer_axis(X, 1, 3, (4,)), ValueError, "x: expected 4 dimensions, got 2"),
    (
        lambda: check.require_float("x", X.astype("i4").dtype),
        TypeError,
        "x: expected dtype float32 or float64, got int32",
    ),
    (
        lambda: check.tensor("x", OnDevice()),
        TypeError,
        "x: expected an array in host memory, as the others, got OnDevice",
    ),
    (
        lambda: check.tensor("x", NumbasOnDevice()),
        TypeError,
        "x: expected an array in host memory, as the others, got NumbasOnDevice",
    ),
    (lambda: check.features(X, 1, 3, (4,)), ValueError, "x: expected 4 dimensions, got 2"),
    (lambda: check.features(X, 1, 3, (3, 4)), ValueError, "x: expected 3 or 4 dimensions, got 2"),
    (lambda: check.vector("mean", X), ValueError, "mean: expected 1 dimension, got shape (4, 3)"),
    (
        lambda: check.parameter("gamma", X, 3),
        ValueError,
        "gamma: expected shape (3,), one value a channel, got (4, 3)",
    ),
    (
        lambda: check.optional_parameter("gamma", ONES, 4),
        ValueError,
        "gamma: expected shape (4,), one value a channel, got (3,)",
    ),
    (
        lambda: check.vectors("weights", ONES, ("a", "b")),
        TypeError,
        "weights: expected a list of arrays (a, b), got an array of shape (3,) and dtype float32",
    ),
    (lambda: check.vectors("weights", [ONES], ("a", "b")), ValueError, "weights: expected 2 arrays (a, b), got 1"),
    (
        lambda: check.vectors("weights", [X, ONES], ("a", "b")),
        ValueError,
        "weights: a: expected 1 dimension, got shape (4, 3)",
    ),
    (
        lambda: check.vectors("weights", [ONES, ONES[1:]], ("a", "b")),
        ValueError,
        "weights: b: expected shape (3,), one value a channel, got (2,)",
    ),
    (
        lambda: check.running("running_mean", READ_ONLY, 3),
        ValueError,
        "running_mean: expected a writable array, got a read-only one",
    ),
    (
        lambda: check.running("running_mean", SWAPPED, 3),
        TypeError,
        "running_mean: expected native byte order, got >f4",
    ),
    (
        lambda: check.running("running_mean", BROADCAST, 3),
        ValueError,
        "running_mean: expected distinct elements, got strides (0,) for shape (3,)",
    ),
    (
        lambda: check.running("running_mean", ONES, 4),
        ValueError,
        "running_mean: expected shape (4,), one value a channel, got (3,)",
    ),
    (lambda: check.both_or_neither(a=1, b=None), ValueError, "b: expected an array, as a is given, got None"),
    (lambda: check.both_or_neither(a=None, b=1), ValueError, "a: expected an array, as b is given, got None"),
    (
        lambda: check.variance("var", np.array([1.0, -1e-3, np.nan, -2.0]), 1e-3),
        ValueError,
        "var: expected no value below -eps = -0.001, got -2.0",
    ),
    (
        lambda: check.least_variance("var", -1.0, 0.5),
        ValueError,
        "var: expected no value below -eps = -0.5, got -1.0",
    ),
    (
        lambda: check.finite("x", np.array([0.0, np.inf, np.nan])),
        ValueError,
        "x: expected finite values (nan_policy='raise'), got NaN or infinity in channel 1",
    ),
    (
        lambda: check.castable("weight", np.dtype("f8"), np.dtype("f4")),
        TypeError,
        "weight: expected dtype float32, that of the layer, got float64, which would be narrowed",
    ),
    (
        lambda: check.trainable(np.zeros((1, 3, 1)), 1, 0.0),
        ValueError,
        "x: expected more than 1 value per channel when training, got shape (1, 3, 1)",
    ),
    (
        lambda: check.trainable(X, 1, 4.0),
        ValueError,
        "correction: expected less than the 4 values per channel, got 4.0",
    ),
    (
        lambda: check.array_batch("batches[0]", (X, X)),
        TypeError,
        "batches[0]: expected an array, got tuple of length 2; to take the input out of it, give run, such as "
        "run=lambda batch: layer(batch[0])",
    ),
    (
        lambda: check.counter("counter", np.array([7.5])),
        TypeError,
        "counter: expected an integer, got float64 np.float64(7.5)",
    ),
    (
        lambda: check.weight("weight", ONES, 2, 3),
        ValueError,
        "weight: expected 2 or more dimensions, got 1",
    ),
    (
        lambda: check.population("layers[1]", 0, 0.0),
        ValueError,
        "batches: expected data for every layer, got none for layers[1]",
    ),
    (
        lambda: check.population("layer", 2, 2.5),
        ValueError,
        "correction: expected less than the 2 values per channel, got 2.5",
    ),
    # numbers
    (lambda: check.integer("axis", 1.0), TypeError, "axis: expected an integer, got float 1.0"),
    (lambda: check.integer("axis", True), TypeError, "axis: expected an integer, got bool True"),
    (lambda: check.integer("axis", np.True_), TypeError, "axis: expected an integer, got bool np.True_"),
    (lambda: check.size("n", -1), ValueError, "n: expected an integer not below 0 and below 2**62, got -1"),
    (
        lambda: check.size("n", 2**62),
        ValueError,
        "n: expected an integer not below 0 and below 2**62, got 4611686018427387904",
    ),
    (lambda: check.positive("n", 0), ValueError, "n: expected an integer above 0, got 0"),
    (lambda: check.positive("n", -1), ValueError, "n: expected an integer not below 0 and below 2**62, got -1"),
    (lambda: check.divisor("groups", 2, 3), ValueError, "groups: expected a divisor of 3, got 2"),
    (lambda: check.divisor("groups", 0, 3), ValueError, "groups: expected an integer above 0, got 0"),
    (lambda: check.channel_axis(2, 2), ValueError, "axis: expected -2 to 1 for 2 dimensions, got 2"),
    (lambda: check.channel_axis(-3, 2), ValueError, "axis: expected -2 to 1 for 2 dimensions, got -3"),
    (lambda: check.channel_axis("1", 2), TypeError, "axis: expected an integer, got str '1'"),
    (
        lambda: check.dimensions("ndims", [2]),
        TypeError,
        "ndims: expected a tuple of integers or None, got list [2]",
    ),
    (
        lambda: check.dimensions("ndims", (2, -1)),
        ValueError,
        "ndims: expected an integer not below 0 and below 2**62, got -1",
    ),
    (lambda: check.number("epsilon", 1j), TypeError, "epsilon: expected a number, got complex 1j"),
    (lambda: check.eps("1", zero=True), TypeError, "eps: expected a number, got str '1'"),
    (lambda: check.eps(True, zero=True), TypeError, "eps: expected a number, got bool True"),
    (
        lambda: check.eps(ONES, zero=True),
        TypeError,
        "eps: expected a number, got an array of shape (3,) and dtype float32",
    ),
    (
        lambda: check.eps(10**400, zero=True),
        ValueError,
        "eps: expected a number in float64's range, got int 100000000000000000...0000000000000000000",
    ),
    (lambda: check.eps(-1, zero=True), ValueError, "eps: expected a finite number not below 0, got -1.0"),
    (lambda: check.eps(np.inf, zero=True), ValueError, "eps: expected a finite number not below 0, got inf"),
    (lambda: check.eps(np.nan, zero=False), ValueError, "eps: expected a finite number above 0 in training, got nan"),
    (lambda: check.eps(0, zero=False), ValueError, "eps: expected a finite number above 0 in training, got 0.0"),
    (lambda: check.momentum(1.5), ValueError, "momentum: expected 0 to 1, got 1.5"),
    (lambda: check.momentum(-0.5), ValueError, "momentum: expected 0 to 1, got -0.5"),
    (lambda: check.momentum(None), TypeError, "momentum: expected a number, got NoneType None"),
    (lambda: check.correction(-1), ValueError, "correction: expected a finite number not below 0, got -1.0"),
    (lambda: check.correction(np.inf), ValueError, "correction: expected a finite number not below 0, got inf"),
    (lambda: check.correction([]), TypeError, "correction: expected a number, got list []"),
    (lambda: check.count(0), ValueError, "count: expected a finite number above 0, got 0.0"),
    (lambda: check.count(np.inf), ValueError, "count: expected a finite number above 0, got inf"),
    (lambda: check.count(-1), ValueError, "count: expected a finite number above 0, got -1.0"),
    (lambda: check.count({}), TypeError, "count: expected a number, got dict {}"),
    # words and flags
    (lambda: check.flag("training", 1), TypeError, "training: expected True or False, got int 1"),
    (
        lambda: check.affine(1),
        TypeError,
        "affine: expected True or False, or 'gamma' or 'beta' for one of the two, got int 1",
    ),
    (
        lambda: check.affine("both"),
        ValueError,
        "affine: expected True or False, or 'gamma' or 'beta' for one of the two, got 'both'",
    ),
    (lambda: check.choice("policy", 1, ("a", "b")), TypeError, "policy: expected one of ('a', 'b'), got int 1"),
    (lambda: check.choice("policy", "c", ("a", "b")), ValueError, "policy: expected one of ('a', 'b'), got 'c'"),
    (lambda: check.mode({}), ValueError, "bn_param['mode']: expected 'train' or 'test', got no such key"),
    (lambda: check.mode({"mode": 1}), ValueError, "bn_param['mode']: expected 'train' or 'test', got int 1"),
    (lambda: check.mode({"mode": "eval"}), ValueError, "bn_param['mode']: expected 'train' or 'test', got str 'eval'"),
    (
        lambda: check.mode({"mode": np.array(["train"])}),
        ValueError,
        "bn_param['mode']: expected 'train' or 'test', got an array of shape (1,) and dtype <U5",
    ),
    (lambda: check.setting("renorm", True, False, "False"), ValueError, "renorm: expected False, got True"),
    (
        lambda: check.policy("dtype", {"config": {"name": 1}}),
        TypeError,
        "dtype: expected float32 or float64, or a dtype policy of that name, got dict {'config': {'name': 1}}",
    ),
    (
        lambda: check.policy("dtype", {}),
        TypeError,
        "dtype: expected float32 or float64, or a dtype policy of that name, got dict {}",
    ),
    (lambda: check.policy("dtype", "int8"), TypeError, "dtype: expected dtype float32 or float64, got int8"),
    (
        lambda: check.float_dtype("dtype", "float"[::-1]),
        TypeError,
        "dtype: expected dtype float32 or float64, got str 'taolf'",
    ),
    (
        lambda: check.float_dtype("dtype", np.float16),
        TypeError,
        "dtype: expected dtype float32 or float64, got float16: half precision is not built yet for tensors "
        "and for what is updated in place",
    ),
    # collections and objects
    (lambda: check.keys("state", [], {}), TypeError, "state: expected a mapping, got list []"),
    (
        lambda: check.keys("state", {"b": 1, 3: 1}, {"b": 1, "a": 2}),
        ValueError,
        "state: expected the keys ['a', 'b'], got ['3', 'b']",
    ),
    (lambda: check.subset("config", 1, {"a"}), TypeError, "config: expected a mapping, got int 1"),
    (
        lambda: check.subset("config", {"c": 1, "a": 2, "d": 3}, {"b", "a"}),
        ValueError,
        "config: got unknown keys ['c', 'd'], expected no others than ['a', 'b']",
    ),
    (
        lambda: check.item("initializer", {"b": 1, "a": 2}, "c"),
        ValueError,
        "initializer: expected one of the name 'c', got the names ['a', 'b']",
    ),
    (lambda: check.several("layers", 1, int), TypeError, "layers: expected several int, got int 1"),
    (lambda: check.several("layers", [1, "2"], int), TypeError, "layers[1]: expected a int, got str '2'"),
    (
        lambda: check.instance("bn", 1, str, dict),
        TypeError,
        "bn: expected a str or dict, got int 1",
    ),
    (
        lambda: check.layers("layers", [LAYER, UNTRACKED], fastbn.BatchNorm),
        ValueError,
        "layers[1].track_running_stats: expected True: there are running statistics to replace, got False",
    ),
    (
        lambda: check.layers("layers", [], fastbn.BatchNorm),
        ValueError,
        "layers: expected at least one layer, and each of them once, got list []",
    ),
    (
        lambda: check.batches("batches", 1, None, 1),
        TypeError,
        "batches: expected an iterable of batches, got int 1",
    ),
    (
        lambda: check.batches("batches", [], None, 2),
        TypeError,
        "run: expected a function, as there are 2 layers, got None",
    ),
    (
        lambda: check.batches("batches", ONES, None, 1),
        TypeError,
        "batches: expected an iterable of arrays, got an array of shape (3,) and dtype float32: "
        "for one batch, a list of it",
    ),
    (lambda: check.batches("batches", [], 1, 1), TypeError, "run: expected a function, got int 1"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message[:60] for *_, message in REFUSED])
def test_refused(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    assert str(caught.value) == message


def test_every_check_is_here():
    called = {name for call, *_ in REFUSED for name in call.__code__.co_names} & set(check.__all__)
    assert called == set(check.__all__) - {"on_device", "is_half"}  # which refuse nothing


def test_a_list_that_is_no_array():
    with pytest.raises(ValueError, match=r"^x: expected an array, got list \(setting an array element with a sequence"):
        check.tensor("x", [[1.0], [1.0, 2.0]])


def test_layers_once_each():
    with pytest.raises(ValueError, match=r"^layers: expected at least one layer, and each of them once, got list \["):
        check.layers("layers", [LAYER, LAYER], fastbn.BatchNorm)
    assert check.layers("layers", LAYER, fastbn.BatchNorm) == [LAYER]
    assert check.layers("layers", (LAYER, fastbn.BatchNorm(3)), fastbn.BatchNorm)[0] is LAYER


def test_arrays_that_are_taken():
    for given in (X, np.asfortranarray(X), X[::2], X.astype(np.float64), np.ones((2, 1, 1))):
        assert check.tensor("x", given) is given
    assert check.dimensional("x", X, 2, 3) is X
    assert check.tensor_like("dout", X, X) is X
    assert same_bits(check.tensor("x", [[1.0, 2.0]]), np.array([[1.0, 2.0]]))
    assert check.tensor("x", Reluctant()) is X
    assert not check.on_device(Reluctant())
    assert not check.on_device(X)
    assert same_bits(check.vector("mean", SWAPPED), ONES)
    mapped = ONES.view(np.memmap)
    assert type(check.vector("mean", mapped)) is np.ndarray
    assert np.shares_memory(check.vector("mean", mapped), mapped)
    assert check.out_like("out", None, X) is None
    assert check.out_like("out", X, X, may_be=X, gamma=ONES, beta=None) is X
    assert check.out_like("out", mapped, ONES, x=READ_ONLY) is mapped
    one = np.zeros((4, 1, 3), np.float32)
    again = np.lib.stride_tricks.as_strided(one, one.shape, (12, 77, 4))  # the stride of a single value means nothing
    assert check.out_like("out", again, one, may_be=one) is again
    assert check.running("running_mean", ONES[::-1], 3).strides == (-4,)
    assert check.running("running_mean", np.zeros((3, 2))[:, 0], 3).shape == (3,)
    empty = np.lib.stride_tricks.as_strided(np.zeros((4, 0, 3), np.float32), (4, 0, 3), (0, 0, 0))
    assert check.out_like("out", empty, empty) is empty
    wide = np.zeros((4, 6), np.float32)
    assert check.out_like("out", wide[:, ::2], X) is not None
    assert check.out_like("out", wide[:, 1::2], X, may_be=wide[:, ::2]) is not None
    assert check.out_like("out", wide[:, None, ::2], X[:, None]) is not None  # a new axis has a stride of 0
    check.distinct({"a": FIRST, "b": SECOND}, c=X, d=[0.0])
    x, axis = check.features(X, -1, 3, (2, 4))
    assert x is X
    assert axis == 1
    assert check.optional_parameter("gamma", None, 3) is None
    assert check.vectors("weights", (ONES, READ_ONLY), ("a", "b")) == {"a": ONES, "b": READ_ONLY}
    assert check.both_or_neither(a=None, b=None) is False
    assert check.both_or_neither(a=ONES, b=ONES) is True
    check.variance("var", np.array([0.0, -0.5, np.nan]), 0.5)
    check.variance("var", np.empty(0), 0.5)
    check.least_variance("var", -0.5, 0.5)
    check.least_variance("var", np.nan, 0.5)
    check.finite("x", np.array([0.0, -1.0]))
    check.castable("weight", np.dtype("f4"), np.dtype("f8"))
    check.trainable(X, 1, 3.5)
    check.trainable(X[:0], 1, 100.0)
    check.trainable(np.zeros((2, 0)), 1, 0.0)
    check.trainable(np.zeros((1, 3, 2)), 1, 0.0)
    check.trainable(np.zeros((2, 1)), 1, 1.5)
    check.population("layer", 2, 1.5)
    check.population("layer", 1, 0)
    check.array_batch("batches[0]", X)
    assert check.counter("counter", np.array([7])) == 7
    widened, dtype = check.weight("weight", np.ones((2, 3), ">f2"), 2)
    assert widened.dtype == np.float32
    assert dtype == np.float16
    assert check.is_half(dtype)


def same(actual, expected):
    return type(actual) is type(expected) and actual == expected


def test_other_arguments_that_are_taken():
    assert all(same(check.integer("axis", given), 5) for given in (5, np.int8(5), np.array(5), Index()))
    assert same(check.size("n", 0), 0)
    assert same(check.size("n", np.int64(2**62 - 1)), 2**62 - 1)
    assert same(check.positive("n", 1), 1)
    assert same(check.divisor("groups", 3, 6), 3)
    assert [check.channel_axis(axis, 3) for axis in range(-3, 3)] == [0, 1, 2] * 2
    assert check.dimensions("ndims", None) is None
    assert check.dimensions("ndims", (np.int8(2), 3)) == (2, 3)
    assert all(same(check.eps(given, zero=True), 0.0) for given in (0, 0.0, np.float32(0), Fraction(0)))
    assert same(check.eps(1, zero=False), 1.0)
    assert same(check.eps(5e-324, zero=False), 5e-324)
    assert [check.momentum(given) for given in (0, 1, 0.25, np.float32(0.5))] == [0.0, 1.0, 0.25, 0.5]
    assert [check.correction(given) for given in (0, 1, 0.5)] == [0.0, 1.0, 0.5]
    assert same(check.count(5), 5.0)
    assert check.count(0.5) == 0.5
    assert all(check.flag("training", given) is True for given in (True, np.True_))
    assert check.flag("training", False) is False
    assert [check.affine(given) for given in (True, np.False_, "gamma", "beta")] == [True, False, "gamma", "beta"]
    assert type(check.affine(np.str_("beta"))) is str
    assert check.choice("policy", "b", ("a", "b")) == "b"
    assert [check.mode({"mode": given}) for given in ("train", "test")] == ["train", "test"]
    check.setting("renorm", False, True, "False")
    policies = "float64", {"config": {"name": "float64"}}
    assert all(check.policy("dtype", given) is np.dtype(np.float64) for given in policies)
    assert check.float_dtype("dtype", ">f4") is np.dtype(np.float32)
    check.keys("state", {"a": 1}, {"a": 2})
    check.subset("config", {}, {"a"})
    check.subset("config", {"a": 1}, {"a", "b"})
    assert check.item("initializer", {"a": 1}, "a") == 1
    assert check.several("layers", iter((1, 2)), int) == [1, 2]
    check.instance("bn", {}, str, dict)
    check.batches("batches", [], None, 1)
    check.batches("batches", iter([]), None, 1)
    check.batches("batches", ONES, len, 2)

    class Sequence:
        def __getitem__(self, index):
            raise IndexError

    check.batches("batches", Sequence(), None, 1)


def test_long_values_are_cut_short():
    with pytest.raises(TypeError) as caught:
        check.flag("training", "x" * 10**6)
    assert len(str(caught.value)) < 100
    with pytest.raises(ValueError, match="got the names") as caught:
        check.item("initializer", dict.fromkeys(map(str, range(10**4))), "c")
    assert len(str(caught.value)) < 200
