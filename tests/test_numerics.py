"""For infinite logits and scores, values and gradients are the limits of the finite ones, and never NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import losses, metrics
from jaxrec.losses import softmax
from jaxrec.numerics import binary_cross_entropy, log_softmax

LOGITS = [-np.inf, -3e38, -1e30, -200.0, -20.0, -1.0, -1e-30, 0.0, 1e-30, 0.5, 20.0, 200.0, 1e30, 3e38, np.inf]


def exact(z, y):
    """The binary cross-entropy in float64, with separate cases for infinite logits."""
    softplus = lambda t: np.logaddexp(0, t)
    with np.errstate(invalid="ignore", over="ignore"):
        return (y * softplus(-z) if y > 0 else 0) + ((1 - y) * softplus(z) if y < 1 else 0)


@pytest.mark.parametrize("y", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("z", LOGITS)
def test_binary_cross_entropy_and_its_gradients_equal_float64(z, y):
    z32, y32 = jnp.float32(z), jnp.float32(y)
    np.testing.assert_allclose(binary_cross_entropy(z32, y32), np.float32(exact(z, y)), rtol=2e-6)
    slope = jax.grad(binary_cross_entropy)(z32, y32)
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-np.clip(z, -700, 700))) - y, rtol=1e-5, atol=1e-6)
    assert np.isfinite(jax.grad(jax.grad(binary_cross_entropy))(z32, y32))
    if np.isfinite(z):
        np.testing.assert_allclose(jax.grad(binary_cross_entropy, 1)(z32, y32), -np.float32(z), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", ["logistic", "log_loss"])
def test_an_infinite_logit_of_the_correct_sign_costs_nothing(function):
    z, y = jnp.array([jnp.inf, -jnp.inf, 0.0]), jnp.array([1.0, 0.0, 1.0])
    value = (
        (lambda z, w=None: losses.logistic(z, y, weights=w).sum / 3)
        if function == "logistic"
        else (lambda z, w=None: metrics.log_loss(z, y, weights=w))
    )
    assert float(value(z)) == pytest.approx(np.log(2) / 3)
    assert np.isfinite(jax.grad(value)(z)).all()
    wrong = z.at[0].set(-jnp.inf)
    assert float(value(wrong)) == np.inf
    assert np.isfinite(jax.grad(value)(wrong)).all()
    weights = jnp.array([0.0, 1.0, 2.0])  # an entry of weight 0 may have an infinite loss
    assert np.isfinite(value(wrong, weights))
    assert np.isfinite(jax.grad(value)(wrong, weights)).all()


SCORES = st.sampled_from([-np.inf, -1e30, -5.0, 0.0, 1.0, 1.0, 80.0, 3e38, np.inf])


def probabilities(score, where):
    """The softmax probabilities in float64, with separate cases for infinite scores."""
    out, s = np.zeros(len(score)), np.where(where, score, -np.inf)
    if not where.any():
        return out
    top = s.max()
    if np.isinf(top):
        return (where & (s == top)) / (where & (s == top)).sum()
    with np.errstate(over="ignore"):
        e = np.exp(s - top)
    return e / e.sum()


# jitted, so that one program per shape is compiled instead of one per operation
LOG_SOFTMAX = jax.jit(log_softmax)
GRADIENT_OF_FINITE_ENTRIES = jax.jit(
    jax.grad(lambda score, where: jnp.sum(jnp.where(jnp.isneginf(lp := log_softmax(score, where)), 0, lp)))
)
LISTWISE = jax.jit(jax.value_and_grad(lambda score, relevance: losses.softmax.listwise(score, relevance).sum))


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_log_softmax_equals_the_probabilities_in_float64(entries):
    score, where = (np.array(column) for column in zip(*entries, strict=True))
    score, where = score.astype(np.float32), where.astype(bool)
    found = LOG_SOFTMAX(score, where)
    np.testing.assert_allclose(
        np.exp(np.float64(found)), probabilities(np.float64(score), where), rtol=1e-5, atol=1e-30
    )
    assert np.isfinite(GRADIENT_OF_FINITE_ENTRIES(score, where)).all()


def test_log_softmax_returns_nan_for_an_unmasked_nan():
    found = log_softmax(jnp.array([1.0, jnp.nan, 0.0]), jnp.array([True, True, False]))
    assert np.isnan(found[:2]).all()
    assert np.isfinite(log_softmax(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))[0])


@given(st.lists(st.lists(SCORES, min_size=3, max_size=3), min_size=1, max_size=3), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_the_listwise_softmax_is_never_nan(lists, right):
    score, relevance = jnp.array(lists, jnp.float32), jnp.zeros((len(lists), 3)).at[:, right].set(1)
    value, gradient = LISTWISE(score, relevance)
    expected = [probabilities(np.float64(np.float32(s)), np.ones(3, bool))[right] for s in lists]
    if min(expected) > 1e-300:
        np.testing.assert_allclose(value, -np.log(expected).sum(), rtol=1e-4, atol=1e-5)
    else:
        assert float(value) > 600
    assert np.isfinite(gradient).all()


def test_an_item_of_log_q_minus_infinity_changes_neither_loss_nor_gradient():
    v = jax.random.normal(jax.random.key(0), (2, 5, 4))
    log_q = jnp.log(jnp.array([0.1, 0.2, 0.0, 0.3, 0.4]))
    item = jnp.arange(5)
    rest = jnp.array([0, 1, 3, 4])
    total = softmax.in_batch(*v, item, log_q=log_q)
    alone = softmax.in_batch(*v[:, rest], item[rest], log_q=log_q[rest])
    np.testing.assert_allclose(total.sum, alone.sum, rtol=1e-6)
    assert (float(total.count), float(alone.count)) == (5, 4)
    gradient = jax.grad(lambda v: softmax.in_batch(*v, item, log_q=log_q).sum)(v)
    by_rest = jax.grad(lambda v: softmax.in_batch(*v[:, rest], item[rest], log_q=log_q[rest]).sum)(v)
    np.testing.assert_allclose(gradient, by_rest, atol=1e-6)
    for wrong in (np.inf, np.nan):
        with pytest.raises(ValueError, match="log_q: expected logarithms of probabilities"):
            softmax.in_batch(*v, item, log_q=log_q.at[0].set(wrong))


@pytest.mark.parametrize("count", [[0, 0], [-1, 2], [np.nan, 1.0], [np.inf, 1.0]])
def test_log_popularity_refuses_counts_that_are_no_counts(count):
    with pytest.raises(ValueError, match="count: expected finite numbers >= 0"):
        softmax.log_popularity(np.array(count))
