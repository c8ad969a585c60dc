"""The benchmarks measure what they say: peers agree with the reference, turns are counted, tables add up."""

from __future__ import annotations

import json
import platform
import sys
import time

import numba
import numpy as np
import pytest

from bench import accesses, every_shape, figures, handover, limit, measure, report, run
from bench.cases import OPERATIONS, MissingError, Work, WrongResultError, aligned, check, expected, make_case
from bench.peers import OURS, PEERS, prepare
from bench.shapes import PROBLEMS, RESNET50, Problem
from bench.timing import alternate, geometric_mean
from fastbn.kernels.jit import threads_usable

SMALL = Problem("small", (4, 3, 5, 6), 1e-3)
FLAT = Problem("flat", (32, 23), 1e-3)
TENSORS = [
    (SMALL, np.float32, False),
    (SMALL, np.float32, True),
    (SMALL, np.float64, False),
    (FLAT, np.float32, False),
    (Problem("blocks", (2, 32, 3), 1e-3), np.float32, True),
    (Problem("volume", (2, 3, 4, 5, 2), 1e-3), np.float32, False),
]
COMPARISONS = [
    pytest.param(library, *tensor, marks=[pytest.mark.peers] * (library not in (OURS, "NumPy")))
    for library in PEERS
    for tensor in TENSORS[: 1 if library == "torch.compile" else 6]
]


def not_offered(library, dtype):
    """The operations that a library refuses."""
    if library.startswith("oneDNN") and dtype == np.float64:
        return set(OPERATIONS)
    if library == "OpenVINO":
        return set(OPERATIONS) - ({"inference"} if dtype == np.float32 else set())
    return {"backward", "forward + backward"} if library == "ONNX Runtime" else set()


def tensor_name(value):
    return value.name if isinstance(value, Problem) else getattr(value, "__name__", None)


@pytest.mark.parametrize(("library", "problem", "dtype", "last"), COMPARISONS, ids=tensor_name)
def test_peers_agree_with_the_reference(library, problem, dtype, last):
    case = make_case(problem, dtype, last=last)
    missing = set()
    for operation in OPERATIONS:
        try:
            work = prepare(library, case, operation)
        except MissingError as reason:
            if "not installed" in str(reason) or "only the reference code" in str(reason):
                pytest.skip(f"{library}: {reason}")
            missing.add(operation)
            continue
        results, wanted = work.read(work.run()), expected(case, operation)
        check(operation, results, wanted)
        for result, value in zip(results, wanted, strict=True):
            np.testing.assert_allclose(result, value, rtol=1e-4, atol=1e-4)
        again = work.read(work.run())  # the running statistics have moved on, the tensors have not
        np.testing.assert_allclose(again[0], wanted[0], rtol=1e-4, atol=1e-4)
    assert missing == not_offered(library, dtype)


@pytest.mark.peers
@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's blocks are those of x86-64's registers")
def test_onednn_has_a_layout_of_blocks():
    """Of 16 channels with registers of 64 bytes, else of 8: where there is but reference code, it is not measured."""
    refusals = []
    for library in ("oneDNN nChw8c", "oneDNN nChw16c"):
        try:
            prepare(library, make_case(SMALL), "backward")
        except MissingError as reason:
            refusals.append(str(reason))
    if any("not installed" in reason for reason in refusals):
        pytest.skip(refusals[0])
    assert len(refusals) < 2
    assert all("only the reference code takes nChw" in reason for reason in refusals)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "bench.peers.onnxruntime", raising=False)
    with pytest.raises(MissingError, match=r"not installed .*onnxruntime"):
        prepare("ONNX Runtime", make_case(SMALL), "inference")


@pytest.mark.peers
@pytest.mark.skipif(numba.get_num_threads() < 2, reason="one core")
def test_threads_are_numbas():
    case = make_case(SMALL)
    counts = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        for library, count in (("oneDNN NCHW", "bench.onednn:get_threads"), ("PyTorch", "torch:get_num_threads")):
            try:
                prepare(library, case, "inference")
            except MissingError:
                continue
            module, _, function = count.partition(":")
            counts.append((threads, getattr(sys.modules[module], function)()))
    assert all(asked == used for asked, used in counts)


def test_a_wrong_result_is_found():
    wanted = expected(make_case(SMALL), "inference")
    with pytest.raises(WrongResultError, match="gives out with a relative error of"):
        check("inference", [wanted[0] * 1.1], wanted)
    with pytest.raises(WrongResultError, match="gives out with a relative error of nan"):
        check("inference", [wanted[0] * np.nan], wanted)
    with pytest.raises(WrongResultError, match=r"gives out of shape \(1, 4, 3, 5, 6\)"):
        check("inference", [wanted[0][None]], wanted)


def test_who_is_wrong_is_not_timed(monkeypatch):
    honest = measure.prepare

    def liar(library, case, operation):
        work = honest(library, case, operation)
        return work if library != "NumPy" else Work(work.run, lambda value: [2 * array for array in work.read(value)])

    monkeypatch.setattr(measure, "prepare", liar)
    row = measure.measure(make_case(SMALL), "inference", (OURS, "NumPy"), rounds=1)
    assert row["seconds"].keys() == {OURS}
    assert row["missing"].keys() == {"NumPy"}
    assert "relative error" in row["missing"]["NumPy"]
    assert row["limits"].keys() == limit.LIMITS.keys()
    assert row["bytes"] == 4 * 3 * 5 * 6 * 4
    if threads_usable():
        assert 1e-9 < row["handover"] < 1e-3
    else:
        assert "handover" not in row

    monkeypatch.setattr(measure, "OURS", "NumPy")
    with pytest.raises(WrongResultError):
        measure.measure(make_case(SMALL), "inference", ("NumPy",), rounds=1)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="no threads")
def test_handovers_are_not_waited_for_on_one_thread():
    count = np.zeros(1, np.int64)
    handover.pass_on(False, count, 3)
    assert count[0] < 6
    until = time.monotonic() + 60.0
    while (
        threads_usable() and time.monotonic() < until
    ):  # a thread may come too late, on a busy machine again and again
        count[0] = 0
        handover.pass_on(True, count, 3)
        if count[0] == 6:
            return
    assert not threads_usable()


def test_aligned():
    values = np.arange(35.0, dtype=np.float32).reshape(5, 7).T
    copy = aligned(values)
    assert copy.ctypes.data % 64 == 0
    assert copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, values)


def test_turns():
    calls = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert seconds.keys() == {"a", "b"}
    assert "".join(calls).count("ab") == 2
    assert all(0 < value < 1e-3 for value in seconds.values())


def test_geometric_mean():
    assert geometric_mean([1.0, 4.0]) == 2.0


def test_shapes():
    assert len(PROBLEMS) == 104
    assert [problem.shape[0] for problem in RESNET50] == [50] * 9
    assert RESNET50[0].with_images(32).name == "32x64x112x112"
    assert [SMALL.layout(last=last) for last in SMALL.layouts] == ["NCHW", "NHWC"]
    assert [FLAT.layout(last=last) for last in FLAT.layouts] == ["NC"]
    assert Problem("", (1, 2, 3), 0).layout(last=True) == "NWC"


def test_limit_kernels_move_the_memory():
    x, out = (aligned(np.full(3 * limit.BLOCK, value, np.float32)) for value in (2, 0))
    sums = np.empty((3, 16), np.float32)
    for streaming in (False, True):
        out[:] = 0
        limit.copy(False, x, out, streaming)
        np.testing.assert_array_equal(out, x)
        limit.write(False, out, streaming)
        np.testing.assert_array_equal(out, 1)
    limit.read(False, x, sums)
    np.testing.assert_array_equal(sums.sum(axis=1), 2 * limit.BLOCK)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (3, 70, 9), (2, 32, 400), (2000, 40)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_accesses_reach_every_value(shape, last, dtype):
    case = make_case(Problem("", shape, 1e-3), dtype, last=last)
    for operation, both in (("forward", False), ("backward", True)):
        calls = accesses.calls(case, operation)
        assert tuple(calls) == accesses.ACCESSES
        for turn, call in enumerate(calls.values(), 1):
            call()
            parallel, dout, x, both_read, *rest, sums = call.args
            out = next(value for value in rest if isinstance(value, np.ndarray))
            assert not parallel or x.size >= 65_536
            assert both_read == both
            np.testing.assert_array_equal(out, dout + x if both else x)
            np.testing.assert_allclose(sums.sum(dtype=float), turn * out.sum(dtype=float), rtol=1e-4)
    assert accesses.calls(case, "inference") == {}


def test_limit_table(capsys):
    times = {"copy": 0.2, "copy, streaming": 0.1, "read": 0.1, "write": 0.1, "write, streaming": 0.05}
    assert limit.table({10**9: times}).splitlines()[-1] == "| 1000 MB | 10.0 | 20.0 | 10.0 | 10.0 | 20.0 |"
    limit.main(["--mb", "0.01", "--threads", "1", "--rounds", "1"])
    assert "| 0.01638 MB |" in capsys.readouterr().out


def made_up(layout, shape, seconds, operation="backward", nbytes=30_000_000, copies=(0.004, 0.002), missing=()):
    return {
        "operation": operation,
        "layout": layout,
        "shape": shape,
        "dtype": "float32",
        "threads": 2,
        "bytes": nbytes,
        "seconds": seconds,
        "limits": dict(zip(limit.LIMITS, (*copies, 0.001, 0.001, 0.001), strict=True)),
        "missing": dict(missing),
    }


ROWS = [
    made_up("NCHW", "large", {OURS: 0.006, "PyTorch out=": 0.012, "oneDNN NCHW": 0.06, "oneDNN NHWC": 0.003}),
    made_up("NCHW", "small", {OURS: 0.002, "PyTorch out=": 0.001, "oneDNN NCHW": 0.008}, nbytes=1000),
    made_up("NHWC", "large", {OURS: 0.01, "PyTorch out=": 0.0105}, missing={"JAX": "not installed"}.items()),
    made_up("NC", "flat", {OURS: 0.01, "PyTorch out=": 0.02}, missing={"JAX": "not installed"}.items()),
]
READ_TWICE = {**ROWS[0], "limits": {**ROWS[0]["limits"], "accesses": 0.004, "accesses, streaming": 0.0025}}


def test_figures():
    assert figures.competitors(ROWS) == ["PyTorch out=", "oneDNN NCHW", "oneDNN NHWC", figures.ONEDNN]
    assert [ratio.value for ratio in figures.speedups(ROWS, "PyTorch out=")] == [2, 0.5, pytest.approx(1.05), 2]
    assert [ratio.value for ratio in figures.speedups(ROWS, figures.ONEDNN)] == [0.5, 4]
    assert figures.limit(ROWS[0]) == 0.003  # three tensors at the speed at which the copy moved two in 2 ms
    assert figures.limit({**ROWS[0], "limits": {}}) is None
    assert figures.over_limit(ROWS[:1])[0].value == 2
    assert figures.accesses(ROWS[0]) is None
    assert figures.accesses(READ_TWICE) == 0.0025
    assert figures.over_accesses([READ_TWICE, ROWS[0]], "PyTorch out=")[0].value == pytest.approx(4.8)
    assert figures.bandwidth(ROWS[0], 0.003) == pytest.approx(30)
    assert [ratio.row["shape"] for ratio in figures.not_ahead(ROWS, "PyTorch out=")] == ["small", "large"]
    assert {name: len(rows) for name, rows in figures.by_memory_order(ROWS).items()} == {"NCHW": 2, "NHWC and NC": 2}
    assert figures.missing(ROWS) == {("JAX", "not installed"): {"backward": ["NHWC", "NC"]}}


def test_report():
    machine = {"cpu": "a CPU", "cores": 2, "system": "Linux", "date": "today", "versions": {"fastbn": "1"}}
    lines = report.text(machine, [{**ROWS[0], "handover": 7e-8}, *ROWS[1:]]).splitlines()
    assert "## float32, 2 threads, hot" in lines
    assert "| ms | fastbn | PyTorch out= | oneDNN NCHW | oneDNN NHWC | oneDNN, best layout | limit |" in lines[6]
    assert "| large | 6 | 12 | 60 | 3 | 3 | 3 | 15 | 30 | 70 |" in lines
    assert "| small | 2 | 1 | 8 |  | 8 | 3 | 0 | 0 |  |" in lines
    assert "| fastbn, times as fast |  | **x 1.00** | **x 6.32** | **x 0.50** | **x 1.41** |  |  |  |  |" in lines
    assert "| PyTorch out= | 1.00 (0.50 at NCHW small), 2 shapes |" in lines
    assert "| oneDNN, best layout | 1.41 (0.50 at NCHW large), 2 shapes |" in lines
    assert "| fastbn | 2.00 (2.00 at NCHW large), 1 shape |" in lines  # over the limit, without the small one
    assert "* JAX: not installed (backward, NHWC NC)" in lines
    assert not any("accesses" in line for line in lines)
    assert "| fastbn | 2.40 (2.40 at NCHW large), 1 shape |" in report.text(machine, [READ_TWICE]).splitlines()


def test_run_and_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "RESNET50", [SMALL])
    monkeypatch.setattr(run, "ROWS", [FLAT, Problem("too large", (4, 99999), 1e-3)])
    path = tmp_path / "figures.json"
    options = [
        "--hot",
        "--images",
        "4",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--max-mb",
        "1",
        "--libraries",
        OURS,
        "NumPy",
    ]
    run.main([*options, "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["operation"], row["layout"]) for row in rows] == [
        (operation, layout) for layout in ("NCHW", "NHWC", "NC") for operation in OPERATIONS
    ]
    assert capsys.readouterr().out.startswith("forward NCHW 4x3x5x6 float32 x1 hot, ms: fastbn ")
    report.main([str(path)])
    printed = capsys.readouterr().out
    ratio = rows[0]["seconds"]["NumPy"] / rows[0]["seconds"][OURS]
    assert f"### forward, NCHW\n\n| ms | {OURS} | NumPy | limit |" in printed
    assert f"**x {ratio:.2f}**" in printed

    pytest.importorskip("matplotlib")
    report.main([str(path), "--png", str(tmp_path / "picture.png")])
    assert (tmp_path / "picture-float32-1-threads-hot.png").stat().st_size > 10_000


@pytest.mark.peers
def test_every_shape(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(every_shape, "PROBLEMS", [FLAT, SMALL, SMALL, SMALL._replace(shape=(1, 50, 99, 99))])
    path = tmp_path / "figures.json"
    every_shape.main(["--images", "2", "1", "--rounds", "1", "--threads", "1", "--max-mb", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["shape"] for row in rows if row["operation"] == "forward"] == ["1x3x5x6"] * 2 + ["2x23"] + [
        "2x3x5x6"
    ] * 2
    assert [row["operation"] for row in rows if row["shape"] == "1x23"] == ["inference"]  # one value a channel
    behind = len(figures.not_ahead(rows, "PyTorch out="))
    assert f"{behind} of 16 are slower than PyTorch out= or faster by at most 10%." in capsys.readouterr().out


@pytest.mark.peers
def test_scaling(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch")
    from bench import scaling

    assert scaling.doublings(1) == [1]
    assert scaling.doublings(16) == [1, 2, 4, 8, 16]
    assert scaling.doublings(12) == [1, 2, 4, 8, 12]
    monkeypatch.setattr(scaling, "RESNET50", [SMALL])
    files = ["--json", str(tmp_path / "figures.json"), "--png", str(tmp_path / "picture.png")]
    scaling.main([*files, "--threads", "1", "--rounds", "1", "--min-mb", "0", "--operations", "inference"])
    assert (tmp_path / "picture.png").stat().st_size > 10_000
