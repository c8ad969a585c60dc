"""What can be said of the Python objects that a caller gave, for ``calls``: shapes, memory, overlaps.

Everything here only looks (see ``objects``), for which it needs the interpreter's lock. An array is looked at as one
only after ``is_expected`` or ``kind_of`` said so. *Dense* is in C order, or with the channels last in memory.
"""

from __future__ import annotations

from fastbn._typing import Float64Array, Object, Shape3
from fastbn.kernels.jit import inner
from fastbn.kernels.objects import (
    ALIGNED,
    CONTIGUOUS,
    WRITEABLE,
    address,
    dim,
    flags,
    index,
    is_expected,
    is_none,
    itemsize,
    kind_of,
    ndim,
    stride,
)


@inner
def shape_of(x: Object, axis: int, itemsize: int) -> Shape3:
    """(outer, channels, inner) of a dense array as it lies in memory; zeros for what is not taken."""
    n = ndim(x)
    if axis < 0:
        axis += n
    if n < 2 or not 0 <= axis < n or not flags(x) & ALIGNED:
        return 0, 0, 0
    channels = dim(x, axis)
    outer = inner = 1
    for i in range(axis):
        outer *= dim(x, i)
    for i in range(axis + 1, n):
        inner *= dim(x, i)
    if not flags(x) & CONTIGUOUS:  # then only channels last in memory
        if channels > 1 and stride(x, axis) != itemsize:
            return 0, 0, 0
        step = itemsize * channels
        for i in range(n - 1, -1, -1):
            if i != axis and dim(x, i) > 1:
                if stride(x, i) != step:
                    return 0, 0, 0
                step *= dim(x, i)
        outer, inner = outer * inner, 1
    return (1, 1, outer * inner) if channels == 1 else (outer, channels, inner)


@inner
def size_of(shape: Shape3) -> int:
    """Values of a tensor."""
    return shape[0] * shape[1] * shape[2]


@inner
def is_like(a: Object, x: Object) -> bool:
    """Whether an array has the shape and dtype of the dense array ``x`` and lies in memory as that does."""
    if not is_expected(a) or not flags(a) & ALIGNED or ndim(a) != ndim(x):
        return False
    strides_matter = not flags(a) & flags(x) & CONTIGUOUS
    for i in range(ndim(x)):
        if dim(a, i) != dim(x, i) or (strides_matter and dim(x, i) > 1 and stride(a, i) != stride(x, i)):
            return False
    return True


@inner
def is_vector(a: Object, channels: int, writeable: int) -> bool:
    """Whether an array, of either dtype, holds one value a channel side by side; ``writeable`` is that flag or 0."""
    needed = CONTIGUOUS | ALIGNED | writeable
    return kind_of(a) > 0 and ndim(a) == 1 and dim(a, 0) == channels and flags(a) & needed == needed


@inner
def is_expected_vector(a: Object, channels: int, writeable: int) -> bool:
    """The same, of the dtype that the code was compiled for alone."""
    return is_expected(a) and is_vector(a, channels, writeable)


@inner
def apart(a: Object, a_size: int, b: Object, b_size: int) -> bool:
    """Whether two dense arrays, the second of which may be ``None``, share no memory."""
    if is_none(b):
        return True
    a_end, b_end = address(a) + a_size * 4 * kind_of(a), address(b) + b_size * 4 * kind_of(b)
    return a_end <= address(b) or b_end <= address(a)


@inner
def is_parameter(a: Object, channels: int, out: Object, size: int) -> bool:
    """Whether it is ``None`` or an array that can be read while ``out`` is written."""
    return is_none(a) or (is_vector(a, channels, 0) and apart(out, size, a, channels))


@inner
def shape_of_both(x: Object, axis: Object, out: Object) -> Shape3:
    """The shape of a tensor and of the place of the output; zeros if one of them is not taken."""
    if not is_expected(x):
        return 0, 0, 0
    shape = shape_of(x, index(axis), itemsize(x))
    if not (size_of(shape) and is_like(out, x) and flags(out) & WRITEABLE):
        return 0, 0, 0
    return shape


@inner
def same_or_apart(a: Object, b: Object, size: int) -> bool:
    """Whether two tensors that lie in memory alike are one or share nothing."""
    return address(a) == address(b) or apart(a, size, b, size)


@inner
def is_running(a: Object, channels: int, x: Object, out: Object, size: int, gamma: Object, beta: Object) -> bool:
    """Whether an array can be updated in place, beside the others."""
    return (
        is_vector(a, channels, WRITEABLE)
        and apart(a, channels, x, size)
        and apart(a, channels, out, size)
        and apart(a, channels, gamma, channels)
        and apart(a, channels, beta, channels)
    )


@inner
def no_variance_below(var: Float64Array, least: float) -> bool:
    """NaN is not compared."""
    below = 0
    for c in range(var.size):
        below += 1 if var[c] < least else 0
    return below == 0
