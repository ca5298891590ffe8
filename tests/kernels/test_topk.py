"""The exact search by two passes equals one stable sort of all scores: values, ids, ties, unfilled positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import topk
from jaxrec.retrieval import cosine, dot, negative_squared_distance
from tests import reference

# (items, k, block): two passes, with full and partial blocks and groups; and a merge of the best of each block, where k
# is too large or the blocks are too small for groups of items.
SIZES = [
    (1000, 3, 256),
    (1000, 3, 250),
    (1001, 15, 64),
    (1537, 7, 512),
    (900, 1, 33),
    (700, 10, 7),
    (700, 300, 128),
    (700, 700, 700),
    (2000, 10, 2000),
    (65, 1, 64),
    (33, 2, 32),
]


def integer_vectors(n, m, seed=0, d=4, largest=3):
    """Queries and items of small integers, so that most scores tie and no sum is rounded."""
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.integers(-largest, largest + 1, (rows, d)), jnp.float32) for rows in (n, m))


def random_filters(n, m, e, seed=1):
    """Exclusions of e ids per query, some of them masked, and the items that are allowed."""
    rng = np.random.default_rng(seed)
    exclude = jnp.asarray(rng.integers(0, m, (n, e)), jnp.int32), jnp.asarray(rng.random((n, e)) < 0.8)
    return exclude, jnp.asarray(rng.random(m) < 0.7)


@pytest.mark.parametrize(("m", "k", "block"), SIZES)
@pytest.mark.parametrize("filtered", [False, True])
def test_two_passes_equal_one_sort(m, k, block, filtered):
    queries, items = integer_vectors(5, m)
    exclude, allowed = random_filters(5, m, 40) if filtered else (None, None)
    reference.assert_same_top_k(
        topk.two_pass(queries, items, exclude, allowed, score=dot, k=k, block=block),
        topk.reference(queries, items, exclude, allowed, score=dot, k=k),
    )


@pytest.mark.parametrize("n", [63, 64, 65, 130])
def test_queries_searched_in_several_batches_equal_one_sort(n):
    queries, items = integer_vectors(n, 600)
    exclude, allowed = random_filters(n, 600, 10)
    reference.assert_same_top_k(
        topk.two_pass(queries, items, exclude, allowed, score=dot, k=4, block=128),
        topk.reference(queries, items, exclude, allowed, score=dot, k=4),
    )


@pytest.mark.parametrize("score", [cosine, negative_squared_distance])
def test_other_scores_equal_one_sort(score):
    queries, items = integer_vectors(3, 800)
    expected = topk.reference(queries, items, None, None, score=score, k=6)
    found = topk.two_pass(queries, items, None, None, score=score, k=6, block=256)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)


def test_all_items_of_a_group_or_block_may_be_excluded():
    queries, items = integer_vectors(2, 1000)
    allowed = jnp.zeros(1000, bool).at[jnp.array([40, 41, 999])].set(True)
    exclude = jnp.array([[40, 5], [999, 41]]), jnp.array([[True, True], [True, False]])
    found = topk.two_pass(queries, items, exclude, allowed, score=dot, k=4, block=256)
    reference.assert_same_top_k(found, topk.reference(queries, items, exclude, allowed, score=dot, k=4))
    assert (found[0] > -jnp.inf).sum(axis=1).tolist() == [2, 2]


def test_items_of_the_partial_last_block_are_found_once():
    items = jnp.zeros((997, 2)).at[960:].set(1.0)  # the best items are in the last block, of 229 items in place of 256
    found = topk.two_pass(jnp.ones((1, 2)), items, None, None, score=dot, k=10, block=256)
    assert found[1][0].tolist() == list(range(960, 970))
    seen = jnp.arange(960, 968)[None], jnp.ones((1, 8), bool)
    found = topk.two_pass(jnp.ones((1, 2)), items, seen, None, score=dot, k=10, block=256)
    assert found[1][0].tolist() == list(range(968, 978))


def test_minus_zero_ties_with_zero_in_both_passes():
    items = jnp.where(jnp.arange(640) % 2 == 0, -0.0, 0.0)[:, None]
    _, ids = topk.two_pass(jnp.ones((1, 1)), items, None, None, score=dot, k=5, block=64)
    assert ids[0].tolist() == [0, 1, 2, 3, 4]


def test_float64_is_searched_in_float64(x64):
    items = 1 + jnp.arange(640, dtype=jnp.float64)[:, None] * 1e-12
    _, ids = topk.two_pass(jnp.ones((1, 1), jnp.float64), items, None, None, score=dot, k=3, block=128)
    assert ids[0].tolist() == [639, 638, 637]
