"""What is coupled in a model: by its family's spec, a user's, or by tracing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gyroperm.models.graph import CouplingGraph
from gyroperm.models.spec import Spec


def coupling(
    model: nn.Module, graph: CouplingGraph | Spec | None = None, *, inputs: Any = None
) -> CouplingGraph:
    """The coupling graph of a model.

    Parameters
    ----------
    model : nn.Module
    graph : CouplingGraph or Spec, optional
        A graph is returned as it is; a spec is expanded. By default the spec of the model's
        family (:data:`gyroperm.models.families.FAMILIES`, by the ``model_type`` of its Hugging Face
        configuration), and where there is none, :func:`gyroperm.models.trace.trace`.
    inputs : Tensor, tuple or mapping, optional
        Example inputs, for tracing.

    Returns
    -------
    CouplingGraph
        Its ``source`` says where it comes from.

    Raises
    ------
    ValueError
        If a spec does not fit, or the model can be neither recognised nor traced; the message
        names the operation that cannot be, and shows how to write a :class:`Spec`.
    TypeError
        If ``graph`` is neither.
    """
    if isinstance(graph, CouplingGraph):
        return graph
    if isinstance(graph, Spec):
        return CouplingGraph.from_spec(model, graph)
    if graph is not None:
        raise TypeError(f"graph must be a CouplingGraph or a Spec, got {type(graph).__name__}")
    from gyroperm.models.families import spec_of

    spec = spec_of(model)
    if spec is not None:
        return CouplingGraph.from_spec(model, spec)
    from gyroperm.models.trace import trace

    return trace(model, inputs)
