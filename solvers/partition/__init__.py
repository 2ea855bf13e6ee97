"""Plain N:M as a set partition of the columns: bounds that are proven, and optima.

Every group of m columns has a value, and the columns are partitioned into groups. Duals of the
linear relaxation over all groups prove a bound; few groups are left that could be in anything
better than what is known, and branching over those proves the optimum.
"""
