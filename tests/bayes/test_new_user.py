"""A new user's posterior against NumPy: the joint normal conditioned by the textbook, weighted by SciPy's densities."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import multivariate_normal, norm

from jaxrec.bayes import ChainState
from jaxrec.bayes.new_user import (
    draws,
    expected_variance_reduction,
    lower_confidence_bound,
    posterior,
    posterior_predictive,
)
from jaxrec.bayes.side_information import SideState

N_ITEMS, K, MU, NODES = 12, 3, 3.2, 4
ITEM, VALUE = np.array([2, 7, 4]), np.array([5, 1, 4])
POSTERIOR, PREDICT, ASK = (jax.jit(f) for f in (posterior, posterior_predictive, expected_variance_reduction))


def states(n=2, chains=2, seed=0, links=()):
    """Draws of nothing, but of the right kind: `links` are the sizes of the groups of users' features."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, chains, K, 2 * K))
    level = lambda size: SideState(
        rows=jnp.asarray(0.7 * rng.normal(size=(n, chains, size, K))),
        mean=jnp.asarray(0.3 * rng.normal(size=(n, chains, K))),
        precision=jnp.asarray(root @ np.swapaxes(root, -1, -2) / K + 0.5 * np.eye(K)),
        row_precision=jnp.asarray(rng.gamma(3, 1 / 3, (n, chains, size))),
        row_precision_shape=jnp.asarray(rng.uniform(1.5, 4, (n, chains))),
        links=tuple(jnp.asarray(0.5 * rng.normal(size=(n, chains, r, K))) for r in links),
        strengths=tuple(jnp.ones((n, chains)) for _ in links),
    )
    alpha = jnp.asarray(rng.uniform(1, 2, (n, chains)))
    together = ChainState(level(5), level(N_ITEMS), alpha, jnp.zeros((n, chains), jnp.int32))
    return [jax.tree.map(lambda a, s=s: a[s], together) for s in range(n)]


def known(n=2, chains=2, *, nodes=NODES, heteroscedastic=True, **kwargs):
    return draws(states(n, chains, **kwargs), mu=MU, heteroscedastic=heteroscedastic, nodes=nodes)


def components(of, item, value, prior=None):
    """[(weight, mean, covariance of (w, b), draw, τ)], from the joint normal of (w, b) and her ratings."""
    of = SimpleNamespace(**{name: np.asarray(a, float) for name, a in vars(of).items() if name != "links"})
    out = []
    for s, (m, precision) in enumerate(zip(of.mean, of.precision, strict=True)):
        m = m if prior is None else prior[s]
        before, x = np.linalg.inv(precision), of.x[item, s]
        for share, tau in zip(of.node_probability, of.node[s], strict=True):
            of_y = x @ before @ x.T + np.diag(1 / (tau * of.noise_precision[item, s]))
            expected, gain = x @ m + of.offset[item, s], before @ x.T @ np.linalg.inv(of_y)
            density = multivariate_normal.logpdf(value, expected, of_y) if len(item) else 0.0
            out.append((share * np.exp(density), m + gain @ (value - expected), before - gain @ x @ before, s, tau))
    total = sum(each[0] for each in out)
    return [(weight / total, *rest) for weight, *rest in out]


def moments(of, mixture):
    """(mean [n_items], C [n_items, n_items], noise [n_items]) of the predictions of all items."""
    parts = []
    for weight, mean, covariance, s, tau in mixture:
        x = np.asarray(of.x)[:, s]
        noise = 1 / (tau * np.asarray(of.noise_precision)[:, s])
        parts.append((weight, x @ mean + np.asarray(of.offset)[:, s], x @ covariance @ x.T, noise))
    mean, noise = sum(p * m for p, m, _, _ in parts), sum(p * n for p, _, _, n in parts)
    return mean, sum(p * (c + np.outer(m - mean, m - mean)) for p, m, c, _ in parts), noise


def as_arrays(mixture, nodes=NODES):
    weight, mean, covariance = (np.array([each[i] for each in mixture]) for i in range(3))
    return weight.reshape(-1, nodes), mean.reshape(-1, nodes, K), covariance.reshape(-1, nodes, K, K)


def same(got, expected, **tol):
    for a, b in zip((jnp.exp(got.log_weight), got.mean, got.covariance), expected, strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-9, "atol": 1e-12} | tol))


# ------------------------------------------------------------------------------------------- the posterior


def test_draws_are_every_chain_of_every_state(x64):
    kept = states(3, 2)
    of = draws(kept, mu=MU, nodes=NODES)
    assert (of.x.shape, of.node.shape, of.node_probability.shape) == ((N_ITEMS, 6, K), (6, NODES), (NODES,))
    state = kept[1]  # its second chain is draw 3
    np.testing.assert_array_equal(of.x[:, 3, :-1], state.items.rows[1, :, :-1])
    np.testing.assert_array_equal(of.x[..., -1], 1)
    np.testing.assert_allclose(of.offset[:, 3], MU + state.items.rows[1, :, -1])
    np.testing.assert_allclose(of.noise_precision[:, 3], state.alpha[1] * state.items.row_precision[1])
    np.testing.assert_array_equal(of.precision[3], state.users.precision[1])
    even = draws(kept, mu=MU, heteroscedastic=False)
    np.testing.assert_array_equal(even.node, np.ones((6, 1)))


def test_ratings_make_the_textbooks_posterior_and_weights(x64):
    of = known()
    same(POSTERIOR(of, ITEM, VALUE), as_arrays(components(of, ITEM, VALUE)))


def test_no_ratings_leave_the_prior(x64):
    of = known()
    got = POSTERIOR(of, np.zeros(3, int), np.full(3, np.nan), np.zeros(3, bool))
    same(got, as_arrays(components(of, ITEM[:0], VALUE[:0])))
    np.testing.assert_allclose(jnp.exp(got.log_weight), np.tile(of.node_probability / 4, (4, 1)), rtol=1e-12)


def test_features_move_the_prior(x64):
    of = known(links=(2, 4))
    z = np.array([0.5, -1.0]), np.array([1.0, 0.0, 2.0, -0.3])
    prior = of.mean + sum(np.einsum("r,srk->sk", *each) for each in zip(z, of.links, strict=True))
    got = POSTERIOR(of, ITEM, VALUE, z=tuple(map(jnp.asarray, z)))
    same(got, as_arrays(components(of, ITEM, VALUE, np.asarray(prior))))


def test_empty_places_are_not_read(x64):
    of = known()
    item, value = np.array([2, -5, 7, 4, 10**6]), np.array([5, np.nan, 1, 4, np.inf])
    got = POSTERIOR(of, item, value, np.array([True, False, True, True, False]))
    same(got, as_arrays(components(of, ITEM, VALUE)))


def test_users_at_once_are_users_one_by_one(x64):
    of, rng = known(), np.random.default_rng(1)
    item, value = rng.integers(0, N_ITEMS, (4, 3)), rng.integers(1, 6, (4, 3))
    where = rng.random((4, 3)) < 0.7
    one = lambda *given: expected_variance_reduction(of, posterior(of, *given))
    together = jax.jit(jax.vmap(one))(item, value, where)
    for user in range(4):
        alone = ASK(of, POSTERIOR(of, item[user], value[user], where[user]))
        np.testing.assert_allclose(together[user], alone, rtol=1e-9)


def test_float32_is_enough():
    of = known(heteroscedastic=True)
    rng = np.random.default_rng(2)
    item, value = rng.permutation(N_ITEMS)[:10].astype(np.int32), rng.integers(1, 6, 10).astype(np.int32)
    got = POSTERIOR(of, item, value)
    same(got, as_arrays(components(of, item, value)), rtol=2e-3, atol=2e-5)
    assert got.mean.dtype == jnp.float32


@pytest.mark.parametrize("a", [2.0, 3.0, 20.0])
def test_twelve_nodes_integrate_her_sureness(x64, a):
    """Of n ratings with squared errors E, with v fixed: the integral of τ^(n/2) exp(-τ E / 2) is known. And 1 / τ's."""
    (state,) = states(1, 1)
    users = dataclasses.replace(state.users, row_precision_shape=jnp.full(1, a))
    of = draws([dataclasses.replace(state, users=users)], mu=MU)
    node, share = np.asarray(of.node[0]), np.asarray(of.node_probability)
    np.testing.assert_allclose(share @ node, 1, rtol=5e-3)
    np.testing.assert_allclose(share @ (1 / node), a / (a - 1), rtol=0.05)
    for n, error in ((3, 2.0), (10, 5.0), (10, 20.0)):
        exact = gammaln(a + n / 2) - gammaln(a) + a * np.log(a) - (a + n / 2) * np.log(a + error / 2)
        got = np.log(share @ (node ** (n / 2) * np.exp(-node * error / 2)))
        np.testing.assert_allclose(got, exact, atol=0.02)


# ------------------------------------------------------------------------------------------- predictions, questions


def test_predictions_have_the_mixtures_moments(x64):
    of = known()
    mean, covariance, noise = moments(of, components(of, ITEM, VALUE))
    got = PREDICT(of, POSTERIOR(of, ITEM, VALUE))
    for a, b in zip(got, (mean, np.diag(covariance), noise), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    some = PREDICT(of, POSTERIOR(of, ITEM, VALUE), np.array([5, 0]))
    np.testing.assert_allclose(some.variance, got.variance[np.array([5, 0])], rtol=1e-9)


def test_the_covariance_that_the_reduction_is_made_of_is_that_of_draws_of_her(x64):
    """With one target, and a rating of it without noise, the reduction of i by j is C(i,j)^2 / C(j,j)."""
    of, rng, n = known(), np.random.default_rng(3), 400_000
    weight, mean, covariance = as_arrays(components(of, ITEM, VALUE))
    count = rng.multinomial(n, weight.ravel())
    said = []
    for i, (m, c) in enumerate(zip(mean.reshape(-1, K), covariance.reshape(-1, K, K), strict=True)):
        v, s = rng.multivariate_normal(m, c, count[i]), i // NODES
        said.append(v @ np.asarray(of.x)[:, s].T + np.asarray(of.offset)[:, s])
    sampled = np.cov(np.concatenate(said).T)
    _, exact, noise = moments(of, components(of, ITEM, VALUE))
    variance = np.diag(exact)
    error = np.sqrt((np.outer(variance, variance) + exact**2) / n)
    np.testing.assert_array_less(np.abs(sampled - exact), 8 * error)  # the mixture's tails are wider than a normal's
    mixture = POSTERIOR(of, ITEM, VALUE)
    expected = exact**2 / (variance + noise)[None, :]
    got = np.stack([ASK(of, mixture, None, jnp.array([target])) for target in range(N_ITEMS)])
    np.testing.assert_allclose(got, expected, rtol=1e-8)
    importance = rng.random(3)
    some = ASK(of, mixture, np.array([8, 1]), np.array([0, 5, 9]), weights=importance)
    np.testing.assert_allclose(some, importance @ expected[[0, 5, 9]][:, [8, 1]], rtol=1e-8)
    small = expected_variance_reduction(of, mixture, batch_size=5)  # 5 + 5 + 2
    np.testing.assert_allclose(small, expected.sum(axis=0), rtol=1e-8)


def test_of_one_normal_the_expected_reduction_is_the_reduction_whatever_she_answers(x64):
    of = known(1, 1, heteroscedastic=False)
    before = POSTERIOR(of, ITEM, VALUE)
    expected = ASK(of, before)
    for asked, answer in ((0, 1.0), (0, 5.0), (9, 3.0)):
        after = POSTERIOR(of, np.append(ITEM, asked), np.append(VALUE.astype(float), answer))
        fall = PREDICT(of, before).variance - PREDICT(of, after).variance
        np.testing.assert_allclose(expected[asked], jnp.sum(fall), rtol=1e-9)


def test_of_a_mixture_the_best_predictor_does_no_worse_than_expected(x64):
    """Over answers drawn from her own predictive distribution: the mean fall is at least what was said."""
    of, rng, n = known(), np.random.default_rng(4), 3000
    mixture, asked = components(of, ITEM, VALUE), 9
    each = rng.choice(len(mixture), n, p=[part[0] for part in mixture])
    x, offset, noise_precision = (np.asarray(a)[asked] for a in (of.x, of.offset, of.noise_precision))
    answers = []
    for i in each:
        _, mean, covariance, s, tau = mixture[i]
        of_v, noise = x[s] @ covariance @ x[s], 1 / (tau * noise_precision[s])
        answers.append(rng.normal(x[s] @ mean + offset[s], np.sqrt(of_v + noise)))
    item = jnp.asarray(np.append(ITEM, asked))
    spread = lambda y: jnp.sum(
        posterior_predictive(of, posterior(of, item, jnp.append(jnp.asarray(VALUE, float), y))).variance
    )
    after = np.asarray(jax.jit(jax.vmap(spread))(jnp.asarray(answers)))
    before = POSTERIOR(of, ITEM, VALUE)
    fall = float(jnp.sum(PREDICT(of, before).variance)) - after
    assert float(ASK(of, before)[asked]) < fall.mean() + 4 * fall.std() / np.sqrt(n)


def test_the_lower_bound_is_passed_with_its_probability():
    mean, deviation = jnp.array([3.0, 4.0]), jnp.array([0.5, 2.0])
    bound = lower_confidence_bound(mean, deviation, 0.9)
    np.testing.assert_allclose(norm.sf(bound, mean, deviation), 0.9, rtol=1e-5)
    np.testing.assert_array_equal(lower_confidence_bound(mean, deviation, 0.5), mean)
    assert int(jnp.argmax(mean)) != int(jnp.argmax(bound))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda of: draws([], mu=MU), "states: expected at least one"),
        (lambda of: draws(states(), mu=MU, nodes=0), "nodes: expected at least 1, got 0"),
        (lambda of: draws([jax.tree.map(lambda a: a[0], states()[0])], mu=MU), r"\[chains, n_items, k\]"),
        (lambda of: posterior(of, jnp.asarray(ITEM), jnp.asarray(VALUE[:2])), "expected arrays of one shape"),
        (
            lambda of: posterior(of, jnp.asarray(ITEM), jnp.asarray(VALUE), z=(jnp.ones(2),)),
            r"lengths \[\], one row per group, got \[2\]",
        ),
        (
            lambda of: expected_variance_reduction(of, POSTERIOR(of, ITEM, VALUE), weights=jnp.ones(2)),
            "each of 12 targets, got 2",
        ),
        (
            lambda of: expected_variance_reduction(of, POSTERIOR(of, ITEM, VALUE), batch_size=0),
            "batch_size: expected at least 1",
        ),
        (
            lambda of: lower_confidence_bound(jnp.ones(2), jnp.ones(2), 1.0),
            r"level: expected a number in \(0, 1\), got 1.0",
        ),
        (lambda of: lower_confidence_bound(jnp.ones(2), jnp.ones((2, 1)), 0.9), "expected arrays of one shape"),
    ],
)
def test_wrong_input_is_said(wrong, message, as_users_run):
    with pytest.raises(ValueError, match=message):
        wrong(known())
