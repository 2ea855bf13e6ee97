"""torch.ao.pruning: a sparsifier in torch's own flow of prepare, step and squash."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.pruning import FakeSparsity, WeightNormSparsifier

import gyroperm
from gyroperm import Pattern
from gyroperm.plugins.torch_ao import GyropermSparsifier

SEARCH = {"seed": 0, "stop": gyroperm.MaxRounds(50), "threads": 1}


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))


def parametrization(model, name="0"):
    return model.get_submodule(name).parametrizations.weight[0]


@pytest.fixture
def model():
    return made()


def test_one_is_keep_and_the_kept_are_the_solution_s(model):
    dense = model[0].weight.detach().clone()
    sparsifier = GyropermSparsifier(**SEARCH)
    sparsifier.prepare(model, None)
    assert isinstance(parametrization(model), FakeSparsity)
    assert torch.equal(model[0].weight, dense)
    sparsifier.step()
    assert set(sparsifier.solutions) == {"0.weight", "2.weight"}
    solution = sparsifier.solutions["0.weight"]
    mask = parametrization(model).mask
    np.testing.assert_array_equal(mask.numpy(), solution.mask.astype(np.float32))
    assert torch.equal(model[0].weight, torch.where(mask == 1, dense, 0.0))
    assert float(model[0].weight.detach().abs().sum()) == pytest.approx(solution.retained, rel=1e-6)
    assert solution.retained > solution.identity


def test_it_keeps_more_than_torch_s_own_sparsifier(model):
    stock = made()
    theirs = WeightNormSparsifier(
        sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2, norm=1
    )
    ours = GyropermSparsifier(**SEARCH)
    for sparsifier, one in ((theirs, stock), (ours, model)):
        sparsifier.prepare(one, None)
        sparsifier.step()
    for name in ("0", "2"):
        kept = [float(m.get_submodule(name).weight.detach().abs().sum()) for m in (stock, model)]
        assert kept[0] == pytest.approx(ours.solutions[f"{name}.weight"].identity, rel=1e-6)
        assert kept[1] > kept[0]


def test_squash_makes_it_final(model):
    sparsifier = GyropermSparsifier(**SEARCH)
    sparsifier.prepare(model, None)
    sparsifier.step()
    masks, x = sparsifier.masks(), torch.randn(3, 32)
    before = model(x)
    sparsifier.squash_mask()
    assert not hasattr(model[0], "parametrizations")
    assert not model[0].weight[~masks["0.weight"]].any()
    assert torch.equal(model(x), before)


def test_masks_are_kept_beside_the_state_dict(model):
    sparsifier = GyropermSparsifier(**SEARCH)
    sparsifier.prepare(model, None)
    sparsifier.step()
    assert not any("mask" in name for name in model.state_dict())
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "masks": sparsifier.masks()}, file)
    file.seek(0)
    saved = torch.load(file)
    assert saved["masks"]["0.weight"].dtype == torch.bool

    other = made()
    again = GyropermSparsifier(**SEARCH)
    config = [{"tensor_fqn": name, "mask": mask} for name, mask in saved["masks"].items()]
    again.prepare(other, config)
    # Torch misses the masks that it never writes: they came with the configuration.
    missing, unexpected = other.load_state_dict(saved["model"], strict=False)
    assert [name.rpartition(".")[2] for name in missing] == ["mask", "mask"]
    assert not unexpected
    x = torch.randn(3, 32)
    assert torch.equal(other(x), model(x))
    again.step()
    assert torch.equal(other(x), model(x))


def test_a_sparsifier_s_own_state_dict(model):
    sparsifier = GyropermSparsifier(Pattern.nm(1, 4), **SEARCH)
    sparsifier.prepare(model, None)
    sparsifier.step()
    file = io.BytesIO()
    torch.save(sparsifier.state_dict(), file)
    file.seek(0)
    other = made()
    again = GyropermSparsifier(Pattern.nm(1, 4), **SEARCH)
    again.prepare(other, None)
    again.load_state_dict(torch.load(file, weights_only=False))
    assert torch.equal(other[0].weight, model[0].weight)
    again.step()
    assert torch.equal(other[0].weight, model[0].weight)
    assert again.solutions["0.weight"].pattern == Pattern.nm(1, 4)


def test_weights_come_back_and_the_search_starts_where_it_was(model):
    sparsifier = GyropermSparsifier(**SEARCH)
    sparsifier.prepare(model, None)
    sparsifier.step()
    first, mask = sparsifier.solutions["0.weight"], parametrization(model).mask
    grown = model[0].parametrizations.weight.original
    row, column = (int(i) for i in np.argwhere(~first.mask)[0])
    with torch.no_grad():
        grown[row, column] = 10.0
    sparsifier.step()
    assert parametrization(model).mask is mask
    assert float(mask[row, column]) == 1
    again = sparsifier.solutions["0.weight"]
    start = float((grown.detach().abs() * torch.tensor(first.mask)).sum())
    assert again.retained > start


def test_rows_that_come_back(model):
    pattern = Pattern.tvw(vec_size=4, row_ratio=0.25)
    sparsifier = GyropermSparsifier(pattern, **SEARCH)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    rows = parametrization(model).mask.any(1)
    assert int(rows.sum()) == 12
    with torch.no_grad():
        model[0].parametrizations.weight.original[~rows] *= 10
    sparsifier.step()
    assert bool(parametrization(model).mask.any(1)[~rows].all())


def test_a_configuration_has_its_own_pattern_and_saliency(model):
    sparsifier = GyropermSparsifier(**SEARCH)
    wanted = torch.zeros(16, 32)
    wanted[:, 1::2] = 1
    config = [
        {"tensor_fqn": "0.weight", "saliency": lambda module, weight: wanted},
        {"tensor_fqn": "2.weight", "pattern": Pattern.hinm(vec_size=4)},
    ]
    sparsifier.prepare(model, config)
    sparsifier.step()
    assert torch.equal(parametrization(model).mask, wanted)
    assert sparsifier.solutions["2.weight"].pattern == Pattern.hinm(vec_size=4)
    assert float(parametrization(model, "2").mask.mean()) == 0.25


def test_a_convolution_by_name():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2))
    sparsifier = GyropermSparsifier(**SEARCH)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    assert sparsifier.solutions["0.weight"].col_order.shape == (2, 4)
    assert float(parametrization(model).mask.mean()) == 0.5


def test_a_copy_prunes_alike(model):
    sparsifier = GyropermSparsifier(**SEARCH)
    sparsifier.prepare(model, None)
    twin, twin_sparsifier = copy.deepcopy((model, sparsifier))
    sparsifier.step()
    twin_sparsifier.step()
    assert not torch.equal(parametrization(model).mask, torch.ones(16, 32))
    assert torch.equal(parametrization(twin).mask, parametrization(model).mask)


def test_a_wrong_saliency_names_the_shape(model):
    sparsifier = GyropermSparsifier(saliency=lambda module, weight: weight.T, **SEARCH)
    sparsifier.prepare(model, None)
    with pytest.raises(ValueError, match="saliency must have the shape"):
        sparsifier.step()
