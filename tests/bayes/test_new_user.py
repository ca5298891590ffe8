"""A new user's posterior against NumPy: conditioning of the joint normal, with weights by SciPy's densities."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import multivariate_normal, norm

from jaxrec.bayes import ChainState, basis
from jaxrec.bayes.new_user import (
    draws,
    expected_variance_reduction,
    lower_confidence_bound,
    posterior,
    posterior_predictive,
)
from jaxrec.bayes.side_information import SideState

N_USERS, N_ITEMS, K, MU, N_NODES = 5, 12, 3, 3.2, 4
ITEM, VALUE = np.array([2, 7, 4]), np.array([5, 1, 4])  # the new user's ratings
# Jitted once for all tests.
POSTERIOR, PREDICT, REDUCTION = (jax.jit(f) for f in (posterior, posterior_predictive, expected_variance_reduction))


def random_states(n=2, chains=2, seed=0, n_features=()):
    """Random states of the right shapes; `n_features` are the sizes of the groups of user features."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, chains, K, 2 * K))
    side = lambda size: SideState(
        rows=jnp.asarray(0.7 * rng.normal(size=(n, chains, size, K))),
        mean=jnp.asarray(0.3 * rng.normal(size=(n, chains, K))),
        precision=jnp.asarray(root @ np.swapaxes(root, -1, -2) / K + 0.5 * np.eye(K)),
        row_precision=jnp.asarray(rng.gamma(3, 1 / 3, (n, chains, size))),
        row_precision_shape=jnp.asarray(rng.uniform(1.5, 4, (n, chains))),
        link_matrices=tuple(jnp.asarray(0.5 * rng.normal(size=(n, chains, r, K))) for r in n_features),
        strengths=tuple(jnp.ones((n, chains)) for _ in n_features),
    )
    alpha = jnp.asarray(rng.uniform(1, 2, (n, chains)))
    stacked = ChainState(side(N_USERS), side(N_ITEMS), alpha, jnp.zeros((n, chains), jnp.int32))
    return [jax.tree.map(lambda a, s=s: a[s], stacked) for s in range(n)]


def random_draws(n=2, chains=2, *, nodes=N_NODES, heteroscedastic=True):
    return draws(random_states(n, chains), mu=MU, heteroscedastic=heteroscedastic, nodes=nodes)


def components(packed, item, value, prior_mean=None):
    """[(weight, mean, covariance of (w, b), draw, τ)], from the joint normal of the user's (w, b) and ratings."""
    arrays = {name: np.asarray(a, float) for name, a in vars(packed).items() if not isinstance(a, tuple)}
    packed, out = SimpleNamespace(**arrays), []
    for s, (m, precision) in enumerate(zip(packed.mean, packed.precision, strict=True)):
        m = m if prior_mean is None else prior_mean[s]
        prior_covariance, x = np.linalg.inv(precision), packed.x[item, s]
        for probability, tau in zip(packed.node_probability, packed.node[s], strict=True):
            noise = np.diag(1 / (tau * packed.noise_precision[item, s]))
            value_covariance = x @ prior_covariance @ x.T + noise
            expected, gain = x @ m + packed.offset[item, s], prior_covariance @ x.T @ np.linalg.inv(value_covariance)
            log_density = multivariate_normal.logpdf(value, expected, value_covariance) if len(item) else 0.0
            mean, covariance = m + gain @ (value - expected), prior_covariance - gain @ x @ prior_covariance
            out.append((probability * np.exp(log_density), mean, covariance, s, tau))
    total = sum(weight for weight, *_ in out)
    return [(weight / total, *rest) for weight, *rest in out]


def prediction_moments(packed, mixture):
    """(mean [n_items], covariance [n_items, n_items], noise variance [n_items]) of the predictions of all items."""
    parts = []
    for weight, mean, covariance, s, tau in mixture:
        x = np.asarray(packed.x)[:, s]
        noise = 1 / (tau * np.asarray(packed.noise_precision)[:, s])
        parts.append((weight, x @ mean + np.asarray(packed.offset)[:, s], x @ covariance @ x.T, noise))
    mean, noise = sum(p * m for p, m, _, _ in parts), sum(p * n for p, _, _, n in parts)
    return mean, sum(p * (c + np.outer(m - mean, m - mean)) for p, m, c, _ in parts), noise


def as_arrays(mixture, nodes=N_NODES):
    """Weights [S, T], means [S, T, k] and covariances [S, T, k, k] of `components`."""
    weight, mean, covariance = (np.array([component[i] for component in mixture]) for i in range(3))
    return weight.reshape(-1, nodes), mean.reshape(-1, nodes, K), covariance.reshape(-1, nodes, K, K)


def assert_mixture(got, expected, **tolerances):
    for a, b in zip((jnp.exp(got.log_weight), got.mean, got.covariance), expected, strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-9, "atol": 1e-12} | tolerances))


# ------------------------------------------------------------------------------------------- the posterior


def test_draws_pack_every_chain_of_every_state(x64):
    states = random_states(3, 2)
    packed = draws(states, mu=MU, nodes=N_NODES)
    assert packed.x.shape == (N_ITEMS, 6, K)
    assert (packed.node.shape, packed.node_probability.shape) == ((6, N_NODES), (N_NODES,))
    state = states[1]  # its second chain is draw 3
    np.testing.assert_array_equal(packed.x[:, 3, :-1], state.items.rows[1, :, :-1])
    np.testing.assert_array_equal(packed.x[..., -1], 1)
    np.testing.assert_allclose(packed.offset[:, 3], MU + state.items.rows[1, :, -1])
    np.testing.assert_allclose(packed.noise_precision[:, 3], state.alpha[1] * state.items.row_precision[1])
    np.testing.assert_array_equal(packed.precision[3], state.users.precision[1])
    homoscedastic = draws(states, mu=MU, heteroscedastic=False)
    np.testing.assert_array_equal(homoscedastic.node, np.ones((6, 1)))


def test_posterior_is_that_of_the_joint_normal(x64):
    packed = random_draws()
    assert_mixture(POSTERIOR(packed, ITEM, VALUE), as_arrays(components(packed, ITEM, VALUE)))


def test_posterior_without_ratings_is_the_prior(x64):
    packed = random_draws()
    got = POSTERIOR(packed, np.zeros(3, int), np.full(3, np.nan), np.zeros(3, bool))
    assert_mixture(got, as_arrays(components(packed, ITEM[:0], VALUE[:0])))
    np.testing.assert_allclose(jnp.exp(got.log_weight), np.tile(packed.node_probability / 4, (4, 1)), rtol=1e-12)


@pytest.mark.parametrize("as_basis", [True, False])
def test_features_shift_the_prior_mean(x64, as_basis):
    """m + the sum over groups of L' z, where z are the user's features in the basis of the sampler's features."""
    rng, sizes = np.random.default_rng(5), (2, 4)
    tables = [rng.normal(size=(N_USERS, size)) + 1.5 for size in sizes]
    bases, states = [basis(table) for table in tables], random_states(n_features=sizes)
    packed = draws(states, mu=MU, features=bases if as_basis else tables, nodes=N_NODES)
    user_features = tuple(rng.normal(size=size) for size in sizes)
    prior_mean = np.concatenate([state.users.mean for state in states])
    for g, (b, f) in enumerate(zip(bases, user_features, strict=True)):
        z = (f - np.asarray(b.center)) @ np.asarray(b.rotation)
        link_matrices = np.concatenate([state.users.link_matrices[g] for state in states])
        prior_mean = prior_mean + np.einsum("r,srk->sk", z, link_matrices)
    got = POSTERIOR(packed, ITEM, VALUE, features=user_features)
    assert_mixture(got, as_arrays(components(packed, ITEM, VALUE, prior_mean)))
    at_center = POSTERIOR(packed, ITEM, VALUE, features=packed.center)  # unknown features
    assert_mixture(at_center, as_arrays(components(packed, ITEM, VALUE)))


def test_masked_entries_are_ignored(x64):
    packed = random_draws()
    item, value = np.array([2, -5, 7, 4, 10**6]), np.array([5, np.nan, 1, 4, np.inf])
    got = POSTERIOR(packed, item, value, np.array([True, False, True, True, False]))
    assert_mixture(got, as_arrays(components(packed, ITEM, VALUE)))


def test_vmap_over_users_is_a_loop_over_users(x64):
    packed, rng = random_draws(), np.random.default_rng(1)
    item, value = rng.integers(0, N_ITEMS, (4, 3)), rng.integers(1, 6, (4, 3))
    where = rng.random((4, 3)) < 0.7
    reduction_of_user = lambda *ratings: expected_variance_reduction(packed, posterior(packed, *ratings))
    batched = jax.jit(jax.vmap(reduction_of_user))(item, value, where)
    for user in range(4):
        single = REDUCTION(packed, POSTERIOR(packed, item[user], value[user], where[user]))
        np.testing.assert_allclose(batched[user], single, rtol=1e-9)


def test_float32_is_accurate_enough():
    packed = random_draws(heteroscedastic=True)
    rng = np.random.default_rng(2)
    item, value = rng.permutation(N_ITEMS)[:10].astype(np.int32), rng.integers(1, 6, 10).astype(np.int32)
    got = POSTERIOR(packed, item, value)
    assert_mixture(got, as_arrays(components(packed, item, value)), rtol=2e-3, atol=2e-5)
    assert got.mean.dtype == jnp.float32


@pytest.mark.parametrize("a", [2.0, 3.0, 20.0])
def test_twelve_nodes_integrate_over_the_users_precision(x64, a):
    """With (w, b) held fixed, the likelihood of n ratings with sum of squared errors E is τ^(n/2) exp(-τ E / 2).

    Its mean over τ ~ gamma(a, rate a), and the means of τ and of 1 / τ, are known in closed form.
    """
    (state,) = random_states(1, 1)
    users = dataclasses.replace(state.users, row_precision_shape=jnp.full(1, a))
    packed = draws([dataclasses.replace(state, users=users)], mu=MU)
    node, probability = np.asarray(packed.node[0]), np.asarray(packed.node_probability)
    np.testing.assert_allclose(probability @ node, 1, rtol=5e-3)
    np.testing.assert_allclose(probability @ (1 / node), a / (a - 1), rtol=0.05)
    for n, error in ((3, 2.0), (10, 5.0), (10, 20.0)):
        exact = gammaln(a + n / 2) - gammaln(a) + a * np.log(a) - (a + n / 2) * np.log(a + error / 2)
        got = np.log(probability @ (node ** (n / 2) * np.exp(-node * error / 2)))
        np.testing.assert_allclose(got, exact, atol=0.02)


# ------------------------------------------------------------------------------------------- predictions, questions


def test_predictions_have_the_moments_of_the_mixture(x64):
    packed = random_draws()
    mean, covariance, noise = prediction_moments(packed, components(packed, ITEM, VALUE))
    got = PREDICT(packed, POSTERIOR(packed, ITEM, VALUE))
    for a, b in zip(got, (mean, np.diag(covariance), noise), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    subset = PREDICT(packed, POSTERIOR(packed, ITEM, VALUE), np.array([5, 0]))
    np.testing.assert_allclose(subset.variance, got.variance[np.array([5, 0])], rtol=1e-9)


def test_expected_reduction_is_computed_from_the_covariance_of_the_predictions(x64):
    """With one target j, the reduction by a rating of item i is C(i,j)^2 / (C(i,i) + the noise variance of i).

    The covariance C by formula is first checked against a sample from the mixture.
    """
    packed, rng, n = random_draws(), np.random.default_rng(3), 400_000
    weight, mean, covariance = as_arrays(components(packed, ITEM, VALUE))
    count = rng.multinomial(n, weight.ravel())
    predictions = []
    for i, (m, c) in enumerate(zip(mean.reshape(-1, K), covariance.reshape(-1, K, K), strict=True)):
        v, s = rng.multivariate_normal(m, c, count[i]), i // N_NODES
        predictions.append(v @ np.asarray(packed.x)[:, s].T + np.asarray(packed.offset)[:, s])
    sampled = np.cov(np.concatenate(predictions).T)
    _, exact, noise = prediction_moments(packed, components(packed, ITEM, VALUE))
    variance = np.diag(exact)
    standard_error = np.sqrt((np.outer(variance, variance) + exact**2) / n)
    np.testing.assert_array_less(np.abs(sampled - exact), 8 * standard_error)  # a mixture has wider tails than a normal

    mixture = POSTERIOR(packed, ITEM, VALUE)
    expected = exact**2 / (variance + noise)[None, :]
    got = np.stack([REDUCTION(packed, mixture, None, jnp.array([target])) for target in range(N_ITEMS)])
    np.testing.assert_allclose(got, expected, rtol=1e-8)
    importance = rng.random(3)
    subset = REDUCTION(packed, mixture, np.array([8, 1]), np.array([0, 5, 9]), weights=importance)
    np.testing.assert_allclose(subset, importance @ expected[[0, 5, 9]][:, [8, 1]], rtol=1e-8)
    in_batches = expected_variance_reduction(packed, mixture, batch_size=5)  # 5 + 5 + 2
    np.testing.assert_allclose(in_batches, expected.sum(axis=0), rtol=1e-8)


def test_expected_reduction_is_exact_for_a_single_normal(x64):
    """The variance falls by as much whatever the answer is."""
    packed = random_draws(1, 1, heteroscedastic=False)
    before = POSTERIOR(packed, ITEM, VALUE)
    expected = REDUCTION(packed, before)
    for asked, answer in ((0, 1.0), (0, 5.0), (9, 3.0)):
        after = POSTERIOR(packed, np.append(ITEM, asked), np.append(VALUE.astype(float), answer))
        reduction = PREDICT(packed, before).variance - PREDICT(packed, after).variance
        np.testing.assert_allclose(expected[asked], jnp.sum(reduction), rtol=1e-9)


def test_expected_reduction_is_a_lower_bound_for_a_mixture(x64):
    """The mean reduction over answers that are drawn from the user's predictive distribution is at least as large."""
    packed, rng, n = random_draws(), np.random.default_rng(4), 3000
    mixture, asked = components(packed, ITEM, VALUE), 9
    drawn = rng.choice(len(mixture), n, p=[component[0] for component in mixture])
    x, offset, noise_precision = (np.asarray(a)[asked] for a in (packed.x, packed.offset, packed.noise_precision))
    answers = []
    for i in drawn:
        _, mean, covariance, s, tau = mixture[i]
        variance, noise = x[s] @ covariance @ x[s], 1 / (tau * noise_precision[s])
        answers.append(rng.normal(x[s] @ mean + offset[s], np.sqrt(variance + noise)))
    item = jnp.asarray(np.append(ITEM, asked))
    total_variance = lambda answer: jnp.sum(
        posterior_predictive(packed, posterior(packed, item, jnp.append(jnp.asarray(VALUE, float), answer))).variance
    )
    after = np.asarray(jax.jit(jax.vmap(total_variance))(jnp.asarray(answers)))
    before = POSTERIOR(packed, ITEM, VALUE)
    reduction = float(jnp.sum(PREDICT(packed, before).variance)) - after
    assert float(REDUCTION(packed, before)[asked]) < reduction.mean() + 4 * reduction.std() / np.sqrt(n)


def test_lower_confidence_bound_is_exceeded_with_its_probability():
    mean, deviation = jnp.array([3.0, 4.0]), jnp.array([0.5, 2.0])
    bound = lower_confidence_bound(mean, deviation, 0.9)
    np.testing.assert_allclose(norm.sf(bound, mean, deviation), 0.9, rtol=1e-5)
    np.testing.assert_array_equal(lower_confidence_bound(mean, deviation, 0.5), mean)
    assert int(jnp.argmax(mean)) != int(jnp.argmax(bound))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda packed: draws([], mu=MU), "states: expected at least one"),
        (lambda packed: draws(random_states(), mu=MU, nodes=0), "nodes: expected at least 1, got 0"),
        (
            lambda packed: draws([jax.tree.map(lambda a: a[0], random_states()[0])], mu=MU),
            r"\[chains, n_items, k\]",
        ),
        (
            lambda packed: draws(random_states(n_features=(2,)), mu=MU),
            r"features: expected the sampler's user features, with bases of \[2\] columns, got \[\]",
        ),
        (
            lambda packed: draws(random_states(), mu=MU, features=np.eye(N_USERS)),
            r"with bases of \[\] columns, got \[4\]",
        ),
        (lambda packed: posterior(packed, jnp.asarray(ITEM), jnp.asarray(VALUE[:2])), "expected arrays of one shape"),
        (
            lambda packed: posterior(packed, jnp.asarray(ITEM), jnp.asarray(VALUE), features=jnp.ones(2)),
            r"features: expected rows of shapes \[\], one per group .* got \[\(2,\)\]",
        ),
        (
            lambda packed: expected_variance_reduction(packed, POSTERIOR(packed, ITEM, VALUE), weights=jnp.ones(2)),
            "each of 12 targets, got 2",
        ),
        (
            lambda packed: expected_variance_reduction(packed, POSTERIOR(packed, ITEM, VALUE), batch_size=0),
            "batch_size: expected at least 1",
        ),
        (
            lambda packed: lower_confidence_bound(jnp.ones(2), jnp.ones(2), 1.0),
            r"level: expected a number in \(0, 1\), got 1.0",
        ),
        (lambda packed: lower_confidence_bound(jnp.ones(2), jnp.ones((2, 1)), 0.9), "expected arrays of one shape"),
    ],
)
def test_wrong_arguments_raise(call, message, as_users_run):
    with pytest.raises(ValueError, match=message):
        call(random_draws())
