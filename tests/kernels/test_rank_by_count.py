"""Every form of the ranks against a stable descending sort."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import rank_by_count

FORMS = [rank_by_count._compare_all, rank_by_count._count_all]
# Compiled as one program per shape, instead of one per operation.
RANKS = jax.jit(rank_by_count.ranks, static_argnums=2)
COUNT_SHORTLIST = jax.jit(rank_by_count._count_shortlist, static_argnames="k")


def ranks_by_sorting(scores):
    """The rank of each score in a stable descending sort of its column."""
    out = np.empty(scores.shape, int)
    for column, order in enumerate(np.argsort(-scores, axis=0, kind="stable").T):
        out[order, column] = np.arange(len(order))
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("m", [1, 3, 4, 29])
def test_ranks_equal_the_positions_in_a_stable_sort(form, m):
    rng = np.random.default_rng(m)
    scores = rng.integers(-2, 3, (m, 5)).astype(np.float32)
    scores[rng.random(m) < 0.5, 0] = -np.inf
    scores[::2, 1] = -0.0
    ids = rng.integers(0, m, (6, 5))
    args = jnp.asarray(scores), jnp.asarray(ids, jnp.int32)
    expected = np.take_along_axis(ranks_by_sorting(scores), ids, axis=0)
    valid = np.take_along_axis(scores, ids, axis=0) > -np.inf
    found = form(*args, jnp.take_along_axis(*args, axis=0))
    np.testing.assert_array_equal(np.asarray(found)[valid], expected[valid])
    np.testing.assert_array_equal(np.asarray(rank_by_count.ranks(*args, m))[valid], expected[valid])


@pytest.mark.parametrize("form", [*FORMS, partial(rank_by_count._count_shortlist, k=5)])
def test_adjacent_floating_point_numbers_have_different_ranks(form):
    one = np.float32(1)
    scores = np.full((70, 1), -1, np.float32)
    scores[:5, 0] = one, np.nextafter(one, np.float32(2)), np.nextafter(one, np.float32(0)), 0.0, 1.2e-38
    ids = jnp.arange(5)[:, None]
    np.testing.assert_array_equal(form(jnp.asarray(scores), ids, jnp.asarray(scores[:5])).T, [[1, 0, 2, 4, 3]])


# With scores of -3 to 3, more scores tie with the k-th than the shortlist has room for.
@pytest.mark.parametrize("max_score", [3, 40, 10**6])
@pytest.mark.parametrize("k", [1, 4, 20])
def test_ranks_below_k_are_exact_and_all_others_are_at_least_k(max_score, k):
    rng = np.random.default_rng(k)
    scores = rng.integers(-max_score, max_score + 1, (300, 9)).astype(np.float32)
    scores[rng.random(300) < 0.3, 0] = -np.inf
    scores[k // 2 :, 1] = -np.inf  # fewer than k scores above -inf
    ids = np.argsort(rng.random((300, 9)), axis=0)[:150]
    id_scores = np.take_along_axis(scores, ids, axis=0)
    expected = np.take_along_axis(ranks_by_sorting(scores), ids, axis=0)
    args = jnp.asarray(scores), jnp.asarray(ids, jnp.int32)
    for found in map(np.asarray, (RANKS(*args, k), COUNT_SHORTLIST(*args, jnp.asarray(id_scores), k=k))):
        valid = id_scores > -np.inf
        below_k = valid & (expected < k)
        np.testing.assert_array_equal(found[below_k], expected[below_k])
        assert (found[valid & (expected >= k)] >= k).all()
