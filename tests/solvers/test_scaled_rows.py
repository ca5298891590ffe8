"""Badly scaled rows against float64: weights, values, features and penalties over many powers of ten, on every path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrec import Ratings, data, models, solvers
from jaxrec.kernels import orthogonal
from jaxrec.solvers import ridge
from jaxrec.types import Factors

N_USERS, N_ITEMS, D = 5, 24, 4
WITHIN = 5e-3  # of the row's largest coefficient; most are off by 1e-6


def exactly(x, y, weights, penalty, more=None, mean=0.0):
    """The minimizer in float64: sqrt(w) (x, y) and sqrt(P) (1, m) by Householder reflections, rows and columns pivoted
    (LAPACK's neither sorts the rows nor is stable for weights of 1 and 1e14)."""
    x, y, weights, penalty = (np.asarray(a, np.float64) for a in (x, y, weights, penalty))
    root = np.sqrt(weights)[:, None]
    rows = [
        np.c_[root * x, root[:, 0] * y],
        np.sqrt(penalty)[:, None] * np.c_[np.eye(len(penalty)), 0 * penalty + mean],
    ]
    if more is not None:
        rows.append(np.c_[more, np.zeros(len(more))])
    with jax.enable_x64(True):
        return np.asarray(jax.jit(orthogonal.fit)(jnp.asarray(np.concatenate(rows))).v)


def off(got, right):
    got, right = np.asarray(got, np.float64), np.asarray(right, np.float64)
    return np.abs(got - right).max() / max(np.abs(right).max(), 1e-30)


@st.composite
def problems(draw):
    """(ratings, x, l2): weights 1e-3 to 1e7, values to 1e6, features whose columns or rows have scales of their own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    where = rng.random((N_USERS, N_ITEMS)) < draw(st.sampled_from([0.08, 0.3, 0.9]))
    user, item = np.nonzero(where)
    low, high = sorted((draw(st.floats(-3, 7)), draw(st.floats(-3, 7))))
    weights = (10.0 ** (low + (high - low) * rng.random(len(user)))).astype(np.float32)
    value = (rng.normal(size=len(user)) * 10.0 ** draw(st.floats(0, 6))).astype(np.float32)
    x = rng.normal(size=(N_ITEMS, D)) * 10.0 ** draw(st.floats(-1, 0))
    scales = draw(st.sampled_from(["one", "columns", "rows"]))
    x = (
        x
        * {"one": 1.0, "columns": 10.0 ** rng.uniform(-2, 2, D), "rows": 10.0 ** rng.uniform(-1, 1, (N_ITEMS, 1))}[
            scales
        ]
    )
    ratings = Ratings(user, item, value, N_USERS, N_ITEMS, weights=weights)
    return ratings, x.astype(np.float32), float(np.float32(10.0 ** draw(st.floats(-6, 6))))


def of_user(ratings, user):
    mine = ratings.user == user
    return ratings.item[mine], ratings.value[mine], ratings.weights[mine]


PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@PROPERTY
@given(problems())
def test_every_path_is_float64s(problem):
    ratings, x, l2 = problem
    factors = Factors(jnp.zeros((N_USERS, D)), jnp.zeros(N_USERS), jnp.asarray(x), jnp.zeros(N_ITEMS))
    of_products = dataclasses.replace(factors, c=None)
    rows = data.rows(ratings, "user", min_length=N_ITEMS)
    strength = jnp.asarray(l2)
    explicit = solvers.fold_in(factors, rows, l2=strength)
    implicit = solvers.implicit_fold_in(of_products, rows, l2=strength, unobserved_weight=1.0)
    short = [  # as many entries as the dual takes
        solvers.fold_in(factors, data.rows(ratings.take(ratings.user == j), "user", min_length=2), l2=strength)
        for j in range(N_USERS)
        if (ratings.user == j).sum() <= 2
    ]
    for j in range(N_USERS):
        item, value, weights = of_user(ratings, j)
        if len(item) == 0:
            continue
        right = exactly(np.c_[x[item], np.ones(len(item))], value, weights, [l2] * D + [0])
        assert off(np.append(explicit.w[j], explicit.b[j]), right) < WITHIN
        where = np.isin(np.arange(N_ITEMS), item)
        full = lambda column: np.zeros(N_ITEMS, np.float32) + np.bincount(item, column, N_ITEMS).astype(np.float32)
        w, b = ridge.solve_user(x, full(value), where, l2=l2, weights=full(weights))
        assert off(np.append(w, b), right) < WITHIN
        right = exactly(x[item], value, weights, [l2] * D)
        assert (
            off(ridge.solve_item(x, 0 * full(value), full(value), where, l2=l2, weights=full(weights)), right) < WITHIN
        )
        right = exactly(x[item], value, weights, [l2] * D, more=x)
        assert off(implicit.w[j], right) < WITHIN
    assert all(np.isfinite(each.w).all() for each in short)


@pytest.mark.slow
@PROPERTY
@given(problems())
def test_each_rating_left_out_is_float64s_refit(problem):
    ratings, x, l2 = problem
    item, value, weights = of_user(ratings, 0)
    if len(item) < 2:
        return
    x = np.c_[x, np.ones(N_ITEMS)].astype(np.float32)[item]
    penalty = np.float32([l2] * D + [1.0])
    factor = ridge.factorize(ridge.normal_equations(x, value, weights=weights), penalty)
    got = np.asarray(ridge.leave_one_out_predictions(factor, x, value, weights=weights))
    for k in range(len(item)):
        rest = np.arange(len(item)) != k
        v = exactly(x[rest], value[rest], weights[rest], penalty)
        terms = np.abs(x[k] * v).max()  # what the prediction is the sum of
        assert abs(got[k] - x[k].astype(float) @ v) < 2e-2 * max(terms, np.abs(value).max())


def plays(seed=0, alpha=40.0):
    """Counts of plays up to hundreds of thousands, as confidences."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((20, 30)) < 0.3)
    counts = np.floor(10 ** rng.uniform(0, 5.5, len(user)))
    return data.labels.confidence_weights(Ratings(user, item, counts, 20, 30), alpha=alpha)


def test_counts_in_the_hundreds_of_thousands():
    ratings = plays()
    init = models.init(20, 30, 8, key=jax.random.key(0), item_bias=False)
    found = solvers.implicit_fold_in(init, data.rows(ratings, "user"), l2=0.1)
    x = np.asarray(init.x)
    for j in range(20):
        item, value, weights = of_user(ratings, j)
        right = exactly(x[item], value, weights, [np.float32(0.1)] * 8, more=x)
        assert off(found.w[j], right) < WITHIN
    sides = data.rows(ratings, "user"), data.rows(ratings, "item")
    _, info = solvers.implicit_als(sides, init=init, l2=0.1, sweeps=8, tol=0.0, progress=False)
    assert (np.diff(info.trace) <= 1e-5 * info.trace[0]).all()


def test_a_grid_of_strengths_solves_badly_scaled_rows_and_has_derivatives():
    ratings = plays(1)
    init = models.init(20, 30, 8, key=jax.random.key(0), item_bias=False)
    rows = data.rows(ratings, "user", min_length=30)
    w = lambda l2: solvers.implicit_fold_in(init, rows, l2=l2).w
    grid = jnp.array([1e-3, 1.0])
    many = jax.jit(jax.vmap(w))(grid)
    for l2, one in zip(grid, many, strict=True):
        assert off(one, w(l2)) < 1e-4
    assert np.isfinite(jax.jit(jax.grad(lambda l2: jnp.sum(w(l2) ** 2)))(0.1))


def test_ordinary_rows_are_left_to_their_equations():
    """No row of ml-100k's kind is fitted anew: its pivot ratio is far above the threshold."""
    ratio = jnp.array([1e-1, 3e-2, 1e-3, 0.0, jnp.nan])
    assert orthogonal.ill_conditioned(ratio).tolist() == [False, False, True, True, True]
    found = orthogonal.mend(
        jnp.ones((2, 1)), jnp.ones(2), jnp.ones(2), prior=lambda row: jnp.ones((2, 2)), blocks=lambda row: jnp.int32(1),
        entries=lambda row, block: jnp.ones((3, 2)),
    )  # fmt: skip
    np.testing.assert_array_equal(found[0], 1)


@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (12, 4), (6, 1)])
def test_a_triangle_has_the_rows_gram_matrix(x64, shape):
    rows = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    upper, order = orthogonal.triangle(rows)
    np.testing.assert_allclose(upper.T @ upper, rows.T @ rows, atol=1e-12)
    np.testing.assert_array_equal(np.tril(upper[:, order], -1), 0)
    assert sorted(order.tolist()) == list(range(shape[1]))
    assert order[-1] == shape[1] - 1


@pytest.mark.parametrize("rank", [0, 2, 4])
def test_a_root_of_what_is_semidefinite(x64, rank):
    half = np.random.default_rng(1).normal(size=(rank, 4))
    rows = orthogonal.root(jnp.asarray(half.T @ half))
    np.testing.assert_allclose(rows.T @ rows, half.T @ half, atol=1e-12)


def test_singular_equations_are_refused_with_the_numbers():
    x, y = jnp.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0], [4.0, 8.0]]), jnp.arange(4.0)
    there = jnp.ones(4, bool)
    with pytest.raises(ValueError, match=r"4 ratings for 3 coefficients .* no solution in float32.*Raise l2"):
        ridge.solve_user(x, y, there, l2=0.0)
    with pytest.raises(ValueError, match="singular or too badly scaled for float32"):
        ridge.solve(ridge.factorize(ridge.normal_equations(x, y), 0.0))
    with pytest.raises(ValueError, match="singular or too badly scaled"):
        ridge.sample(ridge.factorize(ridge.normal_equations(x, y), 0.0), key=jax.random.key(0))
    independent = x.at[1, 1].set(-1.0)
    w, b = ridge.solve_user(independent, y, there, l2=0.0)
    np.testing.assert_allclose(independent @ w + b, y, atol=0.5)
    fit = np.linalg.lstsq(np.c_[independent, np.ones(4)], y, rcond=None)[0]
    np.testing.assert_allclose(np.append(w, b), fit, rtol=1e-4, atol=1e-5)
    w, b = ridge.solve_user(x, y, jnp.zeros(4, bool), l2=0.0, prior=2.0)  # no ratings: the prior
    np.testing.assert_allclose(np.append(w, b), 2.0)


def test_numbers_beyond_the_types_range_are_refused():
    ratings = Ratings([0, 0], [0, 1], [1.0, 2.0], 1, 2, weights=np.float32([1e38, 1e38]))
    factors = Factors(jnp.zeros((1, 1)), jnp.zeros(1), jnp.full((2, 1), 1e10), None)
    with pytest.raises(ValueError, match="fold_in: row 0 has no finite solution"):
        solvers.fold_in(factors, data.rows(ratings, "user"), l2=1.0)
