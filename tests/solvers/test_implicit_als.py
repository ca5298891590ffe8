"""Implicit ALS against dense NumPy over all pairs, from the definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data, models, solvers
from jaxrec.data import labels

N_USERS, N_ITEMS, UNOBSERVED = 9, 12, 0.3


def clicks(seed=0, *, weights=True):
    """Random pairs; user 4 and item 7 have none."""
    rng = np.random.default_rng(seed)
    there = rng.random((N_USERS, N_ITEMS)) < 0.35
    there[4], there[:, 7] = False, False
    user, item = np.nonzero(there)
    weight = rng.uniform(0.5, 3, len(user)) if weights else None
    return Ratings(user, item, rng.uniform(0.5, 2, len(user)), N_USERS, N_ITEMS, weights=weight)


def sides(ratings):
    return tuple(data.rows(ratings, side, min_length=2, bucket_growth=3.0) for side in ("user", "item"))


def start(rank=3, dtype=jnp.float32):
    return models.init(N_USERS, N_ITEMS, rank, key=jax.random.key(1), scale=0.5, item_bias=False, dtype=dtype)


def by_definition(ratings, factors, l2):
    """(the objective, the derivative in w), in float64 over all pairs."""
    w, x = np.asarray(factors.w, np.float64), np.asarray(factors.x, np.float64)
    target, weight = np.zeros((N_USERS, N_ITEMS)), np.zeros((N_USERS, N_ITEMS))
    target[ratings.user, ratings.item] = ratings.value
    weight[ratings.user, ratings.item] = 1.0 if ratings.weights is None else ratings.weights
    s = w @ x.T
    of_users, of_items = (np.broadcast_to(np.asarray(each, float), (n,)) for each, n in zip(l2, s.shape, strict=True))
    value = (weight * (s - target) ** 2).sum() + UNOBSERVED * (s**2).sum()
    value += (of_users[:, None] * w**2).sum() + (of_items[:, None] * x**2).sum()
    return value / 2, (weight * (s - target) + UNOBSERVED * s) @ x + of_users[:, None] * w


@pytest.mark.parametrize("weights", [True, False])
def test_the_cost_is_the_definition_from_either_side(x64, weights):
    ratings, factors = clicks(weights=weights), start(dtype=jnp.float64)
    l2 = jnp.linspace(0.1, 1, N_USERS), jnp.linspace(0.2, 2, N_ITEMS)
    for rows in sides(ratings):
        cost = solvers.implicit_cost(factors, rows, l2=l2, unobserved_weight=UNOBSERVED)
        np.testing.assert_allclose(cost, by_definition(ratings, factors, l2)[0], rtol=1e-10)


@pytest.mark.parametrize("cg_steps", [None, 6])
@pytest.mark.parametrize("weights", [True, False])
def test_every_row_is_solved(x64, cg_steps, weights):
    ratings, factors = clicks(weights=weights), start(dtype=jnp.float64)
    l2 = jnp.linspace(0.1, 1, N_USERS), 0.5
    by_user, by_item = sides(ratings)
    solved = solvers.implicit_fold_in(factors, by_user, l2=l2, unobserved_weight=UNOBSERVED, cg_steps=cg_steps)
    np.testing.assert_allclose(by_definition(ratings, solved, l2)[1], 0, atol=1e-8)
    np.testing.assert_array_equal(solved.w[4], 0)
    flipped = dataclasses.replace(factors, w=factors.x, x=factors.w)
    turned = Ratings(ratings.item, ratings.user, ratings.value, N_ITEMS, N_USERS, weights=ratings.weights)
    expected = solvers.implicit_fold_in(flipped, sides(turned)[0], l2=(0.5, 1.0), unobserved_weight=UNOBSERVED)
    items = solvers.implicit_fold_in(factors, by_item, l2=(1.0, 0.5), unobserved_weight=UNOBSERVED, cg_steps=cg_steps)
    np.testing.assert_allclose(items.x, expected.w, atol=1e-8)


@pytest.mark.parametrize("cg_steps", [None, 1, 3])
def test_the_objective_never_rises_and_is_the_cost(cg_steps):
    ratings, seen = clicks(), []
    l2 = solvers.frequency_scaled_l2(ratings, 0.02, unobserved_weight=UNOBSERVED)
    given = {"l2": l2, "unobserved_weight": UNOBSERVED}
    keep = lambda _, factors, __: seen.append(factors)
    rows = sides(ratings)
    factors, info = solvers.implicit_als(
        rows, init=start(), **given, sweeps=12, tol=0.0, cg_steps=cg_steps, callback=keep, progress=False
    )
    assert info.steps == 12
    assert (np.diff(info.trace) <= 1e-6 * info.trace[0]).all()
    right = [float(solvers.implicit_cost(each, rows[0], **given)) for each in [start(), *seen]]
    np.testing.assert_allclose(info.trace, right, rtol=1e-5)
    np.testing.assert_array_equal(factors.b, 0)


def test_steps_of_conjugate_gradients_come_to_the_same_end():
    rows = sides(clicks())
    run = lambda steps, sweeps: solvers.implicit_als(
        rows, init=start(), l2=0.1, unobserved_weight=UNOBSERVED, sweeps=sweeps, tol=0.0, cg_steps=steps, progress=False
    )
    exact, some = run(None, 60), run(2, 120)
    np.testing.assert_allclose(some[1].trace[-1], exact[1].trace[-1], rtol=1e-4)


def test_confidences_are_those_of_hu_koren_and_volinsky(x64):
    plays = dataclasses.replace(clicks(weights=False), weights=None)
    factors = start(dtype=jnp.float64)
    s = np.asarray(factors.w @ factors.x.T)
    preference, c = np.zeros(s.shape), np.ones(s.shape)
    preference[plays.user, plays.item], c[plays.user, plays.item] = 1, 1 + 5 * plays.value
    theirs = ((c * (preference - s) ** 2).sum() + 0.1 * (np.asarray(factors.w) ** 2).sum()) / 2
    theirs += 0.1 * (np.asarray(factors.x) ** 2).sum() / 2
    rows = data.rows(labels.confidence_weights(plays, alpha=5.0), "user")
    ours = solvers.implicit_cost(factors, rows, l2=0.1, unobserved_weight=1.0)
    amount = 5 * plays.value.astype(np.float64)
    constant = ((1 + amount) - (1 + amount) ** 2 / amount).sum() / 2
    np.testing.assert_allclose(ours + constant, theirs, rtol=1e-6)  # values and weights are float32


def test_confidence_refuses():
    with pytest.raises(ValueError, match="alpha > 0 and amounts > 0"):
        labels.confidence_weights(clicks(), alpha=0.0)
    with pytest.raises(ValueError, match="smallest amount of 0"):
        labels.confidence_weights(Ratings([0], [0], [0.0], 1, 1))


def test_strengths_grow_with_what_is_known():
    users, items = solvers.frequency_scaled_l2(
        Ratings([0, 0], [0, 1], [1, 1], 2, 3), 0.5, unobserved_weight=0.1, exponent=2.0
    )
    np.testing.assert_allclose(users, [0.5 * (2 + 0.3) ** 2, 0.5 * 0.3**2], rtol=1e-6)
    np.testing.assert_allclose(items, [0.5 * 1.2**2, 0.5 * 1.2**2, 0.5 * 0.2**2], rtol=1e-6)
    with pytest.raises(ValueError, match="l2 and unobserved_weight > 0"):
        solvers.frequency_scaled_l2(clicks(), 0.0)


def test_a_checkerboard_is_found():
    user, item = np.nonzero((np.arange(20)[:, None] + np.arange(20)[None, :]) % 2 == 0)
    keep = np.random.default_rng(0).random(len(user)) < 0.7
    board = Ratings(user[keep], item[keep], np.ones(keep.sum()), 20, 20)
    init = models.init(20, 20, 2, key=jax.random.key(0), item_bias=False)
    factors, _ = solvers.implicit_als(sides(board), init=init, l2=0.01, unobserved_weight=0.1, progress=False)
    s = np.asarray(models.predict_all(factors))
    black = (np.arange(20)[:, None] + np.arange(20)[None, :]) % 2 == 0
    assert s[black].min() > s[~black].max()


def test_a_new_users_row_is_that_of_training():
    ratings = clicks()
    given = {"l2": 0.1, "unobserved_weight": UNOBSERVED}
    factors, _ = solvers.implicit_als(sides(ratings), init=start(), **given, sweeps=5, progress=False)
    again = solvers.implicit_fold_in(factors, sides(ratings)[0], **given)
    new_user = Ratings([0, 0, 0], [0, 3, 5], [1, 1, 1], 1, N_ITEMS)
    both = solvers.implicit_fold_in(factors, data.rows(new_user, "user"), **given)
    assert both.w.shape == (1, 3)
    assert both.b.shape == (1,)
    assert again.w.shape == (N_USERS, 3)


def test_a_grid_of_strengths_by_vmap():
    rows, init = sides(clicks()), start()
    l2 = jnp.array([0.1, 1.0])
    many = jax.vmap(lambda l2: solvers.implicit_sweep(init, *rows, l2=l2, unobserved_weight=UNOBSERVED)[1])(l2)
    each = [solvers.implicit_sweep(init, *rows, l2=float(one), unobserved_weight=UNOBSERVED)[1] for one in l2]
    np.testing.assert_allclose(many, each, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": 0.0}, "l2: expected finite numbers > 0"),
        ({"unobserved_weight": 0.0}, "unobserved_weight: expected a finite number > 0"),
        ({"sweeps": 0}, "sweeps: expected at least 1"),
        ({"cg_steps": 0}, "cg_steps: expected at least 1"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        solvers.implicit_als(sides(clicks()), init=start(), **({"l2": 0.1, "progress": False} | change))


def test_models_with_biases_and_rows_of_other_tables_are_refused():
    rows = sides(clicks())
    with_bias = models.init(N_USERS, N_ITEMS, 3, key=jax.random.key(0))
    with pytest.raises(ValueError, match="products alone"):
        solvers.implicit_als(rows, init=with_bias, l2=0.1, progress=False)
    with pytest.raises(ValueError, match="by_user: expected Rows of side 'user'"):
        solvers.implicit_als(rows[::-1], init=start(), l2=0.1, progress=False)
    new = data.rows(Ratings([0], [0], [1.0], 1, 5), "user")
    with pytest.raises(ValueError, match="over the 12 items"):
        solvers.implicit_fold_in(start(), new, l2=0.1)
    with pytest.raises(ValueError, match="New rows have no parameters"):
        solvers.implicit_fold_in(start(), data.rows(Ratings([0], [0], [1.0], 1, 12), "user"), l2=0.1, cg_steps=3)
