"""Models: what may be reordered in a torch module, and pruning one layer by layer.

Needs the extra ``torch``. :func:`coupling` finds which axes share an order, :func:`permute` applies
orders and proves the function unchanged.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("gyroperm.models needs torch: pip install 'gyroperm[torch]'") from error

from gyroperm.models.coupling import coupling
from gyroperm.models.graph import CouplingGraph
from gyroperm.models.leaving import restore_leaving
from gyroperm.models.permute import permute
from gyroperm.models.sites import Axis, Site
from gyroperm.models.spec import Coupled, Leaving, Spec
from gyroperm.models.verify import FunctionChanged, Verified, reference, verify

__all__ = [
    "Axis",
    "Coupled",
    "CouplingGraph",
    "FunctionChanged",
    "Leaving",
    "Site",
    "Spec",
    "Verified",
    "coupling",
    "permute",
    "reference",
    "restore_leaving",
    "verify",
]
