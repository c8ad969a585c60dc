"""The cold benchmarks offer what a network offers: other tensors and new memory for every call."""

from __future__ import annotations

import ctypes
import json

import numpy as np
import pytest

from bench import accesses, figures, limit, measure, report, run, states
from bench.cases import OPERATIONS, MissingError, Work, check, expected, make_case
from bench.peers import OURS, PEERS, prepare
from bench.shapes import NETWORKS, Problem
from bench.states import Cold, Hot
from bench.timing import alternate

SMALL = Problem("small", (4, 16, 5, 6), 1e-3)
BYTES = 4 * 16 * 5 * 6 * 4
KEPT = {"PyTorch out=", "oneDNN NCHW", "oneDNN NHWC", "oneDNN nChw8c", "oneDNN nChw16c", "ONNX Runtime", "OpenVINO"}
COMPILED = {"torch.compile", "JAX"}
TENSORS = [(SMALL, np.float32, False), (SMALL, np.float64, True), (Problem("flat", (32, 23), 1e-3), np.float32, False)]


@pytest.fixture(autouse=True)
def _short_rings(monkeypatch):
    monkeypatch.setattr(states, "RING", 3 * BYTES)


def start(array):
    return np.asarray(array).__array_interface__["data"][0]


def test_hot_is_one_case():
    case = make_case(SMALL)
    hot = Hot(case)
    assert hot.cases == [case]
    work = Work(lambda: 1, lambda value: [value])
    assert hot.work(lambda each: work if each is case else None) is work


@pytest.mark.parametrize("last", [False, True])
def test_a_ring_has_the_values_in_other_memory(last):
    case = make_case(SMALL, last=last)
    cold = Cold(case)
    assert len(cold.cases) == 3
    assert len(Cold(make_case(SMALL._replace(shape=(400, 16, 5, 6)))).cases) == 2
    for name in ("x", "dout"):
        tensors = [getattr(each, name) for each in (case, *cold.cases)]
        assert len({start(tensor) for tensor in tensors}) == 4
        assert all(tensor.strides == tensors[0].strides for tensor in tensors)
        assert all(start(tensor) % 64 == 0 for tensor in tensors[1:])
        for tensor in tensors:
            np.testing.assert_array_equal(tensor, tensors[0])


def test_calls_of_all_libraries_rotate_together():
    cold = Cold(make_case(SMALL), pause=0)
    seen = []

    def work(library):
        def make(case):
            return Work(lambda: seen.append((library, cold.cases.index(case))), lambda _: [])

        return cold.work(make)

    first, second = work("first"), work("second")
    for _ in range(2):
        first.run()
        second.run()
        second.run()
    assert seen == [("first", 0), ("second", 1), ("second", 2)] * 2


def test_results_are_kept_until_there_is_one_for_each_case():
    cold = Cold(make_case(SMALL), pause=0)
    call = cold.call([lambda: "a", lambda: "b", lambda: "c"])
    for _ in range(2):
        cold.rest()
        call()
    assert cold.results == ["a", "b"]
    assert call() == (2, "c")
    cold.rest()
    assert cold.results == []


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not GNU's")
def test_memory_of_results_is_new_to_the_process():
    resource = pytest.importorskip("resource")
    case = make_case(SMALL._replace(shape=(64, 16, 25, 10)))  # 1 MB, which NumPy does not put on huge pages
    cold = Cold(case, pause=0)
    call = cold.work(lambda each: prepare(OURS, each, "inference")).run
    faults = []
    for _ in range(3 * len(cold.cases)):
        cold.rest()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    pages = case.x.nbytes / resource.getpagesize()
    assert np.median(faults) > 0.8 * pages


def test_threads_may_fall_asleep(monkeypatch):
    sleeps = []
    monkeypatch.setattr(states.time, "sleep", sleeps.append)
    calls = []
    alternate({"a": lambda: calls.append("a")}, rounds=1, rest=Cold(make_case(SMALL), pause=0.5).rest)
    assert set(sleeps) == {0.5}
    assert len(sleeps) == len(calls)


@pytest.mark.parametrize(
    "library",
    [OURS, "NumPy", *(pytest.param(name, marks=pytest.mark.peers) for name in ("PyTorch", "PyTorch kernels"))],
)
@pytest.mark.parametrize(("problem", "dtype", "last"), TENSORS)
def test_results_are_right_and_new(library, problem, dtype, last):
    case = make_case(problem, dtype, last=last)
    cold = Cold(case)
    tensors = {start(tensor) for each in cold.cases for tensor in (each.x, each.dout)}
    for operation in OPERATIONS:
        try:
            work = cold.work(lambda each, operation=operation: prepare(library, each, operation))
        except MissingError as reason:
            pytest.skip(f"{library}: {reason}")
        kept, starts = [], set()
        for _ in range(len(cold.cases)):
            kept.append(work.run())
            results = work.read(kept[-1])
            check(operation, results, expected(case, operation))
            starts.add(start(results[0]))
        assert len(starts) == len(cold.cases)
        assert not starts & tensors


@pytest.mark.peers
@pytest.mark.parametrize("library", sorted(KEPT | COMPILED))
def test_who_cannot_is_left_out(library):
    assert {*PEERS} == {OURS, "NumPy", "PyTorch", "PyTorch kernels"} | KEPT | COMPILED
    with pytest.raises(MissingError, match=r"only to memory that is kept|compile for each tensor|not installed"):
        prepare(library, make_case(SMALL).in_new_memory(), "inference")


def test_who_is_wrong_is_not_timed_when_cold(monkeypatch):
    honest = measure.prepare

    def liar(library, case, operation):
        work = honest(library, case, operation)
        return work if library != "NumPy" else Work(work.run, lambda value: [2 * array for array in work.read(value)])

    monkeypatch.setattr(measure, "prepare", liar)
    row = measure.measure(make_case(SMALL), "forward", (OURS, "NumPy"), rounds=1, state=Cold)
    assert row["mode"] == "cold"
    assert row["seconds"].keys() == {OURS}
    assert "relative error" in row["missing"]["NumPy"]
    assert tuple(row["limits"]) == accesses.ACCESSES


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_are_in_the_same_state(last, dtype):
    case = make_case(SMALL._replace(shape=(8, 16, 32, 32)), dtype, last=last)
    cold = Cold(case)
    for operation in ("forward", "backward", "inference"):
        calls = measure.bound_calls(cold, operation)
        wanted = case.x + case.dout if operation == "backward" else case.x
        for call in calls.values():
            kept = [call() for _ in range(4)]
            assert len({start(out) for _, out in kept}) == 4
            for _, out in kept:
                tensor = np.moveaxis(wanted, 1, -1) if last else wanted
                np.testing.assert_array_equal(out.view(dtype), tensor.reshape(-1))
        assert tuple(calls) == (tuple(limit.LIMITS)[:2] if operation == "inference" else accesses.ACCESSES)
    assert limit.copies(make_case(SMALL).in_new_memory()) == {}  # less than a block


def test_shapes():
    assert len({problem.shape for problem in NETWORKS}) == 12
    sizes = sorted(4e-6 * np.prod(problem.shape) for problem in NETWORKS)
    assert sizes[0] == pytest.approx(0.8, abs=0.01)
    assert sizes[-1] == pytest.approx(25.7, abs=0.01)


def test_run_and_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "NETWORKS", [SMALL._replace(shape=(4, 16, 32, 32))])
    monkeypatch.setattr(run, "RESNET50", [SMALL])
    monkeypatch.setattr(run, "ROWS", [])
    paths = [tmp_path / "cold.json", tmp_path / "hot.json"]
    options = ["--rounds", "1", "--threads", "1", "--libraries", OURS, "NumPy"]
    run.main([*options, "--pause", "1", "--json", str(paths[0])])
    run.main([*options, "--hot", "--operations", "forward", "--json", str(paths[1])])
    cold, hot = (json.loads(path.read_text())["rows"] for path in paths)
    assert [(row["operation"], row["layout"]) for row in cold] == [
        (operation, layout) for layout in ("NCHW", "NHWC") for operation in ("forward", "backward", "inference")
    ]
    assert {(row["mode"], row["pause"]) for row in cold} == {("cold", 0.001)}
    assert {(row["mode"], row["pause"]) for row in hot} == {("hot", 0)}
    capsys.readouterr()
    report.main([*map(str, paths)])
    first, second = capsys.readouterr().out.split("## float32, 1 thread, hot")
    assert "## float32, 1 thread, cold" in first
    assert f"| ms | {OURS} | NumPy | accesses alone | fastbn, GB/s | accesses alone, GB/s |" in first
    assert "time over the memory accesses alone | forward | backward | inference |" in first
    assert "Limits of the machine" not in first
    assert f"| ms | {OURS} | NumPy | limit |" in second
    assert "Limits of the machine" in second


def test_rows_without_a_mode_are_hot():
    limits = {"copy": 0.002, "accesses": 0.004}
    row = {"operation": "inference", "limits": limits, "dtype": "float32", "threads": 2}
    assert figures.mode(row) == "hot"
    assert figures.bound(row) == 0.002
    assert figures.accesses({**row, "limits": {"copy": 0.002}}) is None
    assert figures.bound({**row, "limits": {"copy": 0.002}, "mode": "cold"}) == 0.002
    assert figures.bound({**row, "operation": "forward", "mode": "cold", "limits": {"accesses": 0.004}}) == 0.004
    assert list(figures.by_setting([row, {**row, "mode": "hot"}, {**row, "mode": "cold"}])) == [
        ("float32", 2, "hot"),
        ("float32", 2, "cold"),
    ]
