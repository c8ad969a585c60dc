"""Names for the types that signatures share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""A tensor of float32 or float64."""

Float64Array: TypeAlias = NDArray[np.float64]

Scalar: TypeAlias = Any
"""One float32 or float64 value; NumPy's scalar types do not mix in arithmetic under a type checker."""

Moments3: TypeAlias = tuple[float, float, float]
"""Count, sum about an origin, centred sum of squares."""

Coefficients3: TypeAlias = tuple[Scalar, Scalar, Scalar]
Coefficients6: TypeAlias = tuple[Scalar, Scalar, Scalar, Scalar, Scalar, Scalar]
