"""The processor that Numba compiles for, as far as kernels and plans depend on it."""

from __future__ import annotations

import llvmlite.binding
import numba

NAME: str = numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name()
"""What LLVM calls it."""

HALVES = NAME == "znver4"
"""Whether the processor works on registers of 64 bytes in halves.

A Zen 4 has two adders and two multipliers of 32 bytes. Conversions to float64 keep the adders busy, and what the
multipliers add (``plus``) costs nothing, but in registers of 32 bytes only. In the first-level cache (in C) statistics
run at 36 to 39 GB/s in those of 64 bytes however they are added, at 38 in those of 32, at 54 to 59 if multipliers add;
the gradient's sums at 51 to 55, 59, and 78. In the kernels statistics take 0.77 to 0.98 of the time so, the gradient's
sums 0.75 to 0.95; in minutes in which something else seems to run on the same cores, where twice as many instructions
cost more, 0.95 to 1.15 and 0.77 to 1.07.
"""

FAR_CACHE = NAME in ("sapphirerapids", "emeraldrapids", "graniterapids")
"""Whether what the second-level caches do not keep takes as long from the last-level cache as from memory.

Intel's servers have 2 MB of the one a core, and much of the other, far away. Two cores of an Emerald Rapids, with 300
MB, copied 3 to 103 MB at 40 to 44 GB/s with normal stores and at 49 to 61 with streaming ones. The other two, of the
same make, were not measured.
"""


def has(feature: str) -> bool:
    """Whether Numba compiles for a processor with this feature."""
    given: str | None = numba.config.CPU_FEATURES
    if given is not None:
        return f"+{feature}" in given.split(",")
    return bool(llvmlite.binding.get_host_cpu_features().get(feature))
