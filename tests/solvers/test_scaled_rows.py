"""Badly scaled rows against float64: every solver, with weights, values, features and penalties of many magnitudes."""

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
TOLERANCE = 5e-3  # relative to the row's largest coefficient; most errors are about 1e-6


def float64_solution(x, y, weights, penalty, shared_rows=None, mean=0.0):
    """The ridge solution in float64, by Householder reflections of the rows sqrt(w) (x, y) and sqrt(P) (1, m).

    Rows and columns are pivoted. LAPACK does not sort the rows, and is not stable for weights of 1 and 1e14.
    """
    x, y, weights, penalty = (np.asarray(a, np.float64) for a in (x, y, weights, penalty))
    root = np.sqrt(weights)[:, None]
    rows = [
        np.c_[root * x, root[:, 0] * y],
        np.sqrt(penalty)[:, None] * np.c_[np.eye(len(penalty)), 0 * penalty + mean],
    ]
    if shared_rows is not None:
        rows.append(np.c_[shared_rows, np.zeros(len(shared_rows))])
    with jax.enable_x64(True):
        return np.asarray(jax.jit(orthogonal.fit)(jnp.asarray(np.concatenate(rows))).v)


def relative_error(got, expected):
    """The largest error, relative to the largest coefficient."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30)


@st.composite
def problems(draw):
    """(ratings, x, l2): weights from 1e-3 to 1e7, values up to 1e6, columns or rows of x with different scales."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    where = rng.random((N_USERS, N_ITEMS)) < draw(st.sampled_from([0.08, 0.3, 0.9]))
    user, item = np.nonzero(where)
    low, high = sorted((draw(st.floats(-3, 7)), draw(st.floats(-3, 7))))
    weights = (10.0 ** (low + (high - low) * rng.random(len(user)))).astype(np.float32)
    value = (rng.normal(size=len(user)) * 10.0 ** draw(st.floats(0, 6))).astype(np.float32)
    x = rng.normal(size=(N_ITEMS, D)) * 10.0 ** draw(st.floats(-1, 0))
    scaled = draw(st.sampled_from(["none", "columns", "rows"]))
    column_scales, row_scales = 10.0 ** rng.uniform(-2, 2, D), 10.0 ** rng.uniform(-1, 1, (N_ITEMS, 1))
    x = x * {"none": 1.0, "columns": column_scales, "rows": row_scales}[scaled]
    ratings = Ratings(user, item, value, N_USERS, N_ITEMS, weights=weights)
    return ratings, x.astype(np.float32), float(np.float32(10.0 ** draw(st.floats(-6, 6))))


def entries_of_user(ratings, user):
    """(item, value, weights) of one user's ratings."""
    rated = ratings.user == user
    return ratings.item[rated], ratings.value[rated], ratings.weights[rated]


PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@PROPERTY
@given(problems())
def test_every_solver_equals_the_float64_solution(problem):
    ratings, x, l2 = problem
    factors = Factors(jnp.zeros((N_USERS, D)), jnp.zeros(N_USERS), jnp.asarray(x), jnp.zeros(N_ITEMS))
    without_item_bias = dataclasses.replace(factors, c=None)
    rows = data.rows(ratings, "user", min_length=N_ITEMS)
    strength = jnp.asarray(l2)
    explicit = solvers.fold_in(factors, rows, l2=strength)
    implicit = solvers.implicit_fold_in(without_item_bias, rows, l2=strength, unobserved_weight=1.0)
    by_dual = [  # rows so short that they are solved in the dual
        solvers.fold_in(factors, data.rows(ratings.take(ratings.user == j), "user", min_length=2), l2=strength)
        for j in range(N_USERS)
        if (ratings.user == j).sum() <= 2
    ]
    for j in range(N_USERS):
        item, value, weights = entries_of_user(ratings, j)
        if len(item) == 0:
            continue
        expected = float64_solution(np.c_[x[item], np.ones(len(item))], value, weights, [l2] * D + [0])
        assert relative_error(np.append(explicit.w[j], explicit.b[j]), expected) < TOLERANCE
        where = np.isin(np.arange(N_ITEMS), item)
        per_item = lambda column: np.bincount(item, column, N_ITEMS).astype(np.float32)  # 0 where it is not rated
        w, b = ridge.solve_user(x, per_item(value), where, l2=l2, weights=per_item(weights))
        assert relative_error(np.append(w, b), expected) < TOLERANCE
        expected = float64_solution(x[item], value, weights, [l2] * D)
        no_bias = np.zeros(N_ITEMS, np.float32)
        solved = ridge.solve_item(x, no_bias, per_item(value), where, l2=l2, weights=per_item(weights))
        assert relative_error(solved, expected) < TOLERANCE
        expected = float64_solution(x[item], value, weights, [l2] * D, shared_rows=x)
        assert relative_error(implicit.w[j], expected) < TOLERANCE
    assert all(np.isfinite(each.w).all() for each in by_dual)


@pytest.mark.slow
@PROPERTY
@given(problems())
def test_leave_one_out_predictions_equal_float64_refits(problem):
    ratings, x, l2 = problem
    item, value, weights = entries_of_user(ratings, 0)
    if len(item) < 2:
        return
    x = np.c_[x, np.ones(N_ITEMS)].astype(np.float32)[item]
    penalty = np.float32([l2] * D + [1.0])
    factor = ridge.factorize(ridge.normal_equations(x, value, weights=weights), penalty)
    got = np.asarray(ridge.leave_one_out_predictions(factor, x, value, weights=weights))
    for k in range(len(item)):
        others = np.arange(len(item)) != k
        v = float64_solution(x[others], value[others], weights[others], penalty)
        largest_term = np.abs(x[k] * v).max()  # of the sum that is the prediction
        assert abs(got[k] - x[k].astype(float) @ v) < 2e-2 * max(largest_term, np.abs(value).max())


def random_play_counts(seed=0, alpha=40.0):
    """Play counts up to hundreds of thousands, as confidence weights."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((20, 30)) < 0.3)
    counts = np.floor(10 ** rng.uniform(0, 5.5, len(user)))
    return data.labels.confidence_weights(Ratings(user, item, counts, 20, 30), alpha=alpha)


@pytest.mark.slow
def test_play_counts_in_the_hundreds_of_thousands_are_solved_accurately():
    ratings = random_play_counts()
    init = models.init(20, 30, 8, key=jax.random.key(0), item_bias=False)
    folded = solvers.implicit_fold_in(init, data.rows(ratings, "user"), l2=0.1)
    x = np.asarray(init.x)
    for j in range(20):
        item, value, weights = entries_of_user(ratings, j)
        expected = float64_solution(x[item], value, weights, [np.float32(0.1)] * 8, shared_rows=x)
        assert relative_error(folded.w[j], expected) < TOLERANCE
    sides = data.rows(ratings, "user"), data.rows(ratings, "item")
    _, info = solvers.implicit_als(sides, init=init, l2=0.1, sweeps=8, tol=0.0, progress=False)
    assert (np.diff(info.trace) <= 1e-5 * info.trace[0]).all()


@pytest.mark.slow
def test_badly_scaled_rows_can_be_vmapped_over_l2_and_differentiated():
    ratings = random_play_counts(1)
    init = models.init(20, 30, 8, key=jax.random.key(0), item_bias=False)
    rows = data.rows(ratings, "user", min_length=30)
    w = lambda l2: solvers.implicit_fold_in(init, rows, l2=l2).w
    grid = jnp.array([1e-3, 1.0])
    batch = jax.jit(jax.vmap(w))(grid)
    for l2, solved in zip(grid, batch, strict=True):
        assert relative_error(solved, w(l2)) < 1e-4
    assert np.isfinite(jax.jit(jax.grad(lambda l2: jnp.sum(w(l2) ** 2)))(0.1))


def test_well_conditioned_rows_are_not_solved_again():
    """The pivot ratios of rows like those of ml-100k are far above the threshold."""
    ratio = jnp.array([1e-1, 3e-2, 1e-3, 0.0, jnp.nan])
    assert orthogonal.ill_conditioned(ratio).tolist() == [False, False, True, True, True]
    found = orthogonal.refit_rows(
        jnp.ones((2, 1)), jnp.ones(2), jnp.ones(2), prior=lambda row: jnp.ones((2, 2)), blocks=lambda row: jnp.int32(1),
        entries=lambda row, block: jnp.ones((3, 2)),
    )  # fmt: skip
    np.testing.assert_array_equal(found[0], 1)


@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (12, 4), (6, 1)])
def test_a_triangle_of_rows_is_triangular_in_its_order_and_has_their_gram_matrix(x64, shape):
    rows = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    upper, order = orthogonal.triangle(rows)
    np.testing.assert_allclose(upper.T @ upper, rows.T @ rows, atol=1e-12)
    np.testing.assert_array_equal(np.tril(upper[:, order], -1), 0)
    assert sorted(order.tolist()) == list(range(shape[1]))
    assert order[-1] == shape[1] - 1


@pytest.mark.parametrize("rank", [0, 2, 4])
def test_the_root_of_a_semidefinite_matrix_gives_the_matrix_back(x64, rank):
    factor = np.random.default_rng(1).normal(size=(rank, 4))
    rows = orthogonal.root(jnp.asarray(factor.T @ factor))
    np.testing.assert_allclose(rows.T @ rows, factor.T @ factor, atol=1e-12)


def test_singular_equations_are_refused_with_a_message_that_counts_ratings_and_coefficients():
    x, y = jnp.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0], [4.0, 8.0]]), jnp.arange(4.0)
    where = jnp.ones(4, bool)
    with pytest.raises(ValueError, match=r"4 ratings for 3 coefficients .* no solution in float32.*Raise l2"):
        ridge.solve_user(x, y, where, l2=0.0)
    with pytest.raises(ValueError, match="singular or too badly scaled for float32"):
        ridge.solve(ridge.factorize(ridge.normal_equations(x, y), 0.0))
    with pytest.raises(ValueError, match="singular or too badly scaled"):
        ridge.sample(ridge.factorize(ridge.normal_equations(x, y), 0.0), key=jax.random.key(0))
    independent = x.at[1, 1].set(-1.0)
    w, b = ridge.solve_user(independent, y, where, l2=0.0)
    np.testing.assert_allclose(independent @ w + b, y, atol=0.5)
    expected = np.linalg.lstsq(np.c_[independent, np.ones(4)], y, rcond=None)[0]
    np.testing.assert_allclose(np.append(w, b), expected, rtol=1e-4, atol=1e-5)
    w, b = ridge.solve_user(x, y, jnp.zeros(4, bool), l2=0.0, prior=2.0)  # no ratings: the prior mean
    np.testing.assert_allclose(np.append(w, b), 2.0)


def test_rows_whose_sums_overflow_are_refused():
    ratings = Ratings([0, 0], [0, 1], [1.0, 2.0], 1, 2, weights=np.float32([1e38, 1e38]))
    factors = Factors(jnp.zeros((1, 1)), jnp.zeros(1), jnp.full((2, 1), 1e10), None)
    with pytest.raises(ValueError, match="fold_in: row 0 has no finite solution"):
        solvers.fold_in(factors, data.rows(ratings, "user"), l2=1.0)
