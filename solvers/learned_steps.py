"""Learning block-wise permutations by gradient: soft ones forwards, hard ones straight through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.kernels.assignment import assign_each

# A norm below this is one of no output.
_LEAST_NORM = 1e-12


class DivergedError(Exception):
    """The loss, or what leads to it, is no finite number any more."""


@dataclass(frozen=True, eq=False)
class Layer:
    """What a layer computes, and between which columns of which rows a permutation may exchange.

    Attributes
    ----------
    weights, saliency : ndarray of float, shape (R, C)
    inputs : ndarray of float, shape (tokens, C)
        What the layer is fed.
    tile_rows : ndarray of int, shape (T, V)
        -1 for virtual rows.
    n, m : int
    """

    weights: NDArray[np.floating]
    saliency: NDArray[np.floating]
    inputs: NDArray[np.floating]
    tile_rows: NDArray[np.integer]
    n: int
    m: int


class Blocks:
    """Places of a tile's columns cut into blocks, in each of which a permutation is learned.

    Parameters
    ----------
    places : int
        K, the columns of a tile.
    size : int
        The places of a block. What is left over makes a smaller one.
    """

    def __init__(self, places: int, size: int) -> None:
        whole, rest = divmod(places, size)
        #: Blocks of one size each: first place, number of blocks, places of a block.
        self.runs = [(0, whole, size)] if whole else []
        if rest:
            self.runs.append((whole * size, 1, rest))

    def logits(
        self, tiles: int, rng: np.random.Generator, spread: float, diagonal: float
    ) -> list[NDArray[np.float32]]:
        """Uniform numbers in ``[-spread, spread]``, and so much more for staying in place.

        For each run an array of shape (tiles, blocks, size, size): from which place to which.
        """
        result = []
        for _, count, size in self.runs:
            drawn = rng.uniform(-spread, spread, (tiles, count, size, size))
            result.append((drawn + diagonal * np.eye(size)).astype(np.float32))
        return result

    def moved(self, hard: list[NDArray[np.int32]]) -> NDArray[np.int64]:
        """The place from which each place takes its column, (tiles, K).

        ``hard[run][tile, block, to]`` is the place within the block that a column comes from.
        """
        parts = []
        for (first, count, size), chosen in zip(self.runs, hard, strict=True):
            begins = first + size * np.arange(count)[:, None]
            parts.append((chosen + begins).reshape(len(chosen), -1))
        return np.concatenate(parts, axis=1).astype(np.int64)


def sinkhorn(torch: Any, logits: Any, rounds: int) -> Any:
    """Nearly doubly stochastic matrices ``exp(logits)``, normalised in the log domain.

    Rows and columns in turns, so many rounds; columns are last and sum to 1. Sinkhorn and Knopp,
    Concerning Nonnegative Matrices and Doubly Stochastic Matrices, 1967.
    """
    for _ in range(rounds):
        logits = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        logits = logits - torch.logsumexp(logits, dim=-2, keepdim=True)
    return logits.exp()


def nearest_permutations(soft: NDArray[np.float32]) -> NDArray[np.int32]:
    """For each matrix (.., size, size) the permutation of the largest sum: ``result[.., to]``."""
    size = soft.shape[-1]
    # A slot of the assignment is where a column goes to.
    gain = np.ascontiguousarray(np.swapaxes(soft, -1, -2)).reshape(-1, size, size)
    chosen = np.empty((len(gain), size), dtype=np.int32)
    assign_each(gain, chosen)
    return chosen.reshape(*soft.shape[:-2], size)


class Network:
    """The layer with a mask that depends on permutations, on a device, in float32.

    Parameters
    ----------
    torch : module
    layer : Layer
    columns : ndarray of int, shape (T, K)
        The columns of each tile where learning begins, -1 for virtual ones.
    blocks : Blocks
    loss : {"cosine", "squared"}
    device : str
    """

    def __init__(
        self,
        torch: Any,
        layer: Layer,
        columns: NDArray[np.integer],
        blocks: Blocks,
        *,
        loss: str,
        device: str,
    ) -> None:
        self._torch = torch
        self._blocks = blocks
        self.loss = loss
        self._n, self._m = layer.n, layer.m

        def on_device(array: NDArray[Any], dtype: Any = torch.float32) -> Any:
            return torch.tensor(np.ascontiguousarray(array), dtype=dtype, device=device)

        rows, count = layer.weights.shape
        self._shape = (rows, count)
        self.inputs = on_device(layer.inputs)
        self._weights = on_device(layer.weights)
        real = (layer.tile_rows >= 0)[:, :, None] & (columns >= 0)[:, None, :]
        flat = layer.tile_rows[:, :, None].astype(np.int64) * count + columns[:, None, :]
        # Everything virtual is one weight more, which is thrown away.
        self._where = on_device(np.where(real, flat, rows * count), torch.int64)
        # The scale of a saliency has no meaning; the softmax over a group has one.
        mean = float(layer.saliency.mean(dtype=np.float64)) or 1.0
        scaled = np.where(real, layer.saliency.reshape(-1)[np.where(real, flat, 0)] / mean, -1.0)
        self._saliency = on_device(scaled)
        self._tile_weights = on_device(
            np.where(real, layer.weights.reshape(-1)[np.where(real, flat, 0)], 0.0)
        )

    def trainable(self, logits: list[NDArray[np.float32]]) -> list[Any]:
        """Logits as parameters."""
        torch, device = self._torch, self.inputs.device
        return [torch.tensor(one, device=device, requires_grad=True) for one in logits]

    def soften(self, logits: list[Any], temperature: float, rounds: int) -> list[Any]:
        """Soft permutations of logits at a temperature; DivergedError if they are none."""
        soft = [sinkhorn(self._torch, one / temperature, rounds) for one in logits]
        if not all(bool(self._torch.isfinite(one).all()) for one in soft):
            raise DivergedError
        return soft

    def harden(self, soft: list[Any]) -> list[NDArray[np.int32]]:
        """The permutations nearest to soft ones."""
        return [nearest_permutations(one.detach().cpu().numpy()) for one in soft]

    def step_loss(self, soft: list[Any], moved: NDArray[np.int64], tokens: Any) -> Any:
        """The loss of hard permutations on some tokens, with the gradient of the soft ones."""
        torch = self._torch
        place = torch.as_tensor(moved, device=self.inputs.device)
        hard = self._hard_mask(place)
        back = torch.argsort(place, dim=1)
        # One-hot forwards and soft backwards, so that gradients pass straight through.
        mixed = []
        for (first, count, size), one in zip(self._blocks.runs, soft, strict=True):
            begins = first + size * torch.arange(count, device=place.device)[:, None]
            chosen = place[:, first : first + count * size].reshape(-1, count, size) - begins
            exact = torch.zeros_like(one).scatter_(-2, chosen[:, :, None, :], 1.0)
            mixed.append(exact + (one - one.detach()))
        permuted = self._through(self._saliency, mixed, "tvbi,tbij->tvbj")
        groups = permuted.reshape(*permuted.shape[:2], -1, self._m)
        likely = torch.softmax(groups, dim=-1).reshape(permuted.shape)
        likely = self._through(likely, mixed, "tvbj,tbij->tvbi")
        mask = self._lying(hard, back) + (likely - likely.detach())
        return self._loss_of(*self._outputs(mask, tokens))

    def judge(self, moved: NDArray[np.int64], tokens: Any) -> tuple[float, float, float]:
        """Of hard permutations on some tokens: the loss, the squared error, and the output's."""
        torch = self._torch
        with torch.no_grad():
            place = torch.as_tensor(moved, device=self.inputs.device)
            mask = self._lying(self._hard_mask(place), torch.argsort(place, dim=1))
            whole, error = self._outputs(mask, tokens)
            return (
                float(self._loss_of(whole, error)),
                float(error.square().sum(dtype=torch.float64)),
                float(whole.square().sum(dtype=torch.float64)),
            )

    def _through(self, tiles: Any, permutations: list[Any], product: str) -> Any:
        """Tiles (T, V, K) times the block-diagonal permutations of each."""
        parts = []
        for (first, count, size), one in zip(self._blocks.runs, permutations, strict=True):
            part = tiles[:, :, first : first + count * size]
            part = part.reshape(*part.shape[:2], count, size)
            parts.append(self._torch.einsum(product, part, one).reshape(*part.shape[:2], -1))
        return parts[0] if len(parts) == 1 else self._torch.cat(parts, dim=2)

    def _hard_mask(self, place: Any) -> Any:
        """Which columns each row of a tile keeps, by the places they moved to, (T, V, K).

        Among equals the earlier of the group, as :meth:`Arrangement.mask` has it.
        """
        torch = self._torch
        index = place[:, None, :].expand(-1, self._saliency.shape[1], -1)
        permuted = torch.gather(self._saliency, 2, index)
        groups = permuted.reshape(*permuted.shape[:2], -1, self._m)
        rank = torch.zeros(groups.shape, dtype=torch.int16, device=groups.device)
        for later in range(1, self._m):
            for earlier in range(later):
                first = groups[..., earlier] >= groups[..., later]
                rank[..., later] += first
                rank[..., earlier] += ~first
        return (rank < self._n).reshape(permuted.shape).to(torch.float32)

    def _lying(self, mask: Any, back: Any) -> Any:
        """A mask by the places that columns moved to, by those they came from."""
        return self._torch.gather(mask, 2, back[:, None, :].expand(-1, mask.shape[1], -1))

    def _outputs(self, mask: Any, tokens: Any) -> tuple[Any, Any]:
        """The dense layer's outputs, and by how much they exceed those of the masked weights."""
        torch = self._torch
        rows, columns = self._shape
        flat = torch.zeros(rows * columns + 1, device=mask.device)
        kept = (self._tile_weights * mask).reshape(-1)
        pruned = flat.scatter(0, self._where.reshape(-1), kept)[:-1].reshape(rows, columns)
        return tokens @ self._weights.T, tokens @ (self._weights - pruned).T

    def _loss_of(self, whole: Any, error: Any) -> Any:
        torch = self._torch
        if self.loss == "squared":
            return error.square().sum() / whole.square().sum().clamp_min(_LEAST_NORM)
        left = whole - error
        norms = torch.linalg.vector_norm(whole, dim=1) * torch.linalg.vector_norm(left, dim=1)
        return (1.0 - (whole * left).sum(dim=1) / norms.clamp_min(_LEAST_NORM)).mean()


def total(network: Network, moved: NDArray[np.int64], batch: int) -> tuple[float, float]:
    """Judge hard permutations on all tokens, a batch at a time; DivergedError if not finite.

    Returns
    -------
    loss, error : float
        The mean over tokens of the cosine distance, or the same as ``error``: the squared error
        relative to the squared output.
    """
    lost = error = whole = 0.0
    for tokens in network.inputs.split(batch):
        one, squared, output = network.judge(moved, tokens)
        lost += one * len(tokens) / len(network.inputs)
        error += squared
        whole += output
    error = error / whole if whole else 0.0
    if not math.isfinite(lost + error):
        raise DivergedError
    return (lost if network.loss == "cosine" else error), error


@contextmanager
def borrowed(torch: Any, threads: int) -> Iterator[None]:
    """Gradients, whatever the caller's mode, and so many threads; afterwards all as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(before)
