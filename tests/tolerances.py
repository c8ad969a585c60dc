"""How exact results have to be. Every number carries its reason; the tests hold no other ones.

Errors are measured against float64, in the largest element, with data of deviation about 1 unless said otherwise.
"""

from __future__ import annotations

import numpy as np

MEAN = 1e-7
"""Absolute. Sums are in float64: at mean 1e4 about 1e-12 is lost. The project's promise for float32 data."""

VAR = 1e-6
"""Relative. As MEAN."""

OUTPUT = 1e-6
"""Absolute, for |x_hat| up to 8: three roundings in float32 (scale, difference, result) of at most 2**-24 * 6 each."""

DX = 2e-6
"""Absolute. As OUTPUT with twice the roundings."""

DGAMMA = 1e-6
"""Times sqrt(m), absolute: the sum grows like sqrt(m), and is rounded once, to float32."""

ULPS = {
    np.float32: {"out": 8, "dx": 16, "dgamma": 16, "dbeta": 16, "running": 2},
    np.float64: {"out": 64, "dx": 64, "dgamma": 1024, "dbeta": 64, "running": 64},
}
"""Multiples of the dtype's ``eps``, relative to the largest magnitude of the channel (for the sums: to their terms'
times sqrt(m)). float32: elements pass 3 to 6 roundings, the running arrays one, and all sums are in float64. float64:
the sums are no finer than the data, and their errors, a few ``eps`` times the mean, reach every result."""

EXACT_OUTPUT = 6e-7
"""Relative: benchdnn's threshold for the forward result in float32."""

CENTRAL_DIFFERENCE = 1e-8
"""Relative, in float64 with a step of 1e-5: truncation 1e-10, cancellation 1e-11."""

ELEMENT = 4
"""``eps`` of the tensor's dtype, for an element of ``out`` or ``dx``: at most eight roundings of half an ``eps``, each
relative to the largest term (``error_model``)."""

SUMS = 4
"""``eps`` of float64 times ``4 + sqrt(m)``, for a sum of ``m`` values, relative to the sum of the magnitudes: roundings
of one sign in a row are as likely as the steps of a random walk. Both sides are summed, each in its own order."""

_QUANTITIES = ("training output", "running statistics after ten steps", "inference output", "gradients")
ORIGINS = {
    np.float32: dict.fromkeys(_QUANTITIES, 2e-6),
    np.float64: dict.fromkeys(_QUANTITIES, 5e-14),
}
"""Largest difference from the code that people come from, over the largest magnitude of the result; data of mean 1 and
deviation 2, at most some hundreds of values per channel. float32: 16 times its ``eps``, for the roundings of both
sides, most of which are in the sums of the other side and in Keras' ``E[x**2] - E[x]**2``. float64: 225 times its
``eps``, for sums in other orders, which the division by the deviation and ten steps carry on."""


def ulps(actual: object, expected: object, dtype: object, scale: object = None) -> float:
    """Largest ``|actual - expected|`` in units of ``eps * scale``; ``scale`` is the largest magnitude by default."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    if not actual.size:
        return 0.0
    reach = np.abs(expected).max() if scale is None else np.asarray(scale, np.float64)
    error = np.abs(actual - expected)
    assert not np.isnan(error).any()
    return float((error / np.maximum(reach, np.finfo(np.float64).tiny)).max() / np.finfo(np.dtype(dtype)).eps)
