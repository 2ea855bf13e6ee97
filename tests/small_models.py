"""Small models for the tests of gyroperm.models, and what pruning should keep of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gyroperm.models import Axis, Coupled, CouplingGraph, Site, Spec
from small_families import new_model


def bert(layers=2, seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return new_model("Bert", **sizes, num_hidden_layers=layers, vocab_size=50)


def llama(seed=0):
    """With grouped-query attention: two query heads share a key-value head."""
    torch.manual_seed(seed)
    return new_model("Llama", "ForCausalLM", hidden_size=32, intermediate_size=48)


def gpt2(seed=0):
    """Its Conv1D stores weights as (in, out); embeddings and output head are tied."""
    torch.manual_seed(seed)
    model = new_model("GPT2", "LMHeadModel", n_embd=32, n_head=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


class Cnn(nn.Module):
    """Convolutions with norms, a depthwise one, and a flattened map of 2 or 4 pixels."""

    def __init__(self, pixels=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.conv3 = nn.Conv2d(16, 32, 1)
        self.pool = nn.AdaptiveAvgPool2d((pixels // 2, 2))
        self.hidden = nn.Linear(32 * pixels, 24)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.depthwise(self.bn2(self.conv2(x)).relu()).relu()
        x = self.pool(self.conv3(x).relu())
        return self.classifier(self.hidden(x.flatten(1)).relu())


def cnn(seed=0, pixels=4):
    torch.manual_seed(seed)
    model = Cnn(pixels).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 8, 8) + 0.5)
    return model.eval()


def _norm(name):
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}[0]": "c" for kind in kinds}


CNN = Spec(
    "a small convolution network",
    (
        Coupled(
            "first",
            {"conv1.weight[0]": "c", **_norm("bn1"), "conv2.weight[1]": "c"},
            order="c",
        ),
        Coupled(
            "second",
            {
                "conv2.weight[0]": "c",
                **_norm("bn2"),
                "depthwise.weight[0]": "c",
                "depthwise.bias[0]": "c",
                "conv3.weight[1]": "c",
            },
            order="c",
        ),
        Coupled(
            "third",
            {"conv3.weight[0]": "c", "conv3.bias[0]": "c", "hidden.weight[1]": "c pixel"},
            order="c",
            sizes={"c": 32},
        ),
        Coupled(
            "hidden",
            {"hidden.weight[0]": "c", "hidden.bias[0]": "c", "classifier.weight[1]": "c"},
            order="c",
        ),
    ),
)


class Residual(nn.Module):
    """A basic block of ResNet."""

    def __init__(self, inner, outer):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.short = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y += self.short(x)
        return torch.relu(y)


class Inverted(nn.Module):
    """A block of MobileNetV2: the depthwise convolution passes its channels through."""

    def __init__(self, outer, inner):
        super().__init__()
        self.expand = nn.Conv2d(outer, inner, 1, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.depth = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.act = nn.ReLU6(inplace=True)
        self.reduce = nn.Conv2d(inner, outer, 1)

    def forward(self, x):
        return x + self.reduce(self.act(self.depth(self.act(self.bn(self.expand(x))))))


class Grouped(nn.Module):
    """A grouped convolution between two plain ones."""

    def __init__(self):
        super().__init__()
        self.before = nn.Conv1d(8, 16, 1)
        self.grouped = nn.Conv1d(16, 12, 3, padding=1, groups=2)
        self.after = nn.Conv1d(12, 8, 1)

    def forward(self, x):
        return self.after(self.grouped(self.before(x).relu()).relu())


def grouped(seed=0):
    """The model, and its graph: the input channels of each group have an order of their own."""
    torch.manual_seed(seed)
    sites = []
    for g in range(2):
        own = np.arange(8 * g, 8 * g + 8)[:, None]
        sites.append(
            Site(
                f"inputs[{g}]",
                8,
                (
                    Axis("before.weight", 0, own),
                    Axis("before.bias", 0, own),
                    Axis("grouped.weight", 1, np.arange(8)[:, None], (6 * g, 6 * g + 6)),
                ),
                "within block",
            )
        )
    return Grouped().eval(), CouplingGraph("by hand", tuple(sites))


def tokens(batches=4, vocabulary=40, seed=1):
    """Batches of token ids for the language models above."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": torch.randint(2, vocabulary, (2, 9), generator=generator)}
        for _ in range(batches)
    ]


def pictures(batches=4, channels=3, seed=1):
    """Batches for the convolution network above."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, 8, 8, generator=generator) for _ in range(batches)]


def outputs(model, inputs):
    """What a model computes in float64, as one array."""
    from gyroperm.models import reference

    return torch.cat([one.flatten() for one in reference(model, inputs).outputs]).numpy()


def top(saliency, n=2, m=4):
    """The mask of the n largest of every m consecutive columns, by sorting; ties to the left."""
    shape = saliency.shape
    groups = np.moveaxis(np.asarray(saliency), 1, -1).reshape(-1, m)
    order = np.argsort(-groups, axis=1, kind="stable")
    mask = np.zeros(groups.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :n], True, axis=1)
    return np.moveaxis(mask.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def kept_in_groups(array, m=4):
    """How many of every m consecutive columns of (out, in, ...) are not zero, each group's."""
    return np.moveaxis(np.asarray(array) != 0, 1, -1).reshape(-1, m).sum(axis=1)
