"""Learned permutations: their pieces against what they must equal, and what a search returns."""

import math
import sys
from itertools import permutations
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from gyroperm import MaxRounds, Pattern, solve  # noqa: E402
from gyroperm.arrangement import Arrangement  # noqa: E402
from gyroperm.solvers.learned import LearnedOptions, _inputs  # noqa: E402
from gyroperm.solvers.learned_steps import (  # noqa: E402
    Blocks,
    Layer,
    Network,
    nearest_permutations,
    sinkhorn,
    total,
)

PATTERNS = [Pattern.nm(2, 4), Pattern.nm(1, 3), Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=8)]
every_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=str)
every_loss = pytest.mark.parametrize("loss", ["cosine", "squared"])

#: A few steps, for searches of which no more is asked than that they end well.
SHORT = {"iterations": 4, "batches": 2, "device": "cpu"}


def layer(seed=0, rows=24, columns=32, tokens=96):
    """Weights, and inputs whose channels come in strongly correlated pairs, side by side."""
    rng = np.random.default_rng(seed)
    shared = np.repeat(rng.standard_normal((tokens, columns // 2)), 2, axis=1)
    X = shared + 0.3 * rng.standard_normal((tokens, columns))
    return rng.standard_normal((rows, columns)), X * rng.uniform(0.5, 2.0, columns)


def lost(W, X, mask, loss):
    """What a layer's outputs lose to a mask."""
    whole, left = X @ W.T, X @ np.where(mask, W, 0.0).T
    if loss == "squared":
        return np.sum((whole - left) ** 2) / np.sum(whole**2)
    norms = np.linalg.norm(whole, axis=1) * np.linalg.norm(left, axis=1)
    return np.mean(1.0 - np.sum(whole * left, axis=1) / norms)


#: What :func:`learn` gives to ``solve`` itself.
_ARGUMENTS = ("stop", "initial", "seed", "saliency", "pattern")


def learn(W, X, **options):
    arguments = {name: options.pop(name) for name in _ARGUMENTS if name in options}
    options = {**SHORT, **options}
    return solve(W, activations=X, method="learned", options=options, threads=1, **arguments)


# --- pieces


@given(data=st.data())
def test_the_nearest_permutation_has_the_largest_sum(data):
    size = data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    soft = rng.random((2, 3, size, size), dtype=np.float32)
    found = nearest_permutations(soft)
    for matrix, chosen in zip(soft.reshape(-1, size, size), found.reshape(-1, size), strict=True):
        best = max(sum(matrix[p[to], to] for to in range(size)) for p in permutations(range(size)))
        assert sorted(chosen) == list(range(size))
        assert matrix[chosen, np.arange(size)].sum() == pytest.approx(best, rel=1e-6)


def test_sinkhorn_agrees_with_dividing_by_sums_and_bears_large_logits():
    logits = np.random.default_rng(0).uniform(-1, 1, (2, 5, 5))
    expected = np.exp(logits)
    for _ in range(5):
        expected /= expected.sum(axis=-1, keepdims=True)
        expected /= expected.sum(axis=-2, keepdims=True)
    found = sinkhorn(torch, torch.tensor(logits), 5).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    large = sinkhorn(torch, 1e4 * torch.tensor(logits), 20).numpy()
    np.testing.assert_allclose(large.sum(axis=-2), 1.0, rtol=1e-9)


def network_of(W, X, pattern, loss, tile_rows, columns, saliency):
    of = Layer(W, saliency, X, tile_rows, pattern.n, pattern.m)
    return Network(torch, of, columns, Blocks(columns.shape[1], 8), loss=loss, device="cpu")


@every_loss
@pytest.mark.parametrize("virtual", [False, True])
@given(seed=st.integers(0, 2**20))
def test_a_permutation_is_judged_by_the_mask_that_it_gives(loss, virtual, seed):
    rng = np.random.default_rng(seed)
    W, X = layer(seed, rows=8, columns=24, tokens=10)
    saliency = np.abs(W).round(1)
    tile_rows = rng.permutation(8).reshape(2, 4).astype(np.int32)
    columns = np.stack([rng.permutation(24)[:20] for _ in range(2)]).astype(np.int32)
    if virtual:
        tile_rows[1, 3], columns[0, 5], columns[1, [0, 1]] = -1, -1, -1
    network = network_of(W, X, PATTERNS[0], loss, tile_rows, columns, saliency)
    # Blocks of 8 places, and of the 4 that are left.
    moved = np.stack(
        [np.r_[rng.permutation(8), 8 + rng.permutation(8), 16 + rng.permutation(4)] for _ in "ab"]
    )
    groups = np.take_along_axis(columns, moved, axis=1).reshape(2, 5, 4)
    mask = Arrangement(tile_rows, tuple(groups)).mask(saliency, 2)
    found, error = total(network, moved, 4)
    assert found == pytest.approx(lost(W, X, mask, loss), rel=1e-4)
    assert error == pytest.approx(lost(W, X, mask, "squared"), rel=1e-4)


@every_loss
def test_a_step_sees_the_hard_loss_and_every_logit_has_a_gradient(loss):
    W, X = layer()
    columns = np.arange(32, dtype=np.int32)[None]
    rows = np.arange(24, dtype=np.int32)[None]
    network = network_of(W, X, PATTERNS[0], loss, rows, columns, np.abs(W))
    logits = network.trainable(Blocks(32, 8).logits(1, np.random.default_rng(0), 1.0, 0.0))
    soft = network.soften(logits, 0.5, 5)
    moved = Blocks(32, 8).moved(network.harden(soft))
    step = network.step_loss(soft, moved, network.inputs)
    assert float(step.detach()) == pytest.approx(total(network, moved, 96)[0], rel=1e-5)
    step.backward()
    assert logits[0].shape == (1, 4, 8, 8)
    assert bool((logits[0].grad != 0).all())


def test_blocks_cover_the_places_once_and_favour_staying():
    blocks = Blocks(20, 8)
    logits = blocks.logits(3, np.random.default_rng(0), 0.01, 1.0)
    assert [one.shape for one in logits] == [(3, 2, 8, 8), (3, 1, 4, 4)]
    stay = blocks.moved([nearest_permutations(one) for one in logits])
    assert np.array_equal(stay, np.tile(np.arange(20), (3, 1)))


def test_the_temperature_falls_as_it_is_told():
    linear, exponential = LearnedOptions(), LearnedOptions(cooling="exponential")
    assert [linear.temperature(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1])
    assert [exponential.temperature(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.1**0.5, 0.1])


def test_tokens_of_a_gram_matrix_have_it_and_are_alike():
    from gyroperm.gram import Gram
    from gyroperm.output import LayerOutput
    from gyroperm.problem import Problem
    from gyroperm.solvers import Search

    W, X = layer()
    gram = Gram.of(X.T @ X)
    output = LayerOutput(W, gram, objective="error")
    tokens = _inputs(Search(Problem(np.abs(W), Pattern.nm(), output=output)))
    np.testing.assert_allclose(tokens.T @ tokens / len(tokens), gram.matrix, atol=1e-12)
    energies = np.square(tokens).sum(axis=1)
    assert energies.max() < 5 * energies.min()


# --- searches


@every_pattern
@every_loss
def test_learning_from_a_random_start_loses_less_than_no_permutation(pattern, loss):
    W, X = layer(rows=32, columns=48)
    options = {"iterations": 30, "batches": 4, "learning_rate": 0.02, "block_size": 48}
    found = learn(W, X, pattern=pattern, loss=loss, start="random", **options)
    as_it_lies = solve(W, activations=X, pattern=pattern, method="identity")
    before, after = (lost(W, X, one.mask, loss) for one in (as_it_lies, found))
    assert after < 0.97 * before
    assert found.output_error == pytest.approx(lost(W, X, found.mask, "squared"), rel=1e-4)
    assert found.method == "learned" and found.objective == "error"


@every_pattern
@every_loss
@pytest.mark.parametrize("start", ["combinatorial", "random"])
def test_it_never_loses_more_than_its_start(pattern, loss, start):
    W, X = layer(3)
    saliency = np.abs(W) * np.linalg.norm(X, axis=0)
    first = solve(W, saliency=saliency, pattern=pattern, method="assign", stop=MaxRounds(30))
    options = {"loss": loss, "start": start, "learning_rate": 0.1}
    found = learn(W, X, saliency=saliency, pattern=pattern, initial=first, **options)
    before, after = (lost(W, X, one.mask, loss) for one in (first, found))
    assert after <= before * (1 + 1e-5)
    # Learning moves columns alone.
    assert np.array_equal(found.row_order, first.row_order)


def test_matrices_of_a_list_share_the_order_that_is_learned():
    (A, X), (B, _) = layer(1), layer(2, rows=12)
    found = learn([A, B], X, start="identity", learning_rate=0.1, iterations=20)
    groups = found.col_order.reshape(-1, 4)
    for W, mask in zip((A, B), found.mask, strict=True):
        kept = mask[:, groups].sum(axis=2)
        assert (kept == 2).all() and mask.shape == W.shape
    assert found.output_error < found.identity_output_error


def test_the_same_seed_gives_the_same_and_leaves_torch_as_it_was():
    W, X = layer()
    torch.manual_seed(7)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode():
        one = learn(W, X, start="random", seed=5, learning_rate=0.1)
        assert not torch.is_grad_enabled()
    two = learn(W, X, start="random", seed=5, learning_rate=0.1)
    assert np.array_equal(one.col_order, two.col_order)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@every_loss
@pytest.mark.parametrize("scale", [0.0, 2.0**-100, 2.0**100])
def test_inputs_of_any_scale_and_ties_everywhere_are_learned_from(loss, scale):
    W, X = layer(rows=8, columns=16, tokens=40)
    options = {"loss": loss, "start": "random", "learning_rate": 0.1}
    found = learn(W, scale * X, saliency=np.ones(W.shape), **options)
    assert np.array_equal(np.sort(found.col_order), np.arange(16))
    if scale:
        assert np.array_equal(found.mask, learn(W, X, saliency=np.ones(W.shape), **options).mask)


@pytest.mark.parametrize("start", ["combinatorial", "identity"])
def test_a_loss_that_diverges_gives_the_start_and_says_so(start):
    W, X = layer()
    # Two steps of this decay take logits beyond float32.
    options = {"optimizer": "sgd", "learning_rate": 1e20, "weight_decay": 1e10}
    with pytest.warns(UserWarning, match="'learned': the loss is not finite .* start is returned"):
        found = learn(W, X, start=start, **options)
    if start == "identity":
        assert found.output_error == found.identity_output_error
    else:
        assert found.retained > found.identity


def test_a_time_limit_is_kept():
    W, X = layer(rows=64, columns=128, tokens=512)
    begin = perf_counter()
    found = solve(
        W,
        activations=X,
        method="learned",
        options={"iterations": 10**6, "device": "cpu"},
        time_limit=1.0,
        threads=1,
    )
    assert found.seconds < 1.5
    assert perf_counter() - begin < 60


def test_a_round_is_a_pass_over_the_inputs():
    W, X = layer()
    seen = []

    def stop(state):
        seen.append((state.rounds, state.retained))
        return state.rounds >= 3

    learn(W, X, start="random", iterations=50, stop=stop)
    assert max(rounds for rounds, _ in seen) == 3
    kept = [retained for _, retained in seen]
    assert kept == sorted(kept) and kept[-1] < 1.0
    start = learn(W, X, start="random", stop=MaxRounds(0))
    assert start.output_error == start.identity_output_error


@pytest.mark.parametrize(
    "pattern",
    [Pattern.vnm(8, 2, 8), Pattern.vector_nm(2, 4, 8), Pattern.tvw(vec_size=8, vec_ratio=0.5)],
    ids=lambda p: p.name,
)
def test_other_patterns_are_refused(pattern):
    W, X = layer()
    with pytest.raises(ValueError, match=r"'learned' learns .* it takes Pattern.nm\(n, m\) and"):
        learn(W, X, pattern=pattern)


def test_it_needs_to_know_what_the_layer_is_fed():
    with pytest.raises(ValueError, match=r"'learned' .*: give .*gram"):
        solve(np.ones((4, 8)), method="learned")


def test_without_torch_the_error_names_the_remedy(monkeypatch):
    W, X = layer()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"'learned' needs torch: pip install 'gyroperm\[torch\]"):
        learn(W, X)


@pytest.mark.gpu
@every_pattern
@every_loss
def test_learning_on_a_card_never_loses_more_than_its_start(pattern, loss):
    W, X = layer(rows=32, columns=48)
    options = {"iterations": 30, "batches": 4, "learning_rate": 0.02, "block_size": 48}
    found = learn(W, X, pattern=pattern, loss=loss, start="random", device="cuda", **options)
    as_it_lies = solve(W, activations=X, pattern=pattern, method="identity")
    before, after = (lost(W, X, one.mask, loss) for one in (as_it_lies, found))
    assert after < 0.97 * before
    again = learn(W, X, pattern=pattern, loss=loss, initial=found, device="cuda", **options)
    assert lost(W, X, again.mask, loss) <= after * (1 + 1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_an_error():
    W, X = layer()
    with pytest.raises(ValueError, match="device 'cuda' is not there"):
        learn(W, X, device="cuda")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"loss": "hinge"}, "loss must be 'cosine' or 'squared', got 'hinge'"),
        ({"start": 3}, "start must be 'combinatorial' or 'identity' or 'random', got 3"),
        ({"iterations": 0}, "iterations must be an integer of at least 1"),
        ({"block_size": 1}, "block_size must be an integer of at least 2"),
        ({"cold": 2.0}, "hot >= cold > 0"),
        ({"hot": math.inf}, "hot must be a finite number"),
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"learning_rate": 1e38}, "must be at most 1e[+]30, got 1e[+]38"),
        ({"start_share": 1.0}, r"start_share must lie in \(0, 1\)"),
        ({"epochs": 5}, "unknown option 'epochs' of method 'learned'; it takes start"),
    ],
)
def test_bad_options_are_named(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        learn(np.ones((4, 8)), np.ones((9, 8)), **options)
