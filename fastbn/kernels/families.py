"""Which of the two families of kernels takes a tensor: by the shape and the operation alone, as everything in a plan.

``channels_last`` takes rows of ``channels * inner`` columns, one after another in memory, and adds up a channel's
columns at the end. ``channels_first`` takes each channel's runs of ``inner`` values, from sample to sample.
"""

from __future__ import annotations

from fastbn._typing import Shape3
from fastbn.kernels.groups import NARROW
from fastbn.kernels.jit import shared

SAMPLES, SHORT = 32, 25
"""In training so many samples, of runs no longer than that or than a quarter of the number of samples, are columns.

The more samples, the fewer channels does a core's cache keep from one pass to the next, and their runs lie far apart.
In turns on a Zen 3, one thread and two, as columns: forward of 512x64x4x4 took 0.40 of the time on both, backward 0.49,
of 32x256x4x4 0.7 to 0.75 and 0.81, of 128x64x5x5 0.52 to 0.65 and 0.55 to 0.74, of 256x16x8x8 0.56 to 0.64 and 0.59 to
0.85, of 512x16x10x10 0.7 and 0.65 to 0.71, of 2048x64x5x5 0.22 and 0.18. But of 8x512x4x4 0.92 and 0.98, of 32x256x8x8
1.03 to 1.16 and 1.14 to 1.25, of 64x64x14x14 1.03 and 1.12. Not measured with AVX-512.
"""

LONG = 256
"""The longest run of a channel that can be columns."""

FEW_SAMPLES, ROW = 16, 1024
"""So many samples with so few values each are columns in inference: 512x3x4x4 took 0.27 of the time, 128x16x7x7 0.61 to
0.78, 32x64x4x4 0.75 to 0.8, 128x16x8x8 0.81 to 0.86; but 128x16x10x10, of 1600 values, 0.95 to 1.15, and 8x64x4x4 0.92.
"""


@shared
def by_columns(shape: Shape3, passes: int) -> bool:
    """Whether ``channels_last`` takes (outer, channels, inner), for an operation of one pass or of two (training)."""
    outer, channels, inner = shape
    if inner < NARROW:
        return True
    if passes == 1:
        return outer >= FEW_SAMPLES and channels * inner <= ROW
    return outer >= SAMPLES and inner <= max(SHORT, min(outer // 4, LONG))
