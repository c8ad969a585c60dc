"""What is refused of arrays on a device, and what is said where there is none."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

import fastbn
from tests.data_for_tests import tensor
from tests.device import INSTALLED, SIMULATED, Foreign, address, get, needs_device, put

X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
ONE = np.ones(3, np.float32)


def run(program, **environment):
    variables = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**variables, **environment}
    )


def test_the_core_never_imports_it():
    finished = run(
        "import sys, fastbn, numpy\n"
        "fastbn.BatchNorm(3)(numpy.ones((4, 3)) * [[1], [2], [3], [4]])\n"
        "fastbn.moments([[1.0, 2.0]])\n"
        "assert not [name for name in sys.modules if name.startswith(('numba.cuda', 'numba_cuda', 'fastbn.cuda'))]"
    )
    assert finished.returncode == 0, finished.stderr


def test_what_to_install_is_said():
    finished = run(
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'numba_cuda' else find(name, *more)\n"
        "import fastbn.cuda"
    )
    assert finished.stderr.splitlines()[-1].endswith(
        "ImportError: fastbn.cuda: expected the package numba-cuda, got none: pip install 'fastbn[cuda]'"
    )


@pytest.mark.skipif(INSTALLED, reason="numba-cuda is there")
def test_what_to_install_is_said_here():
    with pytest.raises(ImportError, match=r"expected the package numba-cuda, got none"):
        importlib.import_module("fastbn.cuda")


@pytest.mark.skipif(not INSTALLED, reason="needs numba-cuda")
@pytest.mark.parametrize("program", ["fastbn.BatchNorm(3, device='cuda')", "fastbn.forward(Anything())"])
def test_no_driver(program):
    finished = run(
        "import fastbn\n"
        "class Anything:\n"
        "    __cuda_array_interface__ = dict(shape=(4, 3), typestr='<f4', data=(4096, False), version=3)\n" + program,
        CUDA_VISIBLE_DEVICES="",
    )
    assert "RuntimeError: fastbn.cuda: expected a CUDA device and its driver, got none (" in finished.stderr


def cache():
    return fastbn.forward(put(X), put(ONE), put(ONE))[1]


def strided():
    memory = put(np.zeros((4, 3, 4), np.float32))
    return Foreign(memory, shape=(4, 3, 2), strides=(48, 16, 8))


def every_other():
    return Foreign(put(np.zeros(6, np.float32)), shape=(3,), strides=(8,))


def read_only():
    memory = put(ONE)
    return Foreign(memory, data=(address(memory), True))


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: fastbn.cuda.forward(X),
            TypeError,
            r"x: expected an array on the device, got ndarray: numba.cuda.to_de",
        ),
        (lambda: fastbn.cuda.forward([[1.0]]), TypeError, r"x: .* got list: .* fastbn.forward"),
        (lambda: fastbn.cuda.moments(X), TypeError, r"x: expected an array on the device"),
        (lambda: fastbn.cuda.inference(put(X), ONE, put(ONE)), TypeError, r"running_mean: .*to_device\(running_mean\)"),
        (lambda: fastbn.forward(put(X), ONE), TypeError, r"gamma: expected an array on the device, got ndarray"),
        (lambda: fastbn.forward(put(X), out=X.copy()), TypeError, r"out: expected an array on the device"),
        (lambda: fastbn.backward(X, cache()), TypeError, r"dout: expected an array on the device"),
        (lambda: fastbn.forward(X, put(ONE)), TypeError, r"gamma: expected an array in host memory"),
        (lambda: fastbn.forward(X, out=put(X)), TypeError, r"out: expected an array to write into"),
        (
            lambda: fastbn.forward(put(X.astype(np.int64))),
            TypeError,
            r"x: expected dtype float32 or float64, got int64",
        ),
        (
            lambda: fastbn.forward(put(X.astype(np.float16))),
            TypeError,
            r"x: .*got float16: half precision is not built",
        ),
        (lambda: fastbn.forward(put(X), put(ONE.astype("i4"))), TypeError, r"gamma: expected dtype float32 or float64"),
        (
            lambda: fastbn.forward(put(X), out=put(X.astype(float))),
            TypeError,
            r"out: expected dtype float32, that of x",
        ),
        (lambda: fastbn.forward(put(ONE)), ValueError, r"x: expected 2 or more dimensions, got 1"),
        (lambda: fastbn.forward(put(X), axis=3), ValueError, r"axis: expected -3 to 2"),
        (
            lambda: fastbn.forward(put(X), put(ONE[:2])),
            ValueError,
            r"gamma: expected shape \(3,\), one value a channel",
        ),
        (lambda: fastbn.forward(put(X), out=put(X[:2])), ValueError, r"out: expected shape \(4, 3, 2\), that of x"),
        (lambda: fastbn.forward(put(X[:1, :, :1])), ValueError, r"x: expected more than 1 value per channel"),
        (lambda: fastbn.forward(put(X), running_mean=put(ONE)), ValueError, r"running_var: expected an array, as runn"),
        (
            lambda: fastbn.forward(put(X), training=False),
            ValueError,
            r"running_mean: expected an array with training=F",
        ),
        (lambda: fastbn.forward(put(X), eps=0.0), ValueError, r"eps: expected a finite number above 0 in training"),
        (lambda: fastbn.forward(put(X), momentum=2.0), ValueError, r"momentum: expected 0 to 1"),
        (lambda: fastbn.forward(put(X), training=1), TypeError, r"training: expected True or False"),
        (lambda: fastbn.forward(strided()), ValueError, r"x: expected C order, or the channels last.*no hidden copies"),
        (lambda: fastbn.forward(put(X), out=strided()), ValueError, r"out: expected strides .* those of x.*no hidden"),
        (
            lambda: fastbn.forward(put(X), None, None, read_only(), put(ONE)),
            ValueError,
            r"running_mean: expected a wri",
        ),
        (
            lambda: fastbn.forward(put(X), every_other(), put(ONE)),
            ValueError,
            r"gamma: expected values side by side, got strides \(8,\).*no hidden",
        ),
        (lambda: fastbn.backward(put(X[:2]), cache()), ValueError, r"dout: expected shape \(4, 3, 2\)"),
        (lambda: fastbn.backward(put(X), None), TypeError, r"cache: expected a Cache"),
        (lambda: fastbn.cuda.Moments(4, put(X), put(X)), ValueError, r"mean: expected 1 dimension, got shape"),
        (lambda: fastbn.cuda.Moments(4, put(ONE), put(ONE[:2])), ValueError, r"var: expected shape \(3,\)"),
        (lambda: fastbn.moments(put(X)).merge(None), TypeError, r"other: expected a Moments"),
    ],
)
def test_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.gpu
@needs_device
def test_overlaps():
    x, one = put(X), put(ONE)
    memory = put(np.zeros(48, np.float32))
    first = Foreign(memory, shape=(4, 3, 2))
    second = Foreign(memory, shape=(4, 3, 2), data=(address(memory) + 48, False))
    for call, name in (
        (lambda: fastbn.forward(x, out=x), "out: expected memory of its own, got an overlap with x"),
        (lambda: fastbn.forward(first, out=second), "out: expected memory of its own, got an overlap with x"),
        (lambda: fastbn.inference(first, one, one, out=second), "out: expected the input itself or memory of its own"),
        (lambda: fastbn.forward(x, None, None, one, one), "running_mean: .* an overlap with running_var"),
        (lambda: fastbn.forward(x, one, None, one, put(ONE)), "running_mean: .* an overlap with gamma"),
        (lambda: fastbn.backward(put(X), cache()._replace(x=x), out=x), "out: .* an overlap with x"),
    ):
        with pytest.raises(ValueError, match=name):
            call()
    assert (get(x) == X).all()
    assert (get(one) == 1.0).all()


@pytest.mark.gpu
@needs_device
def test_masks():
    x = put(X)
    with pytest.raises(TypeError, match="x: expected a plain array, got a masked array"):
        fastbn.forward(Foreign(x, mask=x))


@pytest.mark.gpu
@needs_device
def test_an_interface_that_raises_is_reported():
    class NeedsGradient:
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("use detach()")

    with pytest.raises(TypeError, match=r"x: expected an array on the device, got NeedsGradient \(use detach\(\)\)"):
        fastbn.cuda.forward(NeedsGradient())
    with pytest.raises(TypeError, match="x: expected"):
        fastbn.forward(NeedsGradient())


@pytest.mark.gpu
@needs_device
def test_memory_of_another_device(monkeypatch):
    from fastbn.cuda import _driver

    monkeypatch.setattr(_driver, "device_of", lambda pointer: 3)
    with pytest.raises(
        ValueError, match=r"x: expected memory of the current device, 0, got that of device 3 .*gpus\[3\]"
    ):
        fastbn.forward(put(X))
    monkeypatch.setattr(_driver, "device_of", lambda pointer: None)
    with pytest.raises(ValueError, match=r"x: expected memory of a device, got the address 0x"):
        fastbn.forward(put(X))


@pytest.mark.gpu
@needs_device
@pytest.mark.skipif(SIMULATED, reason="the simulator's memory is the host's")
def test_host_memory_behind_the_interface():
    x = put(X)
    with pytest.raises(ValueError, match="x: expected memory of a device"):
        fastbn.forward(Foreign(x, data=(X.ctypes.data, False)))


@pytest.mark.gpu
@needs_device
def test_out_of_memory(monkeypatch):
    from numba import cuda

    class NoMemoryError(Exception):
        code = 2

    def device_array(*_, **__):
        raise NoMemoryError

    running = put(ONE), put(ONE)
    x = put(X)
    monkeypatch.setattr(cuda, "device_array", device_array)
    with pytest.raises(MemoryError, match=r"the device has no 96 bytes for an array of shape \(4, 3, 2\)"):
        fastbn.forward(x, None, None, *running)
    assert (get(running[0]) == 1.0).all()
    NoMemoryError.code = 700
    with pytest.raises(NoMemoryError):
        fastbn.forward(x)


@pytest.mark.gpu
@needs_device
@pytest.mark.skipif(SIMULATED, reason="the simulator's memory is the host's")
def test_out_of_a_devices_memory():
    from numba import cuda

    total = cuda.current_context().get_memory_info().total
    x = put(X)
    with pytest.raises(MemoryError, match="the device has no"):
        fastbn.cuda._driver.Stream([]).empty((2 * total,), x.dtype)


@pytest.mark.gpu
@needs_device
def test_a_failing_launch_leaves_the_running_arrays(rng, monkeypatch):
    """They are the last that is written."""
    from fastbn.cuda import _driver

    x = put(tensor(rng, (4, 3, 8)))
    launch, names = _driver.Stream.launch, []
    for fails in range(10):
        running = put(ONE), put(ONE)
        count = iter(range(100))

        def failing(self, kernel, *arguments, fails=fails, count=count):
            if next(count) == fails:
                raise KeyboardInterrupt
            names.append(kernel.__name__)
            launch(self, kernel, *arguments)

        monkeypatch.setattr(_driver.Stream, "launch", failing)
        try:
            fastbn.forward(x, None, None, *running)
        except KeyboardInterrupt:
            assert [get(array).tolist() for array in running] == [[1.0] * 3] * 2
        else:
            assert fails >= 2
            break
    assert names[-1].startswith("update_running")
    assert get(running[0]).tolist() != [1.0] * 3
