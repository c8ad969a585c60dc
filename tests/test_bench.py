"""The benchmarks measure what they say: peers agree with the reference, turns are counted, tables add up."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import report
from bench.peers import OPERATIONS, PEERS, check, expected, make_case
from bench.shapes import PROBLEMS, RESNET50, Problem
from bench.timing import alternate, geometric_mean

SMALL = Problem("small", (4, 3, 5, 6), 1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("library", PEERS)
def test_peers_agree_with_the_reference(library, last, dtype):
    case = make_case(SMALL, dtype, last=last)
    try:
        calls = PEERS[library](case)
    except ImportError:
        pytest.skip(f"{library} is not installed")
    wanted = expected(case)
    assert calls.keys() == OPERATIONS.keys()
    for operation, call in calls.items():
        results = call()
        check(library, operation, results, wanted[operation])
        for result, value in zip(results, wanted[operation], strict=True):
            np.testing.assert_allclose(result, value, rtol=1e-4, atol=1e-5)


def test_a_wrong_peer_is_found():
    case = make_case(SMALL)
    wanted = expected(case)["inference"]
    with pytest.raises(AssertionError, match="somebody: inference gives out with a relative error of"):
        check("somebody", "inference", [wanted[0] * 1.1], wanted)


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


def test_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "RESNET50", [SMALL, SMALL._replace(shape=(4, 2, 3, 3))])
    report.main(["--images", "4", "--rounds", "1", "--threads", "1", "--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    for operation in OPERATIONS:
        assert f"### {operation}, NCHW" in printed
        assert f"### {operation}, NHWC" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == 4
    assert [row["shape"] for row in figures["layouts"]["nchw"]] == ["4x3x5x6", "4x2x3x3"]
    row = figures["layouts"]["nchw"][0]
    ratio = row["seconds"]["forward"]["NumPy"] / row["seconds"]["forward"]["fastbn"]
    assert f"| {ratio:.2f} |" in printed
