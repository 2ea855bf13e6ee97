"""Calibration against activations that are kept and summed in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gyroperm.models import Calibration, calibrate
from gyroperm.models.layers import layer_kind
from small_models import bert, cnn, gpt2, llama, pictures, tokens


def kept_inputs(model, data):
    """What every layer is fed, as (tokens, C) in float64, by the module's name."""
    seen = {}
    handles = [
        module.register_forward_pre_hook(
            lambda m, args, name=name: seen.setdefault(name, []).append(args[0].detach())
        )
        for name, module in model.named_modules()
        if layer_kind(module)
    ]
    model.eval()
    with torch.no_grad():
        for batch in data:
            model(**batch) if isinstance(batch, dict) else model(batch)
    for handle in handles:
        handle.remove()
    modules = dict(model.named_modules())
    found = {}
    for name, parts in seen.items():
        if layer_kind(modules[name]) == "convolution":
            parts = [part.movedim(1, -1) for part in parts]
        found[name] = torch.cat([p.reshape(-1, p.shape[-1]) for p in parts]).double().numpy()
    return found


@pytest.mark.parametrize("make", [bert, llama, gpt2, cnn])
def test_norms_and_gram_matrices_are_those_of_what_layers_are_fed(make):
    model = make()
    data = pictures() if make is cnn else tokens()
    expected = kept_inputs(model, data)
    found = calibrate(model, data, statistics="gram")
    assert set(found.layers) == set(expected)
    assert found.batches == 4
    modules = dict(model.named_modules())
    for name, X in expected.items():
        one = found[name]
        assert one.tokens == len(X)
        assert one.norms == pytest.approx(np.linalg.norm(X, axis=0), rel=1e-5)
        if layer_kind(modules[name]) == "convolution":
            assert one.gram is None
        else:
            assert one.gram.dtype == np.float32
            assert one.gram == pytest.approx(X.T @ X, rel=1e-4, abs=1e-4 * np.abs(X.T @ X).max())
    alone = calibrate(model, data)
    assert all(one.gram is None for one in alone.layers.values())


def test_the_model_is_as_it_was():
    model = cnn().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(model, pictures())
    assert model.training and model.bn1.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_batches_of_every_kind():
    model = cnn()
    batches = pictures()
    expected = calibrate(model, batches)["conv2"].norms
    for data in (
        ((batch,) for batch in batches),
        [{"x": batch} for batch in batches],
        [[batch] for batch in batches],
    ):
        assert np.array_equal(calibrate(model, data)["conv2"].norms, expected)


def test_inputs_without_a_batch_dimension_and_named_inputs():
    model = nn.Conv2d(3, 4, 1)
    x = torch.randn(3, 5, 6)
    assert calibrate(model, [x])[""].norms == pytest.approx(
        x.double().flatten(1).norm(dim=1).numpy(), rel=1e-6
    )

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(3, 2)

        def forward(self, x):
            return self.one(input=x)

    found = calibrate(Named(), [torch.ones(5, 3)])
    assert found["one"].norms == pytest.approx(np.full(3, 5**0.5))


def test_bfloat16_is_summed_in_float32():
    model = nn.Linear(4, 4).bfloat16()
    x = torch.full((3000, 4), 1.0, dtype=torch.bfloat16)
    found = calibrate(model, [x], statistics="gram")
    assert found[""].norms == pytest.approx(np.full(4, 3000**0.5), rel=1e-6)
    assert found[""].gram == pytest.approx(np.full((4, 4), 3000.0), rel=1e-6)


def test_some_modules_only():
    found = calibrate(bert(), tokens(), modules=["pooler.dense"])
    assert list(found.layers) == ["pooler.dense"]


def test_what_is_saved_is_read_back(tmp_path):
    found = calibrate(bert(), tokens(), statistics="gram")
    order = np.random.default_rng(0).permutation(32)
    found = found.reordered({"pooler.dense": order})
    path = tmp_path / "calibration.npz"
    found.save(path)
    read = Calibration.load(path)
    assert list(read.layers) == list(found.layers) and read.batches == found.batches
    for name, one in found.layers.items():
        assert read[name].tokens == one.tokens
        assert np.array_equal(read[name].norms, one.norms)
        assert np.array_equal(read[name].ordered_gram, one.ordered_gram)
    assert [p.name for p in tmp_path.iterdir()] == ["calibration.npz"]


def test_reordered_channels_come_in_their_new_order():
    one = calibrate(bert(), tokens(), statistics="gram")["pooler.dense"]
    random = np.random.default_rng(0)
    first, second = random.permutation(32), random.permutation(32)
    twice = one.reordered(first).reordered(second)
    assert np.array_equal(twice.norms, one.norms[first][second])
    gram = one.gram[first][:, first][second][:, second]
    assert np.array_equal(twice.ordered_gram, gram)


def test_a_file_that_is_no_calibration(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, a=np.ones(3))
    with pytest.raises(ValueError, match="is no calibration"):
        Calibration.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no calibration"):
        Calibration.load(path)
    np.save(path.with_suffix(".npy"), np.ones(3))
    with pytest.raises(ValueError, match="is no calibration"):
        Calibration.load(path.with_suffix(".npy"))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


def test_a_layer_that_is_never_reached_is_named_when_it_is_asked_for():
    found = calibrate(Unused(), [torch.ones(2, 4)])
    assert list(found.layers) == ["used"]
    with pytest.raises(ValueError, match="calibration never reached 'unused'"):
        found["unused"]
    with pytest.raises(ValueError, match="calibration never reached 'unused'"):
        calibrate(Unused(), [torch.ones(2, 4)], modules=["used", "unused"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_the_module_and_the_batch(bad):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].bias[2] = bad
    with pytest.raises(ValueError, match=r"input of '2' is not finite.*in batch 0"):
        calibrate(model, [torch.ones(2, 4)])
    with torch.no_grad():
        model[0].bias[2] = 0
    batches = [torch.ones(2, 4), torch.ones(2, 4), torch.full((2, 4), bad)]
    with pytest.raises(ValueError, match=r"input of '0' is not finite.*in batch 2"):
        calibrate(model, batches)
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([], {}, ValueError, "data must hold at least one batch"),
        (torch.ones(2, 4), {}, TypeError, "iterable of batches.*got Tensor"),
        ({"x": torch.ones(2, 4)}, {}, TypeError, "iterable of batches.*got dict"),
        (3, {}, TypeError, "iterable of batches.*got int"),
        (["text"], {}, TypeError, "inputs must be a tensor.*got str"),
        ([torch.ones(2, 4)], {"statistics": "mean"}, ValueError, "'norms' or 'gram', got 'mean'"),
        ([torch.ones(2, 4)], {"modules": ["other"]}, ValueError, "modules names 'other'"),
    ],
)
def test_bad_input(data, options, error, message):
    with pytest.raises(error, match=message):
        calibrate(Unused(), data, **options)


def test_a_model_without_layers():
    with pytest.raises(ValueError, match="no linear layer and no convolution"):
        calibrate(nn.ReLU(), [torch.ones(2)])
