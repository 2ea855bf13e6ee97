"""Packed feed-forward blocks on the host, against dense ones with masked weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import gyroperm
from gyroperm.gpu import HinmFfn, HinmLinear
from gyroperm.pattern import Pattern

PATTERNS = (
    Pattern.hinm(vec_ratio=0.5, vec_size=16),
    Pattern.tvw(vec_ratio=0.5, vec_size=16, row_ratio=0.2),
    Pattern.nm(),
)


def layer(inputs, outputs, pattern, bias=True):
    linear = nn.Linear(inputs, outputs, bias=bias).half()
    solution = gyroperm.solve(
        linear.weight.detach().float().numpy(),
        pattern=pattern,
        method="random",
        options={"count": 1},
        seed=1,
    )
    return HinmLinear.from_linear(linear, solution)


def layers(gated=True, bias=True):
    torch.manual_seed(1)
    return {
        "up": layer(40, 90, PATTERNS[0], bias),
        "down": layer(90, 40, PATTERNS[1], bias),
        **({"gate": layer(40, 90, PATTERNS[2], bias)} if gated else {}),
    }


def dense(packed, x):
    bias = None if packed.bias is None else packed.bias.double()
    return functional.linear(x, packed.weight.double(), bias)


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", None])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_it_computes_what_the_masked_layers_do(gated, normed, activation):
    own = layers(gated, bias=not normed)
    norm = nn.RMSNorm(40, eps=1e-3) if normed else None
    if normed:
        nn.init.uniform_(norm.weight, 1, 2)
    block = HinmFfn(**own, activation=activation, residual=normed, norm=norm)
    x = torch.randn(2, 3, 40, dtype=torch.float64)
    h = norm.double()(x) if normed else x
    activated = getattr(functional, activation) if activation else nn.Identity()
    if gated:
        hidden = activated(dense(own["gate"], h)) * dense(own["up"], h)
    else:
        hidden = activated(dense(own["up"], h))
    expected = dense(own["down"], hidden) + (x if normed else 0)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    y = block(x.half())
    assert y.dtype == torch.float16 and y.shape == x.shape
    torch.testing.assert_close(y.double(), expected, rtol=2.0**-8, atol=2.0**-6)


def test_gradients_and_copies_and_state_dicts():
    block = HinmFfn(**layers(), residual=True)
    x = torch.randn(3, 40, dtype=torch.float64, requires_grad=True)
    hidden = functional.silu(dense(block.gate, x)) * dense(block.up, x)
    expected = x + dense(block.down, hidden)
    upstream = torch.randn(3, 40, dtype=torch.float64)
    (of_x,) = torch.autograd.grad(expected, x, upstream)
    block(x).backward(upstream)
    torch.testing.assert_close(x.grad, of_x, rtol=1e-11, atol=1e-11)
    other = HinmFfn(HinmLinear(40, 90), HinmLinear(90, 40), HinmLinear(40, 90), residual=True)
    other.load_state_dict(block.state_dict())
    for same in (other, copy.deepcopy(block)):
        assert torch.equal(same(x), block(x))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"activation": "tanh"}, "activation must be one of"),
        ({"gate": HinmLinear(40, 80)}, r"gate must have the features of up, \(40, 90\)"),
        ({"down": HinmLinear(80, 40)}, "down must take the 90 features of up, takes 80"),
        (
            {"down": HinmLinear(90, 48), "residual": True},
            "down must have the 40 features of x for x to be added, has 48",
        ),
        ({"norm": nn.RMSNorm(48, eps=1e-6)}, r"norm must have a weight of shape \(40,\)"),
        ({"norm": nn.RMSNorm(40)}, "norm must have an eps or a variance_epsilon"),
        ({"norm": nn.LayerNorm(40)}, "which has no bias"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    own = {"up": HinmLinear(40, 90), "down": HinmLinear(90, 40), **given}
    with pytest.raises(ValueError, match=message):
        HinmFfn(**own)
