"""What multiplies with packed weights: the packed matrix and the index tables of its tiles.

Takes a :class:`~gyroperm.solution.Solution`; needs neither a search nor a device.
"""

from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.index import IndexTables, fuse

__all__ = ["HinmMatrix", "IndexTables", "fuse"]
