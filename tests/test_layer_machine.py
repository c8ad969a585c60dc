"""A layer's life in any order: calls, failures, files. Its state changes by the update rule, or not at all."""

from __future__ import annotations

import contextlib
import copy
import pickle
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fastbn
from fastbn import _engine, _state, reference
from fastbn.kernels import calls
from tests.data_for_tests import same_bits
from tests.interrupts import interrupted_before
from tests.strategies import PLACES, SEEDS, placed

SHAPES = [(6, 4), (2, 4, 3), (3, 4, 2, 5), (2, 4, 1, 2, 3)]
TENSORS = st.tuples(st.sampled_from(SHAPES), SEEDS, st.sampled_from([np.float32, np.float64]), st.sampled_from(PLACES))
BAD = [
    np.ones((6, 3)),
    np.ones((1, 4)),
    np.ones((6, 4), int),
    np.ones(4),
    [[1.0, 2.0], [3.0]],
    None,
    np.ma.ones((6, 4)),
    "text",
]
FAILURES = st.sampled_from([MemoryError, KeyboardInterrupt, OSError])


def make(tensor):
    shape, seed, dtype, place = tensor
    rng = np.random.default_rng(seed)
    return placed((rng.standard_normal(shape) * 2 + rng.uniform(-9, 9)).astype(dtype), place, seed)


def state_of(layer):
    return {name: (a.tobytes(), a.dtype, a.shape) for name, a in layer.state_dict().items()}


class Life(RuleBasedStateMachine):
    """``self.state`` is what the layer's state has to be, bit for bit."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "layer.npz"
        self.saved = self.x = None

    def teardown(self):
        self.folder.cleanup()

    @initialize(
        affine=st.sampled_from([True, False, "gamma", "beta"]),
        tracked=st.sampled_from([True, True, True, False]),
        dtype=st.sampled_from([np.float32, np.float64]),
        correction=st.sampled_from([0, 1]),
        momentum=st.sampled_from([None, 0.1, 0, 1]),
    )
    def birth(self, affine, tracked, dtype, correction, momentum):
        options = {"affine": affine, "track_running_stats": tracked, "dtype": dtype}
        self.layer = fastbn.BatchNorm(4, correction=correction, momentum=momentum, **options)
        self.layer.keep_for_backward = True
        self.remember()

    def remember(self):
        self.state = state_of(self.layer)

    @invariant()
    def is_as_expected(self):
        if hasattr(self, "layer"):
            assert state_of(self.layer) == self.state
            assert vars(self.layer).get("forward") is None

    def learned(self, before, x, weight):
        """Whether the state is the one after a batch, from the state ``before`` it."""
        after = self.layer.state_dict()
        if not self.layer.track_running_stats:
            return True
        if int(after["num_batches_tracked"]) != int(before["num_batches_tracked"]) + 1:
            return False
        mean, var = reference.moments(x)
        count = x.size // 4
        batch = {"running_mean": mean, "running_var": var * count / (count - self.layer.correction)}
        for name, values in batch.items():
            expected = reference.running(before[name], values, weight)
            reach = np.maximum(np.abs(before[name]), np.abs(values))
            eps = np.finfo(after[name].dtype).eps
            assert (np.abs(after[name] - expected) <= 64 * eps * np.maximum(reach, np.abs(expected))).all()
        return True

    @property
    def weight(self):
        """Of the next batch."""
        return 1 / (int(self.layer._num_batches_tracked) + 1) if self.layer.momentum is None else self.layer.momentum

    @rule(tensor=TENSORS)
    def call(self, tensor):
        x, layer = make(tensor), self.layer
        before, weight = layer.state_dict(), self.weight
        gamma, beta = (1.0 if layer.gamma is None else layer.gamma), (0.0 if layer.beta is None else layer.beta)
        result = layer(x)
        if layer.training or not layer.track_running_stats:
            expected = reference.forward(x, gamma, beta)[0]
            assert not layer.training or self.learned(before, x, weight)
        else:
            expected = reference.inference(x, layer.running_mean, layer.running_var, gamma, beta)
        eps = np.finfo(x.dtype).eps
        reach = np.abs(expected).max() + np.abs(x).max() * 1e-8 + np.abs(beta).max()
        assert np.abs(result - expected).max() <= 64 * eps * reach + 1e-10
        if layer.training:
            self.remember()
        self.x = x

    @precondition(lambda self: self.x is not None)
    @rule(seed=SEEDS)
    def backward(self, seed):
        dout = np.random.default_rng(seed).standard_normal(self.x.shape).astype(self.x.dtype)
        assert self.layer.backward(dout).shape == self.x.shape
        assert (self.layer.dgamma is None) == (self.layer.gamma is None)

    @rule(x=st.sampled_from(BAD))
    def refused(self, x):
        training = self.layer.training or not self.layer.track_running_stats
        if isinstance(x, np.ndarray) and x.shape == (1, 4) and not training:
            return
        with pytest.raises((ValueError, TypeError), match=r"^x: "):
            self.layer(x)

    @rule(tensor=TENSORS, error=FAILURES, place=st.sampled_from(["whole", "engine", "update", "half"]))
    def fails(self, tensor, error, place):
        """Something goes wrong inside."""

        def fail(*args):
            raise error

        copy_each = _state._copy_each

        def copy_some(targets, values):
            _state._copy_each = copy_each
            copy_each(targets[:2], values[:2])
            raise error

        patches = {
            "whole": [(_engine, "whole", fail)],
            "engine": [(calls, "WAY", [lambda *_: -1]), (_engine, "_output", fail)],
            "update": [(_state, "update", fail)],
            "half": [(calls, "UPDATE", [lambda *_: False] * 2), (_state, "_copy_each", copy_some)],
        }[place]
        before, weight, x = self.layer.state_dict(), self.weight, make(tensor)
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(mock.patch.object(*patch))
            try:
                self.layer(x)
            except error:
                self.x = None  # ``backward`` may be that of the old call or of the new one
                return
        # no failure: the layer does not go this way
        if self.layer.training and self.layer.track_running_stats:
            assert place == "whole"
            assert self.learned(before, x, weight)
        self.remember()
        self.x = x

    @rule(tensor=TENSORS, line=st.integers(0, 120))
    def interrupted(self, tensor, line):
        before, weight, x = self.layer.state_dict(), self.weight, make(tensor)
        expected, training = self.state, self.layer.training and self.layer.track_running_stats
        finished = not interrupted_before(line, lambda: self.layer(x))
        if training and (finished or state_of(self.layer) != expected):  # before the last line, say
            assert self.learned(before, x, weight)
            self.remember()
        self.x = x if finished else None

    @rule(training=st.booleans())
    def mode(self, training):
        self.layer.train(training)

    @rule(momentum=st.sampled_from([None, 0.1, 0.5, 0, 1]))
    def momentum(self, momentum):
        self.layer.momentum = momentum

    @precondition(lambda self: self.layer.track_running_stats)
    @rule(value=st.integers(0, 2**40))
    def set_counter(self, value):
        self.layer.num_batches_tracked = value
        self.remember()

    @rule(seed=SEEDS)
    def optimizer_step(self, seed):
        rng = np.random.default_rng(seed)
        for parameter in (self.layer.gamma, self.layer.beta):
            if parameter is not None:
                parameter[...] = rng.uniform(-2, 2, 4)
        self.remember()

    @precondition(lambda self: self.layer.track_running_stats)
    @rule()
    def arrays_elsewhere(self):
        self.layer.running_var = np.repeat(self.layer.running_var, 2)[::2]
        self.layer.running_mean = np.asfortranarray(self.layer.running_mean)

    @rule()
    def remember_state(self):
        self.saved = self.layer.state_dict()

    @precondition(lambda self: self.saved is not None)
    @rule()
    def restore(self):
        self.layer.load_state_dict(self.saved)
        self.remember()
        for name, value in self.layer.state_dict().items():
            assert same_bits(value, self.saved[name])

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def refused_state(self, data):
        name = data.draw(st.sampled_from(sorted(self.saved)))
        bad = data.draw(st.sampled_from([np.ones(5), "text", None, np.ones(4, complex), -1]))
        with pytest.raises((ValueError, TypeError), match=r"^state"):
            self.layer.load_state_dict({**self.saved, name: bad})
        rest = {each: self.saved[each] for each in self.saved if each != name}
        if name == "num_batches_tracked":  # as in old states: counted from 0 again
            self.layer.load_state_dict(rest)
            assert self.layer.num_batches_tracked == 0
            self.remember()
            return
        with pytest.raises(ValueError, match=r"^state: expected the keys"):
            self.layer.load_state_dict(rest)

    @precondition(lambda self: self.saved)
    @rule(line=st.integers(0, 60))
    def interrupted_restore(self, line):
        interrupted_before(line, lambda: self.layer.load_state_dict(self.saved))
        wanted = {name: (a.tobytes(), a.dtype, a.shape) for name, a in self.saved.items()}
        assert state_of(self.layer) in (self.state, wanted)
        self.remember()

    @rule()
    def save_and_load(self):
        self.layer.save(self.path)
        training, self.layer = self.layer.training, fastbn.BatchNorm.load(self.path).train(self.layer.training)
        self.layer.keep_for_backward = True
        assert self.layer.training == training
        self.x = None

    @precondition(lambda self: self.path.exists())
    @rule(data=st.data())
    def damaged_file(self, data):
        whole = self.path.read_bytes()
        cut = data.draw(st.integers(0, len(whole) - 1))
        self.path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"^path: "):
            fastbn.BatchNorm.load(self.path)
        self.path.write_bytes(whole)
        fastbn.BatchNorm.load(self.path)

    @rule(error=FAILURES)
    def failed_save(self, error):
        before = self.path.read_bytes() if self.path.exists() else None
        with mock.patch("numpy.savez", side_effect=error), pytest.raises(error):
            self.layer.save(self.path)
        assert (self.path.read_bytes() if self.path.exists() else None) == before
        assert len(list(Path(self.folder.name).iterdir())) == (before is not None)

    @rule(duplicate=st.sampled_from([copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]))
    def copies(self, duplicate):
        other = duplicate(self.layer)
        assert state_of(other) == self.state
        other.train()(make((SHAPES[0], 0, np.float32, PLACES[0])))
        self.layer = duplicate(self.layer)
        self.x = None

    @precondition(lambda self: self.layer.track_running_stats)
    @rule(tensor=TENSORS)
    def freeze(self, tensor):
        x, training = make(tensor), self.layer.training
        assert same_bits(self.layer.freeze()(x), self.layer.eval()(x))
        self.layer.train(training)
        self.x = x

    @precondition(lambda self: self.layer.track_running_stats)
    @rule(tensors=st.lists(TENSORS, max_size=3), fail=st.booleans())
    def recalibrate(self, tensors, fail):
        batches = [make(tensor) for tensor in tensors]
        if fail or not batches:
            with pytest.raises((ValueError, TypeError), match=r"^(x|batches): "):
                fastbn.recalibrate(self.layer, [*batches, "text"] if fail else [], progress=False)
            return
        fastbn.recalibrate(self.layer, batches, progress=False)
        assert self.layer.num_batches_tracked == len(batches)
        values = np.concatenate([np.moveaxis(x, 1, 0).reshape(4, -1).astype(np.float64) for x in batches], 1)
        np.testing.assert_allclose(self.layer.running_mean, values.mean(1), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(self.layer.running_var, values.var(1, ddof=self.layer.correction), rtol=1e-6)
        self.remember()


Life.TestCase.settings = settings(max_examples=2 * settings.default.max_examples, stateful_step_count=40)
TestLife = Life.TestCase
