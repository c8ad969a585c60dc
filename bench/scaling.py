"""``python -m bench.scaling``: fastbn, PyTorch and the limit of the machine from one thread to all, with a picture.

On ResNet-50's shapes of 24 MB and more at 32 images, or those that ``--min-mb`` and ``--max-mb`` leave.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numba

from bench import picture
from bench.cases import OPERATIONS, make_case
from bench.figures import LARGE
from bench.measure import Row, machine, measure, save
from bench.peers import OURS
from bench.run import line
from bench.shapes import RESNET50

LIBRARIES = (OURS, "PyTorch out=")


def doublings(cores: int) -> list[int]:
    """1, 2, 4 and so on, and the number of cores."""
    return sorted({2**i for i in range(cores.bit_length())} | {cores})


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for each operation and tensor, and draw."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--png", type=Path, required=True, help="where to draw")
    parser.add_argument("--threads", type=int, nargs="+", default=doublings(numba.get_num_threads()))
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count (default: %(default)s)")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=["forward", "backward", "inference"])
    parser.add_argument("--images", type=int, default=32, help="batch size (default: %(default)s)")
    parser.add_argument("--min-mb", type=float, default=LARGE / 1e6, help="leave out smaller tensors (%(default)s)")
    parser.add_argument("--max-mb", type=float, default=math.inf, help="leave out larger tensors")
    options = parser.parse_args(argv)
    rows: list[Row] = []
    for problem in (problem.with_images(options.images) for problem in RESNET50):
        if not options.min_mb <= 4 * math.prod(problem.shape) / 1e6 <= options.max_mb:
            continue
        for last in problem.layouts:
            case = make_case(problem, last=last)
            for operation in options.operations:
                for threads in options.threads:
                    numba.set_num_threads(threads)
                    rows.append(measure(case, operation, LIBRARIES, rounds=options.rounds))
                    print(line(rows[-1]), flush=True)
                    save(options.json, rows)
    picture.scaling(options.png, rows, str(machine()["cpu"]))


if __name__ == "__main__":
    main()
