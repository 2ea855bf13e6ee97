"""Models: what may be reordered in a torch module, and pruning one layer by layer.

Needs the extra ``torch``. :func:`coupling` finds which axes share an order, :func:`permute` applies
orders and proves the function unchanged, :func:`sparsify` searches orders and masks, with what
:func:`calibrate` has summed up, and :class:`KeepMask` holds the masks through fine-tuning.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("gyroperm.models needs torch: pip install 'gyroperm[torch]'") from error

from gyroperm.models.calibration import Calibration, LayerInputs, calibrate
from gyroperm.models.coupling import coupling
from gyroperm.models.graph import CouplingGraph
from gyroperm.models.keep_mask import KeepMask
from gyroperm.models.layer_saliency import LayerView
from gyroperm.models.leaving import restore_leaving
from gyroperm.models.permute import permute
from gyroperm.models.report import LayerReport, Report
from gyroperm.models.sites import Axis, Site
from gyroperm.models.sparsify import sparsify
from gyroperm.models.spec import Coupled, Leaving, Spec
from gyroperm.models.stacks import SiteResult
from gyroperm.models.verify import FunctionChanged, Verified, reference, verify

__all__ = [
    "Axis",
    "Calibration",
    "Coupled",
    "CouplingGraph",
    "FunctionChanged",
    "KeepMask",
    "LayerInputs",
    "LayerReport",
    "LayerView",
    "Leaving",
    "Report",
    "Site",
    "SiteResult",
    "Spec",
    "Verified",
    "calibrate",
    "coupling",
    "permute",
    "reference",
    "restore_leaving",
    "sparsify",
    "verify",
]
