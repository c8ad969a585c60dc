"""``python -m bench.report FILE ... --png FILE``: measured figures as Markdown tables and a picture.

The files are those of ``bench.run``, one for each number of threads, say.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from bench import figures, limit
from bench.cases import OPERATIONS
from bench.figures import Ratio
from bench.measure import Row, load
from bench.peers import OURS
from bench.timing import median


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rule = "|---" * len(head) + "|"
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def times_table(rows: Sequence[Row]) -> str:
    """Milliseconds, a shape a row; the rows are of one operation, layout and mode."""
    libraries = [OURS, *figures.competitors(rows)]
    least = figures.LIMITED_BY[figures.mode(rows[0])]
    head = ["ms", *libraries, least, "fastbn, GB/s", f"{least}, GB/s", "handover, ns"]
    lines = []
    for row in rows:
        times = [*(figures.seconds(row, library) for library in libraries), figures.bound(row)]
        speeds = [time and figures.bandwidth(row, time) for time in (times[0], times[-1])]
        lines.append([row["shape"], *(_cell(time and time * 1e3, ".3g") for time in times)])
        lines[-1] += [_cell(speed, ".0f") for speed in speeds]
        lines[-1].append(_cell(row["handover"] * 1e9 if "handover" in row else None, ".0f"))
    ratios = [figures.speedups(rows, library) for library in libraries[1:]]
    means = [f"**x {figures.mean(ratio):.2f}**" if ratio else "" for ratio in ratios]
    lines.append(["fastbn, times as fast", "", *means, "", "", "", ""])
    return markdown(head, lines)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def summary(rows: Sequence[Row]) -> str:
    """How many times as fast as each library fastbn is: geometric mean, and the worst shape."""
    return _by_operation(rows, "times as fast as", figures.competitors(rows), figures.speedups, min)


def limits_summary(rows: Sequence[Row]) -> str:
    """Time over the limit: geometric mean, and the worst shape."""
    return _by_operation(rows, "time over the limit", [OURS, *figures.competitors(rows)], figures.over_limit, max)


def accesses_summary(rows: Sequence[Row]) -> str:
    """Time over that of fastbn's memory accesses alone: geometric mean, and the worst shape."""
    libraries = [OURS, *figures.competitors(rows)]
    return _by_operation(rows, "time over the memory accesses alone", libraries, figures.over_accesses, max)


def _by_operation(
    rows: Sequence[Row],
    title: str,
    libraries: Sequence[str],
    ratios: Callable[[Iterable[Row], str], list[Ratio]],
    worst: Callable[..., Ratio],
) -> str:
    """A table for each memory order: a library a row, an operation a column."""
    tables = []
    for name, group in figures.by_memory_order(rows).items():
        operations = [operation for operation in OPERATIONS if any(row["operation"] == operation for row in group)]
        lines = []
        for library in libraries:
            found = [
                ratios([row for row in group if row["operation"] == operation], library) for operation in operations
            ]
            lines.append([library, *(_mean_and_worst(values, worst) for values in found)])
        tables.append(markdown([f"{name}: {title}", *operations], lines))
    return "\n\n".join(tables)


def _mean_and_worst(ratios: Sequence[Ratio], worst: Callable[..., Ratio]) -> str:
    """``2.31 (1.10 at NCHW 32x64x56x56), 9 shapes``."""
    if not ratios:
        return "none"
    extreme = worst(ratios, key=attrgetter("value"))
    where = f"{extreme.row['layout']} {extreme.row['shape']}"
    return f"{figures.mean(ratios):.2f} ({extreme.value:.2f} at {where}), {len(ratios)} shape{'s' * (len(ratios) > 1)}"


def limits_table(rows: Sequence[Row]) -> str:
    """The machine's limits by size: the median of all rows of a size."""
    times: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        for name, value in row["limits"].items():
            times.setdefault(row["bytes"], {}).setdefault(name, []).append(value)
    return limit.table({size: {name: median(values) for name, values in by.items()} for size, by in times.items()})


def missing_list(rows: Sequence[Row]) -> str:
    """Libraries without figures, why, and where."""
    lines = []
    for (library, reason), operations in figures.missing(rows).items():
        where = "; ".join(f"{operation}, {' '.join(layouts)}" for operation, layouts in operations.items())
        lines.append(f"* {library}: {reason} ({where})")
    return "\n".join(lines) or "Nothing."


def text(machine: dict[str, Any], rows: Sequence[Row]) -> str:
    """Everything, for each dtype, number of threads, and mode."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, {machine['date']}; {versions}."]
    for (dtype, threads, mode), group in figures.by_setting(rows).items():
        parts.append(f"## {dtype}, {threads} thread{'s' * (threads > 1)}, {mode}")
        for operation, layout in dict.fromkeys((row["operation"], row["layout"]) for row in group):
            same = [row for row in group if (row["operation"], row["layout"]) == (operation, layout)]
            parts += [f"### {operation}, {layout}", times_table(same)]
        parts += ["### Speed", summary(group)]
        limited = [row for row in group if row["limits"]] if mode == "hot" else []
        large = [row for row in limited if row["bytes"] >= figures.LARGE]
        if large:
            parts += [f"### Tensors of {figures.LARGE / 1e6:.0f} MB and more", limits_summary(large)]
        reread = [row for row in group if figures.accesses(row)]
        if reread:
            parts += ["### Memory accesses alone", accesses_summary(reread)]
        if limited:
            parts += ["### Limits of the machine", limits_table(limited)]
        parts += ["### Missing", missing_list(group)]
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables and draw the pictures."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="JSON files of python -m bench.run")
    parser.add_argument("--png", type=Path, help="where to draw; the name gets dtype, threads, mode")
    parser.add_argument("--min-mb", type=float, default=0, help="leave out smaller tensors")
    options = parser.parse_args(argv)
    machine, rows = load(options.files)
    rows = [row for row in rows if row["bytes"] >= options.min_mb * 1e6]
    print(text(machine, rows))
    if options.png:
        from bench import picture  # nothing else needs matplotlib

        for (dtype, threads, mode), group in figures.by_setting(rows).items():
            path = options.png.with_stem(f"{options.png.stem}-{dtype}-{threads}-threads-{mode}")
            picture.bars(path, group, f"{machine['cpu']}, {dtype}, threads: {threads}, {mode}")


if __name__ == "__main__":
    main()
