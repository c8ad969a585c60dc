"""``python -m bench.networks --json FILE``: what batch normalization takes in whole training steps.

Networks of ``bench.models`` in the variants of ``bench.variants``, timed as in ``bench.steps``; medians of the rounds.
``--report FILE ...`` shows figures again. Each network and layout has a process of its own, because what the allocator
keeps of one network decides how many pages the next one touches first. The variants share it: pages that one has
touched, or made huge, may serve another. ``--variants`` measures some of them alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import numba
import torch

from bench.cases import MissingError, WrongResultError
from bench.measure import load, save
from bench.models import NETWORKS
from bench.report import markdown
from bench.steps import Training, in_turns, timed, watched
from bench.timing import geometric_mean, median
from bench.variants import VARIANTS

LAYOUTS = ("NCHW", "NHWC", "NC")


class Figures(TypedDict):
    """Medians of one variant: seconds, and page faults."""

    step: float
    forward: float
    """Of batch normalization, as is ``backward``."""
    backward: float
    faults: float


class NetworkRow(TypedDict):
    """One network in one layout."""

    network: str
    layout: str
    batch: int
    image: int
    threads: int
    layers: int
    """Of batch normalization."""
    rounds: int
    variants: dict[str, Figures]
    missing: dict[str, str]
    """Variant: why it has no figures."""


class Job(NamedTuple):
    """What a row is measured with."""

    network: str
    layout: str
    variants: Sequence[str]
    batch: int
    image: int
    threads: int
    rounds: int


def apart(job: Job) -> NetworkRow:
    """``measure`` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, job).result()


def measure(job: Job) -> NetworkRow:
    """Check, then time."""
    numba.set_num_threads(job.threads)  # starts Numba's threads, which sets the number of all OpenMP's
    torch.set_num_threads(job.threads)
    trainings, missing = ready(job)
    steps = in_turns(trainings, timed, rounds=job.rounds)
    parts = in_turns(trainings, watched, rounds=job.rounds)
    figures = {}
    for name in trainings:
        seconds, faults = (median(values) for values in zip(*steps[name], strict=True))
        forward, backward = (median(values) for values in zip(*parts[name], strict=True))
        figures[name] = Figures(step=seconds, forward=forward, backward=backward, faults=faults)
    return {
        "network": job.network,
        "layout": job.layout,
        "batch": job.batch,
        "image": job.image,
        "threads": torch.get_num_threads(),
        "layers": len(next(iter(trainings.values())).layers),
        "rounds": job.rounds,
        "variants": figures,
        "missing": missing,
    }


def ready(job: Job) -> tuple[dict[str, Training], dict[str, str]]:
    """The variants whose first step is right, and the reasons of the others."""
    trainings: dict[str, Training] = {}
    missing = {}

    def make(variant: str) -> Training:
        return Training(NETWORKS[job.network], job.layout, variant, job.batch, job.image)

    wanted = make("pytorch").results()
    for variant in job.variants:
        try:
            training = make(variant)
            check(training.results(), wanted if variant == "fastbn" else None)
        except (MissingError, WrongResultError) as reason:
            missing[variant] = str(reason)
        else:
            trainings[variant] = training
    return trainings, missing


def check(results: tuple[float, Any], wanted: tuple[float, Any] | None) -> None:
    """Finite, and equal to PyTorch's where they are known, but for what rounding grows to in a deep network."""
    loss, gradient = results
    if not (math.isfinite(loss) and gradient.isfinite().all()):
        raise WrongResultError(f"gives a loss of {loss} or a gradient that is not finite")
    if wanted:
        error = float((gradient - wanted[1]).norm() / wanted[1].norm())
        if not (abs(loss - wanted[0]) < 1e-2 * wanted[0] and error < 0.1):
            raise WrongResultError(f"gives a loss of {loss}, not {wanted[0]}, and a relative error of {error:.1e}")


def norm(figures: Figures) -> float:
    """Seconds of batch normalization."""
    return figures["forward"] + figures["backward"]


def table(rows: Sequence[NetworkRow]) -> str:
    """All figures, a variant a row."""
    head = ["network", "layout", "variant", "step, ms", "forward", "backward", "sum", "share", "rest", "page faults"]
    lines = []
    for row in rows:
        size = f", {row['image']}x{row['image']}" if row["layout"] != "NC" else ""
        name = f"{row['network']}, {row['batch']}{size}, {row['layers']} layers"
        for variant, figures in row["variants"].items():
            own, step = norm(figures), figures["step"]
            times = [step, figures["forward"], figures["backward"], own]
            lines.append([name, row["layout"], variant, *(f"{time * 1e3:.3g}" for time in times)])
            lines[-1] += [f"{own / step:.1%}", f"{(step - own) * 1e3:.3g}", f"{figures['faults']:.0f}"]
    return markdown(head, lines)


RATIOS: dict[str, tuple[Callable[[Figures], float], str, str]] = {
    "batch normalization, PyTorch over fastbn": (norm, "pytorch", "fastbn"),
    "batch normalization, PyTorch over its accesses alone": (norm, "pytorch", "accesses"),
    "batch normalization, fastbn over its accesses alone": (norm, "fastbn", "accesses"),
    "step, PyTorch over fastbn": (lambda figures: figures["step"], "pytorch", "fastbn"),
    "step, PyTorch over no batch normalization": (lambda figures: figures["step"], "pytorch", "none"),
    "step, fastbn over no batch normalization": (lambda figures: figures["step"], "fastbn", "none"),
}
"""Title: of what, and the two variants."""


def summary(rows: Sequence[NetworkRow]) -> str:
    """Ratios: geometric mean of the networks, and each network's."""
    layouts = list(dict.fromkeys(row["layout"] for row in rows))
    lines = []
    for title, (of, above, below) in RATIOS.items():
        lines.append([title])
        for layout in layouts:
            found = {
                row["network"]: of(row["variants"][above]) / of(row["variants"][below])
                for row in rows
                if row["layout"] == layout and {above, below} <= row["variants"].keys()
            }
            each = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items())
            lines[-1].append(f"**{geometric_mean(list(found.values())):.2f}** ({each})" if found else "")
    return markdown(["times", *layouts], lines)


def text(machine: dict[str, Any], rows: Sequence[NetworkRow]) -> str:
    """Everything, for each number of threads."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, {machine['date']}; {versions}."]
    for threads in dict.fromkeys(row["threads"] for row in rows):
        group = [row for row in rows if row["threads"] == threads]
        missing = dict.fromkeys(f"* {name}: {reason}" for row in group for name, reason in row["missing"].items())
        parts += [f"## Training steps, float32, {threads} thread{'s' * (threads > 1)}", table(group), summary(group)]
        parts += ["### Missing", "\n".join(missing) or "Nothing."]
    return "\n\n".join(parts) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--json", type=Path, help="measure, and write the figures there")
    action.add_argument("--report", type=Path, nargs="+", metavar="FILE", help="show the figures of such files")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="NC is that of the MLP")
    default = [variant for variant in VARIANTS if "streaming" not in variant]
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=default, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="default: all, %(default)s here")
    parser.add_argument("--batch", type=int, help="images or rows of a step; default: each network's own")
    parser.add_argument("--image", type=int, default=112, help="pixels of a side (default: %(default)s)")
    return parser.parse_args(argv)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Each network in each of its layouts."""
    for name in options.models:
        network = NETWORKS[name]
        size = {"batch": options.batch or network.batch, "image": options.image}
        for layout in network.layouts:
            if layout in options.layouts:
                yield Job(name, layout, options.variants, threads=options.threads, rounds=options.rounds, **size)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and keep the file up to date, or read; print the tables."""
    options = parse(argv)
    if options.json:
        rows: list[NetworkRow] = []
        for job in jobs(options):
            rows.append(apart(job))
            save(options.json, rows)
    machine, read = load(options.report or [options.json])
    print(text(machine, cast("list[NetworkRow]", read)))


if __name__ == "__main__":
    main()
