"""Tracing: the sites it finds in plain torch modules, and that any order of them is harmless."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gyroperm.models import CouplingGraph, FunctionChanged, coupling, permute
from gyroperm.models.sites import Axis, Site
from gyroperm.models.trace import trace
from small_families import random_orders
from small_models import Inverted, Residual


def traced(model: nn.Module, inputs: object, seed: int = 0) -> CouplingGraph:
    """The graph of a model, after random orders of all that may move left its function alone."""
    torch.manual_seed(0)
    model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm | nn.PReLU):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, 0.2, 2)
    graph = trace(model, inputs)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    orders = random_orders(graph, seed)
    verified = permute(model, orders, graph=graph, inputs=inputs)
    assert verified is not None and verified.error < 1e-10
    if any((np.diff(order) < 0).any() for order in orders.values()):
        assert any(not torch.equal(t, before[n]) for n, t in model.state_dict().items())
    return graph


def found(graph: CouplingGraph, name: str) -> tuple[int, str, dict[str, int]]:
    """Elements of a site, how they may move, and the copies along each axis."""
    site = graph.by_name[name]
    return site.size, site.constraint, {str(axis): axis.copies for axis in site.axes}


def picture(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vectors(module: str, *names: str) -> dict[str, int]:
    return {f"{module}.{name}[0]": 1 for name in names}


NORM = ("weight", "bias", "running_mean", "running_var")


class TestConvolutions:
    def test_resnet(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            Residual(6, 6),
            Residual(6, 10),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(10, 4),
        )
        graph = traced(model, picture(2, 3, 9, 9))
        sizes = {site.name: site.size for site in graph.free}
        assert sizes == {"0": 6, "1.conv1": 6, "2.conv1": 10, "2.conv2": 10}
        assert found(graph, "1.conv1") == (
            6,
            "free",
            {"1.conv1.weight[0]": 1, **vectors("1.bn1", *NORM), "1.conv2.weight[1]": 1},
        )
        # The stream of the first block: what adds to it, and what reads it.
        assert found(graph, "0")[2] == {
            **vectors("0", "weight", "bias"),
            **vectors("1.bn2", *NORM),
            "1.conv1.weight[1]": 1,
            "1.conv2.weight[0]": 1,
            "2.conv1.weight[1]": 1,
            "2.short.weight[1]": 1,
        }
        fixed = {site.name: site.reason for site in graph.sites if site.fixed}
        assert fixed == {
            "0#2": "meets the input input in conv2d in 0",
            "5": "leaves the model as its output",
        }

    def test_inverted_residual(self) -> None:
        """MobileNetV2: depthwise convolutions pass through."""

        model = nn.Sequential(nn.Conv2d(3, 4, 1), Inverted(4, 12), nn.Conv2d(4, 2, 1))
        graph = traced(model, picture(2, 3, 7, 7))
        assert found(graph, "1.expand") == (
            12,
            "free",
            {
                "1.expand.weight[0]": 1,
                **vectors("1.bn", *NORM),
                "1.depth.weight[0]": 1,
                "1.reduce.weight[1]": 1,
            },
        )

    def test_depthwise_with_a_multiplier_moves_blocks(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 3, groups=4), nn.Conv2d(12, 5, 1)
        )
        graph = traced(model, picture(2, 3, 7, 7))
        assert found(graph, "0")[0] == 4
        assert found(graph, "0")[2] == {
            **vectors("0", "weight", "bias"),
            "1.weight[0]": 3,
            "1.bias[0]": 3,
            "2.weight[1]": 3,
        }

    def test_concatenation(self) -> None:
        """DenseNet: each source keeps to its part of what reads all of them."""

        class Dense(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Conv2d(3, 4, 1)
                self.one = nn.Conv2d(4, 6, 3, padding=1)
                self.two = nn.Conv2d(10, 5, 3, padding=1)
                self.norm = nn.BatchNorm2d(15)
                self.last = nn.Conv2d(15, 2, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                a = self.first(x)
                b = torch.cat([a, self.one(a)], 1)
                return self.last(self.norm(torch.cat([b, self.two(b)], 1)))

        graph = traced(Dense(), picture(2, 3, 7, 7))
        assert {site.name: site.size for site in graph.free} == {"first": 4, "one": 6, "two": 5}
        (axis,) = [a for a in graph.by_name["one"].axes if a.tensor == "last.weight"]
        assert axis.members.ravel().tolist() == list(range(4, 10))

    def test_concatenation_with_an_input_keeps_the_inputs_part(self) -> None:
        class Coordinates(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Conv2d(3, 4, 1)
                self.last = nn.Conv2d(7, 2, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.last(torch.cat([x, self.first(x)], 1))

        graph = traced(Coordinates(), picture(2, 3, 5, 5))
        (axis,) = [a for a in graph.by_name["first"].axes if a.tensor == "last.weight"]
        assert axis.members.ravel().tolist() == [3, 4, 5, 6]
        fixed = [s for s in graph.sites if s.fixed and "beside the input x" in s.reason]
        assert [a.members.ravel().tolist() for a in fixed[0].axes] == [[0, 1, 2]]

    def test_unet(self) -> None:
        class UNet(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.down = nn.Conv2d(3, 4, 3, padding=1)
                self.deep = nn.Conv2d(4, 8, 3, padding=1, stride=2)
                self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
                self.last = nn.Conv2d(10, 2, 3, padding=1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                skip = F.relu(self.down(x))
                up = self.up(F.relu(self.deep(F.max_pool2d(skip, 1))))
                up = F.interpolate(up, scale_factor=1.0)
                return self.last(torch.cat([skip, up], 1))

        graph = traced(UNet(), picture(2, 3, 8, 8))
        assert found(graph, "deep") == (
            8,
            "free",
            {**vectors("deep", "weight", "bias"), "up.weight[0]": 1},
        )
        assert found(graph, "up") == (
            6,
            "free",
            {"up.weight[1]": 1, "up.bias[0]": 1, "last.weight[1]": 1},
        )
        assert found(graph, "down")[0] == 4

    @pytest.mark.parametrize("transposed", [False, True])
    def test_grouped_convolution_keeps_groups(self, transposed: bool) -> None:
        """ResNeXt: within each group, whose rows have columns of their own."""
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        model = nn.Sequential(nn.Conv2d(3, 8, 1), kind(8, 6, 3, groups=2), nn.Conv2d(6, 2, 1))
        graph = traced(model, picture(2, 3, 7, 7))
        assert {s.name: (s.size, s.constraint) for s in graph.free} == {
            "0[0]": (4, "within block"),
            "0[1]": (4, "within block"),
            "1[0]": (3, "within block"),
            "1[1]": (3, "within block"),
        }
        name, rows = ("1[1]", (4, 8)) if transposed else ("0[1]", (3, 6))
        assert [a.rows for a in graph.by_name[name].axes if a.dim == 1 and a.rows] == [rows]

    def test_group_norm(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1))
        graph = traced(model, picture(2, 3, 5, 5))
        assert [(s.name, s.size, s.constraint) for s in graph.free] == [
            ("0[0]", 4, "within block"),
            ("0[1]", 4, "within block"),
        ]

    def test_prelu_and_squeeze_excite(self) -> None:
        class Excite(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 6, 3)
                self.prelu = nn.PReLU(6)
                self.squeeze = nn.Conv2d(6, 4, 1)
                self.excite = nn.Conv2d(4, 6, 1)
                self.last = nn.Conv2d(6, 2, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.prelu(self.conv(x))
                gate = self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True))))
                return self.last(x * torch.sigmoid(gate))

        graph = traced(Excite(), picture(2, 3, 7, 7))
        assert {site.name: site.size for site in graph.free} == {"conv": 6, "squeeze": 4}
        assert found(graph, "conv")[2] == {
            **vectors("conv", "weight", "bias"),
            "prelu.weight[0]": 1,
            "squeeze.weight[1]": 1,
            **vectors("excite", "weight", "bias"),
            "last.weight[1]": 1,
        }

    def test_flatten_and_pixel_shuffle_move_blocks(self) -> None:
        class Blocks(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 12, 1)
                self.next = nn.Conv2d(3, 5, 1)
                self.linear = nn.Linear(5 * 36, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.linear(self.next(F.pixel_shuffle(self.conv(x), 2)).flatten(1))

        graph = traced(Blocks(), picture(2, 3, 3, 3))
        assert found(graph, "conv") == (
            3,
            "free",
            {"conv.weight[0]": 4, "conv.bias[0]": 4, "next.weight[1]": 1},
        )
        assert found(graph, "next")[2]["linear.weight[1]"] == 36

    def test_pixel_unshuffle(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.PixelUnshuffle(2), nn.Conv2d(16, 5, 1), nn.Conv2d(5, 2, 1)
        )
        graph = traced(model, picture(2, 3, 6, 6))
        assert found(graph, "0")[2]["2.weight[1]"] == 4


class Heads(nn.Module):
    """Attention in plain torch, with fewer key-value heads."""

    def __init__(self, d: int, heads: int, kv: int, explicit: bool) -> None:
        super().__init__()
        self.heads, self.kv, self.hd, self.explicit = heads, kv, d // heads, explicit
        self.q = nn.Linear(d, d)
        self.k, self.v = nn.Linear(d, kv * self.hd), nn.Linear(d, kv * self.hd)
        self.o = nn.Linear(d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q = self.q(x).view(b, t, self.heads, self.hd).transpose(1, 2)
        k, v = (proj(x).view(b, t, self.kv, self.hd).transpose(1, 2) for proj in (self.k, self.v))
        if self.explicit:
            times = self.heads // self.kv
            k, v = (one.repeat_interleave(times, 1) for one in (k, v))
            y = (q @ k.transpose(-1, -2) / self.hd**0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(y.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    """A pre-norm layer with a gate and its values in one projection."""

    def __init__(self, d: int, explicit: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.RMSNorm(d)
        self.attention = Heads(d, 4, 2, explicit)
        self.up, self.down = nn.Linear(d, 2 * 10), nn.Linear(10, d, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    def __init__(self, explicit: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 12), nn.Parameter(torch.randn(1, 7, 12))
        self.layers = nn.ModuleList(Block(12, explicit) for _ in range(2))
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.place[:, : ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class TestTransformers:
    @pytest.mark.parametrize("explicit", [False, True])
    def test_decoder(self, explicit: bool) -> None:
        graph = traced(Decoder(explicit), torch.arange(10).reshape(2, 5))
        stream = next(s for s in graph.free if any(a.tensor == "embed.weight" for a in s.axes))
        assert stream.size == 12
        read = {str(axis) for axis in stream.axes}
        assert {"place[2]", "embed.weight[1]", "layers.1.down.weight[0]"} <= read
        assert {f"layers.1.attention.{name}.weight[1]" for name in "qkv"} <= read
        assert found(graph, "layers.0.up") == (
            10,
            "free",
            {"layers.0.up.weight[0]": 2, "layers.0.up.bias[0]": 2, "layers.0.down.weight[1]": 1},
        )
        values = [s for s in graph.free if any(str(a) == "layers.0.attention.o.weight[1]"
                                               for a in s.axes)]  # fmt: skip
        assert [(s.size, s.constraint) for s in values] == [(3, "within block")] * 2
        # Each dimension of a key-value head serves two query heads.
        assert {a.copies for a in values[0].axes if a.tensor.endswith("o.weight")} == {2}
        words = next(s for s in graph.sites if s.fixed and s.size == 11)
        assert "embed.weight[0]" in {str(axis) for axis in words.axes}

    def test_values_across_heads_are_caught(self) -> None:
        model = Decoder(False).double()
        ids = torch.arange(10).reshape(2, 5)
        axes = ("v.weight", 0), ("v.bias", 0), ("o.weight", 1)
        site = Site(
            "wrong",
            6,
            tuple(
                Axis(
                    f"layers.0.attention.{tensor}",
                    dim,
                    np.stack([np.arange(6), np.arange(6) + 6], 1) if dim else np.arange(6)[:, None],
                )
                for tensor, dim in axes
            ),
        )
        wrong = CouplingGraph("by hand", (site,))
        with pytest.raises(FunctionChanged, match=r"layers\.0"):
            permute(model, {"wrong": [3, 1, 2, 0, 4, 5]}, graph=wrong, inputs=ids)

    def test_torch_layer(self) -> None:
        layer = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, norm_first=True)
        model = nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 2))
        graph = traced(model, picture(2, 4, 5))
        assert found(graph, "0")[0] == 12
        assert found(graph, "1.linear1")[0] == 16
        blocks = [s for s in graph.free if s.family.startswith("1.self_attn.in_proj_weight")]
        assert [(s.size, s.constraint) for s in blocks] == [(4, "within block")] * 6

    def test_rotary_is_fixed(self) -> None:
        class Rotary(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.q, self.k = nn.Linear(6, 8), nn.Linear(6, 8)
                self.v, self.o = nn.Linear(6, 8), nn.Linear(8, 3)
                self.register_buffer("frequency", torch.rand(4), persistent=False)

            def turned(self, x: torch.Tensor) -> torch.Tensor:
                angle = torch.arange(x.shape[1])[:, None] * self.frequency
                angle = torch.cat([angle, angle], -1)
                one, two = x.chunk(2, -1)
                return x * angle.cos() + torch.cat([-two, one], -1) * angle.sin()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                q, k = self.turned(self.q(x)), self.turned(self.k(x))
                return self.o((q @ k.mT).softmax(-1) @ self.v(x))

        graph = traced(Rotary(), picture(2, 5, 6))
        assert [(site.name, site.size) for site in graph.free] == [("v", 8)]
        turned = graph.by_name["q"]
        assert turned.fixed and "mul" in turned.reason and turned.size == 8
        with pytest.raises(ValueError, match="the order of q is fixed: meets"):
            permute(Rotary(), {"q": np.arange(8)[::-1]}, graph=graph, inputs=picture(2, 5, 6))


class TestSharing:
    def test_a_module_called_twice_ties_both_uses(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.shared = nn.Linear(3, 6), nn.Linear(6, 6)
                self.last = nn.Linear(6, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.last(torch.tanh(self.shared(torch.tanh(self.shared(self.first(x))))))

        graph = traced(Twice(), picture(4, 3))
        assert [(s.name, s.size) for s in graph.free] == [("first", 6)]
        assert {"shared.weight[0]", "shared.weight[1]"} <= found(graph, "first")[2].keys()

    def test_weights_used_as_tensors(self) -> None:
        class Functional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Parameter(torch.randn(3, 8))
                self.b = nn.Parameter(torch.randn(8))
                self.c = nn.Parameter(torch.randn(5, 8))
                self.d = nn.Parameter(torch.randn(5, 2))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = torch.addmm(self.b, x, self.a).relu()
                return torch.einsum("bi,oi->bo", y, self.c).tanh() @ self.d

        graph = traced(Functional(), picture(4, 3))
        by_axes = {frozenset(map(str, s.axes)): s.size for s in graph.free}
        assert by_axes == {frozenset({"a[1]", "b[0]", "c[1]"}): 8, frozenset({"c[0]", "d[0]"}): 5}

    def test_weight_norm(self) -> None:
        model = nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 6)), nn.ReLU(), nn.Linear(6, 2)
        )
        graph = traced(model, picture(4, 3))
        (site,) = graph.free
        assert site.size == 6
        assert "2.weight[1]" in map(str, site.axes)


class TestNotFollowed:
    def test_an_unknown_operation_is_named(self) -> None:
        class Sorted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 5)
                self.three = nn.Linear(5, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.three(self.two(self.one(x).sort(-1).values))

        graph = traced(Sorted(), picture(4, 3))
        assert {site.name for site in graph.free} == {"two"}
        assert graph.by_name["one"].reason == "not followed through sort"

    def test_recurrent_cells_are_named(self) -> None:
        class Cells(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner, self.cells = nn.Linear(3, 6), nn.LSTM(6, 5, batch_first=True)
                self.hidden, self.last = nn.Linear(5, 7), nn.Linear(7, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.last(self.hidden(self.cells(self.inner(x))[0]))

        graph = traced(Cells(), picture(2, 4, 3))
        assert {site.name: site.size for site in graph.free} == {"hidden": 7}
        assert graph.by_name["inner"].reason == "not followed through lstm in cells"

    def test_what_numpy_reads_stays(self) -> None:
        """Such values come back as a constant: nothing else ties their channels."""

        class Outside(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up, self.down, self.last = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = self.up(x)
                y = torch.from_numpy(np.cumsum(y.numpy(), 1))
                return self.last(torch.relu(self.down(y)))

        graph = traced(Outside(), picture(2, 3))
        assert graph.source == "traced by torch.fx"
        assert [(site.name, site.size) for site in graph.free] == [("down", 6)]
        assert graph.by_name["up"].reason.startswith("taken out after")
        assert "meets a constant tensor" in graph.by_name["down#2"].reason

    def test_a_constant_for_each_channel_fixes_it(self) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.two(self.one(x) * torch.tensor([1.0, 2.0, 3.0, 4.0]))

        graph = traced(Scaled(), picture(4, 3))
        assert not graph.free
        assert graph.by_name["one"].reason.startswith("meets a constant tensor")

    def test_parts_that_are_read_differently_do_not_mix(self) -> None:
        class Parts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(3, 10), nn.Linear(10, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = self.one(x)
                return self.two(y / y[:, :4].norm(dim=1, keepdim=True))

        graph = traced(Parts(), picture(4, 3))
        assert sorted(site.size for site in graph.free) == [4, 6]

    def test_mutation_of_a_slice(self) -> None:
        class Written(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(3, 4), nn.Linear(6, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                buffer = torch.zeros(x.shape[0], 6, dtype=x.dtype)
                buffer[:, 1:5] = self.one(x)
                return self.two(buffer)

        graph = traced(Written(), picture(4, 3))
        (axis,) = [a for a in graph.by_name["one"].axes if a.tensor == "two.weight"]
        assert axis.members.ravel().tolist() == [1, 2, 3, 4]

    def test_an_unused_parameter_is_skipped(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        model.spare = nn.Linear(5, 6)
        model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
        graph = traced(model, picture(4, 3))
        assert graph.skipped == {
            f"spare.weight[{d}]": "the traced call does not use it" for d in (0, 1)
        }


class TestFallback:
    def test_torch_fx_takes_the_branch_that_the_inputs_take(self) -> None:
        class Branching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
                self.heads = Heads(6, 2, 1, False)
                self.norms = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU())
                self.last = nn.Linear(8, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = F.relu_(self.norm(self.conv(x)))
                if float(y.sum()) > 0:
                    y = y * 2
                y = y.flatten(2).transpose(1, 2)
                return self.last(self.norms(y + self.heads(y)).mean(1))

        graph = traced(Branching(), picture(2, 3, 5, 5))
        assert graph.source == "traced by torch.fx"
        sizes = {site.name: site.size for site in graph.free}
        assert sizes["conv"] == 6 and sizes["norms.1"] == 8

    def test_neither_names_the_cause_and_shows_a_spec(self) -> None:
        class Never(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                raise NotImplementedError("aten::wonder is not there")

        with pytest.raises(ValueError, match="aten::wonder is not there") as error:
            coupling(Never(), inputs=picture(2, 3))
        assert "Coupled(" in str(error.value) and "docs/models.md" in str(error.value)

    def test_an_operation_of_neither_is_named(self) -> None:
        class Listed(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.tensor([sorted(row) for row in super().forward(x).tolist()])

        with pytest.raises(ValueError, match=r"torch.export says .*torch.fx says .*tolist\(\)"):
            coupling(Listed(3, 4), inputs=torch.randn(2, 3))

    def test_inputs_are_asked_for(self) -> None:
        with pytest.raises(ValueError, match="inputs must be given") as error:
            coupling(nn.Linear(3, 4))
        assert "Spec(" in str(error.value)

    def test_training_mode_is_kept(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)).train()
        trace(model, picture(2, 3).float())
        assert model.training and model[1].training


BLOCKS = st.sampled_from(["conv", "res", "depth", "group", "norm", "cat", "se", "shuffle", "prelu"])


class Drawn(nn.Module):
    """A network of drawn blocks over maps of eight channels."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.kinds = kinds
        self.first = nn.Conv2d(3, 8, 1)
        self.steps = nn.ModuleList(self.step(kind) for kind in kinds)
        self.last = nn.Linear(8 * 4, 3)

    @staticmethod
    def step(kind: str) -> nn.Module:
        return {
            "conv": lambda: nn.Conv2d(8, 8, 3, padding=1),
            "res": lambda: Residual(8, 8),
            "depth": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
            "group": lambda: nn.Conv2d(8, 8, 1, groups=2),
            "norm": lambda: nn.GroupNorm(4, 8),
            "cat": lambda: nn.Conv2d(16, 8, 1),
            "se": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)),
            "shuffle": lambda: nn.Sequential(
                nn.PixelUnshuffle(2), nn.Conv2d(32, 32, 1), nn.PixelShuffle(2)
            ),
            "prelu": lambda: nn.PReLU(8),
        }[kind]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = before = self.first(x)
        for kind, step in zip(self.kinds, self.steps, strict=True):
            if kind == "cat":
                x, before = step(torch.cat([before, x], 1)), x
            elif kind == "se":
                x = x * torch.sigmoid(step(x))
            else:
                x, before = step(x), x
        return self.last(F.adaptive_avg_pool2d(torch.tanh(x), 2).flatten(1))


@settings(max_examples=10)
@given(st.lists(BLOCKS, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_any_order_of_a_drawn_network_keeps_its_function(kinds: list[str], seed: int) -> None:
    graph = traced(Drawn(kinds), picture(2, 3, 4, 4), seed)
    assert graph.free
    assert sum(site.fixed for site in graph.sites) >= 2
