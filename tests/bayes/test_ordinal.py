"""Ordinal ratings: draws against SciPy or a density on a grid, and sweeps against the joint distribution."""

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
from jaxrec.kernels import least_squares
from jaxrec.types import Dense
from tests.bayes.test_gibbs import (
    N_ITEMS,
    N_USERS,
    assert_equal_leaves,
    assert_moments,
    assert_same_distribution,
    draw_from_prior,
    first_chain,
    in_float64,
    layouts,
    ratings,
    summary_statistics,
)

STARS = (1.0, 2.0, 3.0, 4.0, 5.0)
CUT = np.array([-1.0, 0.2, 0.5])


def bounds(cut):
    """The cuts between -inf and inf: level r lies between bounds r and r + 1."""
    return np.concatenate([[-np.inf], cut, [np.inf]])


def reference_probabilities(cut, eta, precision):
    """Probability of every level by SciPy, without cancellation in either tail."""
    at = (bounds(cut) - np.asarray(eta)[..., None]) * np.sqrt(np.asarray(precision))[..., None]
    return np.where(at[..., :-1] > 0, -np.diff(stats.norm.sf(at)), np.diff(stats.norm.cdf(at)))


# ------------------------------------------------------------------------------------------- single draws


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
def test_latents_are_truncated_normals_in_both_tails(double):
    """Mean and variance equal SciPy's for η up to 40 deviations from the level; beyond, draws stay within the level."""
    n, precision, draw = 20_000, 1.7, jax.jit(ordinal.draw_latents)
    eta = np.array([0.0, -3.0, 5.0, 6.3, -6.4, -9.0, 30.0, 1e4, -1e4, 1e15])
    with jax.enable_x64(double):
        _, all_eta, level = np.broadcast_arrays(np.zeros((n, 1, 1)), eta[:, None], np.arange(len(CUT) + 1))
        columns = jnp.asarray(all_eta, float), jnp.full(level.shape, precision), jnp.asarray(level, jnp.int32)
        z = draw(jnp.asarray(CUT), *columns, jnp.ones(level.shape, bool), key=jax.random.key(0))
        z = np.asarray(z, np.float64)
    assert np.isfinite(z).all()
    below, above = (bounds(np.asarray(CUT, np.float64 if double else np.float32))[k:][:4] for k in (0, 1))
    assert (z >= below).all()
    assert (z <= above).all()
    moderate_eta = eta[:7, None]
    a, b = ((bound - moderate_eta) * np.sqrt(precision) for bound in (below, above))
    exact = stats.truncnorm(a, b, loc=moderate_eta, scale=1 / np.sqrt(precision))
    mean, variance = exact.mean(), exact.var()
    rounding = 1e-7 * np.abs(moderate_eta)  # of float32
    np.testing.assert_array_less(np.abs(z.mean(axis=0)[:7] - mean), 4.5 * np.sqrt(variance / n) + rounding)
    np.testing.assert_allclose(z.var(axis=0)[:7], variance, rtol=0.07)


def test_probabilities_and_moments_equal_scipy():
    eta, precision = np.array([[0.0, 0.7, -4.0], [6.0, -11.0, 12.0]]), np.array([[1.0, 0.3, 2.0], [1.0, 1.0, 1.0]])
    arrays = [jnp.asarray(a, jnp.float32) for a in (eta, precision)]
    expected = reference_probabilities(CUT, eta, precision)
    levels = OrdinalScale(jnp.array([1.0, 2.0, 4.0, 4.5]), jnp.asarray(CUT, jnp.float32))
    got = ordinal.probabilities(levels.cut, *arrays)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-37)  # float32 holds a log of -90 to 1e-5
    np.testing.assert_allclose(got.sum(axis=-1), 1, rtol=1e-6)
    mean, variance = ordinal.moments(levels, *arrays)
    value = np.asarray(levels.value)
    np.testing.assert_allclose(mean, expected @ value, rtol=1e-5)
    np.testing.assert_allclose(variance, expected @ value**2 - (expected @ value) ** 2, rtol=1e-3, atol=1e-6)


def random_levels(rng, cut, n):
    """(η, p, level) of n ratings, drawn from the model."""
    eta, precision = rng.normal(size=n), rng.gamma(3, 1 / 3, n)
    z = eta + rng.normal(size=n) / np.sqrt(precision)
    return eta, precision, np.searchsorted(cut, z).astype(np.int32)


def run_cuts(columns, where, prior_deviation, init, steps):
    """Chains of `steps` draws from every row of `init`: the last cuts, and the acceptance rate of the second half."""
    columns, where = tuple(map(jnp.asarray, columns)), jnp.asarray(where)

    def run_chain(cut, key):
        def step(cut, k):
            new = ordinal.draw_cuts(cut, *columns, where, prior_deviation, key=jax.random.fold_in(key, k))
            return new, jnp.any(new != cut)

        return jax.lax.scan(step, cut, jnp.arange(steps))

    cuts, accepted = jax.jit(jax.vmap(run_chain))(jnp.asarray(init), jax.random.split(jax.random.key(3), len(init)))
    return np.asarray(cuts), np.mean(accepted[:, steps // 2 :])


@pytest.mark.slow
def test_cuts_are_drawn_from_their_posterior(x64):
    """For 12 ratings on three levels, one of them rare, against the density on a grid; masked entries hold garbage."""
    rng, n, prior_deviation = np.random.default_rng(5), 4_000, 1.3
    eta, precision, level = random_levels(rng, np.array([-0.2, 1.5]), 14)
    where = np.arange(14) != 3
    where[5] = False
    assert sorted(np.bincount(level[where])) == [1, 4, 7]
    columns = np.where(where, eta, np.nan), np.where(where, precision, np.inf), np.where(where, level, 99)
    init = np.sort(rng.normal(size=(n, 2)) * prior_deviation, axis=1)
    drawn, _ = run_cuts(columns, where, prior_deviation, init, 40)

    axis = np.linspace(-5, 6, 221)
    first, second = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    cuts = np.stack([first, second], axis=1)[first < second]
    log_density = -(cuts**2).sum(axis=1) / (2 * prior_deviation**2)
    infinite = np.full(len(cuts), np.inf)
    for e, p, r in zip(eta[where], precision[where], level[where], strict=True):
        cumulative = stats.norm.cdf((np.c_[-infinite, cuts, infinite] - e) * np.sqrt(p))
        log_density = log_density + np.log(cumulative[:, r + 1] - cumulative[:, r])
    weight = np.exp(log_density - log_density.max())
    weight = weight / weight.sum()
    mean = weight @ cuts
    assert_moments(drawn, mean, (cuts - mean).T @ (weight[:, None] * (cuts - mean)))
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    for c in range(2):
        got = [weight[cuts[:, c] < quantile].sum() for quantile in np.quantile(drawn[:, c], shares)]
        np.testing.assert_allclose(got, shares, atol=0.03)


@pytest.mark.slow
def test_cuts_of_many_ratings_converge_from_far_away_and_are_then_mostly_accepted():
    rng = np.random.default_rng(0)
    cut = np.array([-1.5, -0.4, 0.1, 1.2], np.float32)
    eta, precision, level = random_levels(rng, cut, 2_000)
    columns = eta.astype(np.float32), precision.astype(np.float32), level
    init = np.stack([initial_state().levels.cut[0], cut + 0.8, 0.7 * cut, 1.4 * cut] * 5)
    drawn, acceptance_rate = run_cuts(columns, np.ones(len(eta), bool), 3.0, init, 60)
    np.testing.assert_allclose(drawn.mean(axis=0), cut, atol=0.1)
    np.testing.assert_array_less(drawn.std(axis=0), 0.08)
    assert acceptance_rate > 0.9


# ------------------------------------------------------------------------------------------- in the sampler


def initial_state(chains=2, levels=STARS):
    return init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), chains=chains, levels=levels)


def run(train, sweeps, state=None, **options):
    options = {"mu": 0.0, "burn_in": 2, "sweeps_per_call": 1, "progress": False, "key": jax.random.key(1)} | options
    return gibbs(train, ratings(1), init=initial_state() if state is None else state, sweeps=sweeps, **options)


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("chunk_floats", [1, 2**19])  # a row at a time, and all rows of a bucket at once
def test_cells_hold_every_rating_with_its_predictor_and_precision(x64, monkeypatch, side, chunk_floats):
    """In both layouts; `with_values` replaces the ratings of that side in the same order."""
    monkeypatch.setitem(least_squares.CHUNK_FLOATS, "cpu", chunk_floats)
    train, state = ratings(), in_float64(first_chain(initial_state()))
    own, others = (state.users, state.items) if side == "user" else (state.items, state.users)
    own, others = (dataclasses.replace(a, row_precision=jnp.exp(a.rows[:, 0])) for a in (own, others))
    ids = (train.user, train.item) if side == "user" else (train.item, train.user)
    w, b, x, c = own.rows[:, :-1], own.rows[:, -1], others.rows[:, :-1], others.rows[:, -1]
    eta = 0.3 + np.sum(w[ids[0]] * x[ids[1]], axis=1) + b[ids[0]] + c[ids[1]]
    expected = np.stack([train.value, eta, own.row_precision[ids[0]] * others.row_precision[ids[1]]])
    for layout in layouts(train):
        tables = row_posterior.cells(layout, side, own, others, 0.3)
        columns = [(table.value, table.eta, table.row_precision) for table in tables]
        masks = [np.asarray(table.where) for table in tables]
        got = np.concatenate(
            [np.stack([np.asarray(a)[mask] for a in arrays]) for arrays, mask in zip(columns, masks, strict=True)],
            axis=1,
        )
        np.testing.assert_allclose(got[:, np.lexsort(got)], expected[:, np.lexsort(expected)], rtol=1e-6)
        replaced = row_posterior.with_values(layout, side, [table.eta for table in tables])
        for table, new in zip(tables, row_posterior.cells(replaced, side, own, others, 0.3), strict=True):
            assert_equal_leaves(table._replace(value=table.eta), new)


@pytest.mark.slow
@pytest.mark.parametrize("heteroscedastic", [True, False])
def test_a_sweep_preserves_the_joint_distribution(x64, heteroscedastic):
    """As in test_gibbs, for ordinal ratings: as Dense with heteroscedastic noise, as Rows without.

    It fails, for example, if the proposals of the cuts lack their determinant, or the latents are off by 0.2 or all
    have the same precision.
    """
    n, sizes, n_cuts = 10_000, (4, 3), 2
    priors = Priors(beta=2.0, dof=6, scale_matrix=2.0, cuts=1.5, heteroscedastic=heteroscedastic)
    rng = np.random.default_rng(0)
    state = draw_from_prior(rng, n, sizes, ((), ()), priors)
    cut = jnp.asarray(np.sort(rng.normal(size=(n, n_cuts)) * priors.cuts, axis=1))
    possible_ratings = jnp.array([1.0, 2.0, 4.0])
    levels = OrdinalScale(jnp.tile(possible_ratings, (n, 1)), cut)
    state = dataclasses.replace(state, alpha=jnp.ones(n), levels=levels)
    where = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]], float)  # items x users; user 3 has none
    f = as_factors(state)
    eta = np.asarray(jnp.einsum("nud,nid->niu", f.w, f.x) + f.b[:, None] + f.c[:, :, None])
    precision = state.items.row_precision[:, :, None] * state.users.row_precision[:, None, :]
    z = eta + rng.normal(size=eta.shape) / np.sqrt(np.asarray(precision))
    values = possible_ratings[np.sum(z[..., None] > np.asarray(cut)[:, None, None], axis=-1)]

    item, user = np.nonzero(where)
    positions = Ratings(user, item, item * 4 + user, 4, 3)  # each rating is its position in the raveled values
    rows_of_positions = tuple(data.rows(positions, side, min_length=2, bucket_growth=3.0) for side in ("user", "item"))

    def as_rows(value):
        look_up = lambda a: value.ravel()[a.astype(int)] if a.dtype == jnp.float32 else a
        return jax.tree.map(look_up, rows_of_positions)

    def two_sweeps(state, value, key):
        train = Dense(value, jnp.asarray(where > 0)) if heteroscedastic else as_rows(value)
        sweep = lambda k, state: gibbs_sweep(state, train, key=jax.random.fold_in(key, k), priors=priors)
        return jax.lax.fori_loop(0, 2, sweep, state)

    def all_statistics(state):
        out, cut = summary_statistics(state, values, where[None]), np.asarray(state.levels.cut)
        bias, rating = np.asarray(state.users.rows[:, 0, -1]), np.asarray(values[:, 0, 0])
        out |= {f"cut {c}": cut[:, c] for c in range(n_cuts)}
        out |= {f"squared cut {c}": cut[:, c] ** 2 for c in range(n_cuts)}
        out |= {"gap": np.log(cut[:, 1] - cut[:, 0]), "cut, bias": np.arcsinh(cut[:, 0] * bias)}
        out |= {"cut, rating": cut[:, 1] * rating, "bias, rating": np.arcsinh(bias * (rating - 2))}
        return out

    after = jax.jit(jax.vmap(two_sweeps))(state, values, jax.random.split(jax.random.key(0), n))
    assert np.mean(np.asarray(after.levels.cut) != np.asarray(cut)) > 0.5
    assert_same_distribution(all_statistics(state), all_statistics(after))


@pytest.mark.slow
def test_posterior_holds_the_mean_and_variance_of_the_ratings():
    """Means, variances and noise variances by SciPy from the states."""
    train, test, states = data.dense(ratings()), ratings(1), []
    state, posterior, trace = run(train, 7, callback=lambda _, state, __: states.append(state))
    means, variances = [], []
    for chains in states[2:]:
        moments = []
        for c in range(2):
            chain = jax.tree.map(lambda a, c=c: a[c], chains)
            w, x = np.asarray(chain.users.rows)[test.user], np.asarray(chain.items.rows)[test.item]
            eta = np.sum(w[:, :-1] * x[:, :-1], axis=1) + w[:, -1] + x[:, -1]
            user_tau, item_tau = (np.asarray(side.row_precision) for side in (chain.users, chain.items))
            cut = np.asarray(chain.levels.cut, np.float64)
            probability = reference_probabilities(cut, eta, user_tau[test.user] * item_tau[test.item])
            mean = probability @ STARS
            moments.append([mean, probability @ np.square(STARS) - mean**2])
        means.append([mean for mean, _ in moments])
        variances.append([variance for _, variance in moments])
    np.testing.assert_allclose(posterior.mean, np.mean(means, axis=0), rtol=1e-4)
    np.testing.assert_allclose(posterior.center, posterior.mean, rtol=1e-5)  # means of ratings need no clipping
    np.testing.assert_allclose(posterior.variance, np.var(means, axis=0), rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(posterior.noise_variance, np.mean(variances, axis=0), rtol=1e-3)
    np.testing.assert_allclose(trace[2:], np.sqrt(np.mean(variances, axis=2)), rtol=1e-3)
    np.testing.assert_array_equal(state.alpha, 1)
    np.testing.assert_array_equal(state.levels.value, [STARS, STARS])
    assert (np.diff(state.levels.cut) > 0).all()


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_and_masked_ratings_are_ignored():
    train = data.dense(ratings())
    full = run(train, 7)
    stopped = run(train, 7, callback=lambda step, *_: step == 4)
    assert_equal_leaves(run(train, 7, stopped.state, posterior=stopped.posterior)[:2], full[:2])
    garbage = Dense(jnp.where(train.where, train.value, jnp.nan), train.where)
    assert_equal_leaves(run(garbage, 7)[:2], full[:2])


def test_initial_cuts_are_normal_quantiles_of_the_shares_of_the_levels():
    levels = initial_state(levels=np.array([3.0, 1.0, 1.5, 1.0])).levels
    np.testing.assert_array_equal(levels.value, [[1, 1.5, 3]] * 2)
    np.testing.assert_allclose(levels.cut, [stats.norm.ppf([0.5, 0.75])] * 2, atol=1e-6)
    index = ordinal.level_index(first_chain(levels), jnp.array([[1.0, 1.5], [3.0, 1.0]]))
    np.testing.assert_array_equal(index, [[0, 1], [2, 0]])


# ------------------------------------------------------------------------------------------- errors


def test_ratings_that_are_no_level_raise():
    train = ratings()
    for layout in layouts(dataclasses.replace(train, value=np.where(train.value == 3, 3.5, train.value))):
        with pytest.raises(ValueError, match=r"ratings: expected ratings among the levels \[1.0, 2.0, .*\], got 3.5"):
            run(layout, 4)


def test_wrong_levels_raise():
    for levels, message in (((2.0, 2.0), "at least 2 different ratings"), ((1.0, np.nan), "levels: expected finite")):
        with pytest.raises(ValueError, match=message):
            initial_state(levels=levels)
