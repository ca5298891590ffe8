"""ALS: the objective never rises, its end is a stationary point, options do what they say, truth is recovered."""

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


def toy(seed=0, n_users=12, n_items=9, share=0.5, weights=False):
    """Ratings of which the last user and the last item have none."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((n_users - 1, n_items - 1)) < share)
    w = rng.integers(1, 4, len(user)) if weights else None
    return Ratings(user, item, rng.normal(3.5, 1.0, len(user)), n_users, n_items, weights=w)


def start(ratings, rank=2, item_bias=True, mu=3.5, dtype=jnp.float32):
    key = jax.random.key(0)
    return models.init(ratings.n_users, ratings.n_items, rank, key=key, item_bias=item_bias, mu=mu, dtype=dtype)


def rows(ratings, dtype=jnp.float32, **options):
    sides = data.rows(ratings, "user", **options), data.rows(ratings, "item", **options)
    return jax.tree.map(lambda a: a.astype(dtype) if a.dtype == jnp.float32 else a, sides)


CASES = {
    "biases": {},
    "notes' model": {"item_bias": False},
    "no mu": {"mu": None},
    "mu per item": {"mu": np.linspace(2.0, 4.0, 9)},
    "weights": {"weights": True},
    "l2 pair": {"l2": (0.5, 2.0)},
    "l2 per row": {"l2": (np.linspace(0.5, 2.0, 12), np.linspace(0.1, 1.0, 9))},
    "l2_bias": {"l2_bias": 1.0},
    "l2_bias pair": {"l2_bias": (0.3, np.linspace(0.1, 1.0, 9))},
    "rank 0": {"rank": 0, "l2_bias": 1.0},
    "conjugate gradients": {"cg_steps": 2},
    "conjugate gradients, weights, the notes' model": {"cg_steps": 3, "weights": True, "item_bias": False},
}


def given(case):
    """(ratings, the penalties' strengths, the other options) of a case."""
    options = dict(CASES[case])
    ratings = toy(weights=options.pop("weights", False))
    penalties = {"l2": options.pop("l2", 0.7), "l2_bias": options.pop("l2_bias", 0.0)}
    as_jax = lambda s: tuple(map(jnp.asarray, s)) if isinstance(s, tuple) else s
    return ratings, {name: as_jax(s) for name, s in penalties.items()}, options


@pytest.mark.parametrize("case", CASES)
def test_converges_to_a_stationary_point_and_never_rises(x64, case):
    ratings, penalties, options = given(case)
    until = {"sweeps": 3000, "tol": 1e-15, "cg_steps": options.pop("cg_steps", None)}
    init = start(ratings, dtype=jnp.float64, **options)
    factors, info = als(rows(ratings, jnp.float64), init=init, **until, progress=False, **penalties)
    assert (np.diff(info.trace) <= 1e-12 * info.trace[0]).all()
    assert info.converged
    assert info.steps == len(info.trace) - 1
    dense = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, data.dense(ratings))
    gradient = jax.grad(losses.cost)(factors, dense, **penalties)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient) if g.size) < 1e-4
    np.testing.assert_allclose(info.trace[-1], losses.cost(factors, dense, **penalties), rtol=1e-12)


def test_one_sweep_is_every_users_then_every_items_ridge(x64):
    ratings = toy()
    init = start(ratings, dtype=jnp.float64)
    factors, _ = sweep(init, *rows(ratings, jnp.float64), l2=0.7)
    offset = np.asarray(init.c) + 3.5
    for j in range(ratings.n_users - 1):
        mine = ratings.user == j
        x = np.c_[np.asarray(init.x), np.ones(ratings.n_items)][ratings.item[mine]]
        y = ratings.value[mine] - offset[ratings.item[mine]]
        v = np.linalg.solve(x.T @ x + np.diag([0.7, 0.7, 0.0]), x.T @ y)
        np.testing.assert_allclose(np.append(factors.w[j], factors.b[j]), v, rtol=1e-7)
    i = 3
    its = ratings.item == i
    w = np.c_[np.asarray(factors.w), np.ones(ratings.n_users)][ratings.user[its]]
    y = ratings.value[its] - 3.5 - np.asarray(factors.b)[ratings.user[its]]
    v = np.linalg.solve(w.T @ w + np.diag([0.7, 0.7, 0.0]), w.T @ y)
    np.testing.assert_allclose(np.append(factors.x[i], factors.c[i]), v, rtol=1e-7)


def test_rows_without_ratings_are_zero_and_predict_the_rest():
    ratings = toy()
    factors, _ = als(rows(ratings), init=start(ratings), l2=0.7, progress=False)
    np.testing.assert_array_equal(factors.w[-1], np.zeros(2))
    assert factors.b[-1] == 0
    assert factors.c[-1] == 0
    np.testing.assert_allclose(models.predict_all(factors)[-1], 3.5 + factors.c, rtol=1e-6)


@pytest.mark.parametrize("options", [{"bucket_growth": 4.0}, {"min_length": 1}, {"pad_to_multiple": 5}])
def test_layout_does_not_matter(options):
    ratings = toy(n_users=40, n_items=30)
    init = start(ratings)
    plain, _ = als(rows(ratings), init=init, l2=0.7, sweeps=3, tol=-1.0, progress=False)
    other, _ = als(rows(ratings, **options), init=init, l2=0.7, sweeps=3, tol=-1.0, progress=False)
    chex.assert_trees_all_close(plain, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_recovers_a_synthetic_truth_to_the_noise():
    dataset = data.synthetic.low_rank(300, 200, 20_000, rank=2, noise=0.1, rng=0)
    train, test = data.splits.random(dataset.ratings, test_fraction=0.1, rng=0)
    factors, _ = als(rows(train), init=start(train, rank=2), l2=0.1, sweeps=60, progress=False)
    prediction = models.predict(factors, jnp.asarray(test.user), jnp.asarray(test.item))
    rmse = float(np.sqrt(np.mean((np.asarray(prediction) - test.value) ** 2)))
    assert 0.095 < rmse < 0.13  # the noise is 0.1; parameters estimated from 60 ratings a user cost the rest


def test_stops_by_callback_tol_and_sweeps_and_shows_a_bar(capsys):
    ratings = toy()
    seen = []
    _, info = als(
        rows(ratings),
        init=start(ratings),
        l2=0.7,
        tol=0.0,
        callback=lambda k, f, info: seen.append(k) or k == info.steps == 3,
        progress=True,
    )
    assert seen == [1, 2, 3]
    assert (info.steps, info.converged) == (3, False)
    assert "als" in capsys.readouterr().err
    _, info = als(rows(ratings), init=start(ratings), l2=0.7, sweeps=2, tol=-1.0, progress=False)
    assert (info.steps, info.converged) == (2, False)
    _, info = als(rows(ratings), init=start(ratings), l2=0.7, tol=0.5, progress=False)
    assert info.converged
    assert info.residual == pytest.approx((info.trace[-2] - info.trace[-1]) / info.trace[-2])
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_sweep_vmaps_over_l2():
    ratings = toy()
    sides, init = rows(ratings), start(ratings)
    together = jax.vmap(lambda l2: sweep(init, *sides, l2=l2)[0].w)(jnp.array([0.5, 5.0]))
    alone = jnp.stack([sweep(init, *sides, l2=l2)[0].w for l2 in (0.5, 5.0)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_bad_input():
    ratings = toy()
    by_user, by_item = rows(ratings)
    init = start(ratings)
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


def test_sides_that_hold_different_ratings_are_refused():
    by_user, by_item = rows(toy()), rows(toy(seed=1))
    with pytest.raises(ValueError, match="by_user and by_item hold different ratings"):
        als((by_user[0], by_item[1]), init=start(toy()), l2=0.7)


def test_a_start_that_fits_exactly_is_converged():
    ratings = Ratings([0, 1, 1], [0, 0, 1], [3.0, 3.0, 3.0], 2, 2)
    zero = jax.tree.map(jnp.zeros_like, start(ratings, mu=None))
    factors, info = als(rows(ratings), init=dataclasses.replace(zero, mu=jnp.array(3.0)), l2=0.7, progress=False)
    assert info.converged
    np.testing.assert_array_equal(info.trace, [0.0, 0.0])
    np.testing.assert_allclose(models.predict_all(factors), np.full((2, 2), 3.0))


@pytest.mark.parametrize("case", ["biases", "notes' model", "mu per item", "weights", "l2_bias pair"])
def test_a_dense_sweep_is_the_sweep(x64, case):
    ratings, penalties, options = given(case)
    init = start(ratings, dtype=jnp.float64, **options)
    expected = sweep(init, *rows(ratings, jnp.float64), **penalties)
    spoiled = data.dense(ratings)  # what is not observed may be anything
    nan = lambda a: None if a is None else jnp.where(spoiled.where, a.astype(jnp.float64), jnp.nan)
    spoiled = dataclasses.replace(spoiled, value=nan(spoiled.value), weights=nan(spoiled.weights))
    chex.assert_trees_all_close(dense_sweep(init, spoiled, **penalties), expected, rtol=1e-9, atol=1e-9)


def test_a_dense_grid_over_one_matrix_is_its_members_alone():
    ratings = toy(share=0.8)
    init, layout = start(ratings), data.dense(ratings)
    run = jax.jit(lambda l2: dense_sweep(init, layout, l2=l2, l2_bias=1.0)[1])
    l2 = jnp.array([0.5, 1.0, 4.0])
    np.testing.assert_allclose(jax.vmap(run)(l2), [run(each) for each in l2], rtol=1e-4)
    step = 1e-2
    finite = (run(l2[1] + step) - run(l2[1] - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(run)(l2[1]), finite, rtol=2e-2)


def test_a_dense_sweep_wants_the_factors_tables():
    ratings = toy()
    with pytest.raises(ValueError, match="9 items"):
        dense_sweep(start(ratings), data.dense(ratings).T, l2=1.0)


@pytest.mark.parametrize(
    "solver", [solvers.als, partial(solvers.implicit_als, unobserved_weight=0.2)], ids=["als", "implicit_als"]
)
def test_ratings_are_prepared_for_you(solver):
    """Rows, start and mean: the same as giving them."""
    ratings, key = toy(), jax.random.key(5)
    implicit = isinstance(solver, partial)
    mu = None if implicit else float(np.mean(ratings.value, dtype=np.float64))
    init = models.init(ratings.n_users, ratings.n_items, 2, key=key, item_bias=not implicit, mu=mu)
    options = {"l2": 0.7, "sweeps": 2, "progress": False}
    sides = data.rows(ratings, "user"), data.rows(ratings, "item")
    expected = solver(sides, init=init, **options)
    for got in (solver(ratings, rank=2, key=key, **options), solver(sides, rank=2, key=key, **options)):
        chex.assert_trees_all_equal(got.factors, expected.factors)
        np.testing.assert_array_equal(got.info.trace, expected.info.trace)


def test_the_mean_of_weighted_ratings_is_weighted():
    ratings = dataclasses.replace(toy(), weights=np.arange(1.0, 1 + len(toy())))
    expected = np.average(ratings.value.astype(np.float64), weights=ratings.weights)
    for train in (ratings, (data.rows(ratings, "user"), data.rows(ratings, "item")), data.dense(ratings)):
        assert common.mean_rating(train) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (toy(), {}, "expected either rank=.*got neither"),
        (toy(), {"rank": 2, "init": "given"}, "expected either rank=.*got both"),
        (toy(), {"init": "given", "key": jax.random.key(0)}, "key: expected None with init=, got a key"),
        (data.rows(toy(), "user"), {"rank": 2}, "train: expected Ratings, or a pair of Rows"),
    ],
)
def test_a_start_is_made_or_given(as_users_run, train, options, message):
    if "init" in options:
        options = options | {"init": start(toy())}
    with pytest.raises(ValueError, match=message):
        als(train, l2=1.0, progress=False, **options)
