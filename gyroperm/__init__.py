"""gyroperm: the permutation engine for hardware sparsity.

Bring a weight matrix; get back the order of rows and columns, and the mask, that keep the most
of what matters under a sparsity pattern that hardware can run.
"""

from gyroperm.compensation import compensate
from gyroperm.engine import solve
from gyroperm.lossless import lossless
from gyroperm.measures import efficacy, output_error, retained
from gyroperm.pattern import Pattern
from gyroperm.saliency import fisher, magnitude, obs, ria, wanda
from gyroperm.solution import Solution
from gyroperm.stopping import AllOf, AnyOf, MaxRounds, NoImprovement, SearchState, TimeLimit

__version__ = "0.1.0"

__all__ = [
    "AllOf",
    "AnyOf",
    "MaxRounds",
    "NoImprovement",
    "Pattern",
    "SearchState",
    "Solution",
    "TimeLimit",
    "__version__",
    "compensate",
    "efficacy",
    "fisher",
    "lossless",
    "magnitude",
    "obs",
    "output_error",
    "retained",
    "ria",
    "solve",
    "wanda",
]
