"""From how many values on threads are used: by the shape and the operation alone, as everything in a plan.

Figures: two threads against one, in turns with PyTorch's kernels in one process, float32.
"""

from __future__ import annotations

from fastbn._typing import Shape3
from fastbn.kernels.families import by_columns
from fastbn.kernels.jit import shared
from fastbn.kernels.rows import PARALLEL

FEW = 16
"""Channels from which the channels themselves are tasks enough."""

SEGMENTED = 1 << 16
"""Values of a few long channels, which are cut: backward of 1x8x96x96, 74,000 values, 17.4 to 12.1 us."""

COLUMNS, COLUMNS_ONE_PASS = 3 << 15, 1 << 17
"""Values where channels are last, in training and in inference.

Training: forward and backward of 784x128, 100,000, 0.83 and 0.67 of the time, in a minute in which the two cores hear
late of each other 1.17 and 0.94; of 784x96, 75,000, 0.89 and 0.77, or 1.28 and 1.0. Inference of 625x160, 100,000, 7.6
to 9.5 us; of 500x256, 128,000, 10.8 to 9.1.
"""

SHORT, SHORT_COLUMNS = 128, 1 << 16
"""So few rows, which training cuts by columns only, from so many values on: backward of 80x1000 23.6 to 16.3 us."""

ONE_PASS = 3 << 15
"""Values for inference, else: of 1x96x28x28, 75,000, 4.3 to 5.3 us; of 1x512x14x14, 100,000, 6.8 to 6.3."""


@shared
def pay(shape: Shape3, passes: int) -> bool:
    """Whether threads are used for an operation that makes one pass over (outer, channels, inner) values, or two."""
    outer, channels, inner = shape
    values = outer * channels * inner
    if by_columns(shape, passes):
        if passes == 1:
            return values >= COLUMNS_ONE_PASS
        return values >= (SHORT_COLUMNS if outer <= SHORT else COLUMNS)
    if passes == 1:
        return values >= ONE_PASS
    return values >= (SEGMENTED if channels < FEW else PARALLEL)
