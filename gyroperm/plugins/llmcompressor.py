"""llm-compressor: channels reordered ahead of its pruning modifiers, or its modifiers' masks.

``ReorderModifier`` comes first in a recipe: the 2:4 masks of the modifiers behind it keep more, and
stock kernels read them. ``PermutedWandaModifier`` and ``PermutedSparseGPTModifier`` take the place
of llm-compressor's own and prune in an order that is searched for each layer, with masks in the
original order. Importing this module makes all three known to recipes in YAML.

llm-compressor's ``mask_structure`` "N:M" prunes N of every M. Tested with llmcompressor 0.14,
transformers 5.17 and torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from gyroperm import saliency
from gyroperm.models import coupling, permute
from gyroperm.models.inputs import model_inputs
from gyroperm.pattern import Pattern
from gyroperm.plugins import sparsegpt, wanda
from gyroperm.plugins.ordering import searched_orders
from gyroperm.plugins.toolkits import need

_INSTALL = "gyroperm[llmcompressor]"
_TESTED = "llmcompressor 0.14.0, transformers 5.17.0, torch 2.13.0"
_modifiers = need("llmcompressor.modifiers", _INSTALL, _TESTED)
_sparsegpt = need("llmcompressor.modifiers.pruning.sparsegpt", _INSTALL, _TESTED)
_wanda = need("llmcompressor.modifiers.pruning.wanda", _INSTALL, _TESTED)
_base = need("llmcompressor.modifiers.pruning.sparsegpt.sgpt_base", _INSTALL, _TESTED)
_helpers = need("llmcompressor.utils.helpers", _INSTALL, _TESTED)
_matching = need("compressed_tensors.utils", _INSTALL, _TESTED)
_pydantic = need("pydantic", _INSTALL, _TESTED)

_Field = _pydantic.Field


def _pattern(mask_structure: str) -> Pattern:
    """The pattern that keeps what a mask structure leaves.

    Raises
    ------
    ValueError
        If it is unstructured, or no N:M.
    """
    pruned, _, m = mask_structure.partition(":")
    if not (pruned.isdigit() and m.isdigit() and 0 < int(pruned) < int(m)):
        raise ValueError(
            f'mask_structure must be "N:M", N of every M pruned, 0 < N < M, got {mask_structure!r}'
        )
    return Pattern.nm(int(m) - int(pruned), int(m))


class ReorderModifier(_modifiers.Modifier):  # type: ignore[name-defined]
    """Reorder a model's channels, so that the N:M masks of the modifiers behind it keep more.

    Runs when the recipe is initialised, before any of them is calibrated. The model computes what
    it did, which is verified. Hidden states that are asked for (``output_hidden_states``) leave it
    in the new order, and nothing else; a model that returns them unasked, such as an encoder, is
    refused unless ``sites`` names others than its residual stream. The checkpoint has no tensor
    more than before.

    Attributes
    ----------
    mask_structure : str
        As that of the modifiers behind it: N of every M are pruned.
    saliency : {"magnitude", "wanda"}
        What the order is good for. Wanda's needs calibration data, which the dense model is then
        run on once.
    targets, ignore : list of str
        As those of the modifiers behind it: the layers that count.
    sites : list of str or None
        Sites, or families of them, that may move; all by default. See
        ``gyroperm.models.coupling(model).describe()``.
    graph : CouplingGraph, Spec or None
        What is coupled; found by :func:`gyroperm.models.coupling` otherwise.
    inputs : Tensor, tuple, mapping or None
        To trace and to compare with; made up otherwise.
    search : dict
        Settings of each search; see :func:`gyroperm.plugins.ordering.searched_orders`.
    orders : dict
        What was applied, by site. Not part of a recipe.
    """

    mask_structure: str = "2:4"
    saliency: Literal["magnitude", "wanda"] = "magnitude"
    targets: str | list[str] = "Linear"
    ignore: list[str] = _Field(default_factory=list)
    sites: list[str] | None = None
    graph: Any = _Field(default=None, exclude=True)
    inputs: Any = _Field(default=None, exclude=True)
    search: dict[str, Any] = _Field(default_factory=dict)
    orders: dict[str, Any] = _Field(default_factory=dict, exclude=True)

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        """Search and apply the orders."""
        model: nn.Module = state.model
        pattern = _pattern(self.mask_structure)
        layers = dict(self._layers(model))
        if not layers:
            raise ValueError(
                f"targets {self.targets} without {self.ignore} leave no linear layer or "
                f"convolution of {type(model).__name__}"
            )
        # Hidden states leave as they are: what would put them back is another forward, which the
        # modifiers' tracing cannot read, and another tensor in the checkpoint.
        found = replace(coupling(model, self.graph, inputs=self.inputs), leaving=())
        orders = searched_orders(found, self._scores(layers, state), pattern, **self.search)
        if self.sites is not None:
            orders = {
                site: order
                for site, order in orders.items()
                if {site, found.by_name[site].family} & set(self.sites)
            }
        permute(model, orders, graph=found, inputs=self.inputs)
        self.orders = orders
        return True

    def _layers(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """The layers that modifiers with the same targets prune."""
        targets = [self.targets] if isinstance(self.targets, str) else self.targets
        for parent, target in _matching.match_named_modules(model, targets):
            kinds = _base.PRUNABLE_LAYER_TYPES
            for name, module in _matching.match_named_modules(target, kinds):
                full = f"{parent}.{name}" if name else parent
                if not _matching.match_targets(full, module, self.ignore):
                    yield full, module

    def _scores(self, layers: dict[str, nn.Module], state: Any) -> dict[str, Any]:
        """The saliency of each layer's weight, by the weight's name."""
        if self.saliency == "magnitude":
            return {
                f"{name}.weight": saliency.magnitude(module.weight)
                for name, module in layers.items()
            }
        norms = _input_norms(self, layers, state)
        return {
            f"{name}.weight": saliency.wanda(module.weight, norms[name])
            for name, module in layers.items()
        }


def _input_norms(
    modifier: ReorderModifier, layers: dict[str, nn.Module], state: Any
) -> dict[str, torch.Tensor]:
    """The Euclidean norm of each layer's input channels over the calibration data."""
    if state.data is None or state.data.calib is None:
        raise ValueError('saliency="wanda" needs calibration data: give oneshot a dataset')
    squares: dict[str, torch.Tensor] = {}

    def add(name: str, args: tuple[torch.Tensor, ...]) -> None:
        # Channels are last in a linear layer's input and second in a convolution's.
        channels = args[0].float().movedim(-1 if isinstance(layers[name], nn.Linear) else 1, 0)
        squares[name] = squares.get(name, 0.0) + channels.flatten(1).square().sum(1)

    hooks = {
        modifier.register_hook(
            module, lambda _module, args, name=name: add(name, args), "forward_pre"
        )
        for name, module in layers.items()
    }
    # A data loader draws from the global generator, even for a fixed order.
    with torch.random.fork_rng(devices=[]), _helpers.calibration_forward_context(state.model):
        try:
            for batch in state.data.calib:
                args, named = model_inputs(state.model, batch)
                state.model(*args, **named)
        finally:
            modifier.remove_hooks(hooks)
    if lost := [name for name in layers if name not in squares]:
        raise ValueError(f"calibration never reached {lost[0]}: no batch runs it; ignore it")
    return {name: total.sqrt() for name, total in squares.items()}


class PermutedWandaModifier(_wanda.WandaPruningModifier):  # type: ignore[name-defined]
    """llm-compressor's Wanda with each layer's mask from a search over orders.

    Attributes
    ----------
    pattern : Pattern or None
        Any pattern, in place of ``mask_structure``.
    search : dict
        Further arguments of :func:`gyroperm.solve`, such as ``seed``.
    """

    sparsity: float | None = None
    mask_structure: str = "2:4"
    pattern: Pattern | None = None
    search: dict[str, Any] = _Field(default_factory=dict)

    def compress_modules(self) -> None:
        """Prune every module that was calibrated."""
        pattern = self.pattern or _pattern(self.mask_structure)
        for module in list(self._num_samples):
            with torch.no_grad(), _matching.align_module_device(module):
                weight = module.weight
                metric = weight.flatten(1).float().abs() * self._row_scalars.pop(module).sqrt()
                # True = prune there.
                mask = wanda.prune_mask(metric, pattern=pattern, **self.search)
                pruned = weight.masked_fill(mask.reshape(weight.shape), 0.0)
            _matching.update_offload_parameter(module, "weight", pruned)
            del self._num_samples[module]


class PermutedSparseGPTModifier(_sparsegpt.SparseGPTModifier):  # type: ignore[name-defined]
    """llm-compressor's SparseGPT with each layer pruned along an order that is searched.

    Attributes
    ----------
    pattern : Pattern or None
        Any pattern, in place of ``mask_structure``.
    search : dict
        Further arguments of :func:`gyroperm.solve`, such as ``seed``.
    """

    sparsity: float | None = None
    mask_structure: str = "2:4"
    pattern: Pattern | None = None
    search: dict[str, Any] = _Field(default_factory=dict)

    def compress_modules(self) -> None:
        """Prune and update every module that was calibrated."""
        pattern = self.pattern or _pattern(self.mask_structure)
        for module in list(self._num_samples):
            with torch.no_grad(), _matching.align_module_device(module):
                weight = module.weight
                found = sparsegpt.prune(
                    weight.flatten(1),
                    self._hessians.pop(module),
                    pattern,
                    damp=self.dampening_frac,
                    block_size=self.block_size,
                    **self.search,
                )
            _matching.update_offload_parameter(
                module, "weight", found.weights.reshape(weight.shape)
            )
            del self._num_samples[module]


for _one in (ReorderModifier, PermutedWandaModifier, PermutedSparseGPTModifier):
    _modifiers.ModifierFactory.register(_one.__name__, _one)
