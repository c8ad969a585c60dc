from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest

import fastbn
from fastbn import _dispatch
from fastbn._dispatch import MIN_ROWS, TASKS, plan
from fastbn.kernels import calls, channels_first, channels_last, objects, tiles
from fastbn.kernels.rows import BLOCK, blocks_of


@pytest.mark.parametrize(
    ("shape", "kernels", "segments", "at_once"),
    [
        ((32, 64, 112 * 112), channels_first, 1, True),
        ((32, 512, 28 * 28), channels_first, 1, True),
        ((32, 256, 14 * 14), channels_first, 1, True),
        ((32, 2048, 7 * 7), channels_first, 1, True),
        ((1, 2048, 7 * 7), channels_first, 1, True),
        ((32, 3, 224 * 224), channels_first, 11, False),
        ((1, 1, 10**7), channels_first, 32, False),
        ((1, 64, 16), channels_first, 1, True),
        ((1, 64, 15), channels_last, 1, True),
        ((4, 64, 1), channels_last, 1, True),
        ((768, 127, 1), channels_last, 1, True),  # too small for threads
        ((1040, 127, 1), channels_last, 2, False),
        ((32, 2048, 3 * 3), channels_last, 1, True),
        ((32 * 112 * 112, 64, 1), channels_last, 16, False),
        ((1280, 512, 1), channels_last, 10, False),
        ((450, 288, 1), channels_last, 2, False),
        ((255, 1536, 1), channels_last, 1, False),  # three chunks of columns: narrower ones are summed, but not written
        ((255, 1537, 1), channels_last, 1, True),
        ((64, 10**6, 1), channels_last, 1, True),
    ],
)
def test_table(shape, kernels, segments, at_once):
    how = plan(*shape, 4)
    assert how.kernels is kernels
    assert how.segments == segments
    assert how.at_once is at_once
    assert np.prod(how.shape) == np.prod(shape)
    assert how.count == shape[0] * shape[2]


@pytest.mark.parametrize(
    ("shape", "training", "inference"),
    [
        ((1000, 64, 15), channels_last, channels_last),  # shorter than a register
        ((31, 40, 25), channels_first, channels_last),
        ((32, 40, 25), channels_last, channels_last),  # short runs of many samples
        ((32, 41, 25), channels_last, channels_first),  # and many values of each
        ((32, 28, 26), channels_first, channels_last),
        ((15, 10, 16), channels_first, channels_first),
        ((255, 64, 64), channels_first, channels_first),
        ((256, 64, 64), channels_last, channels_first),  # longer ones of more samples
        ((10**5, 1, 256), channels_last, channels_last),
        ((10**5, 1, 257), channels_first, channels_last),
        ((10**5, 1, 1025), channels_first, channels_first),
    ],
)
@pytest.mark.skipif(not objects.KNOWN, reason="no whole calls")
def test_families(shape, training, inference):
    how = plan(*shape, 4)
    assert (how.kernels, how.kernels_out) == (training, inference)
    assert np.prod(how.shape_out) == np.prod(shape)
    if np.prod(shape) < 2 * 10**6:
        ways = [calls.WAY[0](np.zeros(shape, np.float32), 1, None, passes) for passes in (2, 1)]
        assert [way % 2 for way in ways] == [training is channels_last, inference is channels_last]


values_for_threads = pytest.mark.parametrize(
    ("shape", "training", "inference"),
    [
        ((1, 767, 64), False, False),
        ((1, 768, 64), True, False),
        ((1, 15, 4369), False, False),  # few channels, which are cut
        ((1, 15, 4370), True, False),
        ((1, 1535, 64), True, False),
        ((1, 1536, 64), True, True),
        ((127, 516, 1), False, False),
        ((128, 512, 1), True, False),  # few rows, cut by columns only
        ((129, 762, 1), False, False),
        ((129, 763, 1), True, False),
        ((129, 1016, 1), True, False),
        ((129, 1017, 1), True, True),
        ((1, 14564, 9), True, True),
        ((1023, 96, 1), False, False),
        ((1024, 96, 1), True, False),
        ((1365, 96, 1), True, False),
        ((1366, 96, 1), True, True),
    ],
)


@values_for_threads
def test_plans_for_threads(shape, training, inference):
    how = plan(*shape, 4)
    assert how.parallel is training
    assert how.parallel_out is inference


@pytest.mark.large
@values_for_threads
def test_calls_on_threads_are_those_of_the_plans(shape, training, inference):
    ways = [calls.WAY[0](np.zeros(shape, np.float32), 1, None, passes) for passes in (2, 1)]
    assert [bool(way & calls.LARGE) for way in ways] == [training, inference]


@pytest.mark.parametrize("outer", [1, 7, 64, 1000, 10**6])
@pytest.mark.parametrize("channels", [1, 3, 64, 5000])
@pytest.mark.parametrize("inner", [1, 49, 255, 4097, 50176])
def test_segments_hold_work_and_stay_few(outer, channels, inner):
    how = plan(outer, channels, inner, 4)
    assert 1 <= how.segments <= TASKS
    if how.kernels is channels_last:
        assert how.segments == 1 or outer // how.segments >= MIN_ROWS
    else:
        assert how.segments <= blocks_of(outer, inner)


NEVER, ALONE, ALWAYS = (False, False), (True, False), (True, True)
STREAMED = {
    "znver4": [
        ((32, 64, 112 * 112), ALWAYS, ALWAYS, ALWAYS),
        ((32, 64, 56 * 56), ALWAYS, ALWAYS, ALWAYS),
        ((32, 128, 28 * 28), ALONE, ALONE, ALWAYS),
        ((32, 96, 28 * 28), NEVER, ALONE, ALWAYS),
        ((32, 256, 14 * 14), NEVER, NEVER, ALONE),
        ((32, 512, 7 * 7), NEVER, NEVER, NEVER),
        ((32 * 112 * 112, 64, 1), ALWAYS, ALWAYS, ALWAYS),
        ((100043, 257, 1), NEVER, NEVER, NEVER),  # rows begin anywhere in a line,
        ((40002, 1001, 1), ALWAYS, ALWAYS, ALWAYS),  # but long ones are streamed
    ],
    "emeraldrapids": [
        ((32, 64, 56 * 56), ALWAYS, ALWAYS, ALWAYS),
        ((32, 256, 14 * 14), ALWAYS, ALWAYS, ALWAYS),
        ((32, 512, 7 * 7), ALONE, ALONE, ALWAYS),
        ((32, 256, 7 * 7), NEVER, NEVER, NEVER),
        ((100043, 257, 1), NEVER, NEVER, NEVER),
    ],
}


@pytest.mark.parametrize("cpu", STREAMED)
def test_large_tensors_are_streamed_and_sooner_on_one_thread(cpu):
    """And sooner where the last-level cache is far; as much of float64."""
    shapes = [(*shape, 4) for shape, *_ in STREAMED[cpu]]
    code = f"""
from fastbn._dispatch import plan
for outer, channels, inner, itemsize in {shapes}:
    for how in (plan(outer, channels, inner, itemsize), plan(outer // 2, channels, inner, 2 * itemsize)):
        print((how.stream_out, how.stream_training, how.stream_dx))
"""
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, env=environment, timeout=300, check=True, capture_output=True, text=True)
    expected = [str(tuple(row[1:])) for row in STREAMED[cpu] for _ in range(2)]
    assert run.stdout.splitlines() == expected


@pytest.mark.parametrize(("threads", "together"), [(2, 9_000_000), (6, 27_000_000), (7, 30_000_000), (16, 30_000_000)])
def test_more_threads_keep_more_where_the_last_level_cache_is_far(monkeypatch, threads, together):
    monkeypatch.setattr(_dispatch, "FAR_CACHE", True)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", threads)
    assert _dispatch._least(17_000_000, 30_000_000) == (6_000_000, together)
    monkeypatch.setattr(_dispatch, "FAR_CACHE", False)
    assert _dispatch._least(17_000_000, 30_000_000) == (17_000_000, 30_000_000)


@pytest.mark.parametrize(
    ("outer", "inner"), [(1, 1), (5, 27), (7, BLOCK), (7, BLOCK + 1), (1, 10 * BLOCK - 1), (5000, 3)]
)
def test_blocks_cover_a_channel(outer, inner):
    rows, pieces = max(1, BLOCK // inner), -(-inner // BLOCK)
    assert (rows == 1) or (pieces == 1)
    assert blocks_of(outer, inner) == -(-outer // rows) * pieces


@pytest.mark.parametrize(
    ("rows", "channels", "tile"),
    [
        (511, 3, 1),  # few rows, and one thread
        (512, 3, 64),
        (513, 3, 57),
        (4608, 19, 16),
        (2048, 32, 1),  # whole registers, and one thread
        (401408, 64, 1),  # 64 columns
        (401408, 16, 4),  # as well
        (9973, 16, 1),  # no divisor
        (401408, 48, 4),  # the shortest of whole sets of 64
        (1600, 3, 64),
        (8125, 48, 5),  # the longest of whole registers
        (1625, 48, 1),  # whole registers, too small for threads
        (6, 3, 1),
        (99, 513, 1),
        (50021, 3, 1),  # no divisor
        (512, 513, 1),
        (25088, 251, 4),  # far, and longer than where there are rows of whole registers
        (10000, 251, 2),
    ],
)
def test_tiles_divide_the_rows_and_fit_a_chunk(rows, channels, tile):
    assert tiles.matrix_of((rows, channels, 1)) == (rows // tile, tile, channels, 1)


def test_tiled_tensors(rng):
    """Means of many parts: constant channels stay exact, and the rest as good as uncut."""
    x = np.full((9 * 4001, 5), 0.1)
    x[:, 1] = rng.standard_normal(9 * 4001) + 1e4
    how = plan(9 * 4001, 5, 1, 8)
    assert how.shape[0] * how.shape[1] == 9 * 4001
    assert how.shape[1] > 1
    moments = fastbn.moments(x)
    assert (moments.mean[[0, 2, 3, 4]] == 0.1).all()
    assert (moments.var[[0, 2, 3, 4]] == 0).all()
    np.testing.assert_allclose(moments.mean[1], x[:, 1].mean(), rtol=1e-14)
    np.testing.assert_allclose(moments.var[1], x[:, 1].var(), rtol=1e-10)


def test_every_kernel_is_in_both_modules():
    names = {"batch_stats", "normalize", "forward", "backward_sums", "backward_input", "backward"}
    names |= {"forward_in_phases", "backward_in_phases"}
    for module in (channels_first, channels_last):
        assert names <= vars(module).keys()
