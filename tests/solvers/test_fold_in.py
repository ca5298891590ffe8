"""Fold-in and leave-one-out of all rows of a side, against refits in NumPy, training, and finite differences."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data, losses, models, solvers
from jaxrec.kernels import cholesky
from jaxrec.solvers import _fold_in as fold_in_module
from tests import reference
from tests.trees import as_dtype

N_USERS, N_ITEMS, RANK = 9, 7, 2


def random_ratings(weights=False, seed=0):
    """Random ratings; the last user has none and the last but one has one."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((N_USERS - 2, N_ITEMS)) < 0.6)
    user, item = np.append(user, N_USERS - 2), np.append(item, 3)
    weights = rng.integers(1, 4, len(user)) if weights else None
    return Ratings(user, item, rng.normal(3.5, 1.0, len(user)), N_USERS, N_ITEMS, weights=weights)


def random_factors(dtype=jnp.float64, *, item_bias=True, mu=3.5):
    factors = models.init(N_USERS, N_ITEMS, RANK, key=jax.random.key(1), scale=1.0, item_bias=item_bias, mu=mu)
    b, c = jax.random.normal(jax.random.key(2), (N_USERS,)), jax.random.normal(jax.random.key(3), (N_ITEMS,))
    return as_dtype(dataclasses.replace(factors, b=b, c=c if item_bias else None), dtype)


def rows(ratings, side, dtype=jnp.float64):
    return as_dtype(data.rows(ratings, side, min_length=4, bucket_growth=3.0), dtype)


def regression(ratings, factors, side, row):
    """(x, y, weights): the regression of one row, from the formulas in NumPy."""
    f = jax.tree.map(np.asarray, factors)
    mu = np.broadcast_to(0.0 if f.mu is None else f.mu, (N_ITEMS,))
    c = np.zeros(N_ITEMS) if f.c is None else f.c
    own, other = (ratings.user, ratings.item) if side == "user" else (ratings.item, ratings.user)
    k = np.flatnonzero(own == row)
    weights = np.ones(len(k)) if ratings.weights is None else ratings.weights[k]
    value = ratings.value[k].astype(float)
    if side == "user":
        return np.c_[f.x, np.ones(N_ITEMS)][other[k]], value - (c + mu)[other[k]], weights
    features = f.w if f.c is None else np.c_[f.w, np.ones(N_USERS)]
    return features[other[k]], value - f.b[other[k]] - mu[row], weights


def refit(x, y, weights, penalty):
    if len(y) == 0:
        return np.zeros(x.shape[1])
    return np.linalg.solve(x.T @ (weights[:, None] * x) + np.diag(penalty), x.T @ (weights * y))


CASES = {
    "biases": {},
    "no item biases": {"item_bias": False},
    "no mu": {"mu": None},
    "mu per item": {"mu": np.linspace(2.0, 4.0, N_ITEMS)},
    "weights": {"weights": True},
    "l2 pair, biases penalized": {"l2": (0.5, 2.0), "l2_bias": (0.3, 0.4)},
}
# Each case compiles programs of its own, for a second or two.
EVERY_TIME = ["mu per item", "weights", "l2 pair, biases penalized"]
OTHERS = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in EVERY_TIME]


@pytest.mark.parametrize("side", ["user", pytest.param("item", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", EVERY_TIME + OTHERS)
def test_fold_in_and_leave_one_out_equal_refits_in_numpy(x64, side, case):
    options = dict(CASES[case])
    ratings = random_ratings(options.pop("weights", False))
    l2, l2_bias = options.pop("l2", 0.7), options.pop("l2_bias", 0.0)
    factors = random_factors(**options)
    index = 0 if side == "user" else 1
    strength, bias_strength = (s if np.isscalar(s) else s[index] for s in (l2, l2_bias))
    folded = solvers.fold_in(factors, rows(ratings, side), l2=l2, l2_bias=l2_bias)
    total = solvers.leave_one_out(factors, rows(ratings, side), l2=l2, l2_bias=l2_bias)
    squares = count = 0.0
    for row in range(N_USERS if side == "user" else N_ITEMS):
        x, y, weights = regression(ratings, factors, side, row)
        penalty = np.full(x.shape[1], strength)
        if side == "user" or factors.c is not None:
            penalty[-1] = bias_strength
        v = refit(x, y, weights, penalty)
        if side == "user":
            got = np.append(folded.w[row], folded.b[row])
        else:
            got = folded.x[row] if factors.c is None else np.append(folded.x[row], folded.c[row])
        np.testing.assert_allclose(got, v, rtol=1e-9, atol=1e-12)
        for k in range(len(y)):
            others = np.arange(len(y)) != k
            squares += weights[k] * (x[k] @ refit(x[others], y[others], weights[others], penalty) - y[k]) ** 2
            count += weights[k]
    np.testing.assert_allclose(total.sum, squares, rtol=1e-9)
    np.testing.assert_allclose(total.count, count)


@pytest.mark.parametrize(("side", "matrices_per_chunk"), [pytest.param("user", 1, marks=pytest.mark.slow), ("item", 2)])
def test_rows_solved_in_chunks_equal_rows_solved_at_once(x64, monkeypatch, side, matrices_per_chunk):
    ratings, factors = rows(random_ratings(weights=True), side), random_factors()

    def loss(l2):
        found = fold_in_module.solve_side(factors, ratings, l2=l2, l2_bias=0.3)[0]
        return jnp.sum(found.w**2) + jnp.sum(found.x**2), found

    expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(0.7)
    monkeypatch.setattr(cholesky, "MATRIX_FLOATS", matrices_per_chunk * (RANK + 1) ** 2)
    in_chunks = jax.jit(jax.value_and_grad(lambda l2: loss(l2), has_aux=True))  # a new function, so that it is traced
    chex.assert_trees_all_close(in_chunks(0.7), expected, rtol=1e-9)
    assert "cond[" in str(in_chunks.trace(0.7).jaxpr)  # the branches of several chunks


def test_folding_in_the_train_ratings_does_not_change_converged_factors(x64):
    """When ALS has converged, each side is the ridge solution for the other one."""
    ratings = random_ratings()
    sides = rows(ratings, "user"), rows(ratings, "item")
    factors, _ = solvers.als(sides, init=random_factors(), l2=0.7, l2_bias=0.2, sweeps=4000, tol=1e-15, progress=False)
    for side in sides:
        chex.assert_trees_all_close(solvers.fold_in(factors, side, l2=0.7, l2_bias=0.2), factors, atol=1e-5)


def test_new_users_get_a_table_of_their_own_size_that_minimizes_their_cost(x64):
    new_users = Ratings([0, 0, 1], [3, 5, 5], [5.0, 1.0, 2.0], 3, N_ITEMS)
    factors = random_factors()
    folded = solvers.fold_in(factors, rows(new_users, "user"), l2=0.7)
    assert folded.w.shape == (3, RANK)
    assert folded.x is not None
    np.testing.assert_allclose(folded.w[2], np.zeros(RANK))
    np.testing.assert_allclose(models.predict_all(folded)[2], 3.5 + factors.c)
    gradient = jax.grad(losses.cost)(folded, as_dtype(data.observed(new_users), jnp.float64), l2=0.7)
    np.testing.assert_allclose(gradient.w, np.zeros((3, RANK)), atol=1e-6)
    np.testing.assert_allclose(gradient.b, np.zeros(3), atol=1e-6)


def test_new_items_need_a_mu_of_their_own_or_a_number():
    new_items = Ratings([0, 1], [0, 1], [5.0, 1.0], N_USERS, 2)
    per_item = random_factors(jnp.float32, mu=np.linspace(2.0, 4.0, N_ITEMS))
    with pytest.raises(ValueError, match=r"mu: expected a number or one per item \(2\), got 7"):
        solvers.fold_in(per_item, data.rows(new_items, "item"), l2=0.7)
    folded = solvers.fold_in(dataclasses.replace(per_item, mu=jnp.array(3.5)), data.rows(new_items, "item"), l2=0.7)
    assert folded.x.shape == (2, RANK)


@pytest.mark.parametrize(("side", "other"), [("user", "items"), ("item", "users")])
def test_rows_that_refer_to_a_larger_table_are_refused(side, other):
    larger = Ratings([0], [0], [1.0], N_USERS + 1, N_ITEMS + 1)
    with pytest.raises(ValueError, match=f"over the . {other} of the factors"):
        solvers.fold_in(random_factors(jnp.float32), data.rows(larger, side), l2=0.7)


def test_leave_one_out_accepts_other_losses(x64):
    ratings, factors = random_ratings(), random_factors()
    absolute = solvers.leave_one_out(factors, rows(ratings, "user"), l2=0.7, loss=losses.absolute_error)
    squared = solvers.leave_one_out(factors, rows(ratings, "user"), l2=0.7)
    assert 0 < float(absolute.mean()) <= float(jnp.sqrt(squared.mean()))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["user", "item"])
def test_derivatives_of_validation_errors_in_l2_equal_finite_differences(x64, side):
    """Two validation errors, each through the ridge solution: on held-out ratings, and leaving out one by one."""
    ratings, factors = random_ratings(), random_factors()
    train, test = data.splits.random(ratings, test_fraction=0.3, rng=0)
    train, all_rows = rows(train, side), rows(ratings, side)
    y = jnp.asarray(test.value, jnp.float64)

    def held_out(l2):
        folded = solvers.fold_in(factors, train, l2=l2, l2_bias=0.3)
        return losses.squared_error(models.predict(folded, jnp.asarray(test.user), jnp.asarray(test.item)), y).mean()

    left_out = lambda l2: solvers.leave_one_out(factors, all_rows, l2=l2, l2_bias=0.3).mean()
    for error in map(jax.jit, (held_out, left_out)):
        slope = jax.grad(error)(jnp.array(0.7))
        assert abs(float(slope)) > 1e-3
        expected = reference.central_differences(lambda l2, error=error: float(error(jnp.asarray(l2))), 0.7)
        np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_vmap_over_l2_equals_a_loop():
    ratings, factors = random_ratings(), random_factors(jnp.float32)
    strengths = jnp.array([0.5, 2.0])
    batch = jax.vmap(lambda l2: solvers.fold_in(factors, rows(ratings, "user", jnp.float32), l2=l2).w)(strengths)
    for k, l2 in enumerate(strengths):
        expected = solvers.fold_in(factors, rows(ratings, "user", jnp.float32), l2=l2).w
        np.testing.assert_allclose(batch[k], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("l2", [0.7])
def test_the_order_of_the_buckets_does_not_change_the_rows(l2):
    """Short rows are solved in the dual and long ones in the primal; this must not depend on the buckets' order."""
    ratings, factors = random_ratings(), models.init(N_USERS, N_ITEMS, 6, key=jax.random.key(0), scale=1.0, mu=3.5)
    ordered = data.rows(ratings, "user", min_length=1, bucket_growth=1.5)
    assert {2 * bucket.other.shape[1] <= 7 for bucket in ordered.buckets} == {True, False}
    sizes = [len(bucket.row) for bucket in ordered.buckets]
    bucket_index = np.repeat(np.arange(len(sizes)), sizes)[np.asarray(ordered.position)]
    position_in_bucket = np.asarray(ordered.position) - np.concatenate([[0], np.cumsum(sizes)])[bucket_index]
    first_position = np.array([sum(sizes[k + 1 :]) for k in range(len(sizes))])  # of each bucket in reversed order
    position = jnp.asarray(first_position[bucket_index] + position_in_bucket, jnp.int32)
    reversed_buckets = dataclasses.replace(ordered, buckets=ordered.buckets[::-1], position=position)
    expected, got = (solvers.fold_in(factors, rows, l2=l2) for rows in (ordered, reversed_buckets))
    np.testing.assert_allclose(got.w, expected.w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.b, expected.b, rtol=1e-4, atol=1e-5)
