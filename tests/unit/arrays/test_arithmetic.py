"""Array namespaces, integer division, and results in place with and without ``out=``."""

import numpy as np
import pytest

from hpc_dasgd.arrays import arithmetic


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2), (6, 3, 2), (7, 1, 7), (-1, 3, 0), (-4, 3, -1)],
)
def test_ceil_div_rounds_up(numerator, denominator, expected):
    assert arithmetic.ceil_div(numerator, denominator) == expected


def test_ceil_div_is_exact_for_integers_that_no_float_represents():
    assert arithmetic.ceil_div(2**60 + 1, 2) == 2**59 + 1
    assert arithmetic.ceil_div(10**30 + 1, 10**15) == 10**15 + 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_aligned_copy_begins_at_a_multiple_of_64_bytes(dtype):
    for size in (1, 3, 1000):
        array = np.arange(size, dtype=dtype)
        copy = arithmetic.aligned_copy(array)
        assert copy.ctypes.data % 64 == 0 and copy.flags.c_contiguous and copy.dtype == dtype
        assert copy.tolist() == array.tolist() and not np.shares_memory(copy, array)


def test_the_namespace_of_numpy_arrays_is_numpy():
    assert arithmetic.namespace(np.zeros(3)) is np
    assert arithmetic.namespace(np.zeros((2, 2), "f4")[:, 0]) is np


def test_the_namespace_of_objects_without_one_is_numpy():
    assert arithmetic.namespace([1, 2]) is np


def test_the_namespace_of_other_arrays_is_their_library():
    xp = pytest.importorskip("array_api_strict")
    assert arithmetic.namespace(xp.zeros(3)) is xp


def test_a_result_is_computed_into_a_view():
    whole = np.zeros(6)
    arithmetic.compute_into(whole[2:5], np.add, np.array([1.0, 2.0, 3.0]), 1)
    assert whole.tolist() == [0, 0, 2, 3, 4, 0]


def test_options_are_passed_to_the_function():
    out = np.zeros(3)
    arithmetic.compute_into(out, np.sum, np.arange(6.0).reshape(2, 3), axis=0)
    assert out.tolist() == [3, 5, 7]


def test_numpy_functions_are_called_with_out():
    def function(*arguments, out=None):
        seen.append((arguments, out))

    seen, target = [], np.zeros(2)
    arithmetic.compute_into(target, function, 1, 2)
    assert seen == [((1, 2), target)] and seen[0][1] is target


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_function_without_out_is_computed_in_place(dtype):
    """The result is equal, in the memory and the dtype of the array."""
    xp = pytest.importorskip("array_api_strict")
    whole = xp.zeros((3, 4), dtype=getattr(xp, dtype))
    alias = whole[1:, :]
    a = np.arange(6, dtype=dtype).reshape(2, 3)
    b = np.arange(12, dtype=dtype).reshape(3, 4)
    arithmetic.compute_into(alias, xp.matmul, xp.asarray(a), xp.asarray(b))
    expected = np.zeros((3, 4), dtype)
    expected[1:] = [[20, 23, 26, 29], [56, 68, 80, 92]]
    assert np.array_equal(np.asarray(whole), expected) and whole.dtype == getattr(xp, dtype)
    arithmetic.compute_into(alias, xp.sum, xp.asarray(b), axis=0)
    assert np.array_equal(np.asarray(whole)[1], b.sum(axis=0))


@pytest.mark.parametrize("library", ["numpy", "array_api_strict"])
def test_truth_values_are_written_as_numbers(library):
    xp = pytest.importorskip(library)
    out = xp.zeros(3, dtype=xp.float32)
    arithmetic.compute_into(out, xp.greater, xp.asarray([1.0, 2.0, 3.0]), xp.asarray([2.0, 2.0, 2.0]))
    assert np.asarray(out).tolist() == [0, 0, 1] and out.dtype == xp.float32


@pytest.mark.parametrize("library", ["numpy", "array_api_strict"])
def test_sliding_patches_contain_the_pixels_around_each_position(library):
    xp = pytest.importorskip(library)
    images = np.arange(2.0 * 5 * 6 * 3).reshape(2, 5, 6, 3)
    for given in (images, images[:, :4, 1:, ::2]):
        n_channels, height, width, n_rows = given.shape
        found = np.asarray(arithmetic.sliding_patches(xp.asarray(given), 3))
        assert found.shape == (n_channels, 3, 3, height - 2, width - 2, n_rows)
        for c, i, j, y, x, n in np.ndindex(found.shape):
            assert found[c, i, j, y, x, n] == given[c, y + i, x + j, n]


def test_sliding_patches_are_a_view_in_numpy():
    images = np.zeros((1, 4, 4, 2))
    assert np.shares_memory(arithmetic.sliding_patches(images, 3), images)
