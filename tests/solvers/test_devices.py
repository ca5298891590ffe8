"""Rows spread over three devices give the same numbers as on one device, in every solver that takes rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, bayes, data, losses, models, solvers

pytestmark = pytest.mark.devices

# 61 users, 40 items: in no bucket is the number of rows a multiple of three.
SIZES = 61, 40


def random_ratings(weights=False):
    """Random ratings; the last user and the last item have none."""
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((SIZES[0] - 1, SIZES[1] - 1)) < rng.random((SIZES[0] - 1, 1)))
    value, weights = rng.normal(3.5, 1.0, len(user)), rng.integers(1, 4, len(user)) if weights else None
    return Ratings(user, item, value, *SIZES, weights=weights)


def both_sides(ratings, **options):
    """(by_user, by_item), each in only two buckets, because every bucket is compiled."""
    options = {"min_length": 30, "bucket_growth": 2.0} | options
    return data.rows(ratings, "user", **options), data.rows(ratings, "item", **options)


def initial_factors():
    return models.init(*SIZES, 12, key=jax.random.key(0), mu=3.5)


def on_one_and_three_devices(run, ratings, init):
    """run(init, by_user, by_item) with the rows on one device, and with the rows spread over three."""
    spread = both_sides(ratings, devices=jax.devices())
    assert len(jax.devices()) == 3
    return run(init, *both_sides(ratings)), run(spread[0].replicate(init), *spread)


def assert_same(one, three):
    chex.assert_trees_all_close(*map(jax.device_get, (one, three)), rtol=2e-4, atol=2e-4)


EXPLICIT = {"exact": {}, "conjugate gradients": {"cg_steps": 3}}


@pytest.mark.slow
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("options", EXPLICIT.values(), ids=EXPLICIT)
def test_als_on_three_devices_equals_als_on_one(options, weights):
    def run(init, *rows):
        return solvers.als(rows, init=init, l2=2.0, l2_bias=1.0, sweeps=3, progress=False, **options)

    ratings = random_ratings(weights)
    (one, info_one), (three, info_three) = on_one_and_three_devices(run, ratings, initial_factors())
    assert_same(one, three)
    np.testing.assert_allclose(info_one.trace, info_three.trace, rtol=1e-5)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(three))


SOLVERS = [pytest.param({}, marks=pytest.mark.slow), {"cg_steps": 3}, {"block_size": 5}]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_implicit_als_on_three_devices_equals_implicit_als_on_one(solver):
    options = {"l2": 2.0, "unobserved_weight": 0.3, "sweeps": 3, "progress": False} | solver
    run = lambda init, *rows: solvers.implicit_als(rows, init=init, **options)
    init = models.init(*SIZES, 12, key=jax.random.key(0), item_bias=False)
    (one, info_one), (three, info_three) = on_one_and_three_devices(run, random_ratings(), init)
    assert_same(one, three)
    np.testing.assert_allclose(info_one.trace, info_three.trace, rtol=1e-5)


@pytest.mark.slow
def test_fold_in_leave_one_out_and_costs_on_three_devices_equal_those_on_one():
    def run(factors, by_user, by_item):
        folded = solvers.fold_in(factors, by_item, l2=2.0)
        left_out = solvers.leave_one_out(factors, by_user, l2=2.0)
        return folded, left_out, losses.cost(factors, by_user, l2=2.0), losses.cost(factors, by_item, l2=2.0)

    assert_same(*on_one_and_three_devices(run, random_ratings(), initial_factors()))


@pytest.mark.slow
def test_values_and_derivatives_of_a_vmapped_sweep_on_three_devices_equal_those_on_one():
    def objective(l2, factors, *rows):
        factors, _ = solvers.sweep(factors, *rows, l2=l2, l2_bias=1.0)
        return solvers.sweep(factors, *rows, l2=l2, l2_bias=1.0)[1]

    strengths = jnp.array([1.0, 3.0])
    run = jax.jit(jax.vmap(jax.value_and_grad(objective), in_axes=(0, None, None, None)))
    run_all = lambda *args: run(strengths, *args)
    one, three = on_one_and_three_devices(run_all, random_ratings(), initial_factors())
    np.testing.assert_allclose(one, three, rtol=1e-4)
    assert np.abs(one[1]).min() > 1, "the derivative is near zero, so the comparison shows nothing"


@pytest.mark.slow
def test_gibbs_on_three_devices_equals_gibbs_on_one():
    test = random_ratings().take(slice(50))
    options = {"key": jax.random.key(1), "mu": 3.5, "sweeps": 3, "burn_in": 1, "sweeps_per_call": 3, "progress": False}

    def run(state, *rows):
        state, posterior, _ = bayes.gibbs(rows, test, init=state, **options)
        return state.users.rows, posterior.mean

    init = bayes.init_chains(*SIZES, 3, key=jax.random.key(0), chains=2)
    one, three = on_one_and_three_devices(run, random_ratings(), init)
    chex.assert_trees_all_close(*map(jax.device_get, (one, three)), rtol=5e-3, atol=5e-3)  # sums are in another order


def test_sides_on_different_devices_are_refused():
    by_user, _ = both_sides(random_ratings(), devices=jax.devices())
    _, by_item = both_sides(random_ratings())
    with pytest.raises(ValueError, match="the same devices="):
        solvers.als((by_user, by_item), init=initial_factors(), l2=1.0, progress=False)


def test_a_bucket_may_have_fewer_rows_than_there_are_devices():
    ratings = Ratings([0, 1, 1], [0, 0, 1], [1.0, 2.0, 3.0], 2, 2)
    init = models.init(2, 2, 1, key=jax.random.key(0))
    run = jax.jit(lambda *rows: solvers.sweep(init, *rows, l2=1.0))
    one, three = run(*both_sides(ratings)), run(*both_sides(ratings, devices=jax.devices()))
    assert_same(one, three)
