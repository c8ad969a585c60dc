"""Names for the types that signatures share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""A tensor of float32 or float64."""

Float64Array: TypeAlias = NDArray[np.float64]

Int64Array: TypeAlias = NDArray[np.int64]

Object: TypeAlias = Any
"""Any Python object that a caller may have given (``objects``)."""

Address: TypeAlias = Any
"""To the compiler the bare address of an array (``addresses.data``), else the array itself."""

Scalar: TypeAlias = Any
"""One float32 or float64 value, or lanes of them; NumPy's scalar types do not mix under a type checker."""

Moments3: TypeAlias = tuple[Scalar, Scalar, Scalar]
"""Count, sum about an origin, centred sum of squares."""

Coefficients3: TypeAlias = tuple[Scalar, Scalar, Scalar]
Coefficients4: TypeAlias = tuple[Scalar, Scalar, Scalar, Scalar]

Shape3: TypeAlias = tuple[int, int, int]
"""(outer, channels, inner)."""

Matrix: TypeAlias = tuple[int, int, int, int]
"""(rows, tile, channels, inner): a row holds ``tile`` times ``channels * inner`` values."""

Address2: TypeAlias = tuple[Address, Address]
Address3: TypeAlias = tuple[Address, Address, Address]
Address4: TypeAlias = tuple[Address, Address, Address, Address]
