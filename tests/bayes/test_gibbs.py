"""The Gibbs sampler against posteriors computed in NumPy, and against the one law that all conditionals must obey."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data
from jaxrec.bayes import (
    ChainState,
    as_factors,
    gibbs,
    gibbs_sweep,
    init_chains,
    pool_chains,
    row_posterior,
    side_information,
)
from jaxrec.bayes import _gibbs as sampler
from jaxrec.bayes._gibbs_sweep import run_sweeps
from jaxrec.bayes.side_information import Priors, SideState, basis
from jaxrec.types import Dense

N_USERS, N_ITEMS, MU = 7, 9, 3.2


def ratings(seed=0):
    """Random pairs; user 4 and item 6 have none."""
    rng = np.random.default_rng(seed)
    there = rng.random((N_USERS, N_ITEMS)) < 0.5
    there[4], there[:, 6] = False, False
    user, item = np.nonzero(there)
    return Ratings(user, item, rng.integers(1, 6, len(user)), N_USERS, N_ITEMS)


def features(n, size, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size)) + 1.5


def forms(known):
    return data.dense(known), (
        data.rows(known, "user", min_length=4, bucket_growth=3.0),
        data.rows(known, "item", min_length=9),
    )


def in_float64(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


def groups():
    return (basis(features(N_USERS, 3)), basis(features(N_USERS, 12, 1))), (basis(features(N_ITEMS, 2, 2)),)


def alone(state):
    """Of the first chain."""
    return jax.tree.map(lambda a: a[0], state)


def side_state(rows, mean, precision, sure, links, strengths=None):
    strengths = np.ones(len(links)) if strengths is None else strengths
    given = rows, mean, precision, sure, np.array(5.0), tuple(links), tuple(map(np.array, strengths))
    return SideState(*jax.tree.map(jnp.asarray, given))


def spd(k, seed):
    a = np.random.default_rng(seed).normal(size=(k, 2 * k))
    return a @ a.T / k


def near(draws, mean, covariance):
    """Five standard errors for every mean, and for every entry of the covariance."""
    n, variance = len(draws), np.diag(covariance)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean), 5 * np.sqrt(variance / n))
    error = np.sqrt((covariance**2 + np.outer(variance, variance)) / n)
    np.testing.assert_array_less(np.abs(np.cov(draws.T) - covariance), 5 * error)


# ------------------------------------------------------------------------------------------- the rows' prior


def test_wishart_has_its_moments_and_the_root_is_one(x64):
    k, dof, n = 3, 6.5, 40_000
    scale_matrix = spd(k, 0)
    draw = jax.jit(jax.vmap(lambda key: side_information.wishart(dof, jnp.asarray(scale_matrix), key=key)))
    precision, root = draw(jax.random.split(jax.random.key(0), n))
    expected = np.linalg.inv(scale_matrix)
    diagonal = np.diag(expected)
    variance = dof * (expected**2 + np.outer(diagonal, diagonal))
    np.testing.assert_array_less(np.abs(precision.mean(0) - dof * expected), 5 * np.sqrt(variance / n))
    np.testing.assert_allclose(precision.var(axis=0), variance, rtol=0.1)
    covariance = np.asarray(root[:50] @ jnp.swapaxes(root[:50], 1, 2))
    np.testing.assert_allclose(covariance @ np.asarray(precision[:50]), np.tile(np.eye(k), (50, 1, 1)), atol=1e-8)


@pytest.mark.parametrize("size", [2, 12])  # fewer than rows, and more
def test_a_basis_is_the_features_centered_and_turned(size):
    f = features(N_USERS, size)
    b = basis(f)
    assert b.coordinates.shape == (N_USERS, min(size, N_USERS - 1))
    np.testing.assert_allclose(b.coordinates, (f - np.asarray(b.center)) @ np.asarray(b.rotation), atol=1e-5)
    np.testing.assert_allclose(b.coordinates @ b.coordinates.T, (f - f.mean(0)) @ (f - f.mean(0)).T, atol=1e-4)
    np.testing.assert_allclose(b.coordinates.T @ b.coordinates, np.diag(b.squared_norms), atol=1e-4)
    np.testing.assert_allclose(b.rotation.T @ b.rotation, np.eye(len(b.squared_norms)), atol=1e-5)


def test_links_are_drawn_from_their_ridge_regressions(x64):
    """Mean (F'F + λ)^-1 F'(V - the other group's), covariance Λ^-1 of what is left: by NumPy in the features' axes."""
    k, n, strength = 2, 30_000, 0.7
    rng = np.random.default_rng(3)
    f, g = features(N_USERS, 3), features(N_USERS, 12, 1)
    bases = in_float64((basis(f), basis(g)))
    rows, other = rng.normal(size=(N_USERS, k)), jnp.asarray(rng.normal(size=(bases[1].coordinates.shape[1], k)))
    links = jnp.zeros((3, k)), other
    level = side_state(rows, np.zeros(k), np.eye(k), np.ones(N_USERS), links, (strength, 2.0))
    draw = jax.jit(jax.vmap(lambda key: side_information.draw(level, bases, Priors(strength=strength), key=key)))
    out = draw(jax.random.split(jax.random.key(1), n))
    f, left = f - f.mean(axis=0), rows - np.asarray(bases[1].coordinates @ other)
    inverse = np.linalg.inv(f.T @ f + strength * np.eye(3))
    expected, got = inverse @ f.T @ left, np.einsum("fr,nrk->nfk", bases[0].rotation, out.link_matrices[0])
    error = got - expected
    white = np.einsum("nfk,nkl,ngl->nfg", error, out.precision, error) / k  # given Λ, over n draws: the inverse
    np.testing.assert_allclose(white.mean(axis=0), inverse, atol=0.03 * inverse.max())
    np.testing.assert_array_less(np.abs(error.mean(axis=0)), 5 * error.std(axis=0) / np.sqrt(n) + 1e-5)
    np.testing.assert_array_equal(out.strengths, strength)  # given, not drawn


# ------------------------------------------------------------------------------------------- the rows


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("side", ["user", "item"])
def test_rows_are_drawn_from_their_posterior(x64, side, form):
    """In NumPy from the definition: of a row with ratings, and of one without, which is its prior, links and all."""
    known, n, alpha, rank = ratings(), 20_000, 1.7, 2
    own, other = (known.user, known.item) if side == "user" else (known.item, known.user)
    n_own, n_other = (N_USERS, N_ITEMS) if side == "user" else (N_ITEMS, N_USERS)
    rng = np.random.default_rng(2)
    bases = in_float64(groups()[0 if side == "user" else 1])
    links = tuple(jnp.asarray(rng.normal(size=(len(b.squared_norms), rank + 1))) * 0.3 for b in bases)
    mean, precision, others = rng.normal(size=rank + 1), spd(rank + 1, 4), rng.normal(size=(n_other, rank + 1))
    sure, others_sure = rng.uniform(0.5, 2, n_own), rng.uniform(0.5, 2, n_other)
    of = lambda rows, sure, links: side_state(rows, mean, precision, sure, links)
    level = of(np.zeros((n_own, rank + 1)), sure, links)
    given = row_posterior.row_statistics(forms(known)[form], side, of(others, others_sure, ()), MU)
    draw = jax.jit(jax.vmap(lambda key: row_posterior.draw_rows(level, bases, given, jnp.asarray(alpha), key=key)))
    drawn = draw(jax.random.split(jax.random.key(5), n))
    prior = mean + sum(np.asarray(b.coordinates @ link) for b, link in zip(bases, links, strict=True))
    x, target = (
        np.c_[others[other][:, :-1], np.ones(len(known))],
        known.value.astype(np.float64) - MU - others[other][:, -1],
    )
    for row in (1, 4 if side == "user" else 6):
        mine = own == row
        weight = alpha * sure[row] * others_sure[other[mine]]
        covariance = np.linalg.inv(x[mine].T @ (weight[:, None] * x[mine]) + precision)
        expected = covariance @ (x[mine].T @ (weight * target[mine]) + precision @ prior[row])
        near(np.asarray(drawn.rows[:, row]), expected, covariance)
    error = target - np.sum(x * np.asarray(drawn.rows[0])[own], axis=1)
    left = np.bincount(own, others_sure[other] * error**2, minlength=n_own)
    np.testing.assert_allclose(row_posterior.squared_errors(given, drawn.rows[0]), left, atol=1e-9)


@pytest.mark.slow
def test_dense_and_rows_give_the_same_draws(x64):
    state = in_float64(alone(init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), features=groups())))
    bases, step = in_float64(groups()), jax.jit(gibbs_sweep)
    one, other = (step(step(state, k, key=jax.random.key(1), mu=MU, bases=bases), k, key=jax.random.key(2), mu=MU,
                       bases=bases) for k in forms(ratings()))  # fmt: skip
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------------- all together


def from_the_prior(rng, n, sizes, bases, priors):
    """n draws of all unknowns, by NumPy from the definitions; Wishart of a whole number of degrees."""

    def level(size, groups):
        k, dof = 2, 1 + priors.dof
        x = rng.normal(size=(n, dof, k)) / np.sqrt(priors.scale_matrix)
        precision = np.swapaxes(x, 1, 2) @ x
        root = np.linalg.cholesky(np.linalg.inv(precision))
        normal = lambda m: rng.normal(size=(n, m, k)) @ np.swapaxes(root, 1, 2)
        mean = normal(1)[:, 0] / np.sqrt(priors.beta)
        strengths = [rng.gamma(priors.strength[0], 1 / priors.strength[1], n) for _ in groups]
        links = [
            normal(len(b.squared_norms)) / np.sqrt(s)[:, None, None] for b, s in zip(groups, strengths, strict=True)
        ]
        rows = (
            normal(size)
            + mean[:, None]
            + sum(np.asarray(b.coordinates) @ link for b, link in zip(groups, links, strict=True))
        )
        even = rng.choice(side_information.ROW_PRECISION_SHAPES, n)
        sure = rng.gamma(even[:, None], 1 / even[:, None], (n, size)) if priors.heteroscedastic else np.ones((n, size))
        given = rows, mean, precision, sure, even, tuple(links), tuple(strengths)
        return SideState(*jax.tree.map(jnp.asarray, given))

    alpha = rng.gamma(priors.noise[0], 1 / priors.noise[1], n)
    users, items = (level(size, groups) for size, groups in zip(sizes, bases, strict=True))
    return ChainState(users, items, jnp.asarray(alpha), jnp.zeros(n, jnp.int32))


def statistics(state, values, where):
    """Numbers that tell one joint distribution of unknowns and ratings from another, with no heavy tails."""
    out = {"alpha": jnp.log(state.alpha)}
    predicted = jnp.einsum("nud,nid->niu", state.users.rows[..., :-1], state.items.rows[..., :-1])
    predicted = predicted + state.users.rows[:, None, :, -1] + state.items.rows[:, :, None, -1] + MU
    out["error"] = jnp.log(jnp.sum((values - predicted) ** 2 * where, axis=(1, 2)))
    out["told"] = jnp.arcsinh(jnp.sum((values - MU) * (predicted - MU) * where, axis=(1, 2)))
    for name, level in (("users", state.users), ("items", state.items)):
        out[f"{name} evenness"] = jnp.log(level.row_precision_shape)
        for row in (0, -1):
            out[f"{name} sureness {row}"] = jnp.log(level.row_precision[:, row])
            out[f"{name} sureness, evenness {row}"] = jnp.abs(jnp.log(level.row_precision[:, row])) * jnp.log(
                level.row_precision_shape
            )
        k = level.precision
        out[f"{name} det"] = jnp.log(k[:, 0, 0] * k[:, 1, 1] - k[:, 0, 1] ** 2)
        out[f"{name} correlation"] = k[:, 0, 1] / jnp.sqrt(k[:, 0, 0] * k[:, 1, 1])
        for c in range(2):
            out[f"{name} precision {c}"] = jnp.log(k[:, c, c])
            out[f"{name} mean {c}"] = jnp.arcsinh(level.mean[:, c])
            out[f"{name} mean size {c}"] = jnp.log1p(level.mean[:, c] ** 2)
            out[f"{name} rows size {c}"] = jnp.log(jnp.sum(level.rows[:, :, c] ** 2, axis=1))
            out[f"{name} row, mean {c}"] = jnp.arcsinh(level.rows[:, 0, c] * level.mean[:, c])
        for g, (link, strength) in enumerate(zip(level.link_matrices, level.strengths, strict=True)):
            out[f"{name} strength {g}"] = jnp.log(strength)
            out[f"{name} link {g}"] = jnp.log(jnp.sum(link**2, axis=(1, 2)))
            out[f"{name} link {g}, row"] = jnp.arcsinh(link[:, 0, 0] * level.rows[:, 0, 0])
            out[f"{name} link {g}, ratings"] = jnp.arcsinh(link[:, 0, 1] * values[:, 0, 0])
    return {name: np.asarray(value) for name, value in out.items()}


@pytest.mark.slow
@pytest.mark.parametrize("heteroscedastic", [True, False])
def test_a_sweep_leaves_the_joint_distribution_as_it_is(x64, heteroscedastic):
    """Unknowns from the prior, ratings given them, then sweeps given the ratings: the unknowns are from the prior
    again, jointly with the ratings. One conditional that is wrong moves it. (After Geweke 2004, Getting it right; with
    independent repetitions, so that a standard error is one.)"""
    n, sizes = 20_000, (4, 3)
    priors = Priors(
        beta=2.0, dof=6, scale_matrix=2.0, noise=(4.0, 2.0), strength=(5.0, 3.0), heteroscedastic=heteroscedastic
    )
    rng = np.random.default_rng(0)
    bases = in_float64(((basis(features(4, 2)), basis(features(4, 7, 1))), (basis(features(3, 1)),)))
    state = from_the_prior(rng, n, sizes, bases, priors)
    where = np.array([[[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]]], float)  # items x users; user 3 has none
    factors = as_factors(state, MU)
    predicted = jnp.einsum("nud,nid->niu", factors.w, factors.x) + factors.b[:, None] + factors.c[:, :, None] + MU
    precision = (
        state.alpha[:, None, None] * state.items.row_precision[:, :, None] * state.users.row_precision[:, None, :]
    )
    values = predicted + rng.normal(size=predicted.shape) / np.sqrt(np.asarray(precision))

    def one(state, value, key):
        known = Dense(value, jnp.asarray(where[0] > 0))
        given = {"mu": MU, "bases": bases, "priors": priors}
        next_ = lambda number, state: gibbs_sweep(state, known, key=jax.random.fold_in(key, number), **given)
        return jax.lax.fori_loop(0, 2, next_, state)

    after = jax.jit(jax.vmap(one))(state, values, jax.random.split(jax.random.key(0), n))
    now, then = statistics(after, values, where), statistics(state, values, where)
    moved = {name: now[name] - then[name] for name in now}
    z = {name: each.mean() / max(each.std() / np.sqrt(n), 1e-9) for name, each in moved.items()}
    assert max(map(abs, z.values())) < 4.5, z


@pytest.mark.slow
def test_it_finds_what_made_the_ratings():
    """Noise 0.5 is found, predictions are nearly as good as the truth, and intervals cover what they say."""
    synthetic = data.synthetic.low_rank(80, 60, 2400, noise=0.5, rng=0)
    train, test = data.splits.random(synthetic.ratings, test_fraction=0.2, rng=0)
    known, mu = data.dense(train), float(train.value.mean())
    seen = []
    _, posterior, trace = gibbs(
        known, test, init=init_chains(80, 60, 4, key=jax.random.key(0), chains=2), key=jax.random.key(1), mu=mu,
        sweeps=120, burn_in=40, callback=lambda step, state, _: seen.append((step, int(state.step[0]))), progress=False,
    )  # fmt: skip
    assert seen == [(step, step) for step in (20, 40, 60, 80, 100, 120)]
    assert trace.shape == (120, 2)
    assert 0.45 < trace[60:].mean() < 0.55
    both = pool_chains(posterior)
    error = test.value - np.asarray(both.mean)
    assert np.sqrt((error**2).mean()) < 0.62
    deviation = np.sqrt(np.asarray(both.variance + both.noise_variance))
    for z, share in ((0.674, 0.5), (1.282, 0.8), (1.96, 0.95)):
        assert abs((np.abs(error) < z * deviation).mean() - share) < 0.07


def run(known, sweeps, state=None, chains=2, seed=1, **options):
    state = init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), chains=chains) if state is None else state
    given = {"mu": MU, "burn_in": 2, "progress": False, "key": jax.random.key(seed)} | options
    return gibbs(known, ratings(1), init=state, sweeps=sweeps, **given)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_resumed_it_is_as_if_never_stopped_and_the_key_decides():
    known = data.dense(ratings())
    whole = run(known, 7, sweeps_per_call=2)
    state, posterior, trace = run(known, 5, sweeps_per_call=2, callback=lambda *_: True)  # stops after the first block
    assert len(trace) == 2
    rest = run(known, 7, state, posterior=posterior, sweeps_per_call=2)
    same(whole[:2], rest[:2])
    np.testing.assert_array_equal(whole[2][2:], rest[2])
    other = run(known, 7, sweeps_per_call=2, seed=2)
    assert not np.allclose(whole[1].mean, other[1].mean)
    assert not np.allclose(whole[1].mean[0], whole[1].mean[1])  # chains are draws of their own


@pytest.mark.slow
def test_the_posterior_is_the_draws_mean_and_variance(x64):
    known, test, kept = data.dense(ratings()), ratings(1), []
    scale = (2.0, 4.0)
    _, posterior, trace = run(
        known, 9, sweeps_per_call=1, scale=scale, callback=lambda _, state, __: kept.append(state)
    )
    draws, noise = [], []
    for state in kept[2:]:
        sure = [np.asarray(level.row_precision) for level in (state.users, state.items)]
        noise.append(1 / (np.asarray(state.alpha)[:, None] * sure[0][:, test.user] * sure[1][:, test.item]))
        f = as_factors(state, MU)
        w, x = np.asarray(f.w)[:, test.user], np.asarray(f.x)[:, test.item]
        draws.append((w * x).sum(-1) + np.asarray(f.b)[:, test.user] + np.asarray(f.c)[:, test.item] + MU)
    draws = np.stack(draws)
    np.testing.assert_array_equal(posterior.count, 7)
    np.testing.assert_allclose(posterior.mean, np.clip(draws, *scale).mean(0), rtol=1e-5)
    np.testing.assert_allclose(posterior.center, draws.mean(0), rtol=1e-5)
    np.testing.assert_allclose(posterior.variance, draws.var(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trace[2:], [1 / np.sqrt(state.alpha) for state in kept[2:]], rtol=1e-6)
    np.testing.assert_allclose(posterior.noise_variance, np.mean(noise, axis=0), rtol=1e-5)
    both = pool_chains(posterior)
    np.testing.assert_allclose(both.variance, draws.var(axis=(0, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(both.mean, np.clip(draws, *scale).mean(axis=(0, 1)), rtol=1e-5)
    assert int(both.count) == 14


@pytest.mark.slow
def test_no_retrace_for_the_same_shapes():
    known = data.dense(ratings())
    run(known, 4, sweeps_per_call=2)
    before = run_sweeps._cache_size()
    run(known, 6, sweeps_per_call=2, seed=5)
    assert run_sweeps._cache_size() == before


@pytest.mark.slow
def test_what_is_masked_is_inert():
    known = data.dense(ratings())
    spoiled = Dense(jnp.where(known.where, known.value, jnp.nan), known.where)
    same(run(known, 4)[:2], run(spoiled, 4)[:2])


@pytest.mark.slow
def test_priors_make_a_grid():
    state, known = alone(init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0))), data.dense(ratings())
    step = lambda scale_matrix: gibbs_sweep(
        state, known, key=jax.random.key(1), mu=MU, priors=Priors(scale_matrix=scale_matrix)
    )
    grid = jax.jit(jax.vmap(step))(jnp.array([0.1, 10.0]))
    one = jax.jit(step)
    for k, scale_matrix in enumerate((0.1, 10.0)):
        np.testing.assert_allclose(grid.users.precision[k], one(scale_matrix).users.precision, rtol=2e-3)


@pytest.mark.slow
def test_features_are_taken_through_the_run_and_a_bar_is_shown(capsys):
    """A user without ratings is predicted by features: ratings of 5 for those who have them, of 1 for the rest."""
    rng = np.random.default_rng(0)
    n, f = 40, np.repeat([[0.0], [1.0]], 20, axis=0)
    user, item = np.nonzero(rng.random((n, N_ITEMS)) < 0.8)
    kept = (user != 3) & (user != 33)
    known = Ratings(user[kept], item[kept], 1 + 4 * f[user[kept], 0], n, N_ITEMS)
    test, bases = Ratings([3, 33], [0, 0], [1, 5], n, N_ITEMS), ((basis(f),), ())
    state = init_chains(n, N_ITEMS, 1, key=jax.random.key(0), chains=2, features=bases)
    given = {"key": jax.random.key(1), "mu": 3.0, "sweeps": 80, "burn_in": 40, "scale": (1.0, 5.0), "features": bases}
    _, posterior, _ = gibbs(data.dense(known), test, init=state, **given)
    np.testing.assert_allclose(posterior.mean[0], [1, 5], atol=0.6)
    shown = capsys.readouterr().err
    assert all(what in shown for what in ("rmse=", "noise=", "r_hat=", "ess="))


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"known": lambda: data.dense(Ratings([0], [0], [3], 7, 8))}, r"ratings: expected \(7, 9\) users and items"),
        ({"known": lambda: data.dense(dataclasses.replace(ratings(), weights=ratings().value))}, "without weights"),
        ({"known": lambda: forms(ratings())[1][::-1]}, "by_user: expected Rows of side 'user'"),
        ({"features": groups}, "features: expected features of the users of shapes"),
        ({"burn_in": lambda: 4}, r"burn_in: expected a number in \[0, sweeps\)"),
        ({"sweeps_per_call": lambda: 0}, "sweeps_per_call: expected at least 1"),
        ({"state": lambda: alone(init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0)))}, "a leading axis of chains"),
        pytest.param(
            {"posterior": lambda: run(data.dense(ratings()), 4, chains=1)[1]},
            "posterior: expected 2 chains of",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input(wrong, says):
    given = {"known": data.dense(ratings())} | {name: make() for name, make in wrong.items()}
    with pytest.raises(ValueError, match=says):
        run(given.pop("known"), 4, given.pop("state", None), **given)


def test_bad_input_to_the_rest():
    with pytest.raises(ValueError, match="rank: expected between 1"):
        init_chains(3, 3, 0, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"features: expected features of all 3 items \(one row each\), got 4"):
        init_chains(3, 3, 1, key=jax.random.key(0), features=((), (basis(features(4, 2)),)))
    with pytest.raises(ValueError, match=r"expected a table \[rows, features\] of finite numbers"):
        basis(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="all 5 rows are equal"):
        basis(np.ones((5, 2)))
    state, test = init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0)), Ratings([8], [0], [3], 9, 9)
    with pytest.raises(ValueError, match=r"test: expected \(7, 9\) users and items, got \(9, 9\)"):
        gibbs(data.dense(ratings()), test, init=state, key=jax.random.key(0), mu=MU, sweeps=4, burn_in=1)


def test_a_chain_that_is_not_finite_is_an_error():
    state = init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), chains=2)
    lost = dataclasses.replace(state, alpha=state.alpha.at[1].set(jnp.nan))
    with pytest.raises(FloatingPointError, match="sweep 4: a chain is no longer finite"):
        run(data.dense(ratings()), 4, lost)


def test_without_arviz_the_extra_is_named_before_the_first_sweep(monkeypatch):
    monkeypatch.setattr(sampler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'jaxrec\[bayes\]', or pass progress=False"):
        gibbs(ratings(), rank=2, key=jax.random.key(0), sweeps=2, burn_in=1)


def test_ratings_are_prepared_for_you():
    """Rows or Dense, chains and the mean: the same as giving them."""
    known, key = ratings(), jax.random.key(3)
    options = {"key": key, "sweeps": 3, "burn_in": 1, "progress": False}
    got = gibbs(known, ratings(1), rank=2, chains=2, **options)
    state = init_chains(N_USERS, N_ITEMS, 2, key=jax.random.fold_in(key, np.uint32(2**32 - 1)), chains=2)
    expected = gibbs(
        data.dense(known), ratings(1), init=state, mu=float(np.mean(known.value, dtype=np.float64)), **options
    )
    np.testing.assert_array_equal(got.posterior.mean, expected.posterior.mean)
    without = gibbs(known, rank=2, chains=2, **options)
    np.testing.assert_array_equal(without.trace, got.trace)
    assert without.posterior.mean.shape == (2, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected either rank=.*got neither"),
        ({"rank": 2, "init": "given"}, "expected either rank=.*got both"),
        ({"init": "given", "chains": 2}, "chains, levels: already part of init="),
    ],
)
def test_a_start_is_made_or_given(options, message):
    if "init" in options:
        options = options | {"init": init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), chains=2)}
    with pytest.raises(ValueError, match=message):
        gibbs(ratings(), key=jax.random.key(0), sweeps=2, burn_in=1, progress=False, **options)


def test_test_of_other_raw_ids_is_refused():
    """Tables of one size say nothing of whose they are."""
    known = Ratings.from_columns(["a", "b"], ["x", "y"], [1.0, 2.0])
    other = Ratings.from_columns(["a", "c"], ["x", "y"], [1.0, 2.0])
    with pytest.raises(ValueError, match="expected the same user ids"):
        gibbs(known, other, rank=1, key=jax.random.key(0), sweeps=2, burn_in=1, progress=False)


def test_no_sweeps_left_to_make_is_an_error_and_no_empty_posterior():
    state, _, _ = gibbs(ratings(), rank=1, key=jax.random.key(0), sweeps=3, burn_in=1, progress=False)
    with pytest.raises(ValueError, match="sweeps: expected more than the 3 that `init` has made"):
        gibbs(ratings(), init=state, key=jax.random.key(0), sweeps=3, burn_in=1, progress=False)
