"""The listwise softmax: its loop in NumPy, empty places that hold NaN, lists without anything relevant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec.losses import softmax

RNG = np.random.default_rng(0)
SCORE = RNG.normal(size=(5, 4)) * 3
RELEVANCE = np.array([[1, 0, 0, 0], [1, 0, 3, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1.0]])
WHERE = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], bool)


def by_loops(score, relevance, where, weights):
    total = count = 0.0
    for s, r, there, weight in zip(score, relevance, where, weights, strict=True):
        if (r * there).sum() > 0:
            s, r = s[there], r[there]
            total += weight * -np.sum(r / r.sum() * np.log(np.exp(s) / np.exp(s).sum()))
            count += weight
    return total, count


@pytest.mark.parametrize("where", [None, WHERE], ids=["all", "where"])
@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 7.0, 0.5, 0.0])], ids=["", "weights"])
def test_softmax_is_the_loop(x64, where, weights):
    given = {"where": where, "weights": weights}
    given = {name: None if value is None else jnp.asarray(value) for name, value in given.items()}
    total = softmax.listwise(jnp.asarray(SCORE), jnp.asarray(RELEVANCE), **given)
    there = np.ones_like(WHERE) if where is None else where
    expected = by_loops(SCORE, RELEVANCE, there, np.ones(5) if weights is None else weights)
    np.testing.assert_allclose((total.sum, total.count), expected, rtol=1e-12)
    loss = lambda score: softmax.listwise(jnp.asarray(score), jnp.asarray(RELEVANCE), **given).sum
    np.testing.assert_allclose(jax.jit(loss)(jnp.asarray(SCORE)), total.sum, rtol=1e-12)
    np.testing.assert_allclose(loss(jnp.asarray(SCORE) + jnp.arange(5.0)[:, None]), total.sum, rtol=1e-12)
    check_grads(loss, (jnp.asarray(SCORE),), order=1, modes=["rev"], rtol=1e-6)


def test_what_an_empty_place_holds_reaches_neither_value_nor_gradient():
    loss = lambda score, relevance: softmax.listwise(score, relevance, where=jnp.asarray(WHERE)).sum
    clean = jnp.asarray(np.where(WHERE, SCORE, 0)), jnp.asarray(np.where(WHERE, RELEVANCE, 0))
    clean = tuple(leaf.astype(jnp.float32) for leaf in clean)
    for junk in (jnp.nan, jnp.inf, -jnp.inf, 1e30):
        dirty = tuple(jnp.where(WHERE, leaf, junk) for leaf in clean)
        np.testing.assert_array_equal(loss(*dirty), loss(*clean))
        gradient = jax.grad(loss)(*dirty)
        np.testing.assert_array_equal(gradient, jax.grad(loss)(*clean))
        assert jnp.all(gradient[~WHERE] == 0)
        assert jnp.all(gradient[2:4] == 0)  # nothing relevant


def test_scores_of_any_size():
    score = jnp.array([[1e4, -1e4, 0.0]])
    value, gradient = jax.value_and_grad(lambda s: softmax.listwise(s, jnp.array([[0.0, 1.0, 0.0]])).sum)(score)
    np.testing.assert_allclose(value, 2e4)
    np.testing.assert_allclose(gradient, [[1, -1, 0]])


def test_by_hand():
    """Two of three equal scores relevant: each has the share 1/3, whatever its weight."""
    total = softmax.listwise(jnp.zeros((1, 3)), jnp.array([[1.0, 3.0, 0.0]]))
    np.testing.assert_allclose((total.sum, total.count), (np.log(3), 1), rtol=1e-6)
