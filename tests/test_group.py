"""The counting sort against argsort."""

import numpy as np
import pytest

from jaxrec.group import group


@pytest.mark.parametrize(("n", "size"), [(0, 3), (1, 1), (50, 7), (50, 200)])
def test_group_is_a_stable_argsort_with_starts(n, size):
    ids = np.random.default_rng(0).integers(0, size, n).astype(np.int32)
    start, order = group(ids, size)
    np.testing.assert_array_equal(order, np.argsort(ids, kind="stable"))
    np.testing.assert_array_equal(start, np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=size))]))
