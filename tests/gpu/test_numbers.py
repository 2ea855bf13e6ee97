"""Half-precision bits, against torch, NumPy and enumeration."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from gyroperm.gpu.numbers import from_bits, is_infinite, to_bits

EVERY = np.arange(2**16, dtype=np.uint32).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_number_comes_back(dtype):
    numbers = from_bits(EVERY, dtype)
    back = to_bits(numbers, dtype)
    nan = np.isnan(numbers)
    assert np.array_equal(back[~nan], EVERY[~nan])
    assert np.isnan(from_bits(back[nan], dtype)).all()
    assert np.array_equal(is_infinite(EVERY, dtype), np.isinf(numbers))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_singles_are_rounded_as_torch_rounds_them(dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    singles = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    singles[::4] &= 0xFFFF8000  # ties of bfloat16
    singles[1::4] = (singles[1::4] & 0x8FFFF000) | 0x38000000  # in float16's range, with ties
    numbers = singles.view(np.float32)
    expected = torch.from_numpy(numbers).to(getattr(torch, dtype)).view(torch.int16).numpy()
    bits = to_bits(numbers, dtype)
    nan = np.isnan(numbers)
    assert np.array_equal(bits[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(from_bits(bits[nan], dtype)).all()


def nearest(number, dtype):
    """The nearest finite number by exact arithmetic, the even one of a tie."""
    finite = EVERY[np.isfinite(from_bits(EVERY, dtype)) & (EVERY < 2**15)]
    values = from_bits(finite, dtype).astype(np.float64)
    at = int(np.searchsorted(values, abs(number)))
    near = [i for i in (at - 1, at) if 0 <= i < len(values)]
    best = min(
        near, key=lambda i: (abs(Fraction(values[i]) - Fraction(abs(number))), finite[i] % 2)
    )
    return int(finite[best]) | (0x8000 if number < 0 else 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_doubles_are_rounded_once(dtype):
    rng = np.random.default_rng(1)
    # Between two neighbours, a little off the tie by less than a single could tell.
    low = rng.integers(1, 0x7000, 300).astype(np.uint16)
    a, b = (from_bits(bits, dtype).astype(np.float64) for bits in (low, low + np.uint16(1)))
    tie = (a + b) / 2
    for numbers in (tie, tie * (1 + 2.0**-50), tie * (1 - 2.0**-50), -tie * (1 + 2.0**-50)):
        assert to_bits(numbers, dtype).tolist() == [nearest(x, dtype) for x in numbers]


def test_what_is_too_large_becomes_infinite():
    assert to_bits(np.array([65519.0, 65520.0, -1e300]), "float16").tolist() == [
        0x7BFF,
        0x7C00,
        0xFC00,
    ]
    assert to_bits(np.array([3.38e38, 3.4e38, -1e300]), "bfloat16").tolist() == [
        0x7F7E,
        0x7F80,
        0xFF80,
    ]
    assert to_bits(np.array([0.0, -0.0, 1e-300]), "bfloat16").tolist() == [0, 0x8000, 0]


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match='dtype must be "float16" or "bfloat16", got'):
        to_bits(np.ones(2), "float32")
    with pytest.raises(TypeError, match="array must hold real numbers, got dtype complex128"):
        to_bits(np.ones(2, complex), "float16")
    with pytest.raises(TypeError, match="bits must be an array of uint16, got dtype"):
        from_bits(np.ones(2), "float16")
