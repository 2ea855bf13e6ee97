"""Packed convolutions on the host, against dense ones with masked weights."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import gyroperm
from gyroperm.gpu import HinmConv2d, HinmLinear, HinmMatrix, replace_linears
from gyroperm.gpu.convolution import windows
from gyroperm.models import sparsify
from gyroperm.pattern import Pattern

HINM = Pattern.hinm(vec_ratio=0.5, vec_size=16)
TVW = Pattern.tvw(vec_ratio=0.5, vec_size=16, row_ratio=0.2)
HALF_ULP = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


def solved(weight, pattern, **options):
    return gyroperm.solve(
        weight.detach().float().numpy(),
        pattern=pattern,
        method="random",
        options={"count": 1},
        seed=1,
        **options,
    )


def dense_and_packed(pattern=HINM, dtype=torch.float16, channels=(6, 40), kernel=3, **options):
    torch.manual_seed(1)
    dense = nn.Conv2d(*channels, kernel, **options).to(dtype)
    solution = solved(dense.weight, pattern)
    with torch.no_grad():
        dense.weight.copy_(solution.apply(dense.weight))
    return dense, HinmConv2d.from_solution(solution, dense)


SHAPES = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 3), "padding": (2, 0), "dilation": (1, 2), "kernel": (2, 3)},
    {"padding": "same", "dilation": 2, "kernel": (2, 3), "bias": False},
    {"padding": "valid", "kernel": 1},
    {"padding": (1, 2), "padding_mode": "reflect"},
]


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize(
    ("pattern", "dtype"), [(HINM, torch.float16), (TVW, torch.bfloat16)], ids=["hinm", "tvw"]
)
def test_it_computes_what_the_masked_convolution_does(options, pattern, dtype):
    dense, packed = dense_and_packed(pattern, dtype, **options)
    assert torch.equal(packed.weight, dense.weight)
    double, absolute = (nn.Conv2d(6, 40, **_kernel(options)).double() for _ in range(2))
    double.load_state_dict(dense.state_dict())
    absolute.load_state_dict({name: t.abs() for name, t in dense.state_dict().items()})
    for shape in ((2, 6, 9, 11), (6, 8, 7)):
        for x in (torch.randn(shape).to(dtype), torch.randn(shape)):
            y, expected = packed(x), double(x.double())
            assert y.dtype == x.dtype and y.shape == expected.shape
            bound = HALF_ULP[x.dtype] * expected.abs() + 2.0**-20 * absolute(x.double().abs())
            assert ((y.double() - expected).abs() <= bound).all()


def _kernel(options):
    return {"kernel_size": 3, **{n.replace("kernel", "kernel_size"): v for n, v in options.items()}}


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [((3, 3), (1, 1), (1, 1)), ((2, 3), (2, 1), (1, 3))]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_windows_are_those_of_unfold(kernel, stride, dilation, layout):
    images = torch.randn(3, 4, 9, 11).contiguous(memory_format=layout)
    expected = functional.unfold(images, kernel, dilation=dilation, stride=stride)
    size = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip((9, 11), kernel, stride, dilation, strict=True)
    ]
    columns = windows(images, kernel, stride, dilation, tuple(size))
    assert columns.is_contiguous()
    assert torch.equal(columns.view(len(columns), 3, -1).transpose(0, 1), expected)


def test_the_product_of_all_windows_is_the_convolution():
    dense, packed = dense_and_packed(stride=2)
    images = torch.randn(3, 6, 9, 9).half()
    columns = windows(images, (3, 3), (2, 2), (1, 1), (4, 4))
    y = packed.product.matrix().matmul_reference(columns.double().numpy())
    y = torch.from_numpy(y).view(40, 3, 4, 4).transpose(0, 1)
    expected = functional.conv2d(images.double(), dense.weight.double(), stride=2)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_input_and_of_the_bias():
    dense, packed = dense_and_packed(stride=2, padding=1)
    packed.product.bias.requires_grad_(True)
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.conv2d(
        x, dense.weight.double(), dense.bias.double(), stride=2, padding=1
    )
    upstream = torch.randn_like(expected)
    (of_x,) = torch.autograd.grad(expected, x, upstream)
    packed(x).backward(upstream)
    torch.testing.assert_close(x.grad, of_x, rtol=1e-12, atol=1e-12)
    of_bias = upstream.sum((0, 2, 3))
    torch.testing.assert_close(packed.product.bias.grad.double(), of_bias, rtol=2.0**-10, atol=1e-3)


def test_a_fresh_layer_loads_a_state_dict():
    _, packed = dense_and_packed(TVW, stride=2, padding=1)
    fresh = HinmConv2d(6, 40, 3, stride=2, padding=1)
    x = torch.randn(2, 6, 9, 9)
    assert not fresh(x).any()
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), packed(x))
    assert "kernel_size=(3, 3), stride=(2, 2), padding=(1, 1)" in repr(fresh)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Conv2d(8, 32, 3, groups=2), ValueError, "one group, got 2"),
        (lambda: nn.Conv1d(8, 32, 3), TypeError, "must be a Conv2d, got Conv1d"),
        (lambda: nn.Linear(8, 32), TypeError, "must be a Conv2d, got Linear"),
    ],
)
def test_other_layers_are_refused(make, error, message):
    layer = make()
    with pytest.raises(error, match=message):
        HinmConv2d.from_solution(solved(layer.weight, HINM), layer)


def test_what_does_not_fit_is_refused():
    dense, packed = dense_and_packed()
    with pytest.raises(ValueError, match="solved by input channel"):
        HinmConv2d.from_solution(solved(dense.weight, Pattern.nm()), dense)
    with pytest.raises(ValueError, match=r"weights must have shape \(40, 6, 3, 3\)"):
        HinmConv2d.from_solution(solved(dense.weight, HINM), nn.Conv2d(6, 40, 2))
    with pytest.raises(ValueError, match=r"matrix must have shape \(40, 24\), got \(40, 54\)"):
        HinmConv2d.from_matrix(packed.product.matrix(), nn.Conv2d(6, 40, 2))
    with pytest.raises(TypeError, match="packed weights have dtype"):
        HinmConv2d.from_solution(solved(dense.weight, HINM), dense, torch.float32)
    with pytest.raises(ValueError, match="for stride 1 \"same\", got 'same' for stride"):
        HinmConv2d(6, 40, 3, stride=2, padding="same")
    with pytest.raises(ValueError, match="padding_mode must be zeros"):
        HinmConv2d(6, 40, 3, padding_mode="mirror")
    with pytest.raises(ValueError, match=r"x must have shape \(B, 6, H, W\).*got \(2, 7, 9, 9\)"):
        packed(torch.zeros(2, 7, 9, 9))
    with pytest.raises(ValueError, match=r"as large as the kernel.*\(2, 9\)"):
        packed(torch.zeros(2, 6, 2, 9))
    with pytest.raises(TypeError, match="x must be floating"):
        packed(torch.zeros(2, 6, 9, 9, dtype=torch.int64))


def test_convolutions_of_a_model_are_replaced():
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=2),
        nn.Conv2d(32, 32, 1),
        nn.Flatten(),
        nn.Linear(32 * 36, 16),
    ).eval()
    report = sparsify(model, HINM, method="identity", progress=False)
    with torch.no_grad():
        for name in ("0", "3", "5"):
            weight = model.get_submodule(name).weight
            weight.copy_(weight.half())
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    done = replace_linears(model, report, dtype=torch.float16)
    assert done.replaced == ("0", "3", "5")
    assert done.skipped == {"2": "a convolution of 2 groups, each a product of its own"}
    kinds = [HinmConv2d, nn.ReLU, nn.Conv2d, HinmConv2d, nn.Flatten, HinmLinear]
    assert [type(layer) for layer in model] == kinds
    assert not model[0].training
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)


def test_a_convolution_solved_by_input_channel_is_left():
    model = nn.Sequential(nn.Conv2d(8, 32, 3))
    done = replace_linears(model, {"0": solved(model[0].weight, Pattern.nm())})
    assert not done.replaced and "solved by input channel" in done.skipped["0"]


def test_weights_of_the_packed_matrix_are_those_of_the_im2col_view():
    dense, packed = dense_and_packed()
    flat = dense.weight.detach().reshape(40, -1).numpy()
    assert isinstance(packed.product.matrix(), HinmMatrix)
    np.testing.assert_array_equal(packed.product.matrix().to_dense(), flat.astype(np.float32))
