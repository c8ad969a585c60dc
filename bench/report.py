"""``python -m bench.report``: fastbn and its peers on the ResNet-50 shapes, as Markdown tables and a JSON file.

Every table has a shape a row, milliseconds for each library, and how many times as fast as each peer fastbn is. The
libraries take turns in one process; figures are medians; results are checked against the reference before timing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np

import fastbn
from bench.peers import OPERATIONS, PEERS, Call, check, expected, make_case
from bench.shapes import RESNET50, Problem
from bench.timing import alternate, geometric_mean

OURS = "fastbn"


def machine() -> dict[str, Any]:
    """Where and with what the figures were taken."""
    versions = {"fastbn": fastbn.__version__, "numba": numba.__version__, "numpy": np.__version__}
    try:
        import torch

        versions["torch"] = torch.__version__
    except ImportError:
        pass
    return {
        "date": dt.date.today().isoformat(),
        "cpu": f"{_cpu_name()} ({llvmlite.binding.get_host_cpu_name()})",
        "cores": os.cpu_count(),
        "threads": numba.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": versions,
    }


def _cpu_name() -> str:
    """The model name that Linux gives, or what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or "unknown CPU"


def set_threads(threads: int) -> None:
    """The same number for every library."""
    numba.set_num_threads(threads)
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(threads)


def measure(problem: Problem, *, last: bool, rounds: int) -> dict[str, dict[str, float]]:
    """Operation -> library -> median seconds."""
    case = make_case(problem, last=last)
    wanted = expected(case)
    calls: dict[str, dict[str, Call]] = {operation: {} for operation in OPERATIONS}
    for library, make_calls in PEERS.items():
        try:
            made = make_calls(case)
        except ImportError:
            continue
        for operation, call in made.items():
            check(library, operation, call(), wanted[operation])
            calls[operation][library] = call
    return {operation: alternate(competitors, rounds=rounds) for operation, competitors in calls.items()}


def table(operation: str, layout: str, rows: Sequence[dict[str, Any]]) -> str:
    """One Markdown table; the last row is the geometric mean of the ratios."""
    libraries = list(rows[0]["seconds"][operation])
    peers = [library for library in libraries if library != OURS]
    payload = OPERATIONS[operation][1]
    head = ["shape", *(f"{library}, ms" for library in libraries), "fastbn, GB/s", *(f"x {peer}" for peer in peers)]
    lines = [f"### {operation}, {layout}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        seconds = row["seconds"][operation]
        cells = [f"{seconds[library] * 1e3:.2f}" for library in libraries]
        cells.append(f"{payload * row['bytes'] / seconds[OURS] / 1e9:.0f}")
        cells += [f"{seconds[peer] / seconds[OURS]:.2f}" for peer in peers]
        lines.append(f"| {row['shape']} | {' | '.join(cells)} |")
    means = []
    for peer in peers:
        ratios = [row["seconds"][operation][peer] / row["seconds"][operation][OURS] for row in rows]
        means.append(f"**{geometric_mean(ratios):.2f}**")
    lines.append(f"| geometric mean |{' |' * (len(libraries) + 1)} {' | '.join(means)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--images", type=int, default=32, help="batch size (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="default: all, %(default)s here")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (default: %(default)s)")
    parser.add_argument("--layouts", nargs="+", choices=("nchw", "nhwc"), default=("nchw", "nhwc"))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(argv)
    set_threads(options.threads)

    results: dict[str, Any] = {"machine": machine(), "images": options.images, "layouts": {}}
    for layout in options.layouts:
        rows = []
        for problem in (problem.with_images(options.images) for problem in RESNET50):
            seconds = measure(problem, last=layout == "nhwc", rounds=options.rounds)
            rows.append({"shape": problem.name, "bytes": 4 * int(np.prod(problem.shape)), "seconds": seconds})
        results["layouts"][layout] = rows
        for operation in OPERATIONS:
            print(table(operation, layout.upper(), rows))
    print(json.dumps(results["machine"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
