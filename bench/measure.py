"""The measuring: one operation on one tensor by every library in turn, with the machine's limits in the same turns."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import llvmlite.binding
import numba

from bench import accesses, handover, limit
from bench.cases import Array, Case, MissingError, Work, WrongResultError, check, expected
from bench.peers import OURS, prepare
from bench.states import Hot, State
from bench.timing import alternate

PACKAGES = ("fastbn", "numba", "numpy", "torch", "onednn-cpu-gomp", "jax", "onnxruntime", "openvino")


class Measured(TypedDict):
    """Median seconds of one operation on one tensor."""

    operation: str
    layout: str
    shape: str
    bytes: int
    """Of the tensor."""
    seconds: dict[str, float]
    """Library: seconds."""
    missing: dict[str, str]
    """Library: why it has no seconds."""


class Row(Measured):
    """The same on a CPU."""

    dtype: str
    threads: int
    limits: dict[str, float]
    """Limit: seconds, for a tensor of this size; accesses of this operation; empty if they were not asked for."""
    mode: NotRequired[str]
    """``cold`` or ``hot``; files from before there was a choice have none, and are hot."""
    pause: NotRequired[float]
    """Seconds before each call, with the mode."""
    handover: NotRequired[float]
    """Seconds until one core hears of what another has written; where there are two, with the limits."""


def measure(
    case: Case,
    operation: str,
    libraries: Iterable[str],
    *,
    rounds: int,
    limits: bool = True,
    state: Callable[[Case], State] = Hot,
) -> Row:
    """Check, then time; every library on as many threads as Numba uses, on tensors in the same state."""
    tensors, wanted = state(case), expected(case, operation)

    def work(library: str) -> Work:
        return tensors.work(lambda each: prepare(library, each, operation))

    works, missing = ready(
        {library: partial(work, library) for library in libraries},
        lambda results: check(operation, results, wanted),
    )
    calls = {library: work.run for library, work in works.items()}
    bounds = bound_calls(tensors, operation) if limits else {}
    exchange = handover.call() if limits else None
    timed = {**calls, **bounds, **({"handover": exchange} if exchange else {})}
    seconds = alternate(timed, rounds=rounds, rest=tensors.rest)
    row: Row = {
        "operation": operation,
        "layout": case.layout,
        "shape": case.problem.name,
        "dtype": str(case.x.dtype),
        "threads": numba.get_num_threads(),
        "bytes": case.x.nbytes,
        "seconds": {library: seconds[library] for library in calls},
        "limits": {name: seconds[name] for name in bounds},
        "missing": missing,
        "mode": tensors.mode,
        "pause": tensors.pause,
    }
    if exchange:
        row["handover"] = seconds["handover"] / (2 * handover.PASSES)
    return row


def bound_calls(tensors: State, operation: str) -> dict[str, Callable[[], Any]]:
    """What no library can be faster than, on tensors in their state.

    On kept memory the limits of the machine and the accesses alone. On new memory, where the first touch of a page
    costs as well, only what has the operation's own inputs and outputs: its accesses, which for inference are a copy.
    """
    made: list[dict[str, Callable[[], Any]]] = []
    for case in tensors.cases:
        reread = accesses.calls(case, operation)
        if case.fresh:
            made.append(reread or limit.copies(case))
        else:
            made.append({**limit.calls(case.x.nbytes), **reread})
    return {name: tensors.call([calls[name] for calls in made]) for name in made[0]}


def ready(
    libraries: Mapping[str, Callable[[], Work]], check: Callable[[Sequence[Array]], None]
) -> tuple[dict[str, Work], dict[str, str]]:
    """The work of each library that gives right results, and the reasons of the others."""
    works, missing = {}, {}
    for library, make in libraries.items():
        try:
            work = make()
            check(work.read(work.run()))
        except MissingError as reason:
            missing[library] = str(reason)
        except WrongResultError as error:
            if library == OURS:
                raise
            missing[library] = str(error)
        else:
            works[library] = work
    return works, missing


def machine() -> dict[str, Any]:
    """Where and with what the figures are taken."""
    cpu = f"{_cpu_name()} ({llvmlite.binding.get_host_cpu_name()})"
    return {"cpu": cpu, "cores": os.cpu_count(), **software(PACKAGES)}


def software(packages: Iterable[str]) -> dict[str, Any]:
    """The date, the system, and the versions of those of the packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": dt.date.today().isoformat(),
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


def save(path: Path, rows: Sequence[Mapping[str, object]], where: dict[str, Any] | None = None) -> None:
    """Write the figures so far, and ``where`` they are from if not from this CPU."""
    path.write_text(json.dumps({"machine": where or machine(), "rows": rows}, indent=1) + "\n")


def load(paths: Iterable[Path]) -> tuple[dict[str, Any], list[Row]]:
    """The first file's machine, and the rows of all."""
    files = [json.loads(path.read_text()) for path in paths]
    return files[0]["machine"], [row for file in files for row in file["rows"]]
