"""Pictures of measured rows: achieved GB/s of each library against the limit, and over the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import figures
from bench.cases import OPERATIONS
from bench.measure import Row
from bench.peers import OURS, PEERS
from bench.timing import geometric_mean

OURS_COLOR, PEER_COLOR, LIMIT_COLOR = "#c1440e", "#8da0b3", "#222222"
WIDTH, HEIGHT = 5.2, 3.4
"""Inches of a panel."""


def bars(path: Path, rows: Sequence[Row], title: str) -> None:
    """A panel for each operation and layout, a bar for each library, a dot for each shape; rows of one mode."""
    libraries = [name for name in PEERS if any(name in row["seconds"] for row in rows)]

    def draw(axes: Axes, panel: Sequence[Row]) -> None:
        edge = axes.get_yaxis_transform()
        for position, library in enumerate(reversed(libraries)):
            speeds = [figures.bandwidth(row, row["seconds"][library]) for row in panel if library in row["seconds"]]
            if not speeds:
                axes.text(0.01, position, "missing", transform=edge, va="center", fontsize=8, color="grey")
                continue
            average = geometric_mean(speeds)
            axes.barh(position, average, color=OURS_COLOR if library == OURS else PEER_COLOR)
            axes.plot(speeds, [position] * len(speeds), ".", color="black", markersize=3, alpha=0.5)
            axes.text(0.99, position, f"{average:.0f}", transform=edge, va="center", ha="right", fontsize=8)
        limits = _limits(panel)
        if limits:
            axes.axvline(geometric_mean(limits), color=LIMIT_COLOR, linestyle="--")
        axes.set_yticks(range(len(libraries)), reversed(libraries), fontsize=8)
        axes.set_ylim(-0.6, len(libraries) - 0.4)
        axes.set_xlim(0, 1.1 * axes.get_xlim()[1])

    least = {"hot": "best copy", "cold": "accesses alone"}[figures.mode(rows[0])]
    note = f"GB/s of the least traffic: geometric mean of the shapes (bar, number), each shape (dot), {least} (dashed)"
    _panels(path, rows, f"{title}\n{note}", draw)


def scaling(path: Path, rows: Sequence[Row], title: str) -> None:
    """A panel for each operation and layout: GB/s over the number of threads."""
    libraries = [name for name in PEERS if any(name in row["seconds"] for row in rows)]
    numbers = sorted({row["threads"] for row in rows})

    def draw(axes: Axes, panel: Sequence[Row]) -> None:
        by_threads = [[row for row in panel if row["threads"] == threads] for threads in numbers]
        for library in libraries:
            speeds = [[figures.bandwidth(row, row["seconds"][library]) for row in same] for same in by_threads]
            color = OURS_COLOR if library == OURS else PEER_COLOR
            axes.plot(numbers, [geometric_mean(values) for values in speeds], "o-", color=color, label=library)
        limits = [geometric_mean(_limits(same)) for same in by_threads]
        axes.plot(numbers, limits, "--", color=LIMIT_COLOR, label="limit (best copy)")
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("threads")
        axes.legend(fontsize=8)

    _panels(path, rows, f"{title}\nGB/s of the least traffic, geometric mean of the shapes", draw)


def _limits(rows: Sequence[Row]) -> list[float]:
    """GB/s of the bound in the rows that have one."""
    times = [(row, figures.bound(row)) for row in rows]
    return [figures.bandwidth(row, time) for row, time in times if time is not None]


def _panels(path: Path, rows: Sequence[Row], title: str, draw: Callable[[Axes, Sequence[Row]], None]) -> None:
    """Operations from top to bottom, layouts from left to right."""
    layouts = list(dict.fromkeys(row["layout"] for row in rows))
    operations = [operation for operation in OPERATIONS if any(row["operation"] == operation for row in rows)]
    figure = Figure(figsize=(WIDTH * len(layouts), HEIGHT * len(operations) + 0.6), layout="constrained")
    grid = figure.subplots(len(operations), len(layouts), squeeze=False)
    figure.suptitle(title, fontsize=10)
    for line, operation in zip(grid, operations, strict=True):
        for axes, layout in zip(line, layouts, strict=True):
            panel = [row for row in rows if (row["operation"], row["layout"]) == (operation, layout)]
            shapes = len({row["shape"] for row in panel})
            axes.set_title(f"{operation}, {layout}, {shapes} shape{'s' * (shapes > 1)}", fontsize=10)
            if panel:
                draw(axes, panel)
    figure.savefig(path, dpi=120)
