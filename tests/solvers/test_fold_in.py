"""Fold-in and leave-one-out of whole sides: against NumPy's refits, training's own rows, and finite differences."""

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

N_USERS, N_ITEMS, RANK = 9, 7, 2


def toy(weights=False, seed=0):
    """Ratings of which the last user has none and the last but one has one."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((N_USERS - 2, N_ITEMS)) < 0.6)
    user, item = np.append(user, N_USERS - 2), np.append(item, 3)
    w = rng.integers(1, 4, len(user)) if weights else None
    return Ratings(user, item, rng.normal(3.5, 1.0, len(user)), N_USERS, N_ITEMS, weights=w)


def model(dtype=jnp.float64, *, item_bias=True, mu=3.5):
    factors = models.init(N_USERS, N_ITEMS, RANK, key=jax.random.key(1), scale=1.0, item_bias=item_bias, mu=mu)
    noise = jax.random.normal(jax.random.key(2), (N_USERS,)), jax.random.normal(jax.random.key(3), (N_ITEMS,))
    factors = dataclasses.replace(factors, b=noise[0], c=noise[1] if item_bias else None)
    return jax.tree.map(lambda a: a.astype(dtype), factors)


def cast(layout, dtype=jnp.float64):
    return jax.tree.map(lambda a: a.astype(dtype) if a.dtype == jnp.float32 else a, layout)


def rows(ratings, side, dtype=jnp.float64):
    return cast(data.rows(ratings, side, min_length=4, bucket_growth=3.0), dtype)


def regression(ratings, factors, side, row):
    """(x, y, weights, penalized) of one row in NumPy, from the formulas."""
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
    "notes' model": {"item_bias": False},
    "no mu": {"mu": None},
    "mu per item": {"mu": np.linspace(2.0, 4.0, N_ITEMS)},
    "weights": {"weights": True},
    "l2 pair, biases penalized": {"l2": (0.5, 2.0), "l2_bias": (0.3, 0.4)},
}


@pytest.mark.parametrize("side", ["user", pytest.param("item", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_every_row_and_every_left_out_rating_is_numpys_refit(x64, side, case):
    options = dict(CASES[case])
    ratings = toy(options.pop("weights", False))
    l2, l2_bias = options.pop("l2", 0.7), options.pop("l2_bias", 0.0)
    factors = model(**options)
    which = 0 if side == "user" else 1
    strength, bias = (s if np.isscalar(s) else s[which] for s in (l2, l2_bias))
    folded = solvers.fold_in(factors, rows(ratings, side), l2=l2, l2_bias=l2_bias)
    out = solvers.leave_one_out(factors, rows(ratings, side), l2=l2, l2_bias=l2_bias)
    squares = count = 0.0
    for row in range(N_USERS if side == "user" else N_ITEMS):
        x, y, weights = regression(ratings, factors, side, row)
        penalty = np.full(x.shape[1], strength)
        if side == "user" or factors.c is not None:
            penalty[-1] = bias
        v = refit(x, y, weights, penalty)
        if side == "user":
            got = np.append(folded.w[row], folded.b[row])
        else:
            got = folded.x[row] if factors.c is None else np.append(folded.x[row], folded.c[row])
        np.testing.assert_allclose(got, v, rtol=1e-9, atol=1e-12)
        for k in range(len(y)):
            rest = np.arange(len(y)) != k
            squares += weights[k] * (x[k] @ refit(x[rest], y[rest], weights[rest], penalty) - y[k]) ** 2
            count += weights[k]
    np.testing.assert_allclose(out.sum, squares, rtol=1e-9)
    np.testing.assert_allclose(out.count, count)


@pytest.mark.parametrize(("side", "at_once"), [pytest.param("user", 1, marks=pytest.mark.slow), ("item", 2)])
def test_rows_solved_some_at_a_time_are_those_solved_at_once(x64, monkeypatch, side, at_once):
    given, factors = rows(toy(weights=True), side), model()

    def loss(l2):
        found = fold_in_module.solve_side(factors, given, l2=l2, l2_bias=0.3)[0]
        return jnp.sum(found.w**2) + jnp.sum(found.x**2), found

    right = jax.jit(jax.value_and_grad(loss, has_aux=True))(0.7)
    monkeypatch.setattr(cholesky, "MATRIX_FLOATS", at_once * (RANK + 1) ** 2)
    some = jax.jit(jax.value_and_grad(lambda l2: loss(l2), has_aux=True))  # another function: traced anew
    chex.assert_trees_all_close(some(0.7), right, rtol=1e-9)
    assert "cond[" in str(some.trace(0.7).jaxpr)  # else all were one chunk


def test_fold_in_gives_back_what_training_gave(x64):
    """At ALS's end each side is the other's ridge solution, so folding the train ratings in changes nothing."""
    ratings = toy()
    sides = rows(ratings, "user"), rows(ratings, "item")
    factors, _ = solvers.als(sides, init=model(), l2=0.7, l2_bias=0.2, sweeps=4000, tol=1e-15, progress=False)
    for side in sides:
        chex.assert_trees_all_close(solvers.fold_in(factors, side, l2=0.7, l2_bias=0.2), factors, atol=1e-5)


def test_new_users_come_into_a_table_of_their_own_size_and_minimize_their_cost(x64):
    newcomers = Ratings([0, 0, 1], [3, 5, 5], [5.0, 1.0, 2.0], 3, N_ITEMS)
    factors = model()
    folded = solvers.fold_in(factors, rows(newcomers, "user"), l2=0.7)
    assert folded.w.shape == (3, RANK)
    assert folded.x is not None
    np.testing.assert_allclose(folded.w[2], np.zeros(RANK))
    np.testing.assert_allclose(models.predict_all(folded)[2], 3.5 + factors.c)
    gradient = jax.grad(losses.cost)(folded, cast(data.observed(newcomers)), l2=0.7)
    np.testing.assert_allclose(gradient.w, np.zeros((3, RANK)), atol=1e-6)
    np.testing.assert_allclose(gradient.b, np.zeros(3), atol=1e-6)


def test_new_items_need_a_mu_of_their_own():
    newcomers = Ratings([0, 1], [0, 1], [5.0, 1.0], N_USERS, 2)
    per_item = model(jnp.float32, mu=np.linspace(2.0, 4.0, N_ITEMS))
    with pytest.raises(ValueError, match=r"mu: expected a number or one per item \(2\), got 7"):
        solvers.fold_in(per_item, data.rows(newcomers, "item"), l2=0.7)
    folded = solvers.fold_in(dataclasses.replace(per_item, mu=jnp.array(3.5)), data.rows(newcomers, "item"), l2=0.7)
    assert folded.x.shape == (2, RANK)


@pytest.mark.parametrize(("side", "other"), [("user", "items"), ("item", "users")])
def test_rows_over_other_tables_are_refused(side, other):
    larger = Ratings([0], [0], [1.0], N_USERS + 1, N_ITEMS + 1)
    with pytest.raises(ValueError, match=f"over the . {other} of the factors"):
        solvers.fold_in(model(jnp.float32), data.rows(larger, side), l2=0.7)


def test_leave_one_out_takes_other_losses(x64):
    ratings, factors = toy(), model()
    absolute = solvers.leave_one_out(factors, rows(ratings, "user"), l2=0.7, loss=losses.absolute_error)
    squared = solvers.leave_one_out(factors, rows(ratings, "user"), l2=0.7)
    assert 0 < float(absolute.mean()) <= float(jnp.sqrt(squared.mean()))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["user", "item"])
def test_the_errors_derivative_in_l2_is_finite_differences(x64, side):
    """Both validation errors, through the ridge: what is held out, and what is left out one by one."""
    ratings, factors = toy(), model()
    train, test = data.splits.random(ratings, test_fraction=0.3, rng=0)
    train, every = rows(train, side), rows(ratings, side)
    y = jnp.asarray(test.value, jnp.float64)

    def held_out(l2):
        folded = solvers.fold_in(factors, train, l2=l2, l2_bias=0.3)
        return losses.squared_error(models.predict(folded, jnp.asarray(test.user), jnp.asarray(test.item)), y).mean()

    left_out = lambda l2: solvers.leave_one_out(factors, every, l2=l2, l2_bias=0.3).mean()
    for error in map(jax.jit, (held_out, left_out)):
        slope = jax.grad(error)(jnp.array(0.7))
        assert abs(float(slope)) > 1e-3
        expected = reference.central_differences(lambda l2, error=error: float(error(jnp.asarray(l2))), 0.7)
        np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_vmap_over_l2_is_a_loop():
    ratings, factors = toy(), model(jnp.float32)
    strengths = jnp.array([0.5, 2.0])
    batch = jax.vmap(lambda l2: solvers.fold_in(factors, rows(ratings, "user", jnp.float32), l2=l2).w)(strengths)
    for k, l2 in enumerate(strengths):
        one = solvers.fold_in(factors, rows(ratings, "user", jnp.float32), l2=l2).w
        np.testing.assert_allclose(batch[k], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("l2", [0.7])
def test_buckets_made_by_hand_may_come_in_any_order(l2):
    """Short ones are solved in the dual and long ones in the primal: each row is what it is in order of length."""
    ratings, factors = toy(), models.init(N_USERS, N_ITEMS, 6, key=jax.random.key(0), scale=1.0, mu=3.5)
    ordered = data.rows(ratings, "user", min_length=1, bucket_growth=1.5)
    assert {2 * bucket.other.shape[1] <= 7 for bucket in ordered.buckets} == {True, False}
    sizes = [len(bucket.row) for bucket in ordered.buckets]
    which = np.repeat(np.arange(len(sizes)), sizes)[np.asarray(ordered.position)]
    within = np.asarray(ordered.position) - np.concatenate([[0], np.cumsum(sizes)])[which]
    after = np.array([sum(sizes[k + 1 :]) for k in range(len(sizes))])  # where each begins, longest first
    position = jnp.asarray(after[which] + within, jnp.int32)
    turned = dataclasses.replace(ordered, buckets=ordered.buckets[::-1], position=position)
    expected, got = (solvers.fold_in(factors, rows, l2=l2) for rows in (ordered, turned))
    np.testing.assert_allclose(got.w, expected.w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.b, expected.b, rtol=1e-4, atol=1e-5)
