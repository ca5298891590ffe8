"""The counting sort against argsort, cuts of lengths against all cuts, and ids that native code must not see."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from jaxrec.counting_sort import CHUNK_ENTRIES, divisor_from, group_by, partition


@pytest.mark.parametrize(("n", "size"), [(0, 3), (1, 1), (50, 7), (50, 200)])
def test_group_is_a_stable_argsort_with_starts(n, size):
    ids = np.random.default_rng(0).integers(0, size, n).astype(np.int32)
    start, order = group_by(ids, size)
    np.testing.assert_array_equal(order, np.argsort(ids, kind="stable"))
    np.testing.assert_array_equal(start, np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=size))]))


@pytest.mark.parametrize("wrong", [3, -1, 10**9, -(10**9), 2**31, 2**32 + 1, 2**63 - 1])
def test_ids_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"^ids: expected ids in \[0, 3\), got {wrong} at position 1"):
        group_by(np.array([0, wrong, 2]), 3)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((3, 1), int), np.array(["0"]), np.array([True, False])])
def test_what_is_no_column_of_ids_is_refused(wrong):
    with pytest.raises(ValueError, match=r"^ids: expected"):
        group_by(wrong, 3)


@pytest.mark.parametrize("price", [0, 3, 40, 1e9])
@pytest.mark.parametrize("seed", range(5))
def test_a_partition_is_the_best_of_all(seed, price):
    rng = np.random.default_rng(seed)
    length, count = np.sort(rng.integers(1, 100, 7)), rng.integers(0, 9, 7)

    def cost(runs):
        return sum(count[first:last].sum() * length[last - 1] + price for first, last in runs)

    cuts = [(0, *inner, 7) for n in range(7) for inner in combinations(range(1, 7), n)]
    everything = [list(pairwise(cut)) for cut in cuts]
    found = partition(length, count, price)
    assert found in everything
    assert cost(found) == min(map(cost, everything))


def test_the_smallest_divisor_that_is_long_enough():
    for length in [1, 2, 11, 37, 253, 1681, 5041, 10_080]:
        divisor = divisor_from(length)
        assert CHUNK_ENTRIES % divisor == 0
        assert divisor >= length
        assert not any(CHUNK_ENTRIES % between == 0 for between in range(length, divisor))
    assert divisor_from(4, 315) == 5
