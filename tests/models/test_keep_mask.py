"""Masks through fine-tuning: held, saved, and searched again."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gyroperm
from gyroperm import MaxRounds, Pattern
from gyroperm.models import KeepMask, calibrate, sparsify
from small_models import bert, kept_in_groups, outputs, tokens

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
}


def loss(model, batch):
    out = model(input_ids=batch)
    return out.last_hidden_state[..., ::3].square().mean() + out.pooler_output.square().mean()


def train(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        batch = torch.randint(2, 50, (2, 9))
        loss(model, batch).backward()
        optimizer.step()


def pruned(**options):
    model = bert(1)
    report = sparsify(model, "2:4", stop=MaxRounds(5), progress=False, threads=1, **options)
    return model, report


def held(model, masks):
    return all(not model.get_parameter(name)[~mask].any() for name, mask in masks.items())


@pytest.mark.parametrize("surgery", [False, True])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_masks_hold_through_training(make, surgery):
    model, report = pruned(surgery=surgery)
    optimizer = make(model.parameters())
    before = {name: model.get_parameter(name).detach().clone() for name in report.masks}
    with KeepMask(model, report).attach(optimizer) as keep:
        train(model, optimizer, 20)
        assert held(model, report.masks)
        for name, mask in report.masks.items():
            now = model.get_parameter(name)
            assert (now[mask] != before[name][mask]).float().mean() > 0.9
        assert all(torch.equal(keep.masks[name], mask) for name, mask in report.masks.items())
    # What happens without: momentum and gradients bring the weights back.
    train(model, optimizer, 1)
    assert not held(model, report.masks)
    assert not optimizer._optimizer_step_post_hooks


def test_what_is_kept_trains_as_if_each_step_were_masked_by_hand():
    model, report = pruned()
    other = copy.deepcopy(model)
    one, two = (OPTIMIZERS["adamw"](m.parameters()) for m in (model, other))
    KeepMask(model, report.masks).attach(one)
    for _ in range(5):
        train(model, one, 1)
        train(other, two, 1)
        with torch.no_grad():
            for name, mask in report.masks.items():
                other.get_parameter(name).mul_(mask)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_gradients_and_state_are_masked_on_request():
    model, report = pruned()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    keep = KeepMask(model, report).attach(optimizer, gradients=True)
    train(model, optimizer, 2)
    name, mask = next(iter(report.masks.items()))
    weight = model.get_parameter(name)
    assert not weight.grad[~mask].any() and weight.grad[mask].any()
    assert not optimizer.state[weight]["momentum_buffer"][~mask].any()
    keep.remove()

    adam = OPTIMIZERS["adamw"](model.parameters())
    keep = KeepMask(model, report).attach(adam)
    train(model, adam, 1)
    assert adam.state[weight]["exp_avg"][~mask].any()
    keep.remove()
    KeepMask(model, report).attach(adam, state=True)
    train(model, adam, 1)
    for value in ("exp_avg", "exp_avg_sq"):
        assert not adam.state[weight][value][~mask].any() and adam.state[weight][value][mask].any()


def test_masks_are_saved_and_read_back(tmp_path):
    model, report = pruned()
    keep = KeepMask(model, report)
    torch.save(keep.state_dict(), tmp_path / "masks.pt")
    other, another = pruned(
        saliency=lambda layer: (
            np.square(layer.weights) + 1e-3 * layer.weights.T.reshape(layer.weights.shape) ** 2
        )
    )
    keep = KeepMask(other, another)
    keep.load_state_dict(torch.load(tmp_path / "masks.pt"))
    assert all(torch.equal(keep.masks[name], mask) for name, mask in report.masks.items())
    assert held(other, report.masks)


def value(model, masks):
    return {
        name: float(model.get_parameter(name).detach().abs().double()[mask].sum())
        for name, mask in masks.items()
    }


def test_refreshed_masks_follow_the_weights():
    model, report = pruned()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    keep = KeepMask(model, report).attach(optimizer)
    # Weights at zero have no magnitude to come back with.
    same = keep.refresh(threads=1)
    assert all(torch.equal(same[name], mask) for name, mask in report.masks.items())
    keep.remove()
    train(model, optimizer, 10)
    before = value(model, report.masks)
    dense = copy.deepcopy(model)
    masks = keep.refresh(threads=1)
    after = value(dense, masks)
    # Never below the last arrangement, whose best mask is never below the last mask.
    assert all(after[name] >= before[name] for name in before)
    assert sum(after.values()) > sum(before.values())
    assert held(model, masks) and not held(model, report.masks)
    keep.attach(optimizer)
    train(model, optimizer, 2)
    assert held(model, masks)


def test_refresh_starts_where_the_last_search_ended():
    """No rounds at all: what is found is the last arrangement, far above no permutation."""
    model, report = pruned()
    masks = KeepMask(model, report).refresh(stop=MaxRounds(0))
    assert all(torch.equal(masks[name], mask) for name, mask in report.masks.items())


def test_refresh_of_two_levels():
    model = bert(1)
    report = sparsify(model, Pattern.hinm(vec_size=8), stop=MaxRounds(5), progress=False)
    keep = KeepMask(model, report)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, 5)
    before = value(model, report.masks)
    dense = copy.deepcopy(model)
    after = value(dense, keep.refresh(threads=1))
    assert all(after[name] >= before[name] * (1 - 1e-12) for name in before)


class Unmasked(KeepMask):
    """Leaves the weights as they are, so that the function can be compared."""

    def apply(self):
        pass


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_refresh_with_surgery_reorders_model_gradients_and_optimizers(make):
    model, report = pruned(surgery=True)
    # Two optimizers, as when embeddings have one of their own.
    body = list(model.encoder.parameters())
    rest = [p for p in model.parameters() if all(p is not one for one in body)]
    optimizers = make(body), make(rest)
    keep = Unmasked(model, report)
    for optimizer in optimizers:
        train(model, optimizer, 5)
        keep.attach(optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    average = copy.deepcopy(dict(model.named_parameters()))
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for key, state in optimizer.state[parameter].items():
                    if state is not None and state.shape == parameter.shape:
                        optimizer.state[parameter][key] = parameter.detach().clone()
    before = outputs(model, tokens()[0])
    last = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = keep.refresh(threads=1, also=average)
    assert not torch.equal(model.pooler.dense.weight, last["pooler.dense.weight"])
    assert outputs(model, tokens()[0]) == pytest.approx(before, abs=1e-10)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, parameter.grad) and torch.equal(parameter, average[name])
        for optimizer in optimizers:
            for state in optimizer.state.get(parameter, {}).values():
                if isinstance(state, torch.Tensor) and state.shape == parameter.shape:
                    assert torch.equal(state, parameter)
    for name, mask in masks.items():
        assert (kept_in_groups(mask.numpy()) == 2).all()
        weights = np.abs(model.get_parameter(name).detach().numpy())
        assert (
            weights.reshape(-1, 4).max(axis=1)
            == (weights * mask.numpy()).reshape(-1, 4).max(axis=1)
        ).all()
    kept = sum(value(model, masks).values())
    unmoved = sum(
        float(gyroperm.solve(w.numpy(), method="identity").retained)
        for name, w in last.items()
        if name in masks
    )
    assert kept > unmoved


def test_refresh_uses_the_calibration_of_the_reordered_model():
    model, data = bert(1), tokens()
    report = sparsify(
        model,
        "2:4",
        surgery=True,
        saliency="wanda",
        calibration=data,
        stop=MaxRounds(5),
        progress=False,
    )
    keep = Unmasked(model, report)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    calibration = calibrate(model, data)
    masks = keep.refresh(calibration=calibration)
    anew = calibrate(model, data)
    for name, mask in masks.items():
        norms = anew[name.removesuffix(".weight")].norms
        assert keep._calibration[name.removesuffix(".weight")].norms == pytest.approx(
            norms, rel=1e-3
        )
        S = gyroperm.wanda(model.get_parameter(name).detach().numpy(), norms.astype(np.float32))
        best = gyroperm.solve(S, saliency=S, method="identity").retained
        assert gyroperm.retained(S, mask.numpy()) == pytest.approx(best, rel=1e-4)


RANKS = """
    import sys
    sys.path.insert(0, sys.argv[4])
    rank, threads, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    import torch
    import torch.distributed as dist
    from gyroperm import MaxRounds
    from gyroperm.models import KeepMask, sparsify
    from small_models import bert

    # The searches' threads differ; torch's own would spin where cores are few.
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", world_size=2, rank=rank)
    model = bert(1)
    surgery = sys.argv[5] == "surgery"
    options = dict(stop=MaxRounds(5), progress=False, threads=threads, surgery=surgery)
    keep = KeepMask(model, sparsify(model, "2:4", **options))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(4):
        optimizer.zero_grad()
        torch.manual_seed(10 * step + rank)
        batch = torch.randint(2, 50, (2, 9))
        out = model(input_ids=batch)
        (out.last_hidden_state[..., ::3].square().mean() + out.pooler_output.sum()).backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        optimizer.step()
    before = {name: mask.clone() for name, mask in keep.masks.items()}
    masks = keep.refresh(threads=threads)
    changed = False
    for name, mask in masks.items():
        everywhere = [torch.empty_like(mask, dtype=torch.uint8) for _ in range(2)]
        dist.all_gather(everywhere, mask.to(torch.uint8))
        assert torch.equal(*everywhere), name
        changed |= not torch.equal(mask, before[name])
        weight = model.get_parameter(name).detach()
        both = [torch.empty_like(weight) for _ in range(2)]
        dist.all_gather(both, weight)
        assert torch.equal(*both), name
    print("the same", len(masks), changed)
    # Neither takes its connections down while the other still uses them.
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("kind", ["alone", "surgery"])
def test_every_rank_finds_the_same_masks(kind, tmp_path):
    assert torch.distributed.is_available()
    here = str(Path(__file__).parents[1])
    # Both ranks are here: by its own name a machine may not be found, or only after minutes.
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": loopback[0]}
    meeting = tmp_path / "meeting"
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(RANKS),
                *map(str, (r, r + 1, meeting, here, kind)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for r in range(2)
    ]
    try:
        answers = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (out, err) in zip(ranks, answers, strict=True):
        assert rank.returncode == 0, err
        assert out.split()[:2] == ["the", "same"] and "True" in out


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"other.weight": torch.ones(2, 2, dtype=torch.bool)}, "names 'other.weight'.*no param"),
        ({"weight": torch.ones(4, 4)}, "mask of weight must be a tensor of bool.*float32"),
        ({"weight": np.ones((4, 4), bool)}, "mask of weight must be a tensor of bool.*ndarray"),
        ({"weight": torch.ones(4, 3, dtype=torch.bool)}, r"must have the shape \(4, 4\).*\(4, 3\)"),
    ],
)
def test_masks_that_do_not_fit(masks, message):
    with pytest.raises(ValueError, match=message):
        KeepMask(nn.Linear(4, 4), masks)


def test_an_optimizer_of_another_model_and_masks_without_a_report():
    model, mask = nn.Linear(4, 4), {"weight": torch.ones(4, 4, dtype=torch.bool)}
    keep = KeepMask(model, mask)
    with pytest.raises(ValueError, match="steps none of the masked parameters"):
        keep.attach(OPTIMIZERS["sgd"](copy.deepcopy(model).parameters()))
    with pytest.raises(ValueError, match="refresh needs what sparsify"):
        keep.refresh()
