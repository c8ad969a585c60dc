"""A ``KeyboardInterrupt`` at a chosen line of a call."""

from __future__ import annotations

import sys


def interrupted_before(line, call, *, files="fastbn"):
    """Call with a ``KeyboardInterrupt`` before line number ``line`` that it runs in these files; whether it came."""
    remaining = line

    def trace(frame, event, arg):
        nonlocal remaining
        if files not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        if event == "line":
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
