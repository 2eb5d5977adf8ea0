"""Kernels by themselves: an operator at one shape, how long it takes, which tile is fastest, and the benchmark of all."""
