"""A ``KeyboardInterrupt`` at a chosen line of a call, or at the edge of a function that it calls."""

from __future__ import annotations

import linecache
import sys


def interrupted_before(line, call, *, files="fastbn"):
    """Call with a ``KeyboardInterrupt`` before line number ``line`` that it runs in these files; whether it came.

    The end of a ``with`` statement, which counts as one more line, and ``try:`` are left out: Python runs no signal
    handlers there, and what is raised there passes by the ``with`` statement around it.
    """
    remaining = line
    previous_lines = {}

    def trace(frame, event, arg):
        nonlocal remaining
        if files not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        came_from = previous_lines.get(frame, 0)
        previous_lines[frame] = frame.f_lineno
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        ends_with = frame.f_lineno < came_from and source.startswith("with ")
        if event == "line" and not ends_with and source != "try:":
            if remaining == 0:
                remaining = -1
                raise KeyboardInterrupt
            remaining -= 1
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        assert remaining == -1
        return True
    finally:
        sys.settrace(previous)
    return False


def interrupted_at_edge(edge, call):
    """Call with a ``KeyboardInterrupt`` where a Python function begins or ends, the ``edge``-th time; whether it came.

    Any function, of whatever package: there Python runs signal handlers.
    """
    remaining = edge

    def profile(frame, event, arg):
        nonlocal remaining
        if event in ("call", "return"):
            remaining -= 1
            if remaining == -1:
                raise KeyboardInterrupt

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(previous)
    return False
