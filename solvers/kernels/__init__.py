"""Numba kernels: pure functions of arrays and scalars, compiled once and cached on disk.

They are serial and release the interpreter lock; drivers run them over blocks in a thread pool
(:mod:`gyroperm.solvers.parallel`), so that no result depends on the number of threads.
"""
