"""ALS: it never increases the objective, ends at a stationary point, recovers synthetic factors, refuses bad input."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data, losses, models, solvers
from jaxrec.solvers import common
from jaxrec.solvers._als import als, dense_sweep, sweep
from tests.trees import as_dtype


def random_ratings(seed=0, n_users=12, n_items=9, density=0.5, weights=False):
    """Random ratings; the last user and the last item have none."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((n_users - 1, n_items - 1)) < density)
    weights = rng.integers(1, 4, len(user)) if weights else None
    return Ratings(user, item, rng.normal(3.5, 1.0, len(user)), n_users, n_items, weights=weights)


def initial_factors(ratings, rank=2, item_bias=True, mu=3.5, dtype=jnp.float32):
    key = jax.random.key(0)
    return models.init(ratings.n_users, ratings.n_items, rank, key=key, item_bias=item_bias, mu=mu, dtype=dtype)


def both_sides(ratings, dtype=jnp.float32, **options):
    """(by_user, by_item): the ratings in rows of users and in rows of items."""
    return as_dtype((data.rows(ratings, "user", **options), data.rows(ratings, "item", **options)), dtype)


CASES = {
    "biases": {},
    "no item biases": {"item_bias": False},
    "no mu": {"mu": None},
    "mu per item": {"mu": np.linspace(2.0, 4.0, 9)},
    "weights": {"weights": True},
    "l2 pair": {"l2": (0.5, 2.0)},
    "l2 per row": {"l2": (np.linspace(0.5, 2.0, 12), np.linspace(0.1, 1.0, 9))},
    "l2_bias": {"l2_bias": 1.0},
    "l2_bias pair": {"l2_bias": (0.3, np.linspace(0.1, 1.0, 9))},
    "rank 0": {"rank": 0, "l2_bias": 1.0},
    "conjugate gradients": {"cg_steps": 2},
    "conjugate gradients, weights, no item biases": {"cg_steps": 3, "weights": True, "item_bias": False},
}


def ratings_and_options(case):
    """(ratings, keywords of the penalties, keywords of `initial_factors` and of the solver) of a case."""
    options = dict(CASES[case])
    ratings = random_ratings(weights=options.pop("weights", False))
    penalties = {"l2": options.pop("l2", 0.7), "l2_bias": options.pop("l2_bias", 0.0)}
    as_jax = lambda strength: tuple(map(jnp.asarray, strength)) if isinstance(strength, tuple) else strength
    return ratings, {name: as_jax(strength) for name, strength in penalties.items()}, options


@pytest.mark.parametrize("case", CASES)
def test_als_never_increases_the_objective_and_converges_to_a_stationary_point(x64, case):
    ratings, penalties, options = ratings_and_options(case)
    stopping = {"sweeps": 3000, "tol": 1e-15, "cg_steps": options.pop("cg_steps", None)}
    init = initial_factors(ratings, dtype=jnp.float64, **options)
    factors, info = als(both_sides(ratings, jnp.float64), init=init, **stopping, progress=False, **penalties)
    assert (np.diff(info.trace) <= 1e-12 * info.trace[0]).all()
    assert info.converged
    assert info.steps == len(info.trace) - 1
    dense = as_dtype(data.dense(ratings), jnp.float64)
    gradient = jax.grad(losses.cost)(factors, dense, **penalties)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient) if g.size) < 1e-4
    ends = [losses.cost(each, dense, **penalties) for each in (init, factors)]
    np.testing.assert_allclose(info.trace[[0, -1]], ends, rtol=1e-12)


def test_one_sweep_solves_every_users_ridge_regression_and_then_every_items(x64):
    ratings = random_ratings()
    init = initial_factors(ratings, dtype=jnp.float64)
    factors, _ = sweep(init, *both_sides(ratings, jnp.float64), l2=0.7)
    offset = np.asarray(init.c) + 3.5
    for j in range(ratings.n_users - 1):
        rated = ratings.user == j
        x = np.c_[np.asarray(init.x), np.ones(ratings.n_items)][ratings.item[rated]]
        y = ratings.value[rated] - offset[ratings.item[rated]]
        v = np.linalg.solve(x.T @ x + np.diag([0.7, 0.7, 0.0]), x.T @ y)
        np.testing.assert_allclose(np.append(factors.w[j], factors.b[j]), v, rtol=1e-7)
    i = 3
    rated = ratings.item == i
    w = np.c_[np.asarray(factors.w), np.ones(ratings.n_users)][ratings.user[rated]]
    y = ratings.value[rated] - 3.5 - np.asarray(factors.b)[ratings.user[rated]]
    v = np.linalg.solve(w.T @ w + np.diag([0.7, 0.7, 0.0]), w.T @ y)
    np.testing.assert_allclose(np.append(factors.x[i], factors.c[i]), v, rtol=1e-7)


def test_a_user_without_ratings_is_zero_and_is_predicted_by_mu_and_the_item_biases():
    ratings = random_ratings()
    factors, _ = als(both_sides(ratings), init=initial_factors(ratings), l2=0.7, progress=False)
    np.testing.assert_array_equal(factors.w[-1], np.zeros(2))
    assert factors.b[-1] == 0
    assert factors.c[-1] == 0
    np.testing.assert_allclose(models.predict_all(factors)[-1], 3.5 + factors.c, rtol=1e-6)


@pytest.mark.parametrize("options", [{"bucket_growth": 4.0}, {"min_length": 1}, {"pad_to_multiple": 5}])
def test_buckets_and_padding_do_not_change_the_result(options):
    ratings = random_ratings(n_users=40, n_items=30)
    init = initial_factors(ratings)
    expected, _ = als(both_sides(ratings), init=init, l2=0.7, sweeps=3, tol=-1.0, progress=False)
    got, _ = als(both_sides(ratings, **options), init=init, l2=0.7, sweeps=3, tol=-1.0, progress=False)
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_als_recovers_synthetic_factors_up_to_the_noise():
    dataset = data.synthetic.low_rank(300, 200, 20_000, rank=2, noise=0.1, rng=0)
    train, test = data.splits.random(dataset.ratings, test_fraction=0.1, rng=0)
    factors, _ = als(both_sides(train), init=initial_factors(train, rank=2), l2=0.1, sweeps=60, progress=False)
    prediction = models.predict(factors, jnp.asarray(test.user), jnp.asarray(test.item))
    rmse = float(np.sqrt(np.mean((np.asarray(prediction) - test.value) ** 2)))
    assert 0.095 < rmse < 0.13  # the noise is 0.1; the rest is the error of parameters from 60 ratings per user


def test_als_stops_by_callback_by_sweeps_and_by_tol_and_shows_a_progress_bar(capsys):
    ratings = random_ratings()
    steps = []

    def stop_after_three(step, factors, info):
        steps.append(step)
        return step == info.steps == 3

    _, info = als(
        both_sides(ratings), init=initial_factors(ratings), l2=0.7, tol=0.0, callback=stop_after_three, progress=True
    )
    assert steps == [1, 2, 3]
    assert (info.steps, info.converged) == (3, False)
    assert "als" in capsys.readouterr().err
    _, info = als(both_sides(ratings), init=initial_factors(ratings), l2=0.7, sweeps=2, tol=-1.0, progress=False)
    assert (info.steps, info.converged) == (2, False)
    _, info = als(both_sides(ratings), init=initial_factors(ratings), l2=0.7, tol=0.5, progress=False)
    assert info.converged
    assert info.residual == pytest.approx((info.trace[-2] - info.trace[-1]) / info.trace[-2])
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_vmap_of_a_sweep_over_l2_equals_single_sweeps():
    ratings = random_ratings()
    sides, init = both_sides(ratings), initial_factors(ratings)
    batch = jax.vmap(lambda l2: sweep(init, *sides, l2=l2)[0].w)(jnp.array([0.5, 5.0]))
    single = jnp.stack([sweep(init, *sides, l2=l2)[0].w for l2 in (0.5, 5.0)])
    np.testing.assert_allclose(batch, single, rtol=1e-4, atol=1e-5)


def test_rows_factors_and_options_that_do_not_fit_are_refused():
    ratings = random_ratings()
    by_user, by_item = both_sides(ratings)
    init = initial_factors(ratings)
    with pytest.raises(ValueError, match="expected Rows of side 'user', got 'item'"):
        als((by_item, by_user), init=init, l2=1.0)
    with pytest.raises(ValueError, match=r"expected factors of \(12, 9\)"):
        als((by_user, by_item), init=dataclasses.replace(init, w=init.w[:5]), l2=1.0)
    for l2 in (0.0, -1.0, float("nan"), (1.0, 0.0)):
        with pytest.raises(ValueError, match="l2: expected finite numbers > 0"):
            als((by_user, by_item), init=init, l2=l2)
    with pytest.raises(ValueError, match="l2_bias: expected finite numbers >= 0"):
        als((by_user, by_item), init=init, l2=1.0, l2_bias=-1.0)
    with pytest.raises(ValueError, match="sweeps: expected at least 1"):
        als((by_user, by_item), init=init, l2=1.0, sweeps=0)
    with pytest.raises(FloatingPointError, match="sweep 1: the objective is nan"):
        als((by_user, by_item), init=dataclasses.replace(init, x=init.x * jnp.nan), l2=1.0, progress=False)


def test_sides_with_different_ratings_are_refused():
    by_user, by_item = both_sides(random_ratings())[0], both_sides(random_ratings(seed=1))[1]
    with pytest.raises(ValueError, match="by_user and by_item hold different ratings"):
        als((by_user, by_item), init=initial_factors(random_ratings()), l2=0.7)


def test_initial_factors_that_fit_exactly_are_converged_after_one_sweep():
    ratings = Ratings([0, 1, 1], [0, 0, 1], [3.0, 3.0, 3.0], 2, 2)
    zero = jax.tree.map(jnp.zeros_like, initial_factors(ratings, mu=None))
    factors, info = als(both_sides(ratings), init=dataclasses.replace(zero, mu=jnp.array(3.0)), l2=0.7, progress=False)
    assert info.converged
    np.testing.assert_array_equal(info.trace, [0.0, 0.0])
    np.testing.assert_allclose(models.predict_all(factors), np.full((2, 2), 3.0))


@pytest.mark.parametrize("case", ["biases", "no item biases", "mu per item", "weights", "l2_bias pair"])
def test_a_dense_sweep_equals_a_sweep_and_does_not_read_masked_values(x64, case):
    ratings, penalties, options = ratings_and_options(case)
    init = initial_factors(ratings, dtype=jnp.float64, **options)
    expected = sweep(init, *both_sides(ratings, jnp.float64), **penalties)
    dense = data.dense(ratings)
    spoil = lambda a: None if a is None else jnp.where(dense.where, a.astype(jnp.float64), jnp.nan)
    spoiled = dataclasses.replace(dense, value=spoil(dense.value), weights=spoil(dense.weights))
    chex.assert_trees_all_close(dense_sweep(init, spoiled, **penalties), expected, rtol=1e-9, atol=1e-9)


def test_vmap_and_gradient_of_a_dense_sweep_over_l2_equal_single_sweeps_and_finite_differences():
    ratings = random_ratings(density=0.8)
    init, layout = initial_factors(ratings), data.dense(ratings)
    run = jax.jit(lambda l2: dense_sweep(init, layout, l2=l2, l2_bias=1.0)[1])
    l2 = jnp.array([0.5, 1.0, 4.0])
    np.testing.assert_allclose(jax.vmap(run)(l2), [run(strength) for strength in l2], rtol=1e-4)
    step = 1e-2
    difference = (run(l2[1] + step) - run(l2[1] - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(run)(l2[1]), difference, rtol=2e-2)


def test_a_dense_sweep_of_a_transposed_matrix_is_refused():
    ratings = random_ratings()
    with pytest.raises(ValueError, match="9 items"):
        dense_sweep(initial_factors(ratings), data.dense(ratings).T, l2=1.0)


@pytest.mark.parametrize(
    "solver", [solvers.als, partial(solvers.implicit_als, unobserved_weight=0.2)], ids=["als", "implicit_als"]
)
def test_ratings_give_the_same_result_as_prepared_rows_initial_factors_and_mean(solver):
    ratings, key = random_ratings(), jax.random.key(5)
    implicit = isinstance(solver, partial)
    mu = None if implicit else float(np.mean(ratings.value, dtype=np.float64))
    init = models.init(ratings.n_users, ratings.n_items, 2, key=key, item_bias=not implicit, mu=mu)
    options = {"l2": 0.7, "sweeps": 2, "progress": False}
    sides = data.rows(ratings, "user"), data.rows(ratings, "item")
    expected = solver(sides, init=init, **options)
    for got in (solver(ratings, rank=2, key=key, **options), solver(sides, rank=2, key=key, **options)):
        chex.assert_trees_all_equal(got.factors, expected.factors)
        np.testing.assert_array_equal(got.info.trace, expected.info.trace)


def test_the_mean_rating_of_weighted_ratings_is_weighted():
    ratings = dataclasses.replace(random_ratings(), weights=np.arange(1.0, 1 + len(random_ratings())))
    expected = np.average(ratings.value.astype(np.float64), weights=ratings.weights)
    for train in (ratings, (data.rows(ratings, "user"), data.rows(ratings, "item")), data.dense(ratings)):
        assert common.mean_rating(train) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (random_ratings(), {}, "expected either rank=.*got neither"),
        (random_ratings(), {"rank": 2, "init": True}, "expected either rank=.*got both"),
        (random_ratings(), {"init": True, "key": jax.random.key(0)}, "key: expected None with init=, got a key"),
        (data.rows(random_ratings(), "user"), {"rank": 2}, "train: expected Ratings, or a pair of Rows"),
    ],
)
def test_exactly_one_of_rank_and_init_is_accepted(as_users_run, train, options, message):
    if "init" in options:
        options = options | {"init": initial_factors(random_ratings())}
    with pytest.raises(ValueError, match=message):
        als(train, l2=1.0, progress=False, **options)
