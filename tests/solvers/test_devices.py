"""Rows spread over devices: the same numbers as on one, for every solver of one side's rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, bayes, data, losses, models, solvers

pytestmark = pytest.mark.devices

# 61 users, 40 items: no bucket's rows are a multiple of three; the last user and item have no ratings
SIZES = 61, 40


def ratings(weights=False):
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((SIZES[0] - 1, SIZES[1] - 1)) < rng.random((SIZES[0] - 1, 1)))
    return Ratings(
        user, item, rng.normal(3.5, 1.0, len(user)), *SIZES, weights=rng.integers(1, 4, len(user)) if weights else None
    )


def sides(known, **options):
    of = lambda side: data.rows(
        known, side, min_length=30, bucket_growth=2.0, **options
    )  # two buckets, for each is compiled
    return of("user"), of("item")


def init():
    return models.init(*SIZES, 12, key=jax.random.key(0), mu=3.5)


def both(known, run, start):
    """What a run gives on one device, and on three."""
    spread = sides(known, devices=jax.devices())
    assert len(jax.devices()) == 3
    return run(start, *sides(known)), run(spread[0].replicate(start), *spread)


def assert_same(one, three):
    chex.assert_trees_all_close(*map(jax.device_get, (one, three)), rtol=2e-4, atol=2e-4)


EXPLICIT = {"exact": {}, "conjugate gradients": {"cg_steps": 3}}


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("options", EXPLICIT.values(), ids=EXPLICIT)
def test_als(options, weights):
    run = lambda *given: solvers.als(given[1:], init=given[0], l2=2.0, l2_bias=1.0, sweeps=3, progress=False, **options)
    (one, how), (three, how_three) = both(ratings(weights), run, init())
    assert_same(one, three)
    np.testing.assert_allclose(how.trace, how_three.trace, rtol=1e-5)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(three)), "whole, and on every device"


@pytest.mark.parametrize("cg_steps", [None, 3])
def test_implicit_als(cg_steps):
    start = models.init(*SIZES, 12, key=jax.random.key(0), item_bias=False)
    run = lambda *given: solvers.implicit_als(
        given[1:], init=given[0], l2=2.0, unobserved_weight=0.3, sweeps=3, progress=False, cg_steps=cg_steps
    )
    (one, how), (three, how_three) = both(ratings(), run, start)
    assert_same(one, three)
    np.testing.assert_allclose(how.trace, how_three.trace, rtol=1e-5)


@pytest.mark.slow
def test_fold_in_leave_one_out_and_costs():
    def run(factors, by_user, by_item):
        new = solvers.fold_in(factors, by_item, l2=2.0)
        left = solvers.leave_one_out(factors, by_user, l2=2.0)
        return new, left, losses.cost(factors, by_user, l2=2.0), losses.cost(factors, by_item, l2=2.0)

    assert_same(*both(ratings(), run, init()))


@pytest.mark.slow
def test_a_sweep_is_vmapped_and_differentiated():
    def after(l2, factors, *rows):
        factors, _ = solvers.sweep(factors, *rows, l2=l2, l2_bias=1.0)
        return solvers.sweep(factors, *rows, l2=l2, l2_bias=1.0)[1]

    strengths = jnp.array([1.0, 3.0])
    run = jax.jit(jax.vmap(jax.value_and_grad(after), in_axes=(0, None, None, None)))
    one, three = both(ratings(), lambda *given: run(strengths, *given), init())
    np.testing.assert_allclose(one, three, rtol=1e-4)
    assert np.abs(one[1]).min() > 1, "a derivative that is not zero"


@pytest.mark.slow
def test_gibbs():
    test = ratings().take(slice(50))
    given = {"key": jax.random.key(1), "mu": 3.5, "sweeps": 3, "burn_in": 1, "sweeps_per_call": 3, "progress": False}

    def run(state, *rows):
        state, posterior, _ = bayes.gibbs(rows, test, init=state, **given)
        return state.users.rows, posterior.mean

    start = bayes.init_chains(*SIZES, 3, key=jax.random.key(0), chains=2)
    one, three = both(ratings(), run, start)
    chex.assert_trees_all_close(*map(jax.device_get, (one, three)), rtol=5e-3, atol=5e-3)  # by other orders of sums


def test_both_sides_want_the_same_devices():
    by_user, _ = sides(ratings(), devices=jax.devices())
    _, by_item = sides(ratings())
    with pytest.raises(ValueError, match="the same devices="):
        solvers.als((by_user, by_item), init=init(), l2=1.0, progress=False)


def test_a_bucket_of_fewer_rows_than_devices():
    known = Ratings([0, 1, 1], [0, 0, 1], [1.0, 2.0, 3.0], 2, 2)
    spread = sides(known, devices=jax.devices())
    start = models.init(2, 2, 1, key=jax.random.key(0))
    run = jax.jit(lambda *rows: solvers.sweep(start, *rows, l2=1.0))
    one, three = run(*sides(known)), run(*spread)
    assert_same(one, three)
