"""torchao 0.18: Wanda's 2:4 masks on an ordered model, and masks from a search."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torchao.sparsity import WandaSparsifier

import gyroperm
from gyroperm import Pattern
from gyroperm.models import Coupled, Spec
from gyroperm.plugins.torchao_wanda import (
    PermutedWandaSparsifier,
    input_norms,
    order_for_wanda,
    retained,
)

SEARCH = {"seed": 0, "stop": gyroperm.MaxRounds(200), "threads": 1}


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 8)
        with torch.no_grad():
            self.up.weight.mul_(torch.rand(64, 1) * 3)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


SPEC = Spec(
    "mlp",
    (
        Coupled(
            "hidden",
            {"up.weight[0]": "c", "up.bias[0]": "c", "down.weight[1]": "c"},
            order="c",
        ),
    ),
)


@pytest.fixture
def bert():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=24,
        )
    ).eval()


def batches(count=2):
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(2, 60, (4, 12), generator=generator)} for _ in range(count)]


def rows(count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 16, generator=generator) for _ in range(count)]


def wanda_pruned(model, calibration, names, sparsifier=None):
    """A model pruned in torchao's flow."""
    if sparsifier is None:
        with pytest.warns(UserWarning, match="2:4"):
            sparsifier = WandaSparsifier(semi_structured_block_size=4)
    sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in names])
    with torch.no_grad():
        for batch in calibration:
            model(**batch) if isinstance(batch, dict) else model(batch)
    sparsifier.step()
    sparsifier.squash_mask()
    return model


def is_two_of_four(weight):
    return bool(((weight != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all())


def test_the_metric_is_torchao_s_sum_of_squares():
    model = Mlp()
    norms = input_norms(model, rows())
    x = torch.cat(rows())
    torch.testing.assert_close(norms["up"], (x**2).sum(0))
    hidden = torch.relu(model.up(x)).detach()
    torch.testing.assert_close(norms["down"], (hidden**2).sum(0))


def test_stock_masks_on_an_ordered_model_keep_more():
    dense = Mlp()
    x = torch.cat(rows())
    ordered = copy.deepcopy(dense)
    orders = order_for_wanda(ordered, rows(), graph=SPEC, **SEARCH)
    assert set(orders) == {"hidden"}
    assert sorted(orders["hidden"]) == list(range(64))
    # The function is what it was; only then is anything pruned.
    torch.testing.assert_close(ordered(x), dense(x))
    kept = []
    for model in (dense, ordered):
        norms = input_norms(model, rows(), ["down"])
        whole = retained(model, norms)
        wanda_pruned(model, rows(), ["down"])
        assert is_two_of_four(model.down.weight)
        assert int((model.down.weight != 0).sum()) == model.down.weight.numel() // 2
        kept.append(retained(model, norms) / whole)
    assert 0.5 < kept[0] < kept[1]


def test_an_encoder(bert):
    names = [name for name, one in bert.named_modules() if type(one) is nn.Linear]
    names.remove("pooler.dense")
    ordered = copy.deepcopy(bert)
    orders = order_for_wanda(ordered, batches(), layers=names, **SEARCH)
    # Two heads in each of two layers, two hidden layers, the residual.
    assert len(orders) == 2 * 2 + 2 + 1
    inputs = batches()[0]
    torch.testing.assert_close(
        ordered(**inputs).last_hidden_state, bert(**inputs).last_hidden_state
    )
    kept, total = [], []
    for model in (bert, ordered):
        norms = input_norms(model, batches(), names)
        total.append(retained(model, norms))
        wanda_pruned(model, batches(), names)
        assert all(is_two_of_four(model.get_submodule(name).weight) for name in names)
        kept.append(retained(model, norms))
    assert total[1] == pytest.approx(total[0], rel=1e-4)
    assert kept[1] > 1.01 * kept[0]


def test_one_is_keep_and_a_search_keeps_more_than_the_given_order():
    stock, ours = Mlp(), Mlp()
    dense = ours.up.weight.detach().clone()
    norms = input_norms(ours, rows())
    sparsifier = PermutedWandaSparsifier(**SEARCH)
    assert isinstance(sparsifier, WandaSparsifier)
    sparsifier.prepare(ours, [{"tensor_fqn": "up.weight"}, {"tensor_fqn": "down.weight"}])
    for batch in rows():
        ours(batch)
    sparsifier.step()
    mask = ours.up.parametrizations.weight[0].mask.clone()
    solution = sparsifier.solutions["up.weight"]
    np.testing.assert_array_equal(mask.numpy(), solution.mask.astype(np.float32))
    sparsifier.squash_mask()
    assert not hasattr(ours.up, "activation_post_process")
    assert torch.equal(ours.up.weight, torch.where(mask == 1, dense, 0.0))
    wanda_pruned(stock, rows(), ["up", "down"])
    assert retained(stock, norms) == pytest.approx(
        sum(one.identity for one in sparsifier.solutions.values()), rel=1e-5
    )
    assert retained(ours, norms) == pytest.approx(
        sum(one.retained for one in sparsifier.solutions.values()), rel=1e-5
    )
    assert retained(ours, norms) > retained(stock, norms)


def test_other_patterns():
    model = Mlp()
    sparsifier = PermutedWandaSparsifier(Pattern.hinm(vec_size=8), **SEARCH)
    wanda_pruned(model, rows(), ["up"], sparsifier)
    assert float((model.up.weight != 0).float().mean()) == 0.25
    ordered = Mlp()
    orders = order_for_wanda(ordered, rows(), block_size=8, graph=SPEC, **SEARCH)
    assert set(orders) == {"hidden"}


def test_calibration_that_does_not_reach_a_layer():
    model = Mlp()
    model.unused = nn.Linear(4, 4)
    assert set(input_norms(model, rows())) == {"up", "down"}
    with pytest.raises(ValueError, match="calibration never reached unused"):
        order_for_wanda(model, rows(), layers=["up", "unused"], graph=SPEC, **SEARCH)
    with pytest.raises(ValueError, match=r"'relu' is no nn\.Linear of Mlp"):
        order_for_wanda(model, rows(), layers=["relu"], graph=SPEC, **SEARCH)
    with pytest.raises(ValueError, match="at least one batch"):
        order_for_wanda(model, [], graph=SPEC)
    sparsifier = PermutedWandaSparsifier(**SEARCH)
    sparsifier.prepare(model, [{"tensor_fqn": "unused.weight"}])
    with pytest.raises(ValueError, match="calibration never reached a in_features=4"):
        sparsifier.step()
    assert not math.isnan(float(model.unused.weight.detach().sum()))
