"""``python -m bench.gpu --json FILE``: measure fastbn and PyTorch on a GPU; ``--show FILE ...`` prints the figures.

ResNet-50's nine shapes at 128 images in both memory layouts, float32. Times are by events on the default stream, the
median of turns that the libraries take one after another, each of many calls; what the tensors leave in the caches from
one call to the next is the same for all. The limit is the device's copy: the tensors that an operation reads and writes
at the least, at the bandwidth of the fastest copy that was measured. Results are checked before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastbn
from bench.cases import OPERATIONS, Array, MissingError, Work, WrongResultError
from bench.measure import Measured, load, ready, save, software
from bench.peers import OURS
from bench.report import markdown
from bench.shapes import RESNET50, Problem
from bench.timing import geometric_mean, median
from fastbn import reference

MEASURED = ("forward", "backward", "inference")
COPY = "copy"
"""What the device's own copy of the tensor is called among the libraries."""
TURN = 5.0
"""Milliseconds of a turn."""
PICKED = 3
"""Channels whose results are checked; the reference takes its time."""
ERROR = 1e-4
"""Largest error that a result may have, over its largest magnitude."""
PACKAGES = ("fastbn", "numba", "numba-cuda", "numpy", "torch", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")


class Data:
    """One shape with its data on the host; ``last`` means channels last in memory, axis 1 all the same."""

    def __init__(self, problem: Problem, last: bool) -> None:
        rng = np.random.default_rng(0)
        self.problem, self.last = problem, last
        self.x, self.dout = (self._tensor(rng) for _ in range(2))
        channels = problem.shape[1]
        self.gamma, self.running_var = rng.uniform(0.5, 2.0, (2, channels)).astype(np.float32)
        self.beta, self.running_mean = rng.standard_normal((2, channels), dtype=np.float32)

    def _tensor(self, rng: np.random.Generator) -> Array:
        n, c, h, w = self.problem.shape
        shape = (n, h, w, c) if self.last else (n, c, h, w)
        values = rng.standard_normal(shape, dtype=np.float32)
        return values.transpose(0, 3, 1, 2) if self.last else values

    def expected(self, operation: str, picked: Sequence[int]) -> Sequence[Array]:
        """The first results of some channels: those of ``OPERATIONS``, but for the running arrays."""
        x, dout = self.x[:, picked], self.dout[:, picked]
        gamma, beta, mean, var = (a[picked] for a in (self.gamma, self.beta, self.running_mean, self.running_var))
        if operation == "forward":
            return [reference.forward(x, gamma, beta)[0]]
        if operation == "backward":
            return reference.backward(dout, x, gamma)
        return [reference.inference(x, mean, var, gamma, beta)]


def check(operation: str, results: Sequence[Array], wanted: Sequence[Array]) -> None:
    """``WrongResultError`` for anything else than the reference."""
    for name, result, value in zip(OPERATIONS[operation].results, results, wanted, strict=False):
        error = np.abs(result - value).max() / np.abs(value).max()
        if not error < ERROR:
            raise WrongResultError(f"gives {name} with a relative error of {error:.1e}")


def ours(data: Data, operation: str) -> Work:
    """The device's arrays of Numba, and ``out``."""
    from numba import cuda

    def put(array: Array) -> Any:
        # channels last: the array as it lies in memory, with its channels on the last axis
        return cuda.to_device(array.transpose(0, 2, 3, 1) if data.last and array.ndim == 4 else array)

    axis = -1 if data.last else 1
    x, dout, gamma, beta, mean, var = map(
        put, (data.x, data.dout, data.gamma, data.beta, data.running_mean, data.running_var)
    )
    out = cuda.device_array_like(x)
    if operation == "forward":
        run: Callable[[], Any] = lambda: fastbn.forward(x, gamma, beta, mean, var, axis=axis, out=out)[:1]  # noqa: E731
    elif operation == "backward":
        cache = fastbn.forward(x, gamma, beta, axis=axis).cache
        run = lambda: fastbn.backward(dout, cache, out=out)  # noqa: E731
    else:
        run = lambda: [fastbn.inference(x, mean, var, gamma, beta, axis=axis, out=out)]  # noqa: E731

    def read(results: Any) -> list[Array]:
        host = [result.copy_to_host() for result in results]
        return [a.transpose(0, 3, 1, 2) if data.last and a.ndim == 4 else a for a in host]

    return Work(run, read)


def pytorchs(data: Data, operation: str, *, cudnn: bool) -> Work:
    """PyTorch's kernels, or cuDNN's through PyTorch."""
    try:
        import torch
    except ImportError:
        raise MissingError("not installed") from None
    if not torch.cuda.is_available():
        raise MissingError("built without CUDA")

    def put(array: Array) -> Any:
        if data.last and array.ndim == 4:
            return torch.from_numpy(array.transpose(0, 2, 3, 1)).cuda().permute(0, 3, 1, 2)
        return torch.from_numpy(array).cuda()

    names = ("x", "dout", "gamma", "beta", "running_mean", "running_var")
    x, dout, gamma, beta, mean, var = (put(getattr(data, name)) for name in names)

    def normalize(training: bool) -> Any:
        with torch.backends.cudnn.flags(enabled=cudnn):
            return torch.nn.functional.batch_norm(x, mean, var, gamma, beta, training, 0.1, 1e-5)

    def in_mode(training: bool) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return [normalize(training)]

        return run

    run = in_mode(operation == "forward")
    if operation == "backward":
        inputs = [each.requires_grad_() for each in (x, gamma, beta)]
        out = normalize(True)

        def run() -> Any:
            with torch.backends.cudnn.flags(enabled=cudnn):
                return torch.autograd.grad(out, inputs, dout, retain_graph=True)

    return Work(run, lambda results: [result.detach().cpu().numpy() for result in results])


LIBRARIES: dict[str, Callable[[Data, str], Work]] = {
    OURS: ours,
    "PyTorch, cuDNN": lambda data, operation: pytorchs(data, operation, cudnn=True),
    "PyTorch, native": lambda data, operation: pytorchs(data, operation, cudnn=False),
}


def turn(call: Callable[[], Any], calls: int) -> float:
    """Milliseconds of a call, by events around so many of them."""
    from numba import cuda

    start, stop = cuda.event(), cuda.event()
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    stop.synchronize()
    return float(cuda.event_elapsed_time(start, stop)) / calls


def alternate(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    numbers = {}
    for name, call in calls.items():
        turn(call, 2)  # what is compiled or chosen at first does not count
        numbers[name] = max(1, round(TURN / turn(call, 3)))
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(turn(call, numbers[name]) / 1e3)
    return {name: median(values) for name, values in times.items()}


def measure(data: Data, operation: str, rounds: int) -> Measured:
    """Check, then time."""
    from numba import cuda

    channels = data.problem.shape[1]
    picked = sorted({int(c) for c in np.linspace(0, channels - 1, PICKED)})
    wanted = data.expected(operation, picked)

    def examine(results: Sequence[Array]) -> None:
        check(operation, [r[:, picked] if r.ndim == 4 else r[picked] for r in results], wanted)

    works, missing = ready(
        {library: partial(prepare, data, operation) for library, prepare in LIBRARIES.items()}, examine
    )
    calls = {library: work.run for library, work in works.items()}
    source = cuda.device_array(data.x.size, np.float32)
    target = cuda.device_array_like(source)
    calls[COPY] = lambda: target.copy_to_device(source)
    return {
        "operation": operation,
        "layout": data.problem.layout(last=data.last),
        "shape": data.problem.name,
        "bytes": data.x.nbytes,
        "seconds": alternate(calls, rounds),
        "missing": missing,
    }


def bandwidth(rows: Iterable[Measured]) -> float:
    """Bytes a second that the fastest copy read and wrote."""
    return max(2 * row["bytes"] / row["seconds"][COPY] for row in rows)


def tables(rows: Sequence[Measured]) -> str:
    """A table for each operation and layout: milliseconds, the limit, and how many times as long each takes."""
    fastest = bandwidth(rows)
    parts = [f"Copy: {fastest / 1e9:.0f} GB/s"]
    for operation in MEASURED:
        for layout in sorted({row["layout"] for row in rows}):
            group = [row for row in rows if (row["operation"], row["layout"]) == (operation, layout)]
            if group:
                parts.append(_table(operation, layout, group, fastest))
    return "\n\n".join(parts)


def _table(operation: str, layout: str, rows: Sequence[Measured], fastest: float) -> str:
    libraries = [library for library in LIBRARIES if any(library in row["seconds"] for row in rows)]
    head = [f"{operation}, {layout}: ms", *libraries, "limit", *(f"{library} / limit" for library in libraries)]
    lines: list[list[str]] = []
    ratios: dict[str, list[float]] = {library: [] for library in libraries}
    gains: dict[str, list[float]] = {library: [] for library in libraries}
    for row in rows:
        limit = OPERATIONS[operation].traffic * row["bytes"] / fastest
        times = [row["seconds"].get(library) for library in libraries]
        for library, time in zip(libraries, times, strict=True):
            if time is not None:
                ratios[library].append(time / limit)
                gains[library].append(time / row["seconds"][OURS])
        cells = [_cell(time and time * 1e3, ".3f") for time in times]
        over = [_cell(time and time / limit, ".2f") for time in times]
        lines.append([row["shape"], *cells, f"{limit * 1e3:.3f}", *over])
    means = [f"x {geometric_mean(gains[library]):.2f}" for library in libraries[1:]]
    over = [f"{geometric_mean(ratios[library]):.2f}" for library in libraries]
    lines.append(["geometric mean; fastbn, times as fast", "", *means, "", *over])
    return markdown(head, lines)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def machine() -> dict[str, Any]:
    """Where and with what the figures are taken."""
    from numba import cuda

    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    capability = ".".join(map(str, device.compute_capability))
    return {"device": name, "compute capability": capability, **software(PACKAGES)}


def require_gpu() -> None:
    """Exit where there is none, or only the simulator."""
    try:
        from fastbn.cuda import _driver
        from fastbn.kernels.cuda_warps import SIMULATED

        _driver.current_device()
    except (ImportError, RuntimeError) as error:
        raise SystemExit(f"bench.gpu: expected a GPU, got none ({error})") from None
    if SIMULATED:
        raise SystemExit("bench.gpu: expected a GPU, got Numba's simulator (NUMBA_ENABLE_CUDASIM)")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and keep the file up to date, or show the figures of files."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--json", type=Path, help="where to write the figures")
    what.add_argument("--show", type=Path, nargs="+", help="files of figures to print")
    parser.add_argument("--images", type=int, default=128, help="batch size (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="turns that count (default: %(default)s)")
    parser.add_argument("--operations", nargs="+", choices=MEASURED, default=list(MEASURED))
    options = parser.parse_args(argv)
    if options.show:
        print(tables(load(options.show)[1]))
        return
    require_gpu()
    rows: list[Measured] = []
    for problem in RESNET50:
        for last in (False, True):
            data = Data(problem.with_images(options.images), last)
            for operation in options.operations:
                rows.append(measure(data, operation, options.rounds))
                save(options.json, rows, machine())
    print(tables(rows))


if __name__ == "__main__":
    main()
