"""Benchmarks: ``pytest bench/``, or ``python -m bench.run`` to measure and ``python -m bench.report`` to show."""
