"""Parameters and statistics in half precision: widened wherever they are read, refused where they would be narrowed."""

from __future__ import annotations

import numpy as np
import pytest

import fastbn
from tests.data_for_tests import same_bits, tensor

BFLOAT16 = pytest.param("bfloat16", marks=pytest.mark.peers)
halves = pytest.mark.parametrize("half", ["float16", BFLOAT16])


def dtype_of(half):
    return np.dtype(np.float16) if half == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


def vectors(rng, half):
    """Four vectors in half precision, and the same numbers in float32."""
    narrow = [values.astype(dtype_of(half)) for values in rng.uniform(0.5, 2.0, (4, 3))]
    return narrow, [values.astype(np.float32) for values in narrow]


@halves
def test_functions(rng, half):
    narrow, wide = vectors(rng, half)
    x, dout = tensor(rng, (8, 3, 4)), tensor(rng, (8, 3, 4))
    assert same_bits(fastbn.inference(x, *narrow), fastbn.inference(x, *wide))
    assert same_bits(fastbn.normalize(x, *narrow), fastbn.normalize(x, *wide))
    for a, b in zip(fastbn.backward_sums(dout, x, *narrow[:2]), fastbn.backward_sums(dout, x, *wide[:2]), strict=True):
        assert same_bits(a, b)
    gradient = fastbn.backward_input(dout, x, *narrow[:3], narrow[3], narrow[0], 32)
    assert same_bits(gradient, fastbn.backward_input(dout, x, *wide[:3], wide[3], wide[0], 32))


@halves
@pytest.mark.parametrize("training", [True, False])
def test_gradients_come_in_the_dtype_of_the_parameters(rng, half, training):
    (gamma, beta, mean, var), wide = vectors(rng, half)
    x, dout = tensor(rng, (8, 3, 4)), tensor(rng, (8, 3, 4))
    statistics = (mean, var) if not training else ()
    out, cache = fastbn.forward(x, gamma, beta, *statistics, training=training)
    expected, other = fastbn.forward(x, *wide[:2], *(wide[2:] if not training else ()), training=training)
    assert same_bits(out, expected)
    found, exact = fastbn.backward(dout, cache), fastbn.backward(dout, other)
    assert same_bits(found.dx, exact.dx)
    assert found.dgamma.dtype == found.dbeta.dtype == dtype_of(half)
    assert same_bits(found.dgamma.astype(np.float32), exact.dgamma.astype(dtype_of(half)).astype(np.float32))


@halves
def test_running_arrays_are_not_narrowed(rng, half):
    mean, var = vectors(rng, half)[0][:2]
    before = mean.tobytes(), var.tobytes()
    with pytest.raises(TypeError, match=r"running_mean: expected dtype float32 or float64, got .*16: half precision"):
        fastbn.forward(tensor(rng, (8, 3)), running_mean=mean, running_var=var)
    assert (mean.tobytes(), var.tobytes()) == before


@halves
def test_layers(rng, half):
    narrow, wide = vectors(rng, half)
    names = ("weight", "bias", "running_mean", "running_var")
    layer, other = fastbn.BatchNorm(3), fastbn.BatchNorm(3)
    layer.load_state_dict({**dict(zip(names, narrow, strict=True)), "num_batches_tracked": 5})
    other.load_state_dict({**dict(zip(names, wide, strict=True)), "num_batches_tracked": 5})
    for name, value in layer.state_dict().items():
        assert same_bits(value, other.state_dict()[name])
    x = tensor(rng, (8, 3))
    mean, var, gamma, beta = narrow
    frozen = fastbn.FrozenBatchNorm(mean, var, gamma, beta)
    assert same_bits(frozen(x), fastbn.FrozenBatchNorm(*wide)(x))
    moments = fastbn.Moments(4, mean, var)
    assert same_bits(moments.mean, wide[0].astype(np.float64))
    weights = [gamma, beta, mean, var]
    keras = fastbn.from_keras({"axis": -1}, weights)
    assert keras.dtype == np.float32
    assert same_bits(keras.gamma, wide[2])


@halves
def test_folding(rng, half):
    """The weight stays in its dtype: computed in float64, and rounded once."""
    narrow = vectors(rng, half)[0]
    frozen = fastbn.FrozenBatchNorm(*narrow)
    weight = rng.standard_normal((3, 2, 3, 3)).astype(dtype_of(half))
    folded, bias = fastbn.fold.conv(weight, narrow[0], frozen)
    assert folded.dtype == bias.dtype == dtype_of(half)
    exact = weight.astype(np.float64) * (frozen.gamma * frozen.inv_std)[:, None, None, None]
    assert same_bits(folded.astype(np.float32), exact.astype(dtype_of(half)).astype(np.float32))
    assert fastbn.fold.linear(weight.reshape(3, 18).astype(np.float32), narrow[1], frozen)[0].dtype == np.float32


@pytest.mark.parametrize("x", [np.float16, BFLOAT16])
def test_tensors_are_refused_until_half_precision_is_built(x):
    values = np.ones((4, 3), dtype_of("float16" if x is np.float16 else x))
    with pytest.raises(TypeError, match=r"x: expected dtype float32 or float64, got .*16: half precision is not built"):
        fastbn.forward(values)


@pytest.mark.peers
def test_bfloat16_of_pytorch(rng):
    """Which it does not hand to NumPy by itself."""
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"x: .*got torch.bfloat16: half precision is not built yet"):
        fastbn.forward(torch.ones(4, 3, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"dout: .*got torch.bfloat16: half precision"):
        fastbn.backward(torch.ones(4, 3, dtype=torch.bfloat16), fastbn.forward(tensor(rng, (4, 3))).cache)
    peer = torch.nn.BatchNorm1d(3).to(torch.bfloat16)
    peer.weight.data.uniform_(0.5, 2.0)
    layer = fastbn.BatchNorm1d(3)
    layer.load_state_dict(peer.state_dict())
    assert same_bits(layer.gamma, peer.weight.detach().float().numpy())


def state(**changes):
    values = {"weight": np.ones(3), "bias": np.ones(3), "running_mean": np.ones(3), "running_var": np.ones(3)}
    given = {name: array.astype(np.float32) for name, array in values.items()} | changes
    return {name: value for name, value in given.items() if value is not None}


def test_states_without_a_counter():
    """Of old versions of PyTorch, of its FrozenBatchNorm2d, and of converters: the counter is 0."""
    layer = fastbn.BatchNorm(3)
    layer(np.arange(12.0, dtype=np.float32).reshape(4, 3))
    layer.load_state_dict(state())
    assert layer.num_batches_tracked == 0
    assert (layer.beta == 1).all()
    with pytest.raises(ValueError, match="state: expected the keys"):
        layer.load_state_dict(state(running_var=None))
    with pytest.raises(ValueError, match="state: expected the keys"):
        fastbn.BatchNorm(3, track_running_stats=False).load_state_dict(state())


@pytest.mark.parametrize("counter", [7, np.int64(7), np.array(7), np.array([7]), np.array([7], np.int32)])
def test_counters(counter):
    layer = fastbn.BatchNorm(3)
    layer.load_state_dict(state(num_batches_tracked=counter))
    assert layer.num_batches_tracked == 7
    for wrong in (np.array([7, 8]), np.array([7.5]), np.array([-1]), "7"):
        with pytest.raises((TypeError, ValueError), match=r"state\['num_batches_tracked'\]: expected an integer"):
            layer.load_state_dict(state(num_batches_tracked=wrong))
    assert layer.num_batches_tracked == 7


@pytest.mark.peers
def test_weights_of_pytorch(rng):
    """float16 stays float16; bfloat16, of which NumPy knows nothing, comes as float32."""
    torch = pytest.importorskip("torch")
    frozen = fastbn.FrozenBatchNorm(*vectors(rng, "float16")[1])
    for given, dtype in ((torch.float16, np.float16), (torch.bfloat16, np.float32), (torch.float64, np.float64)):
        weight, bias = fastbn.fold.linear(torch.ones(3, 4, dtype=given), None, frozen)
        assert weight.dtype == bias.dtype == dtype
        np.testing.assert_allclose(weight[:, 0], frozen.gamma * frozen.inv_std, rtol=1e-3)
