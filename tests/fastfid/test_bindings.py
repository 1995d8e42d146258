"""Direct calls of the compiled kernels with sizes that no memory holds, or nothing bounds: refused, never a crash."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from fastfid import _C

SLACK = 1e-3
PLAN_PARTS = ("bounds", "terms", "functions", "group_ends", "group_terms", "mixes", "coefficients")


def plan(**changed):
    """The plan of a single slice of rank 1 with one function, one node."""
    ints, doubles = (
        {"bounds": [0, 1], "terms": [1], "group_ends": [1], "group_terms": [1]},
        {"functions": [1.0], "mixes": [1.0]},
    )
    parts = {name: np.array(value, np.int64) for name, value in ints.items()}
    parts |= {name: np.array(value) for name, value in doubles.items()} | {"coefficients": np.ones((1, 1))}
    return tuple((parts | changed)[name] for name in PLAN_PARTS)


def swap(function=_C.swap_logdet, reference=None, index=None, added=None, of=None, **more):
    reference = np.full((3, 1), 0.1) if reference is None else reference
    index = np.zeros((2, 1), np.int64) if index is None else index
    added = np.full((2, 1, 1), 0.1) if added is None else added
    of = plan() if of is None else of
    if function is _C.swap_singles:
        return function(reference, index, added, of, 1)
    if function is _C.swap_gradient:
        return function(reference, index, added, (0.0, 0.0, 0.0), of, np.ones(1), SLACK, 1)
    return function(reference, index, added, (0.0, 0.0, 0.0), of, SLACK, more.get("threads", 1))


SWAPS = (_C.swap_logdet, _C.swap_gradient, _C.swap_singles)


@pytest.mark.parametrize("function", SWAPS)
def test_the_small_plan_is_computed(function):
    assert np.isfinite(swap(function)[0]).all()


def longs(*values):
    return np.array(values, np.int64)


FEWER, BEYOND = "are fewer than its terms ask for", "do not fit its terms"
SLICE, ENDS = "a slice of the plan must have 1 to 256 positions", "plan groups must end with the last slice"
# Products of these wrap round to what the other arrays hold; and what is said.
PLANS = {
    "terms of 2**62": (FEWER, {"terms": longs(2**62)}),
    "terms that wrap": (
        FEWER,
        {
            "terms": longs(2**62, 2**62, 2**62, 2**62 + 1),
            "bounds": longs(0, 1, 2, 3, 4),
            "group_ends": longs(4),
        },
    ),
    "terms below 0": (SLICE, {"terms": longs(-1)}),
    "functions of a group of 2**62": (FEWER, {"group_terms": longs(2**62)}),
    "functions of a group that wrap": (FEWER, {"group_terms": longs(2**63 - 1), "mixes": np.empty(0)}),
    "bounds that wrap": (SLICE, {"bounds": longs(0, -(2**63), 1), "terms": longs(1, 1), "group_ends": longs(2)}),
    "bounds that fall": (SLICE, {"bounds": longs(0, 2, 1), "terms": longs(1, 1), "group_ends": longs(2)}),
    "a wide slice": (SLICE, {"bounds": longs(0, 257), "functions": np.ones(257)}),
    "a wide group": (
        "a group of the plan may have 512 positions at most",
        {
            "bounds": longs(0, 256, 512, 513),
            "terms": longs(1, 1, 1),
            "functions": np.ones(513),
            "group_ends": longs(3),
            "mixes": np.ones(3),
        },
    ),
    "group ends of 2**62": (ENDS, {"group_ends": longs(2**62)}),
    "group ends below 0": (ENDS, {"group_ends": longs(-(2**62))}),
    "groups that end twice": (
        "a group of the plan must have slices",
        {"group_ends": longs(1, 1), "group_terms": longs(1, 1)},
    ),
    "no bounds": ("plan bounds must run from 0", {"bounds": longs()}),
    "no coefficients": (FEWER, {"coefficients": np.ones((0, 1))}),
    "coefficients of one axis": ("plan coefficients must be", {"coefficients": np.ones(1)}),
    "functions too many": (BEYOND, {"functions": np.ones(2)}),
    "mixes too many": (BEYOND, {"mixes": np.ones(2)}),
    "coefficients too many": (BEYOND, {"coefficients": np.ones((2, 1))}),
}


@pytest.mark.parametrize("function", SWAPS)
@pytest.mark.parametrize("kind", PLANS)
def test_plans_are_checked_by_division(function, kind):
    told, changed = PLANS[kind]
    bounds = changed.get("bounds", longs(1))
    rank = bounds[-1] if len(bounds) else 1
    with pytest.raises(ValueError, match=told):
        swap(function, np.full((3, rank), 0.1), added=np.full((2, 1, rank), 0.1), of=plan(**changed))


@pytest.mark.parametrize("function", SWAPS)
def test_rows_of_no_features_are_refused(function):
    none = plan(bounds=longs(0), terms=longs(), functions=np.empty(0), group_ends=longs(), group_terms=longs(),
                mixes=np.empty(0), coefficients=np.ones((0, 1)))  # fmt: skip
    for batch, added in ((2, 1), (2, 2**40), (2**40, 1)):
        index = np.zeros((batch, 0), np.int64)
        with pytest.raises(ValueError, match="the rank r .* is 0; at least 1"):
            swap(function, np.ones((3, 0)), index, np.ones((batch, added, 0)), none)


@pytest.mark.parametrize("function", SWAPS[:2])
def test_no_candidates_with_rows_beyond_memory_are_no_work(function):
    """Arrays of no elements may have any other sizes, whose squares are no sizes of memory."""
    found = swap(function, index=np.empty((0, 2**55), np.int64), added=np.empty((0, 2**55, 1)))
    assert found[0].shape == (0, 1)
    with pytest.raises((ValueError, MemoryError)):
        swap(function, index=np.empty((2**55, 0), np.int64), added=np.empty((2**55, 0, 1)))


@pytest.mark.parametrize("index", [2**62, -(2**62), 3, -1])
def test_places_outside_the_reference_are_refused(index):
    with pytest.raises(ValueError, match=f"index holds {index}, outside the 3"):
        swap(index=np.full((2, 1), index))
    with pytest.raises(ValueError, match=f"index holds {index}, outside the 3"):
        centre(index=np.full((2, 1), index))


def centre(reference=None, index=None, added=None, centred=None, d=2):
    reference = np.ones((3, d)) if reference is None else reference
    index = np.zeros((2, 1), np.int64) if index is None else index
    added = np.ones((2, 1, d)) if added is None else added
    centred = np.empty(added.shape) if centred is None else centred
    return _C.centre_rows(reference, index, added, np.zeros(d), np.zeros(d), centred, True, 1)


def field_of_records(shape):
    """Floats that lie 12 bytes apart: no whole number of them."""
    return np.zeros(shape, [("x", "f8"), ("y", "f4")])["x"]


def test_strides_that_are_no_multiple_of_the_item():
    column = field_of_records((4, 1))
    for call in (
        lambda: _C.column_sums(column, 1),
        lambda: _C.add_scatter(np.ones((1, 1)), column, *np.ones((2, 1)), 1, 1, 1),
    ):
        with pytest.raises(ValueError, match="each contiguous"):
            call()
    for axis in (0, 1):
        added = np.moveaxis(field_of_records((2, 1, 1)), 0, axis)
        with pytest.raises(ValueError, match="whole elements apart"):
            centre(added=added, index=np.zeros((len(added), 1), np.int64), d=1)


def test_strides_of_single_rows_and_backwards_are_taken():
    """A stride that is never used may be any; rows may be read from the last to the first, or all be the same."""
    x = np.arange(8.0).reshape(4, 2)
    odd = as_strided(x[:1], (1, 2), (13, 8))
    np.testing.assert_array_equal(_C.column_sums(odd, 1), [0, 1])
    np.testing.assert_array_equal(_C.column_sums(x[::-1], 1), [12, 16])
    np.testing.assert_array_equal(_C.column_sums(np.broadcast_to(x[1], (5, 2)), 1), [10, 15])
    added, centred = x.reshape(2, 2, 2)[::-1, ::-1], np.empty((2, 2, 2))
    centre(added=added, centred=centred)
    np.testing.assert_array_equal(centred, added)


def test_no_features_are_refused():
    empty = np.ones((3, 0))
    for call in (
        lambda: _C.column_sums(empty, 1),
        lambda: _C.add_scatter(np.ones((0, 0)), empty, np.ones(0), np.ones(0), 1, 1, 1),
        lambda: _C.add_scatter(np.ones((0, 0)), np.ones((2**55, 0)), np.ones(0), np.ones(0), 1, 1, 1),
        lambda: centre(d=0),
        lambda: _C.band_logdets(np.ones((0, 3)), np.ones(2), 1.0, 1),
        lambda: _C.band_logdets(np.ones((0, 2**55)), np.ones(2), 1.0, 1),
    ):
        with pytest.raises(ValueError, match="is 0; at least 1 is needed"):
            call()


def test_a_band_that_is_far_wider_than_its_matrix_is_refused():
    """Memory grows with the square of the width: 20,000 diagonals of one row would take 25 GB."""
    with pytest.raises(ValueError, match=r"band is wider than its matrix, got \[1, 20000\]"):
        _C.band_logdets(np.ones((1, 20_000)), np.ones(2), 1.0, 1)


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**31 - 1])
def test_threads_that_no_machine_has(threads):
    for call in (
        lambda: swap(threads=threads), lambda: _C.column_sums(np.ones((3, 2)), threads),
        lambda: _C.band_logdets(np.ones((3, 2)), np.ones(2), 1.0, threads),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="threads must be at least 1 and at most 1024"):
            call()
