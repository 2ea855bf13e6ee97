"""Packed linear layers on the host, against dense ones with masked weights."""

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import gyroperm
from gyroperm.gpu import HinmLinear, HinmMatrix, replace_linears
from gyroperm.models import sparsify
from gyroperm.pattern import Pattern

# Rows and columns that neither V nor m divides; ragged tiles; rows pruned whole; dense inside.
PATTERNS = {
    "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=16),
    "nm": Pattern.nm(),
    "vector": Pattern.vector_nm(2, 4, 32),
    "tvw": Pattern.tvw(vec_ratio=0.5, vec_size=16, row_ratio=0.2),
}
each_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
HALF_ULP = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


def solved(weight, pattern):
    return gyroperm.solve(weight.detach().float().numpy(), pattern=pattern, method="identity")


def dense_and_packed(pattern, dtype=torch.float16, inputs=50, outputs=70, bias=True):
    torch.manual_seed(1)
    linear = nn.Linear(inputs, outputs, bias=bias).to(dtype)
    solution = solved(linear.weight, pattern)
    with torch.no_grad():
        linear.weight.copy_(solution.apply(linear.weight))
    return linear, HinmLinear.from_linear(linear, solution)


def assert_product(y, x, linear):
    """Within half an ulp of y, and the float32 sum's rounding, of the product in float64."""
    assert y.dtype == x.dtype
    weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
    expected = x.double() @ weight.T + bias
    sums = x.double().abs() @ weight.abs().T + bias.abs()
    bound = HALF_ULP[x.dtype] * expected.abs() + 2.0**-20 * sums
    assert ((y.double() - expected).abs() <= bound).all()


@each_pattern
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_computes_what_the_masked_layer_does(pattern, dtype):
    linear, packed = dense_and_packed(pattern, dtype)
    assert torch.equal(packed.weight, linear.weight)
    assert torch.equal(packed.bias, linear.bias)
    for x in (torch.randn(3, 5, 50), torch.randn(50), torch.randn(0, 50)):
        y = packed(x.to(dtype))
        assert y.shape == (*x.shape[:-1], 70)
        assert_product(y, x.to(dtype), linear)


@each_pattern
def test_inputs_of_more_precision_are_computed_from_the_same_weights(pattern):
    linear, packed = dense_and_packed(pattern)
    x = torch.randn(4, 50)
    assert_product(packed(x), x, linear)
    y = packed(x.double())
    assert y.dtype == torch.float64
    expected = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)


def test_without_bias_and_from_a_matrix():
    linear, packed = dense_and_packed(PATTERNS["hinm"], bias=False)
    assert packed.bias is None
    again = HinmLinear.from_matrix(packed.matrix())
    x = torch.randn(4, 50).half()
    assert torch.equal(packed(x), again(x))
    assert torch.equal(again.weight, linear.weight)


def test_weights_are_rounded_to_the_dtype_that_is_asked_for():
    weight = torch.randn(32, 32)
    solution = solved(weight, Pattern.nm())
    masked = solution.apply(weight)
    assert torch.equal(HinmLinear.from_solution(solution, weight).weight, masked.half())
    packed = HinmLinear.from_solution(solution, weight, dtype=torch.bfloat16)
    assert torch.equal(packed.weight, masked.bfloat16())
    with pytest.raises(TypeError, match=r"float16 or torch.bfloat16, got torch.float32"):
        HinmLinear.from_solution(solution, weight, dtype=torch.float32)


@each_pattern
def test_gradient_of_the_input_and_of_the_bias(pattern):
    _, packed = dense_and_packed(pattern)
    packed.bias.requires_grad_(True)
    x = torch.randn(2, 3, 50, dtype=torch.float64, requires_grad=True)
    y = packed(x)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ packed.weight.double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        packed.bias.grad.double(), upstream.sum((0, 1)), rtol=2.0**-10, atol=1e-3
    )
    assert {name for name, own in packed.named_parameters() if own.requires_grad} == {"bias"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_in_the_dtype_of_a_half_precision_input(dtype):
    linear, packed = dense_and_packed(PATTERNS["hinm"], dtype)
    x = torch.randn(4, 50).to(dtype).requires_grad_()
    packed(x).sum().backward()
    assert x.grad.dtype == dtype
    expected = linear.weight.detach().double().sum(0).expand(4, -1)
    bound = HALF_ULP[dtype] * expected.abs() + 1e-5
    assert ((x.grad.double() - expected).abs() <= bound).all()


def test_no_graph_is_kept_where_no_gradient_is_asked_for():
    _, packed = dense_and_packed(PATTERNS["hinm"])
    x = torch.randn(4, 50, requires_grad=True)
    assert not packed(x.detach()).requires_grad
    with torch.no_grad():
        assert not packed(x).requires_grad
    assert packed(x).requires_grad


@each_pattern
def test_a_fresh_layer_loads_a_state_dict_of_any_tiles(pattern):
    _, packed = dense_and_packed(pattern)
    fresh = HinmLinear(50, 70)
    x = torch.randn(4, 50)
    assert not fresh(x).any()
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), packed(x))
    assert set(fresh.state_dict()) == set(packed.state_dict())
    # What is loaded is a copy.
    packed.values.zero_()
    assert fresh(x).std() > 0.1


def test_a_state_dict_is_loaded_into_the_layers_own_dtype_and_into_models():
    _, packed = dense_and_packed(PATTERNS["hinm"])
    model = nn.Sequential(nn.ReLU(), HinmLinear(50, 70, dtype=torch.bfloat16))
    model.load_state_dict(nn.Sequential(nn.ReLU(), packed).state_dict())
    assert torch.equal(model[1].weight, packed.weight.bfloat16())
    model.load_state_dict(nn.Sequential(nn.ReLU(), packed).state_dict(), assign=True)
    assert torch.equal(model[1].weight, packed.weight)


def test_columns_beyond_16_bits_come_through_a_state_dict():
    matrix = HinmMatrix.from_solution(
        gyroperm.solve(np.ones((16, 70_000)), pattern=Pattern.hinm(vec_size=16), method="identity"),
        np.random.default_rng(0).standard_normal((16, 70_000)),
    )
    packed = HinmLinear.from_matrix(matrix)
    assert packed.columns.dtype == torch.int32
    fresh = HinmLinear(70_000, 16, bias=False)
    fresh.load_state_dict(packed.state_dict())
    assert np.array_equal(fresh.matrix().to_dense(), matrix.to_dense())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"described": torch.tensor([2, 50, 70])}, r"their schema is \[2\]"),
        ({"described": torch.tensor([1, 50, 80])}, r"of \[50, 80\] features"),
        ({"columns": torch.full((1,), 3, dtype=torch.int16)}, "tile_ptr must run from 0"),
        ({"values": torch.zeros(1, 2, 1, 32, 8)}, "got torch.float32"),
        ({"values": torch.zeros(1, 2, 1, 32, 8).half()}, "values must have shape"),
        ({"row_map": torch.full((80,), 70, dtype=torch.int32)}, "row_map must hold rows"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, message):
    _, packed = dense_and_packed(PATTERNS["hinm"])
    fresh = HinmLinear(50, 70)
    with pytest.raises(RuntimeError, match=message):
        fresh.load_state_dict({**packed.state_dict(), **change})
    assert not fresh.weight.any()


def test_a_state_dict_of_a_dense_layer_is_refused():
    with pytest.raises(RuntimeError, match=r"Missing key.*values"):
        HinmLinear(50, 70).load_state_dict(nn.Linear(50, 70).state_dict())


def test_conversion_keeps_to_half_precision():
    linear, packed = dense_and_packed(PATTERNS["hinm"])
    packed.to(torch.bfloat16)
    assert torch.equal(packed.weight, linear.weight.bfloat16())
    assert packed.bias.dtype == torch.bfloat16
    before = packed.weight
    for convert in (lambda: packed.float(), lambda: packed.to(torch.float64)):
        with pytest.raises(TypeError, match="packed weights have dtype"):
            convert()
    assert torch.equal(packed.weight, before)
    assert packed.half().values.dtype == torch.float16


def test_copies_and_pickles():
    _, packed = dense_and_packed(PATTERNS["hinm"])
    x = torch.randn(4, 50)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other(x), packed(x))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(4, 51), ValueError, r"x must have shape \(..., 50\), got \(4, 51\)"),
        (torch.zeros(()), ValueError, "x must have shape"),
        (torch.zeros(4, 50, dtype=torch.int64), TypeError, "x must be floating"),
        (torch.zeros(4, 50, device="meta"), ValueError, "x must lie on cpu"),
    ],
)
def test_inputs_that_do_not_fit(x, error, message):
    _, packed = dense_and_packed(PATTERNS["hinm"])
    with pytest.raises(error, match=message):
        packed(x)


def test_arguments_that_do_not_fit():
    _, packed = dense_and_packed(PATTERNS["hinm"])
    with pytest.raises(ValueError, match=r"bias must have shape \(70,\), got \(50,\)"):
        HinmLinear.from_matrix(packed.matrix(), torch.zeros(50))
    with pytest.raises(ValueError, match="at least 1, got 0 and 8"):
        HinmLinear(0, 8)
    with pytest.raises(TypeError, match=r"got torch\.float32"):
        HinmLinear(8, 8, dtype=torch.float32)


def test_it_says_what_it_is():
    _, packed = dense_and_packed(PATTERNS["nm"], inputs=64, outputs=128)
    assert repr(packed) == (
        "HinmLinear(in_features=64, out_features=128, bias=True, V=128, inside=2 of 4, "
        "stored=50.00 %, dtype=torch.float16)"
    )


class Block(nn.Module):
    """Attention whose projection its parent reads, an MLP, a convolution and a tied head."""

    def __init__(self, width=32):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.convolution = nn.Conv1d(width, width, 3, padding=1)
        self.embedding = nn.Embedding(40, width)
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        x = x + self.attention(x, x, x)[0]
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return self.head(x + self.convolution(x.transpose(1, 2)).transpose(1, 2))


def test_linears_of_a_model_are_replaced_and_others_are_not():
    torch.manual_seed(2)
    model = Block().eval()
    names = ["attention.out_proj", "up", "down.weight", "convolution", "head"]
    solutions = {
        name: solved(model.get_submodule(name.removesuffix(".weight")).weight, PATTERNS["hinm"])
        for name in names
    }
    for name in ("up", "down"):
        weight = model.get_submodule(name).weight
        kept = (solutions.get(name) or solutions[f"{name}.weight"]).apply(weight)
        with torch.no_grad():
            weight.copy_(kept.half())
    ids = torch.randint(40, (2, 7))
    expected = model(ids)
    done = replace_linears(model, solutions)
    assert done.replaced == ("up", "down")
    assert isinstance(model.up, HinmLinear) and isinstance(model.down, HinmLinear)
    assert not model.up.training
    assert done.skipped == {
        "attention.out_proj": "a NonDynamicallyQuantizableLinear, whose weight others may read",
        "convolution": "a convolution over one dimension",
        "head": "its weight is shared with embedding",
    }
    assert str(done).startswith("replaced 2 layers\nleft attention.out_proj: a Non")
    torch.testing.assert_close(model(ids), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="no linear layer or convolution 'up'"):
        replace_linears(model, {"up": solutions["up"]})


def test_a_layer_in_two_places_a_shared_weight_hooks_and_patterns_that_cannot_be_packed():
    model = nn.ModuleDict({name: nn.Linear(32, 32) for name in ("a", "b", "c", "hooked", "odd")})
    model["a_again"] = model["a"]
    model["c"].weight = model["b"].weight
    model["hooked"].register_forward_hook(lambda *_: None)
    solutions = {
        name: solved(model[name].weight, PATTERNS["hinm"]) for name in ("a", "b", "hooked")
    }
    solutions["odd"] = solved(model["odd"].weight, Pattern.hinm(vec_size=8))
    done = replace_linears(model, solutions, dtype=torch.bfloat16)
    assert set(done.replaced) == {"a", "a_again", "b", "c"}
    assert model["a"] is model["a_again"]
    assert model["a"].values.dtype == torch.bfloat16
    assert torch.equal(model["b"].weight, model["c"].weight)
    assert not torch.equal(model["b"].bias, model["c"].bias)
    assert done.skipped["hooked"] == "it has hooks"
    assert "vec_size must be a multiple of 16" in done.skipped["odd"]
    assert type(model["hooked"]) is nn.Linear


def test_the_model_itself_is_not_replaced():
    model = nn.Linear(32, 32)
    done = replace_linears(model, {"": solved(model.weight, PATTERNS["hinm"])})
    assert not done.replaced and "from_linear" in done.skipped[""]


def test_nothing_is_replaced_where_something_is_wrong():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 16))
    good = solved(model[0].weight, PATTERNS["hinm"])
    for solutions, error, message in (
        ({"0": good, "2": good}, ValueError, "no linear layer or convolution '2'"),
        ({"0": good, "0.weigth": good}, ValueError, "is it '0.weight'"),
        ({"0": good, "1": good}, ValueError, r"for 1.weight is of \(32, 32\).* \(16, 32\)"),
        ({"0": good, "0.weight": solved(model[0].weight, Pattern.nm())}, ValueError, "hold two"),
        ({"0": good, "1": 3}, TypeError, "mapping of module names to Solution"),
        ([good], TypeError, "mapping of module names to Solution"),
    ):
        with pytest.raises(error, match=message):
            replace_linears(model, solutions)
    with pytest.raises(TypeError, match=r"got torch\.float32"):
        replace_linears(model, {"0": good}, dtype=torch.float32)
    assert all(type(layer) is nn.Linear for layer in model)


@pytest.mark.parametrize("pattern", ["hinm", "tvw"])
def test_what_sparsify_returns_is_taken(pattern):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48)).half()
    report = sparsify(model, PATTERNS[pattern], method="identity", progress=False)
    x = torch.randn(4, 48).half()
    expected = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    assert replace_linears(model, report).replaced == ("0", "2")
    assert all(map(torch.equal, [model[0].weight, model[2].weight], expected))
    assert model(x).shape == (4, 48)


def test_what_sparsify_returns_with_surgery_is_taken():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48))
    report = sparsify(
        model, "2:4", surgery=True, inputs=torch.randn(2, 48), method="swap", progress=False
    )
    expected = [layer.weight.detach().half() for layer in (model[0], model[2])]
    assert replace_linears(model, report).replaced == ("0", "2")
    assert all(map(torch.equal, [model[0].weight, model[2].weight], expected))


def test_a_report_whose_masks_have_changed_since_is_refused():
    model = nn.Sequential(nn.Linear(48, 64))
    report = sparsify(model, "2:4", method="identity", progress=False)
    nn.init.ones_(model[0].weight)
    with pytest.raises(ValueError, match=r"0\.weight has weights that are not zero outside"):
        replace_linears(model, report)


def test_the_transposed_layers_of_gpt2_are_replaced():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(5)
    model = nn.Sequential(Conv1D(64, 32))  # out, in
    model[0].bias.data.normal_()
    solution = solved(model[0].weight.T, PATTERNS["hinm"])
    model[0].weight.data = solution.apply(model[0].weight.data.T.contiguous()).half().float().T
    x = torch.randn(4, 32)
    expected = model(x)
    assert replace_linears(model, {"0": solution}).replaced == ("0",)
    assert (model[0].in_features, model[0].out_features) == (32, 64)
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)


def test_layers_need_no_solver_libraries():
    program = """
import sys
for name in ("ortools", "networkx", "cupy"):
    sys.modules[name] = None  # makes any import of it fail
import torch
from gyroperm.gpu import HinmLinear, replace_linears
layer = HinmLinear(8, 24)
assert layer(torch.ones(2, 8)).shape == (2, 24)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_layers_say_that_they_need_torch():
    program = """
import sys
sys.modules["torch"] = None
import gyroperm.gpu
try:
    gyroperm.gpu.HinmLinear
except ImportError as error:
    assert "pip install 'gyroperm[torch]'" in str(error), error
else:
    raise SystemExit("no error")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
