"""``python -m bench.limit``: how fast this machine copies, reads and writes memory, normally and past the caches.

No kernel that reads a tensor and writes another can be faster than a copy. A normal store reads the cache line that it
is about to overwrite; a streaming one does not. GB/s count what the program reads and writes, and not that reading.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numba
import numpy as np

from bench.cases import Array, Case, aligned, aligned_empty, rows
from bench.timing import alternate
from fastbn.kernels.addresses import data
from fastbn.kernels.jit import inner
from fastbn.kernels.lanes import spread
from fastbn.kernels.loads import load, width
from fastbn.kernels.stores import put
from fastbn.kernels.twins import kernel

LIMITS = {"copy": 2, "copy, streaming": 2, "read": 1, "write": 1, "write, streaming": 1}
"""How often each moves the tensor."""

BLOCK = 4096
"""Values that a thread handles in one go: a multiple of four registers."""

PARALLEL = 65_536
"""Values from which on more than one thread pays."""


@inner
def _copy_block(x: Array, out: Array, start: int, streaming: bool) -> None:
    source, target = data(x), data(out)
    for i in range(start, start + BLOCK, width(source)):
        put(target, i, load(source, i), streaming)


@inner
def _read_block(x: Array, start: int, sums: Array) -> None:
    source = data(x)
    step = width(source)
    values = spread(source, np.float32(0))
    for i in range(start, start + BLOCK, 4 * step):  # four loads for one addition that has to wait for the last
        first = load(source, i) + load(source, i + step)
        values = values + (first + (load(source, i + 2 * step) + load(source, i + 3 * step)))
    put(data(sums), 0, values, False)


@inner
def _write_block(out: Array, start: int, streaming: bool) -> None:
    target = data(out)
    values = spread(target, np.float32(1))
    for i in range(start, start + BLOCK, width(target)):
        put(target, i, values, streaming)


@kernel
def copy(x: Array, out: Array, streaming: bool) -> None:
    """float32 arrays of whole blocks, ``out`` aligned."""
    for block in numba.prange(x.size // BLOCK):
        _copy_block(x, out, block * BLOCK, streaming)


@kernel
def read(x: Array, sums: Array) -> None:
    """``sums`` has a row of 16 values for each block."""
    for block in numba.prange(x.size // BLOCK):
        _read_block(x, block * BLOCK, sums[block])


@kernel
def write(out: Array, streaming: bool) -> None:
    """Ones into an aligned array of whole blocks."""
    for block in numba.prange(out.size // BLOCK):
        _write_block(out, block * BLOCK, streaming)


def calls(nbytes: int) -> dict[str, Callable[[], None]]:
    """Each of ``LIMITS`` on tensors of about so many bytes: rounded up to whole blocks."""
    blocks = max(1, -(-nbytes // (4 * BLOCK)))
    # Not zeros: on a Zen 5, streaming zeros from one place to another ran up to twice as fast as data.
    x, out = (aligned(np.random.default_rng(0).standard_normal(blocks * BLOCK, np.float32)) for _ in range(2))
    sums = np.empty((blocks, 16), np.float32)
    parallel = x.size >= PARALLEL
    return {
        "copy": partial(copy, parallel, x, out, False),
        "copy, streaming": partial(copy, parallel, x, out, True),
        "read": partial(read, parallel, x, sums),
        "write": partial(write, parallel, out, False),
        "write, streaming": partial(write, parallel, out, True),
    }


def copies(case: Case) -> dict[str, Callable[[], Array]]:
    """Both copies of the whole blocks of ``case.x``, which is aligned, to new memory; none if it has no whole block."""
    flat = (rows(case.x) if case.last else case.x).reshape(-1).view(np.float32)
    x = flat[: flat.size // BLOCK * BLOCK]

    def run(streaming: bool) -> Array:
        out = aligned_empty(x)
        copy(x.size >= PARALLEL, x, out, streaming)
        return out

    return {name: partial(run, "streaming" in name) for name in LIMITS if name.startswith("copy") and x.size}


def table(seconds: Mapping[int, Mapping[str, float]]) -> str:
    """GB/s as Markdown: a size in bytes a row."""
    lines = [f"| GB/s | {' | '.join(LIMITS)} |", "|---" * (1 + len(LIMITS)) + "|"]
    for nbytes, times in sorted(seconds.items(), reverse=True):
        speeds = " | ".join(f"{traffic * nbytes / times[name] / 1e9:.1f}" for name, traffic in LIMITS.items())
        lines.append(f"| {nbytes / 1e6:.4g} MB | {speeds} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.limit", description=__doc__)
    parser.add_argument("--mb", type=float, nargs="+", default=[102.8, 51.4, 25.7, 12.8, 6.4, 1.6, 0.1])
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="default: all, %(default)s here")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (default: %(default)s)")
    options = parser.parse_args(argv)
    numba.set_num_threads(options.threads)
    block = 4 * BLOCK
    sizes = {max(1, round(size * 1e6 / block)) * block for size in options.mb}
    print(table({nbytes: alternate(calls(nbytes), rounds=options.rounds) for nbytes in sizes}))


if __name__ == "__main__":
    main()
