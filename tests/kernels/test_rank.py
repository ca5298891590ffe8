"""Both forms of the rank against a stable sort."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import rank


@pytest.mark.parametrize("form", [rank._at_once, rank._one_by_one])
@pytest.mark.parametrize("m", [1, 3, 4, 29])
def test_is_the_place_in_a_stable_sort(form, m):
    rng = np.random.default_rng(m)
    scores = rng.integers(-2, 3, (5, m)).astype(np.float32)
    scores[0, rng.random(m) < 0.5] = -np.inf
    scores[1, ::2] = -0.0
    ids = rng.integers(0, m, (5, 6))
    place = np.empty((5, m), int)
    for row, order in enumerate(np.argsort(-scores, axis=1, kind="stable")):
        place[row, order] = np.arange(m)
    given = jnp.asarray(scores), jnp.asarray(ids, jnp.int32)
    right = np.take_along_axis(place, ids, axis=1)
    there = np.take_along_axis(scores, ids, axis=1) > -np.inf
    found = form(*given, jnp.take_along_axis(*given, axis=1))
    np.testing.assert_array_equal(np.asarray(found)[there], right[there])
    np.testing.assert_array_equal(np.asarray(rank.ranks(*given))[there], right[there])


@pytest.mark.parametrize("form", [rank._at_once, rank._one_by_one])
def test_neighbors_in_floating_point_are_told_apart(form):
    one = np.float32(1)
    scores = jnp.asarray([[one, np.nextafter(one, np.float32(2)), np.nextafter(one, np.float32(0)), 0.0, 1.2e-38]])
    ids = jnp.arange(5)[None]
    np.testing.assert_array_equal(form(scores, ids, scores), [[1, 0, 2, 4, 3]])
