"""Propensities against hand arithmetic, scikit-learn and SciPy, and ALS on ratings that are missing not at random."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxrec import Ratings, metrics, models, solvers
from jaxrec.evaluation.propensity import (
    inverse_propensity_weights,
    logistic_propensities,
    logistic_regression,
    naive_bayes,
)

# Naive Bayes


def ratings(values, n_users=4, n_items=5):
    user, item = np.unravel_index(np.arange(len(values)), (n_users, n_items))
    return Ratings(user, item, values, n_users, n_items)


def test_naive_bayes_equals_hand_arithmetic():
    train = ratings([5, 5, 5, 3, 5, 1])  # P(rated) = 6 / 20
    got = naive_bayes(train, [5, 5, 3, 3, 3, 1, 1, 2])
    by_rating = {5: (4 / 6) * (6 / 20) / (2 / 8), 3: (1 / 6) * (6 / 20) / (3 / 8), 1: (1 / 6) * (6 / 20) / (2 / 8)}
    np.testing.assert_allclose(got, [by_rating[int(value)] for value in train.value], rtol=1e-6)
    smoothed = naive_bayes(train, [5, 3], smoothing=1.0)
    by_rating = {5: (4 / 20) / (2 / 5), 3: (1 / 20) / (2 / 5), 1: (1 / 20) / (1 / 5)}
    np.testing.assert_allclose(smoothed, [by_rating[int(value)] for value in train.value], rtol=1e-6)


def test_naive_bayes_of_a_full_sample_gives_the_fraction_that_was_rated():
    rng = np.random.default_rng(0)
    full = rng.integers(1, 6, (40, 30))
    rated = rng.random(full.shape) < full / 10
    train = Ratings(*np.nonzero(rated), full[rated], *full.shape)
    got = naive_bayes(train, full.ravel())
    for value in range(1, 6):
        np.testing.assert_allclose(got[train.value == value], rated[full == value].mean(), rtol=1e-6)


def test_naive_bayes_refuses_what_it_cannot_estimate_and_never_exceeds_1():
    train = ratings([5, 5, 1])
    with pytest.raises(ValueError, match=r"sample: expected every rating of train, got none of 1.0.*smoothing=1.0"):
        naive_bayes(train, [5, 4])
    with pytest.raises(ValueError, match="sample: expected finite numbers, got nan"):
        naive_bayes(train, [5, np.nan])
    with pytest.raises(ValueError, match="expected ratings and a sample, got 3 and 0"):
        naive_bayes(train, [])
    with pytest.raises(ValueError, match="smoothing"):
        naive_bayes(train, [5, 1], smoothing=-1.0)
    assert naive_bayes(ratings([5] * 20), [5, 1, 1]).max() == 1


# Logistic regression


def drawn(seed, n=400, d=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    p = 1 / (1 + np.exp(-(x @ rng.normal(size=d) - 1)))
    return x, (rng.random(n) < p).astype(float)


def objective(v, x, y, l2):
    z = x @ v[:-1] + v[-1]
    return np.sum(np.logaddexp(0, z) - y * z) + 0.5 * l2 * np.sum(v[:-1] ** 2)


@pytest.mark.parametrize("l2", [1e-3, 1.0, 100.0])
def test_logistic_regression_finds_the_minimum_of_its_objective(l2, x64):
    x, y = drawn(0)
    fit = logistic_regression(x, y, l2=l2, tol=1e-10)
    reference = minimize(objective, np.zeros(4), (x, y, l2), method="BFGS", options={"gtol": 1e-8})
    assert bool(fit.converged)
    np.testing.assert_allclose([*fit.coefficients, fit.intercept], reference.x, atol=1e-5)
    z = x @ reference.x[:-1] + reference.x[-1]
    np.testing.assert_allclose(logistic_propensities(fit, x), 1 / (1 + np.exp(-z)), atol=1e-5)


def test_logistic_regression_equals_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = drawn(1)
    theirs = linear_model.LogisticRegression(C=1 / 2.5, tol=1e-8, max_iter=1000).fit(x, y)
    ours = logistic_regression(x, y, l2=2.5)
    assert bool(ours.converged)
    np.testing.assert_allclose(ours.coefficients, theirs.coef_[0], rtol=1e-3)
    np.testing.assert_allclose(ours.intercept, theirs.intercept_[0], rtol=1e-3)


@pytest.mark.parametrize("seed", [474, 1664, 2842])
def test_logistic_regression_converges_where_full_newton_steps_diverge(seed, x64):
    """Few rows with features of heavy tails; these seeds were found by a search for such data."""
    rng = np.random.default_rng(seed)
    n = rng.integers(8, 40)
    x, y = np.round(rng.standard_cauchy((n, 2)) * 3, 1), (rng.random(n) < 0.15).astype(float)
    v, with_one = np.zeros(3), np.column_stack([x, np.ones(n)])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(with_one @ v, -700, 700)))
        gradient, hessian = with_one.T @ (p - y), with_one.T @ (with_one * (p * (1 - p))[:, None])
        v = v - np.linalg.pinv(hessian + np.diag([0.01, 0.01, 0])) @ (gradient + 0.01 * v * [1, 1, 0])
    fit = logistic_regression(x, y, l2=0.01, steps=60)
    got = objective(np.array([*fit.coefficients, fit.intercept]), x, y, 0.01)
    assert bool(fit.converged)
    assert got < 0.9 * objective(v, x, y, 0.01)  # where full steps end
    assert got <= minimize(objective, np.zeros(3), (x, y, 0.01), method="BFGS").fun * (1 + 1e-6)


def test_logistic_regressions_of_many_items_are_vmapped_and_masked():
    x, _ = drawn(2, n=60)
    rng = np.random.default_rng(3)
    observed, where = rng.random((5, 60)) < 0.4, rng.random((5, 60)) < 0.8
    x = jnp.asarray(x, jnp.float32)
    together = jax.vmap(lambda y, where: logistic_regression(x, y, l2=1.0, where=where))(observed, jnp.asarray(where))
    for k in range(5):
        alone = logistic_regression(np.asarray(x)[where[k]], observed[k][where[k]], l2=1.0)
        np.testing.assert_allclose(together.coefficients[k], alone.coefficients, atol=1e-4)
        np.testing.assert_allclose(together.intercept[k], alone.intercept, atol=1e-4)
        garbage = np.where(where[k][:, None], x, np.nan)
        masked = logistic_regression(garbage, observed[k], l2=1.0, where=where[k])
        np.testing.assert_allclose(masked.coefficients, alone.coefficients, atol=1e-4)


def test_a_fit_that_has_not_converged_says_so():
    x, y = drawn(4)
    assert not bool(logistic_regression(x, y, l2=1.0, steps=1).converged)


@pytest.mark.usefixtures("as_users_run")
def test_logistic_regression_refuses_bad_input():
    x, y = drawn(5)
    with pytest.raises(ValueError, match="observed: expected 0 and 1, got 2.0"):
        logistic_regression(x, y + 1, l2=1.0)
    with pytest.raises(ValueError, match="one kind only"):
        logistic_regression(x, np.zeros(len(y)), l2=1.0)
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        logistic_regression(np.where(x == x.max(), np.nan, x), y, l2=1.0)
    with pytest.raises(ValueError, match=r"expected x \[n, d\] and observed \[n\]"):
        logistic_regression(x[:-1], y, l2=1.0)
    with pytest.raises(ValueError, match="l2: expected finite numbers > 0"):
        logistic_regression(x, y, l2=0.0)
    fit = logistic_regression(x, y, l2=1.0)
    with pytest.raises(ValueError, match=r"x: expected features \[n, 3\]"):
        logistic_propensities(fit, x[:, :2])


# Weights


def test_weights_are_inverse_and_have_mean_1():
    propensity = np.array([0.5, 0.25, 0.1])
    np.testing.assert_allclose(inverse_propensity_weights(propensity), np.array([2, 4, 10]) / (16 / 3), rtol=1e-6)
    where = np.array([True, True, False])
    got = inverse_propensity_weights(np.where(where, propensity, np.nan), where=where)
    np.testing.assert_allclose(got, [2 / 3, 4 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(inverse_propensity_weights(propensity, max_weight=1.0), [0.375, 0.75, 1], rtol=1e-6)
    for wrong in (0.0, -1.0, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"propensity: expected probabilities in \(0, 1\], got .* at position 1"):
            inverse_propensity_weights(np.array([0.5, wrong]))
    with pytest.raises(ValueError, match="max_weight"):
        inverse_propensity_weights(propensity, max_weight=0.0)


def missing_not_at_random(seed, shape=(150, 120)):
    """(the full matrix, the ratings of which 5s are seen 14 times as often as 1s, a sample of random pairs)."""
    rng = np.random.default_rng(seed)
    w, x = (rng.normal(size=(size, 2)) for size in shape)
    biases = 0.6 * rng.normal(size=(shape[0], 1)) + 0.6 * rng.normal(size=(1, shape[1]))
    full = np.clip(np.round(3 + 0.9 * w @ x.T + biases + 0.4 * rng.normal(size=shape)), 1, 5)
    seen = rng.random(shape) < 0.02 * np.array([1, 1, 2, 6, 14])[full.astype(int) - 1]
    return full, Ratings(*np.nonzero(seen), full[seen], *shape), rng.choice(full.ravel(), 500)


@pytest.mark.slow
def test_als_with_inverse_propensity_weights_has_a_lower_error_over_all_pairs():
    full, train, sample = missing_not_at_random(0)
    weights = inverse_propensity_weights(naive_bayes(train, sample))

    def full_rmse(ratings):
        factors, _ = solvers.als(ratings, rank=2, l2=3.0, l2_bias=1.0, progress=False)
        return float(np.sqrt(np.mean((np.clip(models.predict_all(factors), 1, 5) - full) ** 2)))

    unweighted, weighted = full_rmse(train), full_rmse(dataclasses.replace(train, weights=weights))
    assert weighted < 0.9 * unweighted


def test_a_weighted_rmse_of_rated_pairs_is_near_that_of_all():
    full, train, sample = missing_not_at_random(1)
    prediction = np.full(len(train), 3.0, np.float32)
    true = np.sqrt(np.mean((full - 3) ** 2))
    naive = float(metrics.rmse(prediction, train.value))
    weighted = float(
        metrics.rmse(prediction, train.value, weights=inverse_propensity_weights(naive_bayes(train, sample)))
    )
    assert abs(weighted - true) < 0.25 * abs(naive - true)
