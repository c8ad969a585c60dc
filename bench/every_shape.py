"""``python -m bench.every_shape``: where fastbn is not faster than PyTorch.

Every shape of ``shapes.json`` with 1, 2 and 32 images, in both memory layouts, against PyTorch's own kernels in their
``out=`` form; then the list of those where fastbn is slower, or faster by less than 10%.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numba

from bench import figures
from bench.cases import make_case
from bench.measure import Row, measure, save
from bench.peers import OURS
from bench.shapes import PROBLEMS, Problem

PEER = "PyTorch out="
OPERATIONS = ("forward", "backward", "inference")


def problems(images: Sequence[int], max_mb: float) -> list[Problem]:
    """Each shape once, for the smaller batches first."""
    shapes = {
        problem.shape: problem for number in sorted(images) for problem in (p.with_images(number) for p in PROBLEMS)
    }
    return [problem for problem in shapes.values() if 4 * math.prod(problem.shape) <= max_mb * 1e6]


def rows(chosen: Sequence[Problem], rounds: int) -> Iterator[Row]:
    """Measure; training only where a channel has more than one value."""
    for problem in chosen:
        for last in problem.layouts:
            case = make_case(problem, last=last)
            for operation in OPERATIONS if case.count > 1 else OPERATIONS[-1:]:
                yield measure(case, operation, (OURS, PEER), rounds=rounds, limits=False)


def listing(measured: Sequence[Row]) -> str:
    """The tensors on which fastbn is not ahead, the slowest first."""
    compared = figures.speedups(measured, PEER)
    behind = figures.not_ahead(measured, PEER)
    lines = [
        f"{ratio.value:.2f} times as fast: {ratio.row['operation']} {ratio.row['layout']} {ratio.row['shape']}, "
        f"{ratio.row['seconds'][OURS] * 1e6:.1f} us against {ratio.row['seconds'][PEER] * 1e6:.1f}"
        for ratio in behind
    ]
    return "\n".join([*lines, f"{len(behind)} of {len(compared)} are slower than {PEER} or faster by at most 10%."])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, keep the file up to date, and print the list."""
    parser = argparse.ArgumentParser(prog="python -m bench.every_shape", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--images", type=int, nargs="+", default=(1, 2, 32), help="batch sizes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="default: all, %(default)s here")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: %(default)s)")
    parser.add_argument("--max-mb", type=float, default=128, help="leave out larger tensors (default: %(default)s)")
    options = parser.parse_args(argv)
    numba.set_num_threads(options.threads)
    measured: list[Row] = []
    chosen = problems(options.images, options.max_mb)
    for row in rows(chosen, options.rounds):
        measured.append(row)
        if len(measured) % 20 == 0:
            print(f"{len(measured)} measured, now at {row['shape']}", flush=True)
            save(options.json, measured)
    save(options.json, measured)
    print(listing(measured))


if __name__ == "__main__":
    main()
