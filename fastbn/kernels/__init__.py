"""Compiled kernels: one module a memory layout, each with the same names and the same argument order."""
