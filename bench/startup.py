"""``python -m bench.startup``: what comes before the first result, each in a process of its own; medians.

*Cold* begins with an empty folder of compiled kernels, *warm* with one that an earlier process has left.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

SHAPE = "(32, 64, 56, 56)"
MAKE = f"import numpy as np; x = np.ones({SHAPE}, np.float32); "
FORWARD = "out, cache = fastbn.forward(x); "
PROCESSES = {
    # what: (program, whether its kernels are compiled beforehand)
    "import numpy": ("import numpy", True),
    "import numba": ("import numba", True),
    "import fastbn": ("import fastbn", True),
    "forward, warm": (f"{MAKE}import fastbn; {FORWARD}", True),
    "forward + backward, warm": (f"{MAKE}import fastbn; {FORWARD}fastbn.backward(x, cache)", True),
    "inference (1, 64), warm": (
        "import numpy as np, fastbn; fastbn.inference(np.ones((1, 64)), np.ones(64), np.ones(64))",
        True,
    ),
    "forward, cold": (f"{MAKE}import fastbn; {FORWARD}", False),
    "forward + backward, cold": (f"{MAKE}import fastbn; {FORWARD}fastbn.backward(x, cache)", False),
    "forward + backward, channels last, cold": (
        f"{MAKE}import fastbn; x = x.transpose(0, 2, 3, 1).copy(); out, cache = fastbn.forward(x, axis=-1); "
        "fastbn.backward(x, cache)",
        False,
    ),
    "import torch": ("import torch", True),
    "PyTorch, forward": (f"{MAKE}import torch; torch.nn.BatchNorm2d(64)(torch.from_numpy(x))", True),
}


def seconds(program: str, *, warm: bool) -> float:
    """From the start of a process to its end; the folder of compiled kernels is a new one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", program]
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        if warm:
            subprocess.run(command, env=environment, check=True)
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True)
        return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Measure in turns and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind (default: %(default)s)")
    rounds = parser.parse_args(argv).rounds
    times: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for _ in range(rounds):
        for name, (program, warm) in PROCESSES.items():
            try:
                times[name].append(seconds(program, warm=warm))
            except subprocess.CalledProcessError:
                continue  # not installed; Python has said so
    print("| process, from its start to its end | seconds |\n|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} |" if values else f"| {name} | not installed |")


if __name__ == "__main__":
    main()
