"""Every form of the rank against a stable sort."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import rank_by_count

FORMS = [rank_by_count._compare_all, rank_by_count._count_all]
# one program of a shape, in place of one of each operation
RANKS = jax.jit(rank_by_count.ranks, static_argnums=2)
COUNT_SHORTLIST = jax.jit(rank_by_count._count_shortlist, static_argnames="k")


def places(scores):
    """Of each row of a column, its place in a stable descending sort."""
    out = np.empty(scores.shape, int)
    for column, order in enumerate(np.argsort(-scores, axis=0, kind="stable").T):
        out[order, column] = np.arange(len(order))
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("m", [1, 3, 4, 29])
def test_is_the_place_in_a_stable_sort(form, m):
    rng = np.random.default_rng(m)
    scores = rng.integers(-2, 3, (m, 5)).astype(np.float32)
    scores[rng.random(m) < 0.5, 0] = -np.inf
    scores[::2, 1] = -0.0
    ids = rng.integers(0, m, (6, 5))
    given = jnp.asarray(scores), jnp.asarray(ids, jnp.int32)
    right = np.take_along_axis(places(scores), ids, axis=0)
    there = np.take_along_axis(scores, ids, axis=0) > -np.inf
    found = form(*given, jnp.take_along_axis(*given, axis=0))
    np.testing.assert_array_equal(np.asarray(found)[there], right[there])
    np.testing.assert_array_equal(np.asarray(rank_by_count.ranks(*given, m))[there], right[there])


@pytest.mark.parametrize("form", [*FORMS, partial(rank_by_count._count_shortlist, k=5)])
def test_neighbors_in_floating_point_are_told_apart(form):
    one = np.float32(1)
    scores = np.full((70, 1), -1, np.float32)
    scores[:5, 0] = one, np.nextafter(one, np.float32(2)), np.nextafter(one, np.float32(0)), 0.0, 1.2e-38
    ids = jnp.arange(5)[:, None]
    np.testing.assert_array_equal(form(jnp.asarray(scores), ids, jnp.asarray(scores[:5])).T, [[1, 0, 2, 4, 3]])


@pytest.mark.parametrize("spread", [3, 40, 10**6])  # with the first, more tie with the k-th than the shortlist holds
@pytest.mark.parametrize("k", [1, 4, 20])
def test_ranks_below_k_are_right_and_the_others_are_not_below(spread, k):
    rng = np.random.default_rng(k)
    scores = rng.integers(-spread, spread + 1, (300, 9)).astype(np.float32)
    scores[rng.random(300) < 0.3, 0] = -np.inf
    scores[k // 2 :, 1] = -np.inf  # fewer than k are there
    ids = np.argsort(rng.random((300, 9)), axis=0)[:150]
    mine, right = np.take_along_axis(scores, ids, axis=0), np.take_along_axis(places(scores), ids, axis=0)
    given = jnp.asarray(scores), jnp.asarray(ids, jnp.int32)
    for found in map(np.asarray, (RANKS(*given, k), COUNT_SHORTLIST(*given, jnp.asarray(mine), k=k))):
        low = (mine > -np.inf) & (right < k)
        np.testing.assert_array_equal(found[low], right[low])
        assert (found[(mine > -np.inf) & (right >= k)] >= k).all()
