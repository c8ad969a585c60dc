"""What follows from the measured rows: ratios, their geometric means and worst cases, distances from the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from bench.cases import OPERATIONS
from bench.limit import LIMITS
from bench.measure import Row
from bench.peers import OURS, PEERS
from bench.timing import geometric_mean

ONEDNN = "oneDNN, best layout"
"""Not a library: the fastest of oneDNN's layouts for each row."""

LARGE = 24e6
"""Bytes of a tensor from which on time is compared with the memory's limit."""


LIMITED_BY = {"hot": "limit", "cold": "accesses alone"}
"""What ``bound`` is called in each mode."""


class Ratio(NamedTuple):
    """Of one row."""

    value: float
    row: Row


def competitors(rows: Sequence[Row]) -> list[str]:
    """All libraries with a figure in any row but ours, and oneDNN's best layout if it has several."""
    names = [name for name in PEERS if name != OURS and any(name in row["seconds"] for row in rows)]
    layouts = [name for name in names if name.startswith("oneDNN")]
    if len(layouts) > 1:
        names.insert(names.index(layouts[-1]) + 1, ONEDNN)
    return names


def seconds(row: Row, library: str) -> float | None:
    """Of the library, or of the fastest layout of oneDNN."""
    if library != ONEDNN:
        return row["seconds"].get(library)
    return min((time for name, time in row["seconds"].items() if name.startswith("oneDNN")), default=None)


def speedups(rows: Iterable[Row], library: str) -> list[Ratio]:
    """How many times as fast as the library fastbn is, in each row that has both."""
    times = [(row, seconds(row, OURS), seconds(row, library)) for row in rows]
    return [Ratio(theirs / ours, row) for row, ours, theirs in times if ours is not None and theirs is not None]


def limit(row: Row) -> float | None:
    """Seconds of the operation's least traffic at the bandwidth of the faster copy, if the limits were measured."""
    copies = [time for name, time in row["limits"].items() if name.startswith("copy")]
    return min(copies) * OPERATIONS[row["operation"]].traffic / LIMITS["copy"] if copies else None


def mode(row: Row) -> str:
    """``cold`` or ``hot``."""
    return row.get("mode", "hot")


def accesses(row: Row) -> float | None:
    """Seconds of the operation's memory accesses alone, with the better stores, if they were measured.

    Cold inference has a copy in their place, in the same state.
    """
    names = ("accesses", "copy") if mode(row) == "cold" else ("accesses",)
    return min((time for name, time in row["limits"].items() if name.startswith(names)), default=None)


def bound(row: Row) -> float | None:
    """Seconds of the limit; of the accesses alone in a cold row, as the limit knows only kept memory."""
    return accesses(row) if mode(row) == "cold" else limit(row)


def over_limit(rows: Iterable[Row], library: str = OURS) -> list[Ratio]:
    """The library's time over the limit, in each row that has both."""
    return _over(limit, rows, library)


def over_accesses(rows: Iterable[Row], library: str = OURS) -> list[Ratio]:
    """The library's time over that of fastbn's memory accesses, in each row that has both."""
    return _over(accesses, rows, library)


def _over(bound: Callable[[Row], float | None], rows: Iterable[Row], library: str) -> list[Ratio]:
    times = [(row, seconds(row, library), bound(row)) for row in rows]
    return [Ratio(time / least, row) for row, time, least in times if time is not None and least is not None]


def bandwidth(row: Row, time: float) -> float:
    """GB/s, if the operation moves its least traffic in so many seconds."""
    return OPERATIONS[row["operation"]].traffic * row["bytes"] / time / 1e9


def mean(ratios: Sequence[Ratio]) -> float:
    """The geometric mean."""
    return geometric_mean([ratio.value for ratio in ratios])


def by_memory_order(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows with the channels first, and rows with the channels last or alone, named by the layouts among them."""
    first: list[Row] = []
    last: list[Row] = []
    for row in rows:
        (last if row["layout"].endswith("C") else first).append(row)
    return {" and ".join(dict.fromkeys(row["layout"] for row in group)): group for group in (first, last) if group}


def by_setting(rows: Iterable[Row]) -> dict[tuple[str, int, str], list[Row]]:
    """Rows by dtype, number of threads, and mode."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["dtype"], row["threads"], mode(row)), []).append(row)
    return groups


def not_ahead(rows: Iterable[Row], library: str, margin: float = 0.1) -> list[Ratio]:
    """Rows in which fastbn is slower than the library, or faster by no more than the margin; the slowest first."""
    behind = [ratio for ratio in speedups(rows, library) if ratio.value <= 1 + margin]
    return sorted(behind, key=attrgetter("value"))


def missing(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """(library, reason): the operations that it holds for, and in which layouts."""
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        for key in row["missing"].items():
            layouts = reasons.setdefault(key, {}).setdefault(row["operation"], [])
            if row["layout"] not in layouts:
                layouts.append(row["layout"])
    return reasons
