"""What NVRTC makes of the kernels: registers, memory, and the instructions that were meant."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from compiled import compiled, instructions
from gyroperm.gpu.decode import X_LAYOUTS, decode_variant
from gyroperm.gpu.source import Variant
from gyroperm.gpu.spmm import blocking
from gyroperm.gpu.variants import ARCHITECTURES, shipped
from gyroperm.gpu.window import window_blocking

NAMES = list(ARCHITECTURES)
# Of the kernels one in so many is compiled for each architecture, not the same ones: no multiple
# of how often dtype, alignment and the like repeat in their list.
EVERY_NTH = 37


def taken_too_much(name, kernels):
    """What each of the listed kernels takes too much of on an architecture."""
    made = compiled((one.variant, name) for one in kernels)
    for one in kernels:
        cubin = made[one.variant, name]
        if cubin.stack_bytes or cubin.spilled_bytes:
            yield (
                f"{one.variant} has {cubin.stack_bytes} bytes of stack, and spills "
                f"{cubin.spilled_bytes}"
            )
        if cubin.registers > one.most_registers:
            yield (
                f"{one.variant} takes {cubin.registers} registers, only {one.most_registers} "
                f"leave room for {one.resident} blocks"
            )
        if cubin.shared_bytes:
            yield f"{one.variant} has {cubin.shared_bytes} bytes of shared memory of its own"


def some(name):
    """The kernels of an architecture that are compiled by default."""
    first = NAMES.index(name) * EVERY_NTH // len(NAMES)
    return shipped(ARCHITECTURES[name])[first::EVERY_NTH]


@pytest.fixture(scope="module")
def at_once():
    """Everything that is compiled by default, by processes that are begun once."""
    for_some = [(one.variant, name) for name in NAMES for one in some(name)]
    return compiled(
        [*for_some, *((variant, name) for name in NAMES for variant in looked_at(name).values())]
    )


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", NAMES)
def test_some_kernels_take_what_they_may(name):
    assert not list(taken_too_much(name, some(name)))


@pytest.mark.compiled
@pytest.mark.parametrize("name", NAMES)
def test_all_kernels_take_what_they_may(name):
    assert not list(taken_too_much(name, shipped(ARCHITECTURES[name])))


def looked_at(name):
    """Kernels whose instructions are read, by what they are called below."""
    limit = ARCHITECTURES[name].block_shared_bytes
    found = {"transpose": Variant.of("transpose", {})}
    for sparse in (True, False):
        one = blocking(64, 64, sparse=sparse, shared_limit=limit)
        found["spmm", sparse] = one.variant(bfloat16=not sparse, aligned=True)
        one = window_blocking(32, 4096, sparse=sparse, shared_limit=limit)
        found["window", sparse] = one.variant(bfloat16=sparse, aligned=True)
        found["decode", sparse] = decode_variant(
            64, 8, sparse=sparse, bfloat16=sparse, x_layout=X_LAYOUTS[sparse]
        )
    return found


@pytest.fixture(scope="module", params=NAMES)
def listings(request, at_once):
    """The instructions of those kernels on one architecture."""
    kernels = looked_at(request.param)
    cubins = [at_once[variant, request.param] for variant in kernels.values()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        listed = list(pool.map(instructions, cubins))
    return dict(zip(kernels, listed, strict=True))


def places(listing, *parts):
    """Where instructions have all these parts in their names."""
    return [at for at, name in enumerate(listing) if {*parts} <= {*name.split(".")}]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("kernel", "bf16_sparse"), [("spmm", 0), ("window", 1), ("decode", 1)])
def test_tensor_cores_multiply(listings, kernel, bf16_sparse, sparse):
    listing = listings[kernel, sparse]
    meant = ["HMMA", "F32", *(["SP", "16832"] if sparse else ["16816"])]
    if bf16_sparse == sparse:
        meant.append("BF16")
    every = places(listing, "HMMA")
    assert every and every == places(listing, *meant)
    # Whatever else multiplies matrices is no HMMA.
    assert not [name for name in listing if "MMA" in name and not name.startswith("HMMA")]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("kernel", ["spmm", "window"])
def test_x_is_copied_past_registers_and_transposed_on_its_way_to_them(listings, kernel, sparse):
    listing = listings[kernel, sparse]
    # Past L1 too, in pieces of 16 bytes, with zeros beyond the last column.
    assert places(listing, "LDGSTS", "BYPASS", "128", "ZFILL")
    assert places(listing, "LDSM", "MT88", "4")
    # Copies are under way when products begin.
    assert places(listing, "LDGDEPBAR")[0] < places(listing, "HMMA")[0]


@pytest.mark.parametrize("sparse", [True, False])
def test_weights_are_under_way_before_the_first_product_of_a_decode(listings, sparse):
    listing = listings["decode", sparse]
    first = places(listing, "HMMA")[0]
    # Eight loads of 16 bytes a lane, which are not kept in L1.
    ahead = [at for at in places(listing, "LDG", "NA", "128") if at < first]
    assert len(ahead) >= 8
    # No barrier stands between them: the lot is waited for once.
    assert not [at for at in places(listing, "BAR") if ahead[0] < at < ahead[7]]


def test_a_transpose_goes_through_ldmatrix_by_16_bytes(listings):
    listing = listings["transpose"]
    assert places(listing, "LDGSTS", "128", "ZFILL")
    assert places(listing, "LDSM", "MT88", "4")
    assert places(listing, "STG", "128")


def test_nothing_lies_in_local_memory(listings):
    for listing in listings.values():
        assert not places(listing, "STL") and not places(listing, "LDL")
