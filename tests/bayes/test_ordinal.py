"""Ratings as levels: every draw against SciPy or a grid, and the sampler against the law of all its conditionals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrec import Ratings, data
from jaxrec.bayes import as_factors, gibbs, gibbs_sweep, init_chains, ordinal, row_posterior
from jaxrec.bayes.ordinal import OrdinalScale
from jaxrec.bayes.side_information import Priors
from jaxrec.types import Dense
from tests.bayes.test_gibbs import (
    N_ITEMS,
    N_USERS,
    alone,
    forms,
    from_the_prior,
    in_float64,
    near,
    ratings,
    same,
    statistics,
)

STARS = (1.0, 2.0, 3.0, 4.0, 5.0)
CUT = np.array([-1.0, 0.2, 0.5])


def ends(cut):
    return np.concatenate([[-np.inf], cut, [np.inf]])


def chances(cut, eta, precision):
    """Of every level, by SciPy, without cancellation in either tail."""
    at = (ends(cut) - np.asarray(eta)[..., None]) * np.sqrt(np.asarray(precision))[..., None]
    return np.where(at[..., :-1] > 0, -np.diff(stats.norm.sf(at)), np.diff(stats.norm.cdf(at)))


# ------------------------------------------------------------------------------------------- one draw


@pytest.mark.parametrize("double", [False, True])
def test_latents_are_truncated_normals_in_both_tails(double):
    """Mean and variance as SciPy's, from η amid the cuts to 40 deviations off; beyond, finite and in their level."""
    n, precision, draw = 20_000, 1.7, jax.jit(ordinal.draw_latents)
    eta = np.array([0.0, -3.0, 5.0, 6.3, -6.4, -9.0, 30.0, 1e4, -1e4, 1e15])
    with jax.enable_x64(double):
        cell = np.broadcast_arrays(np.zeros((n, 1, 1)), eta[:, None], np.arange(len(CUT) + 1))
        given = jnp.asarray(cell[1], float), jnp.full(cell[0].shape, precision), jnp.asarray(cell[2], jnp.int32)
        z = draw(jnp.asarray(CUT), *given, jnp.ones(cell[0].shape, bool), key=jax.random.key(0))
        z = np.asarray(z, np.float64)
    assert np.isfinite(z).all()
    below, above = (ends(np.asarray(CUT, np.float64 if double else np.float32))[k:][:4] for k in (0, 1))
    assert (z >= below).all()
    assert (z <= above).all()
    near_by = eta[:7, None]
    a, b = ((end - near_by) * np.sqrt(precision) for end in (below, above))
    exact = stats.truncnorm(a, b, loc=near_by, scale=1 / np.sqrt(precision))
    mean, variance = exact.mean(), exact.var()
    rounding = 1e-7 * np.abs(near_by)  # of float32
    np.testing.assert_array_less(np.abs(z.mean(axis=0)[:7] - mean), 4.5 * np.sqrt(variance / n) + rounding)
    np.testing.assert_allclose(z.var(axis=0)[:7], variance, rtol=0.07)


def test_probabilities_and_moments_are_scipys():
    eta, precision = np.array([[0.0, 0.7, -4.0], [6.0, -11.0, 12.0]]), np.array([[1.0, 0.3, 2.0], [1.0, 1.0, 1.0]])
    given = [jnp.asarray(a, jnp.float32) for a in (eta, precision)]
    expected = chances(CUT, eta, precision)
    levels = OrdinalScale(jnp.array([1.0, 2.0, 4.0, 4.5]), jnp.asarray(CUT, jnp.float32))
    found = ordinal.probabilities(levels.cut, *given)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-37)  # float32 holds a log of -90 to 1e-5
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)
    mean, variance = ordinal.moments(levels, *given)
    value = np.asarray(levels.value)
    np.testing.assert_allclose(mean, expected @ value, rtol=1e-5)
    np.testing.assert_allclose(variance, expected @ value**2 - (expected @ value) ** 2, rtol=1e-3, atol=1e-6)


def levels_drawn(rng, cut, n):
    """(η, p, levels) of n ratings."""
    eta, precision = rng.normal(size=n), rng.gamma(3, 1 / 3, n)
    z = eta + rng.normal(size=n) / np.sqrt(precision)
    return eta, precision, np.searchsorted(cut, z).astype(np.int32)


def chain(given, where, scale, start, steps):
    """Cuts after that many draws, and the share of those in the later half that moved; a chain for every start."""
    given, where = tuple(map(jnp.asarray, given)), jnp.asarray(where)

    def one(cut, key):
        draw = lambda cut, k: ordinal.draw_cuts(cut, *given, where, scale, key=jax.random.fold_in(key, k))
        step = lambda cut, k: ((new := draw(cut, k)), jnp.any(new != cut))
        return jax.lax.scan(step, cut, jnp.arange(steps))

    cuts, moved = jax.jit(jax.vmap(one))(jnp.asarray(start), jax.random.split(jax.random.key(3), len(start)))
    return np.asarray(cuts), np.mean(moved[:, steps // 2 :])


def test_cuts_are_drawn_from_their_posterior(x64):
    """Of 12 ratings, three levels, one of them rare: against the density on a grid. What is masked is spoiled."""
    rng, n, scale = np.random.default_rng(5), 4_000, 1.3
    eta, precision, level = levels_drawn(rng, np.array([-0.2, 1.5]), 14)
    where = np.arange(14) != 3
    where[5] = False
    assert sorted(np.bincount(level[where])) == [1, 4, 7]
    spoiled = np.where(where, eta, np.nan), np.where(where, precision, np.inf), np.where(where, level, 99)
    drawn, _ = chain(spoiled, where, scale, np.sort(rng.normal(size=(n, 2)) * scale, axis=1), 40)

    axis = np.linspace(-5, 6, 221)
    first, second = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    cuts = np.stack([first, second], axis=1)[first < second]
    log_density = -(cuts**2).sum(axis=1) / (2 * scale**2)
    for e, p, r in zip(eta[where], precision[where], level[where], strict=True):
        at = stats.norm.cdf((np.c_[np.full(len(cuts), -np.inf), cuts, np.full(len(cuts), np.inf)] - e) * np.sqrt(p))
        log_density = log_density + np.log(at[:, r + 1] - at[:, r])
    weight = np.exp(log_density - log_density.max())
    weight = weight / weight.sum()
    mean = weight @ cuts
    near(drawn, mean, (cuts - mean).T @ (weight[:, None] * (cuts - mean)))
    for c in range(2):
        share = [weight[cuts[:, c] < at].sum() for at in np.quantile(drawn[:, c], [0.05, 0.25, 0.5, 0.75, 0.95])]
        np.testing.assert_allclose(share, [0.05, 0.25, 0.5, 0.75, 0.95], atol=0.03)


@pytest.mark.slow
def test_cuts_of_many_ratings_come_from_afar_and_then_move_nearly_always():
    rng = np.random.default_rng(0)
    cut = np.array([-1.5, -0.4, 0.1, 1.2], np.float32)
    eta, precision, level = levels_drawn(rng, cut, 2_000)
    given = eta.astype(np.float32), precision.astype(np.float32), level
    afar = np.stack([at_start().levels.cut[0], cut + 0.8, 0.7 * cut, 1.4 * cut] * 5)
    there, moved = chain(given, np.ones(len(eta), bool), 3.0, afar, 60)
    np.testing.assert_allclose(there.mean(axis=0), cut, atol=0.1)
    np.testing.assert_array_less(there.std(axis=0), 0.08)
    assert moved > 0.9


# ------------------------------------------------------------------------------------------- in the sampler


def at_start(chains=2, levels=STARS):
    return init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), chains=chains, levels=levels)


def run(known, sweeps, state=None, **options):
    given = {"mu": 0.0, "burn_in": 2, "sweeps_per_call": 1, "progress": False, "key": jax.random.key(1)} | options
    return gibbs(known, ratings(1), init=at_start() if state is None else state, sweeps=sweeps, **given)


@pytest.mark.parametrize("side", ["user", "item"])
def test_dense_and_rows_have_the_same_cells(x64, side):
    """What is said of each rating; and other values take the ratings' place, of that side."""
    known, state = ratings(), in_float64(alone(at_start()))
    own, others = (state.users, state.items) if side == "user" else (state.items, state.users)
    own, others = (dataclasses.replace(a, row_precision=jnp.exp(a.rows[:, 0])) for a in (own, others))
    ids = (known.user, known.item) if side == "user" else (known.item, known.user)
    w, b, x, c = own.rows[:, :-1], own.rows[:, -1], others.rows[:, :-1], others.rows[:, -1]
    eta = 0.3 + np.sum(w[ids[0]] * x[ids[1]], axis=1) + b[ids[0]] + c[ids[1]]
    for form in forms(known):
        parts = row_posterior.cells(form, side, own, others, 0.3)
        found = [np.concatenate([np.asarray(a)[part.where] for part in parts for a in [part[k]]]) for k in (0, 2, 3)]
        expected = np.stack([known.value, eta, own.row_precision[ids[0]] * others.row_precision[ids[1]]])
        order, place = np.lexsort(found), np.lexsort(expected)
        np.testing.assert_allclose(np.stack(found)[:, order], expected[:, place], rtol=1e-6)
        other = row_posterior.with_values(form, side, [part.eta for part in parts])
        for part, new in zip(parts, row_posterior.cells(other, side, own, others, 0.3), strict=True):
            same(part._replace(value=part.eta), new)


@pytest.mark.slow
@pytest.mark.parametrize("heteroscedastic", [True, False])
def test_a_sweep_leaves_the_joint_distribution_as_it_is(x64, heteroscedastic):
    """As in test_gibbs, of ratings that are levels: of Dense where noise is uneven, of Rows where it is not. It finds
    proposals of cuts that forget their determinant, and latents that are off by .2 or have all the same precision."""
    n, sizes, n_cuts = 10_000, (4, 3), 2
    priors = Priors(beta=2.0, dof=6, scale_matrix=2.0, cuts=1.5, heteroscedastic=heteroscedastic)
    rng = np.random.default_rng(0)
    state = from_the_prior(rng, n, sizes, ((), ()), priors)
    cut = jnp.asarray(np.sort(rng.normal(size=(n, n_cuts)) * priors.cuts, axis=1))
    levels = OrdinalScale(jnp.tile(jnp.array([1.0, 2.0, 4.0]), (n, 1)), cut)
    state = dataclasses.replace(state, alpha=jnp.ones(n), levels=levels)
    where = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]], float)  # items x users; user 3 has none
    f = as_factors(state)
    eta = np.asarray(jnp.einsum("nud,nid->niu", f.w, f.x) + f.b[:, None] + f.c[:, :, None])
    precision = state.items.row_precision[:, :, None] * state.users.row_precision[:, None, :]
    z = eta + rng.normal(size=eta.shape) / np.sqrt(np.asarray(precision))
    which = np.sum(z[..., None] > np.asarray(cut)[:, None, None], axis=-1)
    values = jnp.array([1.0, 2.0, 4.0])[which]

    item, user = np.nonzero(where)
    number = Ratings(user, item, item * 4 + user, 4, 3)  # a rating's value is where to find it
    rows = tuple(data.rows(number, side, min_length=2, bucket_growth=3.0) for side in ("user", "item"))
    told = lambda value: jax.tree.map(lambda a: value.ravel()[a.astype(int)] if a.dtype == jnp.float32 else a, rows)

    def one(state, value, key):
        known = Dense(value, jnp.asarray(where > 0)) if heteroscedastic else told(value)
        step = lambda k, state: gibbs_sweep(state, known, key=jax.random.fold_in(key, k), priors=priors)
        return jax.lax.fori_loop(0, 2, step, state)

    def all_statistics(state):
        out, cut = statistics(state, values, where[None]), np.asarray(state.levels.cut)
        bias, of_first = np.asarray(state.users.rows[:, 0, -1]), np.asarray(values[:, 0, 0])
        out |= {f"cut {c}": cut[:, c] for c in range(n_cuts)} | {f"cut size {c}": cut[:, c] ** 2 for c in range(n_cuts)}
        out |= {"gap": np.log(cut[:, 1] - cut[:, 0]), "cut, bias": np.arcsinh(cut[:, 0] * bias)}
        out |= {"cut, rating": cut[:, 1] * of_first, "bias, rating": np.arcsinh(bias * (of_first - 2))}
        return out

    after = jax.jit(jax.vmap(one))(state, values, jax.random.split(jax.random.key(0), n))
    assert np.mean(np.asarray(after.levels.cut) != np.asarray(cut)) > 0.5
    now, then = all_statistics(after), all_statistics(state)
    moved = {name: now[name] - then[name] for name in now}
    z = {name: each.mean() / max(each.std() / np.sqrt(n), 1e-9) for name, each in moved.items()}
    assert max(map(abs, z.values())) < 4.5, z


@pytest.mark.slow
def test_the_posterior_is_of_ratings_and_a_run_is_resumed_where_it_stopped():
    """Mean, spread and noise by SciPy from the states; stopped after four sweeps and taken on, nothing is different."""
    known, test, kept = data.dense(ratings()), ratings(1), []
    state, posterior, trace = run(known, 7, callback=lambda _, state, __: kept.append(state))
    means, variances = [], []
    for each in kept[2:]:
        one = []
        for c in range(2):
            mine = jax.tree.map(lambda a, c=c: a[c], each)
            w, x = np.asarray(mine.users.rows)[test.user], np.asarray(mine.items.rows)[test.item]
            eta = np.sum(w[:, :-1] * x[:, :-1], axis=1) + w[:, -1] + x[:, -1]
            sure = np.asarray(mine.users.row_precision)[test.user] * np.asarray(mine.items.row_precision)[test.item]
            share = chances(np.asarray(mine.levels.cut, np.float64), eta, sure)
            one.append([share @ STARS, share @ np.square(STARS) - (share @ STARS) ** 2])
        means.append([a for a, _ in one])
        variances.append([b for _, b in one])
    np.testing.assert_allclose(posterior.mean, np.mean(means, axis=0), rtol=1e-4)
    np.testing.assert_allclose(posterior.center, posterior.mean, rtol=1e-5)  # they lie within the scale
    np.testing.assert_allclose(posterior.variance, np.var(means, axis=0), rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(posterior.noise_variance, np.mean(variances, axis=0), rtol=1e-3)
    np.testing.assert_allclose(trace[2:], np.sqrt(np.mean(variances, axis=2)), rtol=1e-3)
    np.testing.assert_array_equal(state.alpha, 1)
    np.testing.assert_array_equal(state.levels.value, [STARS, STARS])
    assert (np.diff(state.levels.cut) > 0).all()

    stopped = run(known, 7, callback=lambda step, *_: step == 4)
    same(run(known, 7, stopped[0], posterior=stopped[1])[:2], (state, posterior))
    spoiled = Dense(jnp.where(known.where, known.value, jnp.nan), known.where)
    same(run(spoiled, 7)[:2], (state, posterior))  # what is masked is inert


def test_cuts_start_at_the_quantiles_of_the_ratings_shares():
    levels = at_start(levels=np.array([3.0, 1.0, 1.5, 1.0])).levels
    np.testing.assert_array_equal(levels.value, [[1, 1.5, 3]] * 2)
    np.testing.assert_allclose(levels.cut, [stats.norm.ppf([0.5, 0.75])] * 2, atol=1e-6)
    of = ordinal.level_index(alone(levels), jnp.array([[1.0, 1.5], [3.0, 1.0]]))
    np.testing.assert_array_equal(of, [[0, 1], [2, 0]])


# ------------------------------------------------------------------------------------------- bad input


def test_bad_input():
    known = ratings()
    for form in forms(dataclasses.replace(known, value=np.where(known.value == 3, 3.5, known.value))):
        with pytest.raises(ValueError, match=r"ratings: expected ratings among the levels \[1.0, 2.0, .*\], got 3.5"):
            run(form, 4)
    for levels, says in (((2.0, 2.0), "at least 2 different ratings"), ((1.0, np.nan), "levels: expected finite")):
        with pytest.raises(ValueError, match=says):
            at_start(levels=levels)
