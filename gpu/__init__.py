"""What multiplies with packed weights: the tables that a gathering kernel reads.

Takes a :class:`~gyroperm.solution.Solution`; needs neither a search nor a device.
"""

from gyroperm.gpu.index import IndexTables, fuse

__all__ = ["IndexTables", "fuse"]
