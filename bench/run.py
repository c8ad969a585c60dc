"""``python -m bench.run --json FILE``: measure fastbn and its peers; ``python -m bench.report FILE`` shows the figures.

Cold tensors of twelve shapes from four networks; with ``--hot``, hot tensors of ResNet-50's nine shapes and three of
(N, C). ``bench.states`` says what cold and hot are. All in each memory layout. One process measures one number of
threads, since some libraries decide on theirs once; the report takes the files of several processes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numba
import numpy as np

from bench.cases import OPERATIONS, Case, make_case
from bench.measure import Row, measure, save
from bench.peers import PEERS
from bench.shapes import NETWORKS, RESNET50, ROWS, Problem
from bench.states import PAUSE, Cold, Hot, State


def problems(images: int) -> list[Problem]:
    """ResNet-50's, and rows."""
    return [problem.with_images(images) for problem in RESNET50] + ROWS


def line(row: Row) -> str:
    """A row as one line of text."""
    figures = {**row["seconds"], **row["limits"]}
    times = ", ".join(f"{name} {seconds * 1e3:.3g}" for name, seconds in figures.items())
    setting = f"{row['dtype']} x{row['threads']} {row['mode']}"
    return f"{row['operation']} {row['layout']} {row['shape']} {setting}, ms: {times}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--hot", action="store_true", help="the same tensors and kept memory for every call")
    parser.add_argument("--pause", type=float, default=PAUSE * 1e3, help="ms before a cold call (default: %(default)s)")
    parser.add_argument("--shapes", choices=("networks", "resnet50"), help="default: networks; with --hot, resnet50")
    parser.add_argument("--images", type=int, default=32, help="batch size of --shapes resnet50 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="default: all, %(default)s here")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, help="default: all, or, cold, one by one")
    parser.add_argument("--libraries", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--min-mb", type=float, default=0, help="leave out smaller tensors")
    parser.add_argument("--max-mb", type=float, default=math.inf, help="leave out larger tensors")
    options = parser.parse_args(argv)
    options.shapes = options.shapes or ("resnet50" if options.hot else "networks")
    alone = [operation for operation in OPERATIONS if "+" not in operation]
    options.operations = options.operations or (list(OPERATIONS) if options.hot else alone)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for each operation and tensor, and keep the file up to date."""
    options = parse(argv)
    numba.set_num_threads(options.threads)
    state: Callable[[Case], State] = Hot if options.hot else partial(Cold, pause=options.pause / 1e3)

    rows: list[Row] = []
    for problem in NETWORKS if options.shapes == "networks" else problems(options.images):
        size = math.prod(problem.shape) * np.dtype(options.dtype).itemsize / 1e6
        if not options.min_mb <= size <= options.max_mb:
            continue
        for last in problem.layouts:
            case = make_case(problem, options.dtype, last=last)
            for operation in options.operations:
                rows.append(measure(case, operation, options.libraries, rounds=options.rounds, state=state))
                print(line(rows[-1]), flush=True)
                save(options.json, rows)


if __name__ == "__main__":
    main()
