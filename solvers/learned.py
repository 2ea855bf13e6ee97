"""Learned permutations: columns exchanged by gradient of what the layer's output loses."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_integer, is_number
from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers import registry
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.learned_steps import Blocks, DivergedError, Layer, Network, borrowed, total
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search

_CHOICES = {
    "cooling": ("linear", "exponential"),
    "loss": ("cosine", "squared"),
    "start": ("combinatorial", "identity", "random"),
    "optimizer": ("adamw", "adam", "sgd"),
    "device": ("auto", "cpu", "cuda"),
}
_LEAST = {"block_size": 2, "iterations": 1, "batches": 1, "sinkhorn_iterations": 0}

# What torch's optimizers take as a number of float32.
_LARGEST_STEP = 1e30

# The random streams: what logits begin with, the order of the tokens, inputs made of a Gram matrix.
_LOGITS, _TOKENS, _INPUTS = 0, 1, 2

# How far from equal the logits begin that favour staying in place.
_JITTER = 0.01


@dataclass(frozen=True)
class LearnedOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    start : {"combinatorial", "identity", "random"}
        Where learning begins: from what ``auto`` finds, or from the columns as they lie, with
        logits that favour staying there; or, as published, from the columns as they lie with
        random logits. A search with ``initial`` has that in place of either arrangement.
    start_share : float
        The share of the time, or rounds, that goes to the combinatorial start, in (0, 1).
    stay : float
        By how much logits favour staying in place, where they do.
    block_size : int
        Columns exchange places within blocks of so many; 64 as published. Rounded up to whole
        groups.
    iterations : int
        Passes over the inputs; 50 as published. A time limit that is shorter cools faster.
    batches : int
        Steps of a pass, each on its part of the tokens; 8 in the authors' code.
    learning_rate, weight_decay : float
        Of the optimizer; the rate falls by a half cosine to 0. 1e-3 and 0.1 in the authors' code.
    optimizer : {"adamw", "adam", "sgd"}
        AdamW as published.
    hot, cold : float
        The temperature of the logits at first and at last; 1 and 0.1 as published.
    cooling : {"linear", "exponential"}
        How the temperature falls; linearly as published.
    sinkhorn_iterations : int
        How often rows and columns are normalised; 5 as published.
    loss : {"cosine", "squared"}
        The mean over tokens of the cosine distance between the layer's outputs, as published, or
        their squared difference relative to the dense output.
    device : {"auto", "cpu", "cuda"}
        ``auto`` is CUDA where torch finds it.
    """

    start: str = "combinatorial"
    start_share: float = 0.2
    stay: float = 1.0
    block_size: int = 64
    iterations: int = 50
    batches: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    optimizer: str = "adamw"
    hot: float = 1.0
    cold: float = 0.1
    cooling: str = "linear"
    sinkhorn_iterations: int = 5
    loss: str = "cosine"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be {' or '.join(map(repr, choices))}, got {getattr(self, name)!r}"
                )
        for name, least in _LEAST.items():
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), least))
        for name in ("start_share", "stay", "learning_rate", "weight_decay", "hot", "cold"):
            value = getattr(self, name)
            if not is_number(value) or math.isinf(value) or value < 0:
                raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
        if not 0 < self.start_share < 1:
            raise ValueError(f"start_share must lie in (0, 1), got {self.start_share}")
        if not self.learning_rate:
            raise ValueError("learning_rate must be positive, got 0")
        if self.learning_rate * max(1.0, self.weight_decay) > _LARGEST_STEP:
            raise ValueError(
                f"learning_rate, and its product with weight_decay, must be at most "
                f"{_LARGEST_STEP:g}, got {self.learning_rate!r} and {self.weight_decay!r}"
            )
        if not self.hot >= self.cold > 0:
            raise ValueError(f"hot >= cold > 0 is needed, got {self.hot} and {self.cold}")

    def temperature(self, progress: float) -> float:
        """The temperature when so much of the learning is over, of 1."""
        if self.cooling == "linear":
            return self.hot + (self.cold - self.hot) * progress
        return float(self.hot * (self.cold / self.hot) ** progress)


@register("learned", options=LearnedOptions, judges="output")
def solve(search: Search, options: LearnedOptions) -> Arrangement:
    """Learned channel permutation (PermLLM, 2025): by gradient of the output error, in blocks.

    A matrix of logits for each block of columns is made nearly doubly stochastic by Sinkhorn's
    normalisation at a falling temperature. The permutation nearest to it, by linear assignment,
    orders the columns of the saliency, n:m masks the weights, and the layer's output is compared
    with the dense one. Gradients pass the assignment as if the permutation had been the soft one,
    and the mask as if it had been a softmax over each group. HiNM learns an order of the kept
    columns of each tile, all tiles together; rows and vectors stay those of the start.

    A round, in the sense of stopping criteria, is a pass over the inputs.

    Parameters
    ----------
    search : Search
        Of a problem with the layer's weights and inputs, or their Gram matrix.
    options : LearnedOptions

    Returns
    -------
    Arrangement
        The best permutation seen by the loss on all inputs, and the start if there was none.

    Raises
    ------
    ValueError
        If the pattern is another, neither activations nor a Gram matrix are there, or the device
        is not.
    ImportError
        If torch is missing.

    Warns
    -----
    UserWarning
        If the loss diverges; the start is returned.

    Notes
    -----
    As published are the logits in blocks, Sinkhorn's normalisation and its temperatures, both
    straight-through gradients, the optimizer and the cosine loss; from the authors' code are the
    learning rate, its decay, the batches, and logits that begin uniform in [-1, 1], which are
    learned divided by the root of the block's size. Other than published: each layer learns
    against its own output, not the whole model against its last; the saliency is divided by its
    mean, which makes the softmax of the mask independent of its scale; the start; and the best
    permutation is chosen on all inputs. Given a Gram matrix alone, the inputs are C tokens that
    have it. The same seed gives the same answer on a CPU with the same number of threads.

    References
    ----------
    Zou, Yin, Pei, Ho, Farnia and Yu, PermLLM: Learnable Channel Permutation for N:M Sparse Large
    Language Models, NeurIPS 2025, arXiv:2510.10136. Mena et al., Learning Latent Permutations
    with Gumbel-Sinkhorn Networks, ICLR 2018.
    """
    problem = search.problem
    _check(problem)
    torch = _torch()
    device = _device(torch, options.device)
    start = _start(search, options)
    groups = np.stack(start.groups)
    if search.stopped() or problem.pattern.n == problem.pattern.m or groups.shape[1] == 1:
        return start
    with borrowed(torch, search.threads):
        learning = _Learning(torch, search, options, start, device)
        try:
            columns = learning.run()
        except DivergedError:
            warnings.warn(
                f"method 'learned': the loss is not finite after {learning.steps} steps; the "
                f"start is returned (learning_rate={options.learning_rate:g} may be too large)",
                UserWarning,
                stacklevel=2,
            )
            return start
    return _arranged(problem, start, columns)


def _check(problem: Problem) -> None:
    pattern = problem.pattern
    if pattern.allocation != "uniform":
        raise ValueError(
            f"method 'learned' learns the column order of plain N:M, or of each tile of HiNM, not "
            f"of {pattern.name}; it takes Pattern.nm(n, m) and Pattern.hinm(n, m, ...)"
        )
    if problem.output is None:
        raise ValueError(
            "method 'learned' compares the layer's outputs: give activations, (tokens, C), or "
            "gram, (C, C)"
        )


def _torch() -> Any:
    try:
        return import_module("torch")
    except ImportError as error:
        raise ImportError(
            f"method 'learned' needs torch: pip install 'gyroperm[torch]': {error}"
        ) from error


def _device(torch: Any, wanted: str) -> str:
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise ValueError("device 'cuda' is not there: torch finds none; 'cpu' or 'auto' work")
    return "cuda" if found and wanted == "auto" else "cpu" if wanted == "auto" else wanted


def _start(search: Search, options: LearnedOptions) -> Arrangement:
    """Where columns, and rows and vectors, are when learning begins."""
    if search.initial is not None:
        # Masks follow from the order of columns, here as while learning.
        return _unmasked(search.initial)
    if options.start == "combinatorial" and not search.stopped():
        auto = registry.get("assign")
        return auto.solve(search.part(options.start_share), auto.make_options(None))
    return identity_arrangement(search.problem)


def _unmasked(start: Arrangement) -> Arrangement:
    return Arrangement(start.tile_rows, start.groups, start.col_order)


def _arranged(problem: Problem, start: Arrangement, columns: NDArray[np.int32]) -> Arrangement:
    """The start with another order of each tile's columns, shape (T, K)."""
    groups = tuple(one.reshape(-1, problem.pattern.m) for one in columns)
    if start.col_order is None:
        return Arrangement(start.tile_rows, groups)
    return Arrangement(start.tile_rows, groups, columns.reshape(start.col_order.shape))


def _inputs(search: Search) -> NDArray[np.floating]:
    """The layer's inputs, or C tokens that have its Gram matrix, of mean energy each."""
    output = search.problem.output
    assert output is not None
    if output.activations is not None:
        return output.activations
    values, vectors = np.linalg.eigh(output.gram.matrix)
    root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    drawn = search.random(_INPUTS).standard_normal((len(root), len(root)))
    # Orthogonal: a few of the tokens are a fair sample of all.
    inputs: NDArray[np.float64] = np.linalg.qr(drawn)[0] @ root
    return inputs * math.sqrt(len(root))


class _Learning:
    """One run of gradient descent.

    Parameters
    ----------
    torch : module
    search : Search
    options : LearnedOptions
    start : Arrangement
    device : str
    """

    def __init__(
        self,
        torch: Any,
        search: Search,
        options: LearnedOptions,
        start: Arrangement,
        device: str,
    ) -> None:
        problem = search.problem
        assert problem.output is not None
        n, m = problem.pattern.n, problem.pattern.m
        self.steps = 0
        self._torch = torch
        self._search = search
        self._options = options
        self._columns = np.stack([groups.reshape(-1) for groups in start.groups])
        tiles, places = self._columns.shape
        size = min(-(-options.block_size // m) * m, places)
        blocks = Blocks(places, size)
        self._blocks = blocks
        inputs = _inputs(search)
        # By a power of two, so that no square overflows float32; neither loss sees it.
        inputs = np.ldexp(inputs, -int(np.frexp(float(np.abs(inputs).max()))[1]))
        layer = Layer(
            problem.output.weights, problem.search_saliency, inputs, start.tile_rows, n, m
        )
        self._network = Network(
            torch, layer, self._columns, blocks, loss=options.loss, device=device
        )
        self._batch = -(-len(inputs) // min(options.batches, len(inputs)))
        # What is learned is divided by the root of a block's size, which scales the learning rate.
        self._scale = math.sqrt(size)
        random = options.start == "random"
        logits = blocks.logits(
            tiles,
            search.random(_LOGITS),
            1.0 if random else _JITTER,
            0.0 if random else options.stay,
        )
        self._logits = self._network.trainable([one / np.float32(self._scale) for one in logits])
        self._begun = search.progress() or 0.0
        # Of the last step, and of judging a permutation on all inputs.
        self._seconds = self._judging = 0.0

    def run(self) -> NDArray[np.int32]:
        """The best columns seen, (T, K); DivergedError if the loss is no number."""
        search = self._search
        tiles, places = self._columns.shape
        best = judged = np.tile(np.arange(places), (tiles, 1))
        begin = perf_counter()
        least, error = self._total(best)
        self._judging = perf_counter() - begin
        search.improve(1.0 - error)
        optimizer = self._optimizer()
        rng = search.random(_TOKENS)
        for _ in range(self._options.iterations):
            whole = self._pass(optimizer, rng)
            moved = self._moved()
            if not np.array_equal(moved, judged):
                judged = moved
                loss, squared = self._total(moved)
                if loss < least:
                    best, least, error = moved, loss, squared
            if not whole:
                search.improve(1.0 - error)
                break
            search.record(1.0 - error)
        return np.take_along_axis(self._columns, best, axis=1)

    def _total(self, moved: NDArray[np.int64]) -> tuple[float, float]:
        return total(self._network, moved, self._batch)

    def _optimizer(self) -> Any:
        options, optim = self._options, self._torch.optim
        kind = {"adamw": optim.AdamW, "adam": optim.Adam, "sgd": optim.SGD}[options.optimizer]
        return kind(self._logits, lr=options.learning_rate, weight_decay=options.weight_decay)

    def _pass(self, optimizer: Any, rng: np.random.Generator) -> bool:
        """A step on each part of the inputs; False where there was no time for all of them."""
        inputs = self._network.inputs
        for drawn in self._torch.as_tensor(rng.permutation(len(inputs))).split(self._batch):
            # What was learned is yet to be judged.
            if not self._search.affords(self._seconds + self._judging):
                return False
            begin = perf_counter()
            self._step(optimizer, inputs[drawn.to(inputs.device)])
            self._seconds = perf_counter() - begin
        return True

    def _step(self, optimizer: Any, tokens: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self._options.learning_rate * (1 + math.cos(math.pi * self._progress)) / 2
        optimizer.zero_grad()
        soft = self._soft()
        moved = self._blocks.moved(self._network.harden(soft))
        loss = self._network.step_loss(soft, moved, tokens)
        if not bool(self._torch.isfinite(loss)):
            raise DivergedError
        loss.backward()
        optimizer.step()
        self.steps += 1

    @property
    def _progress(self) -> float:
        """How much of the learning is over, by its passes or by what the criterion allows."""
        options = self._options
        batches = -(-len(self._network.inputs) // self._batch)
        done = self.steps / (options.iterations * batches)
        used = ((self._search.progress() or 0.0) - self._begun) / max(1e-9, 1.0 - self._begun)
        return min(1.0, max(done, used))

    def _soft(self) -> list[Any]:
        options = self._options
        temperature = options.temperature(self._progress) / self._scale
        return self._network.soften(self._logits, temperature, options.sinkhorn_iterations)

    def _moved(self) -> NDArray[np.int64]:
        with self._torch.no_grad():
            return self._blocks.moved(self._network.harden(self._soft()))
