"""Implicit ALS against the definition: dense NumPy over all pairs of a user and an item."""

import dataclasses
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data, models, solvers
from jaxrec.data import labels
from jaxrec.solvers import _implicit_als, batched_ridge

N_USERS, N_ITEMS, UNOBSERVED = 9, 12, 0.3


def random_clicks(seed=0, *, weights=True):
    """Random observed pairs; user 4 and item 7 have none."""
    rng = np.random.default_rng(seed)
    observed = rng.random((N_USERS, N_ITEMS)) < 0.35
    observed[4], observed[:, 7] = False, False
    user, item = np.nonzero(observed)
    weight = rng.uniform(0.5, 3, len(user)) if weights else None
    return Ratings(user, item, rng.uniform(0.5, 2, len(user)), N_USERS, N_ITEMS, weights=weight)


def both_sides(ratings):
    """(by_user, by_item): the ratings in rows of users and in rows of items."""
    return tuple(data.rows(ratings, side, min_length=2, bucket_growth=3.0) for side in ("user", "item"))


def initial_factors(rank=3, dtype=jnp.float32):
    return models.init(N_USERS, N_ITEMS, rank, key=jax.random.key(1), scale=0.5, item_bias=False, dtype=dtype)


def by_definition(ratings, factors, l2):
    """(objective, its gradient with respect to w), in float64 over all pairs."""
    w, x = np.asarray(factors.w, np.float64), np.asarray(factors.x, np.float64)
    target, weight = np.zeros((N_USERS, N_ITEMS)), np.zeros((N_USERS, N_ITEMS))
    target[ratings.user, ratings.item] = ratings.value
    weight[ratings.user, ratings.item] = 1.0 if ratings.weights is None else ratings.weights
    s = w @ x.T
    l2_users, l2_items = (np.broadcast_to(np.asarray(side, float), (n,)) for side, n in zip(l2, s.shape, strict=True))
    value = (weight * (s - target) ** 2).sum() + UNOBSERVED * (s**2).sum()
    value += (l2_users[:, None] * w**2).sum() + (l2_items[:, None] * x**2).sum()
    return value / 2, (weight * (s - target) + UNOBSERVED * s) @ x + l2_users[:, None] * w


@pytest.mark.parametrize("weights", [True, False])
def test_the_cost_equals_the_definition_from_rows_of_users_and_of_items(x64, weights):
    ratings, factors = random_clicks(weights=weights), initial_factors(dtype=jnp.float64)
    l2 = jnp.linspace(0.1, 1, N_USERS), jnp.linspace(0.2, 2, N_ITEMS)
    for rows in both_sides(ratings):
        cost = solvers.implicit_cost(factors, rows, l2=l2, unobserved_weight=UNOBSERVED)
        np.testing.assert_allclose(cost, by_definition(ratings, factors, l2)[0], rtol=1e-10)


@pytest.mark.parametrize("cg_steps", [None, 6])
@pytest.mark.parametrize("weights", [True, False])
def test_fold_in_solves_every_row(x64, cg_steps, weights):
    ratings, factors = random_clicks(weights=weights), initial_factors(dtype=jnp.float64)
    l2 = jnp.linspace(0.1, 1, N_USERS), 0.5
    by_user, by_item = both_sides(ratings)
    solved = solvers.implicit_fold_in(factors, by_user, l2=l2, unobserved_weight=UNOBSERVED, cg_steps=cg_steps)
    np.testing.assert_allclose(by_definition(ratings, solved, l2)[1], 0, atol=1e-8)
    np.testing.assert_array_equal(solved.w[4], 0)
    # Items are solved as the users of the transposed ratings are.
    transposed_factors = dataclasses.replace(factors, w=factors.x, x=factors.w)
    transposed = Ratings(ratings.item, ratings.user, ratings.value, N_ITEMS, N_USERS, weights=ratings.weights)
    expected = solvers.implicit_fold_in(
        transposed_factors, both_sides(transposed)[0], l2=(0.5, 1.0), unobserved_weight=UNOBSERVED
    )
    items = solvers.implicit_fold_in(factors, by_item, l2=(1.0, 0.5), unobserved_weight=UNOBSERVED, cg_steps=cg_steps)
    np.testing.assert_allclose(items.x, expected.w, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"cg_steps": 1}, {"cg_steps": 3}, {"block_size": 2}])
def test_implicit_als_never_increases_the_objective_and_its_trace_is_the_cost(options):
    ratings, history = random_clicks(), []
    l2 = solvers.frequency_scaled_l2(ratings, 0.02, unobserved_weight=UNOBSERVED)
    penalties = {"l2": l2, "unobserved_weight": UNOBSERVED}
    keep = lambda step, factors, info: history.append(factors)
    rows = both_sides(ratings)
    factors, info = solvers.implicit_als(
        rows, init=initial_factors(), **penalties, **options, sweeps=12, tol=0.0, callback=keep, progress=False
    )
    assert info.steps == 12
    assert (np.diff(info.trace) <= 1e-6 * info.trace[0]).all()
    expected = [
        float(solvers.implicit_cost(factors, rows[0], **penalties)) for factors in [initial_factors(), *history]
    ]
    np.testing.assert_allclose(info.trace, expected, rtol=1e-5)
    np.testing.assert_array_equal(factors.b, 0)


def test_conjugate_gradients_converge_to_the_objective_of_exact_sweeps():
    rows = both_sides(random_clicks())
    options = {"l2": 0.1, "unobserved_weight": UNOBSERVED, "tol": 0.0, "progress": False}
    _, exact = solvers.implicit_als(rows, init=initial_factors(), sweeps=60, cg_steps=None, **options)
    _, by_cg = solvers.implicit_als(rows, init=initial_factors(), sweeps=120, cg_steps=2, **options)
    np.testing.assert_allclose(by_cg.trace[-1], exact.trace[-1], rtol=1e-4)


def scaled(ratings):
    """Options with strengths that differ from row to row."""
    l2 = solvers.frequency_scaled_l2(ratings, 0.02, unobserved_weight=UNOBSERVED)
    return {"l2": jax.tree.map(lambda a: a.astype(jnp.float64), l2), "unobserved_weight": UNOBSERVED}


@pytest.mark.parametrize("weights", [True, False])
def test_one_block_of_all_coordinates_is_the_exact_sweep(x64, weights):
    ratings, init = random_clicks(weights=weights), initial_factors(5, jnp.float64)
    rows = both_sides(ratings)
    exact, expected = solvers.implicit_sweep(init, *rows, **scaled(ratings))
    swept, objective = solvers.implicit_sweep(init, *rows, **scaled(ratings), block_size=5)
    np.testing.assert_allclose(swept.w, exact.w, atol=1e-10)
    np.testing.assert_allclose(swept.x, exact.x, atol=1e-10)
    np.testing.assert_allclose(objective, expected, rtol=1e-10)
    assert (np.asarray(swept.w[4]) == 0).all()  # no observations
    assert (np.asarray(swept.x[7]) == 0).all()


def test_one_block_of_all_coordinates_is_the_exact_sweep_in_float32():
    ratings, init = random_clicks(), initial_factors(5)
    options = {"l2": 0.1, "unobserved_weight": UNOBSERVED}
    exact, expected = solvers.implicit_sweep(init, *both_sides(ratings), **options)
    swept, objective = solvers.implicit_sweep(init, *both_sides(ratings), **options, block_size=5)
    np.testing.assert_allclose(swept.w, exact.w, atol=1e-4)
    np.testing.assert_allclose(swept.x, exact.x, atol=1e-4)
    np.testing.assert_allclose(objective, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [True, False])
def test_exact_sweeps_of_high_rank_solve_short_rows_in_the_dual(x64, monkeypatch, weights):
    rows, init = both_sides(random_clicks(weights=weights)), initial_factors(8, jnp.float64)
    sweep = lambda l2: solvers.implicit_sweep(init, *rows, l2=l2, unobserved_weight=UNOBSERVED)
    expected, slope = sweep(0.3), jax.grad(lambda l2: sweep(l2)[1])(0.3)
    monkeypatch.setattr(_implicit_als, "DUAL_RANK", 4)
    monkeypatch.setattr(batched_ridge, "dual_least_squares", record := Mock(wraps=batched_ridge.dual_least_squares))
    jax.clear_caches()  # otherwise the program compiled above would run again
    found = sweep(0.3)
    assert record.called
    for leaf, expected_leaf in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, expected_leaf, atol=1e-10)
    np.testing.assert_allclose(jax.grad(lambda l2: sweep(l2)[1])(0.3), slope, rtol=1e-8)
    monkeypatch.undo()
    jax.clear_caches()


@pytest.mark.parametrize("options", [{"block_size": 1}, {"block_size": 2}, {"cg_steps": 1}], ids=str)
def test_sweeps_of_blocks_and_of_conjugate_gradients_end_where_exact_sweeps_end(x64, options):
    ratings = random_clicks()
    rows, settings = both_sides(ratings), scaled(ratings) | {"tol": 0.0, "progress": False}
    exact, info = solvers.implicit_als(rows, init=initial_factors(3, jnp.float64), sweeps=300, **settings)
    # a solution of the exact sweeps stays where it is
    swept, objective = solvers.implicit_sweep(exact, *rows, **scaled(ratings), **options)
    np.testing.assert_allclose(swept.x, exact.x, atol=1e-6)
    np.testing.assert_allclose(objective, info.trace[-1], rtol=1e-10)
    by_steps, info = solvers.implicit_als(rows, init=initial_factors(3, jnp.float64), sweeps=300, **options, **settings)
    np.testing.assert_allclose(by_definition(ratings, by_steps, settings["l2"])[1], 0, atol=1e-6)  # stationary


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"block_size": 2}, {"cg_steps": 2}], ids=str)
def test_the_derivative_of_a_sweep_equals_finite_differences(x64, options):
    """Also where the items' Gram matrix has equal eigenvalues, where the derivative of an eigenvector is infinite."""
    rows = both_sides(random_clicks())
    init = dataclasses.replace(initial_factors(dtype=jnp.float64), x=jnp.eye(N_ITEMS, 3))

    def items(l2):
        return solvers.implicit_sweep(init, *rows, l2=l2, unobserved_weight=UNOBSERVED, **options)[1]

    # many steps, so that the rows' solutions do not depend on the coordinates
    exact = {"block_size": 3} if "block_size" in options else {"cg_steps": 8}
    objective = lambda l2: solvers.implicit_sweep(init, *rows, l2=l2, unobserved_weight=UNOBSERVED, **exact)[1]
    slope, step = jax.grad(objective)(0.5), 1e-5
    np.testing.assert_allclose(slope, (objective(0.5 + step) - objective(0.5 - step)) / (2 * step), rtol=1e-6)
    assert np.isfinite(jax.grad(items)(0.5))


@pytest.mark.slow
def test_vmap_over_l2_equals_single_sweeps_of_blocks_and_conjugate_gradients():
    rows, init = both_sides(random_clicks()), initial_factors()
    l2 = jnp.array([0.1, 1.0])
    for options in ({"block_size": 2}, {"cg_steps": 1}):
        objective = lambda l2, options=options: solvers.implicit_sweep(init, *rows, l2=l2, **options)[1]
        np.testing.assert_allclose(jax.vmap(objective)(l2), [objective(float(s)) for s in l2], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size: expected a number of the factors' 3 coordinates, got 0"),
        ({"block_size": 4}, "block_size: expected a number of the factors' 3 coordinates, got 4"),
        ({"block_size": True}, "block_size: expected a whole number, got True"),
        ({"block_size": 2, "cg_steps": 2}, "at most one of them, got 2 and 2"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(options, message):
    rows, init = both_sides(random_clicks()), initial_factors()
    with pytest.raises(ValueError, match=message):
        solvers.implicit_als(rows, init=init, l2=0.1, progress=False, **options)
    with pytest.raises(ValueError, match=message):
        solvers.implicit_sweep(init, *rows, l2=0.1, **options)


def test_confidence_weights_give_the_cost_of_hu_koren_and_volinsky_up_to_a_constant(x64):
    plays = dataclasses.replace(random_clicks(weights=False), weights=None)
    factors = initial_factors(dtype=jnp.float64)
    s = np.asarray(factors.w @ factors.x.T)
    preference, c = np.zeros(s.shape), np.ones(s.shape)
    preference[plays.user, plays.item], c[plays.user, plays.item] = 1, 1 + 5 * plays.value
    expected = ((c * (preference - s) ** 2).sum() + 0.1 * (np.asarray(factors.w) ** 2).sum()) / 2
    expected += 0.1 * (np.asarray(factors.x) ** 2).sum() / 2
    rows = data.rows(labels.confidence_weights(plays, alpha=5.0), "user")
    cost = solvers.implicit_cost(factors, rows, l2=0.1, unobserved_weight=1.0)
    amount = 5 * plays.value.astype(np.float64)
    constant = ((1 + amount) - (1 + amount) ** 2 / amount).sum() / 2
    np.testing.assert_allclose(cost + constant, expected, rtol=1e-6)  # values and weights are float32


def test_confidence_weights_of_no_amounts_are_refused():
    with pytest.raises(ValueError, match="alpha > 0 and amounts > 0"):
        labels.confidence_weights(random_clicks(), alpha=0.0)
    with pytest.raises(ValueError, match="smallest amount of 0"):
        labels.confidence_weights(Ratings([0], [0], [0.0], 1, 1))


def test_frequency_scaled_l2_grows_with_the_number_of_ratings():
    users, items = solvers.frequency_scaled_l2(
        Ratings([0, 0], [0, 1], [1, 1], 2, 3), 0.5, unobserved_weight=0.1, exponent=2.0
    )
    np.testing.assert_allclose(users, [0.5 * (2 + 0.3) ** 2, 0.5 * 0.3**2], rtol=1e-6)
    np.testing.assert_allclose(items, [0.5 * 1.2**2, 0.5 * 1.2**2, 0.5 * 0.2**2], rtol=1e-6)
    with pytest.raises(ValueError, match="l2 and unobserved_weight > 0"):
        solvers.frequency_scaled_l2(random_clicks(), 0.0)


def test_implicit_als_recovers_a_checkerboard():
    black = (np.arange(20)[:, None] + np.arange(20)[None, :]) % 2 == 0
    user, item = np.nonzero(black)
    keep = np.random.default_rng(0).random(len(user)) < 0.7
    board = Ratings(user[keep], item[keep], np.ones(keep.sum()), 20, 20)
    init = models.init(20, 20, 2, key=jax.random.key(0), item_bias=False)
    factors, _ = solvers.implicit_als(both_sides(board), init=init, l2=0.01, unobserved_weight=0.1, progress=False)
    s = np.asarray(models.predict_all(factors))
    assert s[black].min() > s[~black].max()


def test_implicit_fold_in_gives_rows_to_known_and_to_new_users():
    ratings = random_clicks()
    penalties = {"l2": 0.1, "unobserved_weight": UNOBSERVED}
    factors, _ = solvers.implicit_als(
        both_sides(ratings), init=initial_factors(), **penalties, sweeps=5, progress=False
    )
    known_users = solvers.implicit_fold_in(factors, both_sides(ratings)[0], **penalties)
    new_user = Ratings([0, 0, 0], [0, 3, 5], [1, 1, 1], 1, N_ITEMS)
    folded = solvers.implicit_fold_in(factors, data.rows(new_user, "user"), **penalties)
    assert folded.w.shape == (1, 3)
    assert folded.b.shape == (1,)
    assert known_users.w.shape == (N_USERS, 3)


def test_vmap_over_l2_equals_single_sweeps():
    rows, init = both_sides(random_clicks()), initial_factors()
    l2 = jnp.array([0.1, 1.0])
    objective = lambda l2: solvers.implicit_sweep(init, *rows, l2=l2, unobserved_weight=UNOBSERVED)[1]
    np.testing.assert_allclose(jax.vmap(objective)(l2), [objective(float(strength)) for strength in l2], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": 0.0}, "l2: expected finite numbers > 0"),
        ({"unobserved_weight": 0.0}, "unobserved_weight: expected a finite number > 0"),
        ({"sweeps": 0}, "sweeps: expected at least 1"),
        ({"cg_steps": 0}, "cg_steps: expected at least 1"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        solvers.implicit_als(
            both_sides(random_clicks()), init=initial_factors(), **({"l2": 0.1, "progress": False} | change)
        )


def test_models_with_biases_and_rows_of_other_tables_are_refused():
    rows = both_sides(random_clicks())
    with_bias = models.init(N_USERS, N_ITEMS, 3, key=jax.random.key(0))
    with pytest.raises(ValueError, match="products alone"):
        solvers.implicit_als(rows, init=with_bias, l2=0.1, progress=False)
    with pytest.raises(ValueError, match="by_user: expected Rows of side 'user'"):
        solvers.implicit_als(rows[::-1], init=initial_factors(), l2=0.1, progress=False)
    five_items = data.rows(Ratings([0], [0], [1.0], 1, 5), "user")
    with pytest.raises(ValueError, match="over the 12 items"):
        solvers.implicit_fold_in(initial_factors(), five_items, l2=0.1)
    with pytest.raises(ValueError, match="New rows have no parameters"):
        solvers.implicit_fold_in(
            initial_factors(), data.rows(Ratings([0], [0], [1.0], 1, 12), "user"), l2=0.1, cg_steps=3
        )
