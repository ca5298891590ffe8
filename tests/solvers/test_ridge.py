"""Ridge regression against NumPy's solve, against the gradients of the costs, and against its own laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import losses
from jaxrec.solvers import ridge


def random_row(seed, n=7, d=3):
    """Features, targets, mask and weights of one row."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=n)
    return x, y, rng.random(n) < 0.7, rng.integers(1, 4, n).astype(float)


def as_float32(*arrays):
    return [jnp.asarray(a) if a.dtype == bool else jnp.asarray(a, jnp.float32) for a in arrays]


def reference_solution(x, y, where, weights, penalty, prior_mean):
    """(X' D X + P)^-1 (X' D y + P m), summed rating by rating in NumPy."""
    gram, rhs = np.array(penalty), penalty @ prior_mean
    for k in range(len(y)):
        if where[k]:
            gram = gram + weights[k] * np.outer(x[k], x[k])
            rhs = rhs + weights[k] * y[k] * x[k]
    return np.linalg.solve(gram, rhs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["number", "diagonal", "matrix"])
def test_solve_equals_numpy(x64, seed, kind):
    x, y, where, weights = random_row(seed)
    rng = np.random.default_rng(seed + 100)
    prior_mean = rng.normal(size=3)
    root = rng.normal(size=(3, 3))
    penalty = {"number": 0.7 * np.eye(3), "diagonal": np.diag([0.1, 2.0, 3.0]), "matrix": root @ root.T + np.eye(3)}
    equations = ridge.normal_equations(*map(jnp.asarray, (x, y, where, weights)))
    if kind == "matrix":
        factor = ridge.factorize_matrix(equations, jnp.asarray(penalty[kind]))
    else:
        factor = ridge.factorize(equations, 0.7 if kind == "number" else jnp.array([0.1, 2.0, 3.0]))
    np.testing.assert_allclose(factor.penalty, penalty[kind], rtol=1e-12)
    expected = reference_solution(x, y, where, weights, penalty[kind], prior_mean)
    np.testing.assert_allclose(ridge.solve(factor, jnp.asarray(prior_mean)), expected, rtol=1e-9)


def test_normal_equations_of_three_entries():
    x, y = jnp.array([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), jnp.array([5.0, 6.0, 7.0])
    equations = ridge.normal_equations(x, y, jnp.array([True, True, False]), jnp.array([1.0, 2.0, 5.0]))
    np.testing.assert_allclose(equations.gram, [[1 + 2 * 9, 2 + 2 * 12], [2 + 2 * 12, 4 + 2 * 16]])
    np.testing.assert_allclose(equations.rhs, [5 + 2 * 18, 10 + 2 * 24])
    assert equations.count == 1 + 2


def test_masked_entries_are_ignored():
    x, y, where, weights = as_float32(*random_row(0))
    garbage = jnp.where(where[:, None], x, jnp.nan), jnp.where(where, y, jnp.inf), where, jnp.where(where, weights, -5)
    expected, got = ridge.normal_equations(x, y, where, weights), ridge.normal_equations(*garbage)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b)


@pytest.mark.parametrize("l2_bias", [0.0, 0.8])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", ["none", "number", "per item"])
def test_gradient_of_user_cost_is_zero_at_solve_user(x64, l2_bias, weighted, offset):
    x, y, where, weights = map(jnp.asarray, random_row(1))
    options = {"weights": weights if weighted else None, "l2_bias": l2_bias}
    options["offset"] = {"none": 0.0, "number": 0.3, "per item": jnp.linspace(-1.0, 1.0, len(y))}[offset]
    w, b = ridge.solve_user(x, y, where, l2=0.5, **options)
    gradient = jax.grad(losses.user_cost, argnums=(0, 1))(w, b, x, y, where, l2=0.5, **options)
    np.testing.assert_allclose(np.concatenate([gradient[0], gradient[1][None]]), np.zeros(4), atol=1e-12)


def test_gradient_of_item_cost_is_zero_at_solve_item(x64):
    w, y, where, weights = map(jnp.asarray, random_row(2))
    b = jnp.linspace(-1.0, 1.0, len(y))
    x = ridge.solve_item(w, b, y, where, l2=0.5, weights=weights, offset=0.2)
    gradient = jax.grad(losses.item_cost)(x, w, b, y, where, l2=0.5, weights=weights, offset=0.2)
    np.testing.assert_allclose(gradient, np.zeros(3), atol=1e-12)


def test_solution_without_ratings_is_the_prior_mean():
    x, y, where, _ = as_float32(*random_row(3))
    prior, no_ratings = jnp.array([1.0, -2.0, 3.0, 0.5]), jnp.zeros_like(where)
    w, b = ridge.solve_user(x, y, no_ratings, l2=0.5, prior=prior)
    np.testing.assert_allclose(jnp.append(w, b), prior, rtol=1e-6)
    w, b = ridge.solve_user(x, y, no_ratings, l2=0.5)
    np.testing.assert_array_equal(jnp.append(w, b), np.zeros(4))
    np.testing.assert_allclose(ridge.solve_item(x, y, y, no_ratings, l2=0.5, prior=prior[:3]), prior[:3], rtol=1e-6)


def test_solution_tends_to_the_prior_mean_as_l2_grows():
    x, y, where, _ = as_float32(*random_row(3))
    prior = jnp.array([1.0, -2.0, 3.0, 0.5])
    w, _ = ridge.solve_user(x, y, where, l2=1e6, prior=prior)
    np.testing.assert_allclose(w, prior[:3], atol=1e-3)


def test_vmap_and_batch_axes_equal_a_loop():
    stacked = [jnp.stack(arrays) for arrays in zip(*map(random_row, range(5)), strict=True)]
    x, y, where, weights = (a if a.dtype == bool else a.astype(jnp.float32) for a in stacked)
    solve = lambda x, y, where, weights: ridge.solve(ridge.factorize(ridge.normal_equations(x, y, where, weights), 0.5))
    loop = jnp.stack([solve(x[k], y[k], where[k], weights[k]) for k in range(5)])
    np.testing.assert_allclose(jax.vmap(solve)(x, y, where, weights), loop, rtol=1e-5)
    batched = ridge.solve(ridge.factorize(jax.vmap(ridge.normal_equations)(x, y, where, weights), 0.5))
    np.testing.assert_allclose(batched, loop, rtol=1e-5)


def test_sample_has_the_mean_and_covariance_of_the_posterior(x64):
    x, y, where, weights = map(jnp.asarray, random_row(4))
    factor = ridge.factorize(ridge.normal_equations(x, y, where, weights), 0.5)
    n = 20_000
    draws = jax.vmap(lambda key: ridge.sample(factor, 0.3, key=key))(jax.random.split(jax.random.key(0), n))
    precision = 0.5 * np.eye(3) + sum(weights[k] * np.outer(x[k], x[k]) for k in range(len(y)) if where[k])
    covariance = np.linalg.inv(precision)
    five_standard_errors = 5 * np.sqrt(np.diag(covariance) / n)
    assert (np.abs(draws.mean(0) - ridge.solve(factor, 0.3)) < five_standard_errors).all()
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=5 * covariance.max() * np.sqrt(2 / n))


def test_solution_is_differentiable_in_l2(x64):
    x, y, where, _ = map(jnp.asarray, random_row(5))
    f = lambda l2: jnp.sum(ridge.solve_user(x, y, where, l2=l2)[0] ** 2)
    step = 1e-6
    np.testing.assert_allclose(jax.jacfwd(f)(0.5), (f(0.5 + step) - f(0.5 - step)) / (2 * step), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(f)(0.5), jax.jacfwd(f)(0.5), rtol=1e-9)


@pytest.mark.parametrize("shorter", ["y", "where", "weights", "x"])
def test_inconsistent_shapes_raise(as_users_run, shorter):
    x, y, where, weights = random_row(0)
    arrays = {"x": x, "y": y, "where": where, "weights": weights}
    arrays[shorter] = arrays[shorter][:-1]
    with pytest.raises(ValueError, match=r"expected arrays of one shape, got y: .* rows_of_x: "):
        ridge.normal_equations(**arrays)


def test_numpy_arrays_of_float64_are_accepted(as_users_run):
    """Without a warning, which would be an error here, and with the solution of float32 arrays."""
    x, y, where, weights = random_row(0)
    got = ridge.solve_user(x, y, where, l2=0.5, weights=weights, l2_bias=0.1)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, y, weights)]
    expected = ridge.solve_user(arrays[0], arrays[1], jnp.asarray(where), l2=0.5, weights=arrays[2], l2_bias=0.1)
    np.testing.assert_allclose(np.append(*got), np.append(*expected), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prior_mean", [0.0, 1.0])
def test_leave_one_out_equals_refits_without_each_entry(x64, seed, prior_mean):
    x, y, where, weights = random_row(seed)
    arrays = [jnp.asarray(a) for a in (x, y, where, weights)]
    factor = ridge.factorize(ridge.normal_equations(*arrays), 0.7)
    predictions = ridge.leave_one_out_predictions(factor, *arrays, prior_mean=prior_mean)
    for k in range(len(y)):
        others = where & (np.arange(len(y)) != k)  # a masked entry is predicted from the whole row
        v = reference_solution(x, y, others, weights, 0.7 * np.eye(3), np.full(3, prior_mean))
        np.testing.assert_allclose(predictions[k], x[k] @ v, rtol=1e-9)


def test_leaving_out_the_only_entry_predicts_from_the_prior_mean():
    x, y = jnp.array([[2.0, 1.0], [jnp.nan, 1.0]]), jnp.array([5.0, jnp.nan])
    where = jnp.array([True, False])
    equations = ridge.normal_equations(x, y, where)
    factor = ridge.factorize(equations, jnp.array([0.5, 0.0]))  # an unpenalized bias: the leverage is 1
    np.testing.assert_allclose(ridge.leave_one_out_predictions(factor, x, y, where)[0], 0.0)
    prediction = ridge.leave_one_out_predictions(factor, x, y, where, prior_mean=jnp.array([1.0, 3.0]))[0]
    np.testing.assert_allclose(prediction, 2 * 1 + 1 * 3)
    predict = lambda l2: ridge.leave_one_out_predictions(ridge.factorize(equations, l2), x, y, where)[0]
    assert jnp.isfinite(jax.jit(jax.grad(predict))(jnp.array(0.5)))
