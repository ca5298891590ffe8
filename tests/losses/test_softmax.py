"""The listwise softmax: against a loop in NumPy; masked NaN, lists without relevant items."""

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
    for s, r, valid, weight in zip(score, relevance, where, weights, strict=True):
        if (r * valid).sum() > 0:
            s, r = s[valid], r[valid]
            total += weight * -np.sum(r / r.sum() * np.log(np.exp(s) / np.exp(s).sum()))
            count += weight
    return total, count


@pytest.mark.parametrize("where", [None, WHERE], ids=["no mask", "mask"])
@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 7.0, 0.5, 0.0])], ids=["no weights", "weights"])
def test_listwise_softmax_equals_the_loop_with_its_derivative(x64, where, weights):
    as_jax = lambda array: None if array is None else jnp.asarray(array)
    options = {"where": as_jax(where), "weights": as_jax(weights)}
    total = softmax.listwise(jnp.asarray(SCORE), jnp.asarray(RELEVANCE), **options)
    valid = np.ones_like(WHERE) if where is None else where
    expected = by_loops(SCORE, RELEVANCE, valid, np.ones(5) if weights is None else weights)
    np.testing.assert_allclose((total.sum, total.count), expected, rtol=1e-12)
    loss = lambda score: softmax.listwise(jnp.asarray(score), jnp.asarray(RELEVANCE), **options).sum
    np.testing.assert_allclose(jax.jit(loss)(jnp.asarray(SCORE)), total.sum, rtol=1e-12)
    np.testing.assert_allclose(loss(jnp.asarray(SCORE) + jnp.arange(5.0)[:, None]), total.sum, rtol=1e-12)
    check_grads(loss, (jnp.asarray(SCORE),), order=1, modes=["rev"], rtol=1e-6)


def test_masked_garbage_changes_neither_value_nor_gradient():
    loss = lambda score, relevance: softmax.listwise(score, relevance, where=jnp.asarray(WHERE)).sum
    clean = jnp.asarray(np.where(WHERE, SCORE, 0)), jnp.asarray(np.where(WHERE, RELEVANCE, 0))
    clean = tuple(leaf.astype(jnp.float32) for leaf in clean)
    for garbage in (jnp.nan, jnp.inf, -jnp.inf, 1e30):
        spoiled = tuple(jnp.where(WHERE, leaf, garbage) for leaf in clean)
        np.testing.assert_array_equal(loss(*spoiled), loss(*clean))
        gradient = jax.grad(loss)(*spoiled)
        np.testing.assert_array_equal(gradient, jax.grad(loss)(*clean))
        assert jnp.all(gradient[~WHERE] == 0)
        assert jnp.all(gradient[2:4] == 0)  # lists without relevant items


def test_value_and_gradient_of_extreme_scores_are_exact():
    score = jnp.array([[1e4, -1e4, 0.0]])
    value, gradient = jax.value_and_grad(lambda s: softmax.listwise(s, jnp.array([[0.0, 1.0, 0.0]])).sum)(score)
    np.testing.assert_allclose(value, 2e4)
    np.testing.assert_allclose(gradient, [[1, -1, 0]])


def test_equal_scores_cost_log_of_the_length_of_the_list():
    """Each of three equal scores has probability 1/3, however relevant the items are."""
    total = softmax.listwise(jnp.zeros((1, 3)), jnp.array([[1.0, 3.0, 0.0]]))
    np.testing.assert_allclose((total.sum, total.count), (np.log(3), 1), rtol=1e-6)
