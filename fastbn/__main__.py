"""``python -m fastbn info`` and ``python -m fastbn warmup``."""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import importlib.util
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import llvmlite.binding
import numba
import numpy as np

from fastbn import __version__
from fastbn.kernels import cache, calls, channels_first, channels_last, coefficients, small
from fastbn.kernels.jit import Entries, threading_layer
from fastbn.kernels.twins import Kernel

OPTIONAL = ("ml_dtypes", "torch", "onnx", "keras", "numba_cuda", "matplotlib", "sklearn", "tqdm", "pytest_benchmark")
BAR = 30


def info() -> None:
    """Print what matters to speed and to a bug report, one ``name: value`` a line."""
    folder = cache.folder()
    kernels = 0 if folder is None else len(list(folder.glob("*.nbc")))
    facts = {
        "fastbn": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.system()})",
        "numpy": np.__version__,
        "numba": f"{numba.__version__} (llvmlite {llvmlite.__version__}, LLVM {_llvm_version()})",
        "cpu": f"{llvmlite.binding.get_host_cpu_name()}, {_vector_bits()}-bit vectors",
        "threading layer": threading_layer(),
        "threads": f"{numba.get_num_threads()} of {numba.config.NUMBA_NUM_THREADS}",
        "compilation": "off (NUMBA_DISABLE_JIT)" if numba.config.DISABLE_JIT else "on",
        "cache folder": "none that is writable and owned by this user" if folder is None else folder,
        "cached kernels": kernels,
    }
    facts["optional packages"] = ", ".join(name for name in OPTIONAL if importlib.util.find_spec(name)) or "none"
    for name, value in facts.items():
        print(f"{name}: {value}")


def _llvm_version() -> str:
    return ".".join(map(str, llvmlite.binding.llvm_version_info))


def _vector_bits() -> int:
    """Width of the widest vector registers that the compiler may use."""
    features = llvmlite.binding.get_host_cpu_features()
    widths = {"avx512f": 512, "avx": 256, "sve": 128, "neon": 128, "sse2": 128}
    return max((bits for name, bits in widths.items() if features.get(name)), default=64)


def warmup(jobs: int) -> None:
    """Compile every kernel for float32 and float64, as both twins, and leave them in the cache folder."""
    start = time.perf_counter()
    total = len(_work())
    for done, name in enumerate(_compile_all(total, jobs), 1):
        _show_progress(done, total, name)
    print(f"{total} kernels in {time.perf_counter() - start:.1f} s; cache folder: {cache.folder()}")


def _compile_all(total: int, jobs: int) -> Iterator[str]:
    """The names of the kernels, each when it is compiled, by so many processes."""
    if jobs == 1:
        yield from map(_compile, range(total))
        return
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for compiled in concurrent.futures.as_completed([pool.submit(_compile, position) for position in range(total)]):
            yield compiled.result()


def _compile(position: int) -> str:
    module, function, args = _work()[position]
    function(*args)
    return f"{module.__name__.rpartition('.')[2]}.{getattr(function, 'py_func', function).__name__}"


@functools.cache
def _work() -> list[tuple[ModuleType, Callable[..., Any], tuple[Any, ...]]]:
    return list(_usual_calls())


def _usual_calls() -> Iterator[tuple[ModuleType, Callable[..., Any], tuple[Any, ...]]]:
    """Everything that is compiled, with arguments of all the types that the package passes."""
    for entries in vars(calls).values():
        if isinstance(entries, Entries):
            for position in range(len(entries)):
                yield calls, entries.compile, (position,)
    mean, inv_std, var, gamma, beta, sum_dout, sum_dout_xhat = np.ones((7, 3))
    sums = (sum_dout, sum_dout_xhat)
    for dtype in (np.float32, np.float64):
        x, dout, out = np.ones((3, 48), dtype)
        affine, gradient = np.ones((3, 3), dtype), np.ones((4, 3), dtype)
        for given in (np.float32, np.float64):
            four = np.ones((4, 3), given)
            yield coefficients, coefficients.affine, (*four, affine)
            yield coefficients, coefficients.affine_of_var, (*four[:2], 1e-5, *four[2:], mean, inv_std, affine)
            yield small, small.inference, (x, (1, 3, 16), *four[:2], 1e-5, *four[2:], out, mean, inv_std)
        yield coefficients, coefficients.gradient, (mean, inv_std, gamma, *sums, 8.0, gradient)
        yield coefficients, coefficients.weighted_mean, (affine[0], mean, 0.1, 1.0, affine[1])
        for module, shape in ((channels_first, (1, 3, 16)), (channels_last, (16, 1, 3, 1))):
            arguments: dict[Kernel[Any], tuple[Any, ...]] = {
                module.batch_stats: (x, shape, 1, mean, var),
                module.normalize: (x, shape, affine, out, False),
                module.forward: (x, shape, 1, 1e-5, gamma, beta, out, mean, var, inv_std, False),
                module.backward_sums: (dout, x, shape, 1, mean, inv_std, *sums),
                module.backward_input: (dout, x, shape, gradient, out, False),
                module.backward: (dout, x, shape, 1, mean, inv_std, gamma, *sums, out, False),
            }
            arguments[module.forward_in_phases] = arguments[module.forward]
            arguments[module.backward_in_phases] = arguments[module.backward]
            for kernel, args in arguments.items():
                yield module, kernel.serial, args
                yield module, kernel.parallel, args


def _show_progress(done: int, total: int, what: str) -> None:
    """One line that is written over where there is a terminal, a line a step where there is none."""
    filled = BAR * done // total
    line = f"[{'#' * filled}{'.' * (BAR - filled)}] {done}/{total} {what}"
    if sys.stderr.isatty():
        print(f"\r{line:<78}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m fastbn", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for command in (info, warmup):
        summary = (command.__doc__ or "").strip()
        options = subparsers.add_parser(command.__name__, help=summary, description=summary)
        options.set_defaults(run=command)
    options.add_argument("--jobs", type=_positive, default=1, help="processes that compile (default: %(default)s)")
    given = vars(parser.parse_args(argv))
    del given["command"]
    given.pop("run")(**given)


def _positive(text: str) -> int:
    """A number of processes."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


if __name__ == "__main__":
    main()
