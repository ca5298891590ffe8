"""Every form of the exact search gives what one stable sort of all scores gives: values, ids, ties, empty places."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import topk
from jaxrec.retrieval import cosine, dot, negative_squared_distance

# (items, k, block): the two passes, with whole and ragged blocks and groups; merging, where k or blocks forbid groups
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


def draw(n, m, seed=0, d=4, spread=3):
    """Small integers, so that most scores tie and no sum rounds."""
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.integers(-spread, spread + 1, (rows, d)), jnp.float32) for rows in (n, m))


def filters(n, m, e, seed=1):
    rng = np.random.default_rng(seed)
    exclude = jnp.asarray(rng.integers(0, m, (n, e)), jnp.int32), jnp.asarray(rng.random((n, e)) < 0.8)
    return exclude, jnp.asarray(rng.random(m) < 0.7)


def same(found, right):
    np.testing.assert_array_equal(found[0], right[0])
    np.testing.assert_array_equal(found[1], right[1])
    assert found[1].dtype == jnp.int32


@pytest.mark.parametrize(("m", "k", "block"), SIZES)
@pytest.mark.parametrize("filtered", [False, True])
def test_two_passes_are_one_sort(m, k, block, filtered):
    queries, items = draw(5, m)
    exclude, allowed = filters(5, m, 40) if filtered else (None, None)
    same(
        topk.two_pass(queries, items, exclude, allowed, score=dot, k=k, block=block),
        topk.reference(queries, items, exclude, allowed, score=dot, k=k),
    )


@pytest.mark.parametrize("n", [63, 64, 65, 130])
def test_many_queries_go_in_parts(n):
    queries, items = draw(n, 600)
    exclude, allowed = filters(n, 600, 10)
    same(
        topk.two_pass(queries, items, exclude, allowed, score=dot, k=4, block=128),
        topk.reference(queries, items, exclude, allowed, score=dot, k=4),
    )


@pytest.mark.parametrize("score", [cosine, negative_squared_distance])
def test_other_scores(score):
    queries, items = draw(3, 800)
    right = topk.reference(queries, items, None, None, score=score, k=6)
    found = topk.two_pass(queries, items, None, None, score=score, k=6, block=256)
    np.testing.assert_allclose(found[0], right[0], rtol=1e-6)


def test_whole_groups_and_blocks_may_be_closed():
    queries, items = draw(2, 1000)
    allowed = jnp.zeros(1000, bool).at[jnp.array([40, 41, 999])].set(True)
    exclude = jnp.array([[40, 5], [999, 41]]), jnp.array([[True, True], [True, False]])
    found = topk.two_pass(queries, items, exclude, allowed, score=dot, k=4, block=256)
    same(found, topk.reference(queries, items, exclude, allowed, score=dot, k=4))
    assert (found[0] > -jnp.inf).sum(axis=1).tolist() == [2, 2]


def test_the_last_block_begins_early_and_gives_nothing_twice():
    items = jnp.zeros((997, 2)).at[960:].set(1.0)  # the best stand where blocks of 256 overlap: 741 on
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
