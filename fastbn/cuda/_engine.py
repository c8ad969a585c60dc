"""The operations on validated arrays: plan -> kernels. The device's counterpart of ``fastbn._engine``.

A ``Call`` knows one tensor's layout and the stream; statistics are (3, C) float64 on the device: mean, ``inv_std`` and
biased variance. Tensors may be empty; then only what is given per channel is written.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np

from fastbn.cuda import _arrays, _driver
from fastbn.cuda._arrays import View
from fastbn.cuda._plan import LIMITS, Cut, plan
from fastbn.kernels import cuda_planes
from fastbn.kernels.cuda import kernels
from fastbn.kernels.cuda_blocks import Parameter

PerChannel: TypeAlias = View | None
"""What is given per channel, or its default."""

GIVEN = -1.0
"""In place of ``eps``: ``inv_std`` itself is given."""


class Call:
    """What the kernels of one call have in common."""

    def __init__(self, x: View, axis: int, tensors: tuple[View | None, ...], others: tuple[View | None, ...]) -> None:
        """``tensors`` and ``x`` are read or written by values, ``others`` by channels."""
        arrays = [array for array in (x, *tensors, *others) if array is not None]
        self.x = x
        self.channels = x.shape[axis]
        self.last = _arrays.channels_last("x", x, axis)
        self.stream = _driver.Stream([array.stream for array in arrays])
        self.axis = axis
        aligned = all(array.aligned for array in (x, *tensors) if array is not None)
        self.plan = plan(_arrays.shape_of(x, axis, self.last), x.dtype, aligned) if x.size else None
        self.how = self.plan.phases if self.plan else None  # training has cuts of its own

    def result(self, out: View | None) -> View:
        """``out``, or a new tensor that lies in memory as ``x`` does."""
        if out is not None:
            return out
        shape, strides = self.x.shape, None
        if self.last:
            step, reverse = self.x.dtype.itemsize, [0] * len(shape)
            for i in (self.axis, *(i for i in reversed(range(len(shape))) if i != self.axis)):
                reverse[i], step = step, step * shape[i]
            strides = tuple(reverse)
        return _arrays.view("out", self.stream.empty(shape, self.x.dtype, strides))

    def vector(self, dtype: Any = np.float64) -> View:
        """A new array of a value a channel."""
        return _arrays.view("out", self.stream.empty((self.channels,), dtype))

    def statistics(self) -> View:
        """A new array for mean, ``inv_std`` and variance."""
        return _arrays.view("out", self.stream.empty((3, self.channels), np.float64))

    def batch_stats(self, eps: float, statistics: View) -> None:
        """Mean, ``inv_std`` and variance of ``x``; of no values, zeros as mean and variance."""
        how = self.how
        if how is None:
            self.keep_given(None, None, eps, statistics)
            return
        partials = self.stream.scratch(how.partials)
        x = _address(self.x)
        self._launch(how, how.kernels.batch_stats, x, how.shape, how.cuts, partials)
        division = how.step, how.team, how.columns, how.cuts[0], how.units, how.values
        self._merge(how.team, how.kernels.merge_stats, x, *division, partials, eps, _address(statistics))

    def keep_given(self, mean: PerChannel, var: PerChannel, eps: float, statistics: View) -> None:
        """Mean, ``inv_std`` and variance from given arrays."""
        given = _parameter(mean), _parameter(var)
        self._per_channel(_small().keep_given, *given, eps, self.channels, _address(statistics))

    def normalize(
        self, x: View, mean: PerChannel, spread: PerChannel, eps: float, gamma: PerChannel, beta: PerChannel, out: View
    ) -> None:
        """``spread`` is the variance, or ``inv_std`` with ``GIVEN`` as ``eps``."""
        how = self.how
        if how is not None:
            statistics = _parameter(mean), _parameter(spread), eps
            tensors = _address(x), _address(out), how.shape, how.cuts
            self._launch(how, how.kernels.normalize, *tensors, *statistics, _parameter(gamma), _parameter(beta))

    def forward(self, eps: float, gamma: PerChannel, beta: PerChannel, out: View, statistics: View) -> None:
        """``batch_stats`` and ``normalize``."""
        plans = self.plan
        if plans is not None:
            self.how = plans.forward
            tensors = _address(self.x), _address(out)
            parameters = eps, _parameter(gamma), _parameter(beta), _address(statistics)
            if plans.fused_forward:
                self._fused(plans.fused.forward, *tensors, plans.fused_shape, *parameters)
                return
            if self._together("forward_grouped", tensors, parameters):
                return
        self.batch_stats(eps, statistics)
        self.normalize(self.x, row(statistics, 0), row(statistics, 1), GIVEN, gamma, beta, out)

    def update(self, running_mean: View, running_var: View, statistics: View, momentum: float, factor: float) -> None:
        """The running arrays, in place."""
        arrays = _parameter(running_mean), _parameter(running_var), _address(statistics)
        self._per_channel(_small().update_running, *arrays, self.channels, momentum, factor)

    def backward_sums(
        self,
        dout: View,
        mean: View,
        inv_std: View,
        sum_dout: PerChannel,
        sum_dout_xhat: PerChannel,
        dbeta: PerChannel = None,
        dgamma: PerChannel = None,
    ) -> None:
        """The gradient's two sums, into as many arrays as are there."""
        how = self.how
        targets = [_parameter(target) for target in (sum_dout, sum_dout_xhat, dbeta, dgamma)]
        statistics = _parameter(mean), _parameter(inv_std)
        if how is None:
            scratch = self.stream.scratch(1)
            self._merge(
                LIMITS.threads,
                _small().add_sums,
                LIMITS.threads,
                (1, self.channels, 1),
                0,
                scratch,
                *statistics,
                *targets,
            )
            return
        partials = self.stream.scratch(how.partials)
        tensors = _address(dout), _address(self.x), how.shape, how.cuts
        self._launch(how, how.kernels.backward_sums, *tensors, statistics[0], partials)
        self._merge(how.team, how.kernels.add_sums, how.team, how.columns, how.cuts[0], partials, *statistics, *targets)

    def backward_input(
        self,
        dout: View,
        mean: View,
        inv_std: View,
        gamma: PerChannel,
        sum_dout: View,
        sum_dout_xhat: View,
        count: float,
        out: View,
    ) -> None:
        """``dx`` from the whole batch's sums."""
        how = self.how
        if how is not None:
            per_channel = [_parameter(array) for array in (mean, inv_std, gamma, sum_dout, sum_dout_xhat)]
            tensors = _address(dout), _address(self.x), _address(out), how.shape, how.cuts
            self._launch(how, how.kernels.backward_input, *tensors, *per_channel, count)

    def backward(
        self, dout: View, mean: View, inv_std: View, gamma: PerChannel, dgamma: PerChannel, dbeta: PerChannel, out: View
    ) -> None:
        """``backward_sums`` and ``backward_input``."""
        plans = self.plan
        count = float(plans.count) if plans else 0.0
        if plans is not None:
            self.how = plans.backward
            tensors = _address(dout), _address(self.x), _address(out)
            parameters = *(_parameter(array) for array in (mean, inv_std, gamma, dgamma, dbeta)), count
            if plans.fused_backward:
                self._fused(plans.fused.backward, *tensors, plans.fused_shape, *parameters)
                return
            if self._together("backward_grouped", tensors, parameters):
                return
        sums = self.vector(), self.vector()
        self.backward_sums(dout, mean, inv_std, *sums, dbeta, dgamma)
        self.backward_input(dout, mean, inv_std, gamma, *sums, count, out)

    def _launch(self, how: Cut, kernel: Any, *arguments: Any) -> None:
        self.stream.launch(kernel, how.grid, LIMITS.threads, *arguments)

    def _fused(self, kernel: Any, *arguments: Any) -> None:
        """A block for each channel."""
        self.stream.launch(kernel, self.channels, LIMITS.whole, *arguments)

    def _together(self, kernel: str, tensors: tuple[Any, ...], parameters: tuple[Any, ...]) -> bool:
        """Start a cooperative kernel, where the plan has one and the device takes it."""
        how = self.how
        if how is None or not how.group:
            return False
        partials = self.stream.scratch(how.partials + 2 * self.channels)
        arguments = *tensors, how.shape, how.cuts, how.group, partials, *parameters
        return self.stream.launch_together(getattr(how.kernels, kernel), LIMITS.resident, LIMITS.threads, *arguments)

    def _merge(self, team: int, kernel: Any, *arguments: Any) -> None:
        """A team for each channel."""
        if self.channels:
            self.stream.launch(kernel, -(-self.channels * team // LIMITS.threads), LIMITS.threads, *arguments)

    def _per_channel(self, kernel: Any, *arguments: Any) -> None:
        """A thread for each channel."""
        if self.channels:
            self.stream.launch(kernel, -(-self.channels // LIMITS.threads), LIMITS.threads, *arguments)


def merge(count_a: int, a: list[View], count_b: int, b: list[View], eps: float = 1.0) -> View:
    """Mean, ``inv_std`` and variance of two sets together, from the mean and variance of each."""
    stream = _driver.Stream([array.stream for array in (*a, *b)])
    channels = a[0].shape[0]
    statistics = _arrays.view("out", stream.empty((3, channels), np.float64))
    sets = float(count_a), *map(_parameter, a), float(count_b), *map(_parameter, b)
    if channels:
        grid = -(-channels // LIMITS.threads)
        stream.launch(_small().merge_given, grid, LIMITS.threads, *sets, eps, channels, _address(statistics))
    return statistics


def _small() -> SimpleNamespace:
    """Kernels for what is given per channel, whatever tensors are."""
    return kernels(cuda_planes, np.dtype(np.float64), 1, False)


def rows(statistics: View) -> list[Any]:
    """The three as arrays of their own, for the caller."""
    return [statistics.owner[i] for i in range(3)]


def row(statistics: View, i: int) -> View:
    """Mean, ``inv_std`` or variance."""
    channels = statistics.shape[1]
    size = statistics.dtype.itemsize
    pointer = statistics.pointer + i * channels * size
    return View(statistics.owner, pointer, (channels,), (size,), statistics.dtype, False, statistics.stream)


def _address(array: View) -> Any:
    return _driver.address(array.pointer, array.size, array.dtype)


def _parameter(array: PerChannel) -> Parameter:
    return (0, 0) if array is None else (_address(array), array.dtype.itemsize)
