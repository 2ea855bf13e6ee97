"""Random numbers inside kernels, from a state that the driver owns."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import kernel


@kernel
def random_bits(state):  # type: ignore[no-untyped-def]
    """64 random bits; advances ``state``, a uint64 array of one element.

    SplitMix64: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014.
    """
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def random_below(state, bound):  # type: ignore[no-untyped-def]
    """A random integer in ``[0, bound)``, bound below 2^31."""
    # 32 random bits times a bound below 2^31 stay in 64; the bias is below 2^-32 * bound.
    high = random_bits(state) >> np.uint64(32)
    return np.int64((high * np.uint64(bound)) >> np.uint64(32))
