"""Gated: how a network decides what to let through.

A gate is a learned function that decides how much of something may flow. `gated.gates` holds the vocabulary,
`gated.kernels` the hot loops, and one module a paper holds the rest (`gated.gla`, `gated.moe`, `gated.pregated`,
`gated.gaussian_moe`, which serves two).
"""

__version__ = "1.0.0"
