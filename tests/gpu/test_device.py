"""What a launch on a device is given, and what is said where there is none."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import gyroperm
from gyroperm.gpu import DeviceMatrix, HinmMatrix
from gyroperm.gpu.device import run
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.operands import Product, device_of, marshalled, place_of
from gyroperm.gpu.source import Variant, parameters
from gyroperm.pattern import Pattern

KERNELS = ("spmm", "decode", "transpose", "permute", "invert", "fuse")


def transpose_launch(**changed):
    x = np.zeros((16, 8), np.float16)
    given = {
        "in": x,
        "in_stride": 8,
        "out": np.zeros((8, 16), np.float16),
        "out_stride": 16,
        "positions": None,
        "wide_positions": 0,
        "positions_of_out": 0,
        "rows": 16,
        "columns": 8,
    }
    return Launch(Variant.of("transpose", {}), (1, 1, 1), 256, 8192, {**given, **changed})


def test_arguments_are_in_the_order_and_types_of_the_kernel():
    launch = transpose_launch()
    values = marshalled(launch)
    declared = parameters("transpose")
    assert len(values) == len(declared)
    for parameter, value in zip(declared, values, strict=True):
        given = launch.arguments[parameter.name]
        if parameter.is_pointer:
            expected = 0 if given is None else given.__array_interface__["data"][0]
            assert (type(value), int(value)) == (np.uint64, expected), parameter
        else:
            assert (type(value), value) == (parameter.scalar, given), parameter


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16])
def test_tensors_of_torch_are_passed_by_their_address(dtype):
    x = torch.zeros(18, 8, dtype=dtype)[2:]
    values = marshalled(transpose_launch(**{"in": x}))
    names = [parameter.name for parameter in parameters("transpose")]
    assert values[names.index("in")] == x.data_ptr()


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_parameter_of_every_kernel_can_be_passed(kernel):
    arguments = {
        parameter.name: None if parameter.is_pointer else 1 for parameter in parameters(kernel)
    }
    values = marshalled(Launch(Variant.of(kernel, {}), (1, 1, 1), 32, 0, arguments))
    assert {type(value) for value in values} <= {
        np.uint64,
        np.int32,
        np.int64,
        np.uint32,
        np.float32,
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"in": np.zeros((16, 8), np.float32)},
            TypeError,
            "in of transpose must have dtype uint16",
        ),
        ({"in": np.zeros((8, 16), np.float16).T}, ValueError, r"got shape \(16, 8\) with gaps"),
        ({"in": torch.zeros(8, 16).half().T}, ValueError, r"got shape \(16, 8\) with gaps"),
        (
            {"in": np.zeros(257, np.uint8)[1:].view(np.float16).reshape(16, 8)},
            ValueError,
            "in of transpose must begin on 2 bytes, begins 1 beyond",
        ),
    ],
)
def test_arrays_that_a_kernel_does_not_take(change, error, message):
    with pytest.raises(error, match=message):
        marshalled(transpose_launch(**change))


def test_rows_may_lie_apart():
    assert marshalled(transpose_launch(**{"in": np.zeros((16, 32), np.float16)[:, :8]}))


def test_arrays_of_the_host_are_not_launched_with():
    assert device_of(np.zeros(1)) is None
    assert device_of(torch.zeros(1)) is None
    with pytest.raises(ValueError, match="in of transpose must lie on a CUDA device"):
        place_of(transpose_launch())
    with pytest.raises(ValueError, match="in of transpose must lie on a CUDA device"):
        run(transpose_launch())
    nothing = transpose_launch(**{"in": None, "out": None})
    with pytest.raises(ValueError, match="needs arrays of one device"):
        place_of(nothing)


PRODUCT = Product(outputs=6, inputs=4, packed_rows=16, dtype="float16", device=None)


def half(*shape):
    return np.zeros(shape, np.float16)


def test_operands_that_fit():
    assert PRODUCT.columns(half(4, 9), "features") == 9
    assert PRODUCT.columns(half(9, 4), "tokens") == 9
    assert PRODUCT.columns(half(4, 0), "features") == 0
    assert PRODUCT.columns(half(4, 16)[:, :9], "features") == 9
    assert PRODUCT.columns(half(4, 9).view(np.uint16), "features") == 9
    assert PRODUCT.columns(torch.zeros(9, 4).half(), "tokens") == 9
    assert PRODUCT.result_shape(9, "features") == (6, 9)
    assert PRODUCT.result_shape(9, "tokens") == (9, 6)
    assert PRODUCT.result_shape(9, "features", keep_order=True) == (16, 9)
    PRODUCT.check_rest((6, 9), bias=half(6), out=half(6, 9), factor=half(6, 9), addend=half(6, 9))


@pytest.mark.parametrize(
    ("x", "layout", "error", "message"),
    [
        (half(5, 9), "features", ValueError, r"shape \(4, N\).*got shape \(5, 9\)"),
        (half(9, 5), "tokens", ValueError, r"shape \(N, 4\).*got shape \(9, 5\)"),
        (half(4), "features", ValueError, r"got shape \(4,\)"),
        (half(9, 4).T, "features", ValueError, 'read without a copy as layout="tokens"'),
        (np.zeros((4, 9)), "features", TypeError, "dtype float16 .* got float64"),
        (torch.zeros(4, 9).bfloat16(), "features", TypeError, "got bfloat16"),
        ([[0.0]], "features", TypeError, "x must be a CuPy array or a torch tensor"),
        (half(4, 9), "rows", ValueError, "layout must be one of features, tokens, got 'rows'"),
    ],
)
def test_an_x_that_does_not_fit(x, layout, error, message):
    with pytest.raises(error, match=message):
        PRODUCT.columns(x, layout)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"bias": half(4)}, ValueError, r"bias must have shape \(6,\), got \(4,\)"),
        ({"bias": np.zeros(6)}, TypeError, "bias must have the weights' dtype float16"),
        ({"bias": half(12)[::2]}, ValueError, "bias must have contiguous rows"),
        ({"out": half(9, 6)}, ValueError, r"out must have shape \(6, 9\), got \(9, 6\)"),
        ({"out": half(9, 6).T}, ValueError, "out must have contiguous rows"),
        ({"factor": half(6, 8)}, ValueError, r"factor must have shape \(6, 9\)"),
        ({"addend": np.zeros((6, 9))}, TypeError, "addend must have the weights' dtype"),
    ],
)
def test_other_operands_that_do_not_fit(given, error, message):
    with pytest.raises(error, match=message):
        PRODUCT.check_rest((6, 9), **given)


def test_an_operand_on_another_device():
    on_device = Product(outputs=6, inputs=4, packed_rows=16, dtype="float16", device=1)
    with pytest.raises(ValueError, match=r"x must lie on CUDA device 1.* an array on the host"):
        on_device.columns(half(4, 9), "features")


def packed():
    solution = gyroperm.solve(np.ones((32, 32)), pattern=Pattern.nm(), method="identity")
    return HinmMatrix.from_solution(solution, np.ones((32, 32)))


def test_without_cupy_it_is_said_how_to_install_it(monkeypatch):
    matrix = packed()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'gyroperm[gpu-cuda13]'")):
        DeviceMatrix.upload(matrix)


def test_without_a_device_it_is_said_so():
    program = """
import numpy as np
import gyroperm
from gyroperm.gpu import DeviceMatrix, HinmMatrix
from gyroperm.gpu.device import limits
solution = gyroperm.solve(np.ones((32, 32)), method="identity")
matrix = HinmMatrix.from_solution(solution, np.ones((32, 32)))
for call in (lambda: DeviceMatrix.upload(matrix), lambda: limits(0)):
    try:
        call()
    except RuntimeError as error:
        assert "no CUDA device can be used: cudaError" in str(error), error
    else:
        raise SystemExit("no error")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
