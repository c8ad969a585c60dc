"""Benchmarks: ``pytest bench/`` for pytest-benchmark, ``python -m bench.report`` for the tables of the README."""
