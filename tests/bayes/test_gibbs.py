"""The Gibbs sampler: conditionals against posteriors computed in NumPy, and sweeps against the joint distribution."""

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
from jaxrec.bayes import _gibbs as gibbs_module
from jaxrec.bayes._gibbs_sweep import run_sweeps
from jaxrec.bayes.model import as_bases
from jaxrec.bayes.side_information import Priors, SideState, basis
from jaxrec.types import Dense

N_USERS, N_ITEMS, MU = 7, 9, 3.2


def ratings(seed=0):
    """Random ratings; user 4 and item 6 have none."""
    rng = np.random.default_rng(seed)
    rated = rng.random((N_USERS, N_ITEMS)) < 0.5
    rated[4], rated[:, 6] = False, False
    user, item = np.nonzero(rated)
    return Ratings(user, item, rng.integers(1, 6, len(user)), N_USERS, N_ITEMS)


def feature_table(n, size, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size)) + 1.5


def layouts(train):
    """Ratings as Dense, and as Rows of both sides."""
    return data.dense(train), (
        data.rows(train, "user", min_length=4, bucket_growth=3.0),
        data.rows(train, "item", min_length=9),
    )


def in_float64(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


def feature_tables():
    """Two groups of user features and one of item features."""
    return (feature_table(N_USERS, 3), feature_table(N_USERS, 12, 1)), (feature_table(N_ITEMS, 2, 2),)


def feature_bases():
    return as_bases(feature_tables())


def first_chain(state):
    return jax.tree.map(lambda a: a[0], state)


def side_state(rows, mean, precision, row_precision, link_matrices, strengths=None):
    strengths = np.ones(len(link_matrices)) if strengths is None else strengths
    shape = np.array(5.0)  # of the row precisions
    fields = rows, mean, precision, row_precision, shape, tuple(link_matrices), tuple(map(np.array, strengths))
    return SideState(*jax.tree.map(jnp.asarray, fields))


def random_covariance(k, seed):
    a = np.random.default_rng(seed).normal(size=(k, 2 * k))
    return a @ a.T / k


def assert_moments(draws, mean, covariance):
    """Every mean and every entry of the covariance of normal draws is within five standard errors."""
    n, variance = len(draws), np.diag(covariance)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean), 5 * np.sqrt(variance / n))
    error = np.sqrt((covariance**2 + np.outer(variance, variance)) / n)
    np.testing.assert_array_less(np.abs(np.cov(draws.T) - covariance), 5 * error)


# ------------------------------------------------------------------------------------------- the prior of the rows


def test_wishart_has_its_moments_and_a_root_of_its_inverse(x64):
    k, dof, n = 3, 6.5, 40_000
    scale_matrix = random_covariance(k, 0)
    draw = jax.jit(jax.vmap(lambda key: side_information.wishart(dof, jnp.asarray(scale_matrix), key=key)))
    precision, root = draw(jax.random.split(jax.random.key(0), n))
    expected = np.linalg.inv(scale_matrix)
    diagonal = np.diag(expected)
    variance = dof * (expected**2 + np.outer(diagonal, diagonal))
    np.testing.assert_array_less(np.abs(precision.mean(0) - dof * expected), 5 * np.sqrt(variance / n))
    np.testing.assert_allclose(precision.var(axis=0), variance, rtol=0.1)
    covariance = np.asarray(root[:50] @ jnp.swapaxes(root[:50], 1, 2))
    np.testing.assert_allclose(covariance @ np.asarray(precision[:50]), np.tile(np.eye(k), (50, 1, 1)), atol=1e-8)


@pytest.mark.parametrize("size", [2, 12])  # fewer features than rows, and more
def test_basis_holds_the_principal_components(size):
    f = feature_table(N_USERS, size)
    b = basis(f)
    assert b.coordinates.shape == (N_USERS, min(size, N_USERS - 1))
    np.testing.assert_allclose(b.coordinates, (f - np.asarray(b.center)) @ np.asarray(b.rotation), atol=1e-5)
    np.testing.assert_allclose(b.coordinates @ b.coordinates.T, (f - f.mean(0)) @ (f - f.mean(0)).T, atol=1e-4)
    np.testing.assert_allclose(b.coordinates.T @ b.coordinates, np.diag(b.squared_norms), atol=1e-4)
    np.testing.assert_allclose(b.rotation.T @ b.rotation, np.eye(len(b.squared_norms)), atol=1e-5)


def test_link_matrices_are_drawn_from_their_ridge_regressions(x64):
    """Mean (F'F + λ)^-1 F'(V - G M), where M is the link matrix of the other group G, and row covariance (F'F + λ)^-1.

    Computed in NumPy in the features' own axes; the column covariance is the drawn Λ^-1.
    """
    k, n, strength = 2, 30_000, 0.7
    rng = np.random.default_rng(3)
    f, g = feature_table(N_USERS, 3), feature_table(N_USERS, 12, 1)
    bases = in_float64((basis(f), basis(g)))
    rows = rng.normal(size=(N_USERS, k))
    other_link = jnp.asarray(rng.normal(size=(bases[1].coordinates.shape[1], k)))
    link_matrices = jnp.zeros((3, k)), other_link
    side = side_state(rows, np.zeros(k), np.eye(k), np.ones(N_USERS), link_matrices, (strength, 2.0))
    draw = jax.jit(jax.vmap(lambda key: side_information.draw(side, bases, Priors(strength=strength), key=key)))
    drawn = draw(jax.random.split(jax.random.key(1), n))
    f, residual = f - f.mean(axis=0), rows - np.asarray(bases[1].coordinates @ other_link)
    row_covariance = np.linalg.inv(f.T @ f + strength * np.eye(3))
    expected = row_covariance @ f.T @ residual
    error = np.einsum("fr,nrk->nfk", bases[0].rotation, drawn.link_matrices[0]) - expected
    empirical = np.einsum("nfk,nkl,ngl->nfg", error, drawn.precision, error) / k
    np.testing.assert_allclose(empirical.mean(axis=0), row_covariance, atol=0.03 * row_covariance.max())
    np.testing.assert_array_less(np.abs(error.mean(axis=0)), 5 * error.std(axis=0) / np.sqrt(n) + 1e-5)
    np.testing.assert_array_equal(drawn.strengths, strength)  # held fixed by the prior


# ------------------------------------------------------------------------------------------- the rows


@pytest.mark.slow
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("side_name", ["user", "item"])
def test_rows_are_drawn_from_their_posterior(x64, side_name, layout):
    """In NumPy from the definition: of a row with ratings, and of one without, whose posterior is its prior."""
    train, n, alpha, rank = ratings(), 20_000, 1.7, 2
    own, other = (train.user, train.item) if side_name == "user" else (train.item, train.user)
    n_own, n_other = (N_USERS, N_ITEMS) if side_name == "user" else (N_ITEMS, N_USERS)
    rng = np.random.default_rng(2)
    bases = in_float64(feature_bases()[0 if side_name == "user" else 1])
    link_matrices = tuple(jnp.asarray(rng.normal(size=(len(b.squared_norms), rank + 1))) * 0.3 for b in bases)
    mean, precision = rng.normal(size=rank + 1), random_covariance(rank + 1, 4)
    other_rows = rng.normal(size=(n_other, rank + 1))
    own_tau, other_tau = rng.uniform(0.5, 2, n_own), rng.uniform(0.5, 2, n_other)
    side = side_state(np.zeros((n_own, rank + 1)), mean, precision, own_tau, link_matrices)
    other_side = side_state(other_rows, mean, precision, other_tau, ())
    statistics = row_posterior.row_statistics(layouts(train)[layout], side_name, other_side, MU)
    draw_rows = lambda key: row_posterior.draw_rows(side, bases, statistics, jnp.asarray(alpha), key=key)
    drawn = jax.jit(jax.vmap(draw_rows))(jax.random.split(jax.random.key(5), n))
    prior_mean = mean + sum(np.asarray(b.coordinates @ link) for b, link in zip(bases, link_matrices, strict=True))
    x = np.c_[other_rows[other][:, :-1], np.ones(len(train))]
    target = train.value.astype(np.float64) - MU - other_rows[other][:, -1]
    for row in (1, 4 if side_name == "user" else 6):
        in_row = own == row
        weight = alpha * own_tau[row] * other_tau[other[in_row]]
        covariance = np.linalg.inv(x[in_row].T @ (weight[:, None] * x[in_row]) + precision)
        expected = covariance @ (x[in_row].T @ (weight * target[in_row]) + precision @ prior_mean[row])
        assert_moments(np.asarray(drawn.rows[:, row]), expected, covariance)
    error = target - np.sum(x * np.asarray(drawn.rows[0])[own], axis=1)
    expected = np.bincount(own, other_tau[other] * error**2, minlength=n_own)
    np.testing.assert_allclose(row_posterior.squared_errors(statistics, drawn.rows[0]), expected, atol=1e-9)


@pytest.mark.slow
def test_dense_and_rows_give_the_same_draws(x64):
    state = init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), features=feature_tables())
    state, bases, sweep = in_float64(first_chain(state)), in_float64(feature_bases()), jax.jit(gibbs_sweep)

    def two_sweeps(train):
        after_one = sweep(state, train, key=jax.random.key(1), mu=MU, bases=bases)
        return sweep(after_one, train, key=jax.random.key(2), mu=MU, bases=bases)

    dense, rows = map(two_sweeps, layouts(ratings()))
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(rows), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------------- a sweep


def draw_from_prior(rng, n, sizes, bases, priors):
    """n draws of all unknowns from their prior, in NumPy from the definitions; the Wishart's dof is a whole number."""

    def draw_side(size, side_bases):
        k, dof = 2, 1 + priors.dof
        x = rng.normal(size=(n, dof, k)) / np.sqrt(priors.scale_matrix)
        precision = np.swapaxes(x, 1, 2) @ x
        root = np.linalg.cholesky(np.linalg.inv(precision))
        normal = lambda n_rows: rng.normal(size=(n, n_rows, k)) @ np.swapaxes(root, 1, 2)
        mean = normal(1)[:, 0] / np.sqrt(priors.beta)
        strengths = [rng.gamma(priors.strength[0], 1 / priors.strength[1], n) for _ in side_bases]
        groups = list(zip(side_bases, strengths, strict=True))
        link_matrices = [normal(len(b.squared_norms)) / np.sqrt(strength)[:, None, None] for b, strength in groups]
        by_features = (np.asarray(b.coordinates) @ link for b, link in zip(side_bases, link_matrices, strict=True))
        rows = normal(size) + mean[:, None] + sum(by_features)
        shape = rng.choice(side_information.ROW_PRECISION_SHAPES, n)
        tau = rng.gamma(shape[:, None], 1 / shape[:, None], (n, size)) if priors.heteroscedastic else np.ones((n, size))
        fields = rows, mean, precision, tau, shape, tuple(link_matrices), tuple(strengths)
        return SideState(*jax.tree.map(jnp.asarray, fields))

    alpha = rng.gamma(priors.noise[0], 1 / priors.noise[1], n)
    users, items = (draw_side(size, side_bases) for size, side_bases in zip(sizes, bases, strict=True))
    return ChainState(users, items, jnp.asarray(alpha), jnp.zeros(n, jnp.int32))


def summary_statistics(state, values, where):
    """Statistics without heavy tails that tell one joint distribution of unknowns and ratings from another."""
    out = {"alpha": jnp.log(state.alpha)}
    predicted = jnp.einsum("nud,nid->niu", state.users.rows[..., :-1], state.items.rows[..., :-1])
    predicted = predicted + state.users.rows[:, None, :, -1] + state.items.rows[:, :, None, -1] + MU
    out["squared error"] = jnp.log(jnp.sum((values - predicted) ** 2 * where, axis=(1, 2)))
    out["explained"] = jnp.arcsinh(jnp.sum((values - MU) * (predicted - MU) * where, axis=(1, 2)))
    for name, side in (("users", state.users), ("items", state.items)):
        log_shape = jnp.log(side.row_precision_shape)
        out[f"{name} shape"] = log_shape
        for row in (0, -1):
            log_tau = jnp.log(side.row_precision[:, row])
            out[f"{name} tau {row}"] = log_tau
            out[f"{name} tau {row}, shape"] = jnp.abs(log_tau) * log_shape
        precision = side.precision
        out[f"{name} determinant"] = jnp.log(precision[:, 0, 0] * precision[:, 1, 1] - precision[:, 0, 1] ** 2)
        out[f"{name} correlation"] = precision[:, 0, 1] / jnp.sqrt(precision[:, 0, 0] * precision[:, 1, 1])
        for c in range(2):
            out[f"{name} precision {c}"] = jnp.log(precision[:, c, c])
            out[f"{name} mean {c}"] = jnp.arcsinh(side.mean[:, c])
            out[f"{name} squared mean {c}"] = jnp.log1p(side.mean[:, c] ** 2)
            out[f"{name} squared rows {c}"] = jnp.log(jnp.sum(side.rows[:, :, c] ** 2, axis=1))
            out[f"{name} row, mean {c}"] = jnp.arcsinh(side.rows[:, 0, c] * side.mean[:, c])
        for g, (link, strength) in enumerate(zip(side.link_matrices, side.strengths, strict=True)):
            out[f"{name} strength {g}"] = jnp.log(strength)
            out[f"{name} squared link matrix {g}"] = jnp.log(jnp.sum(link**2, axis=(1, 2)))
            out[f"{name} link matrix {g}, row"] = jnp.arcsinh(link[:, 0, 0] * side.rows[:, 0, 0])
            out[f"{name} link matrix {g}, ratings"] = jnp.arcsinh(link[:, 0, 1] * values[:, 0, 0])
    return {name: np.asarray(value) for name, value in out.items()}


def assert_same_distribution(before, after):
    """The mean change of every statistic is less than 4.5 standard errors from 0."""
    change = {name: after[name] - before[name] for name in before}
    n = len(next(iter(change.values())))
    z_scores = {name: each.mean() / max(each.std() / np.sqrt(n), 1e-9) for name, each in change.items()}
    assert max(map(abs, z_scores.values())) < 4.5, z_scores


@pytest.mark.slow
@pytest.mark.parametrize("heteroscedastic", [True, False])
def test_a_sweep_preserves_the_joint_distribution(x64, heteroscedastic):
    """Draws unknowns from the prior and ratings given the unknowns, then sweeps given the ratings.

    Unknowns and ratings then still have their joint distribution; one wrong conditional changes it. (After Geweke 2004,
    Getting it right, with independent repetitions, so that standard errors need no correction.)
    """
    n, sizes = 20_000, (4, 3)
    priors = Priors(
        beta=2.0, dof=6, scale_matrix=2.0, noise=(4.0, 2.0), strength=(5.0, 3.0), heteroscedastic=heteroscedastic
    )
    rng = np.random.default_rng(0)
    tables = (feature_table(4, 2), feature_table(4, 7, 1)), (feature_table(3, 1),)
    bases = in_float64(as_bases(tables))
    state = draw_from_prior(rng, n, sizes, bases, priors)
    where = np.array([[[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]]], float)  # items x users; user 3 has none
    factors = as_factors(state, MU)
    predicted = jnp.einsum("nud,nid->niu", factors.w, factors.x) + factors.b[:, None] + factors.c[:, :, None] + MU
    precision = (
        state.alpha[:, None, None] * state.items.row_precision[:, :, None] * state.users.row_precision[:, None, :]
    )
    values = predicted + rng.normal(size=predicted.shape) / np.sqrt(np.asarray(precision))

    def two_sweeps(state, value, key):
        train = Dense(value, jnp.asarray(where[0] > 0))
        options = {"mu": MU, "bases": bases, "priors": priors}
        sweep = lambda number, state: gibbs_sweep(state, train, key=jax.random.fold_in(key, number), **options)
        return jax.lax.fori_loop(0, 2, sweep, state)

    after = jax.jit(jax.vmap(two_sweeps))(state, values, jax.random.split(jax.random.key(0), n))
    assert_same_distribution(summary_statistics(state, values, where), summary_statistics(after, values, where))


# ------------------------------------------------------------------------------------------- a run


@pytest.mark.slow
def test_synthetic_ratings_are_recovered():
    """The noise of 0.5 is found, predictions are nearly as good as the true factors', and intervals have coverage."""
    synthetic = data.synthetic.low_rank(80, 60, 2400, noise=0.5, rng=0)
    train, test = data.splits.random(synthetic.ratings, test_fraction=0.2, rng=0)
    steps = []
    _, posterior, trace = gibbs(
        data.dense(train),
        test,
        init=init_chains(80, 60, 4, key=jax.random.key(0), chains=2),
        key=jax.random.key(1),
        mu=float(train.value.mean()),
        sweeps=120,
        burn_in=40,
        callback=lambda step, state, _: steps.append((step, int(state.step[0]))),
        progress=False,
    )
    assert steps == [(step, step) for step in (20, 40, 60, 80, 100, 120)]
    assert trace.shape == (120, 2)
    assert 0.45 < trace[60:].mean() < 0.55
    pooled = pool_chains(posterior)
    error = test.value - np.asarray(pooled.mean)
    assert np.sqrt((error**2).mean()) < 0.62
    deviation = np.sqrt(np.asarray(pooled.variance + pooled.noise_variance))
    for quantile, coverage in ((0.674, 0.5), (1.282, 0.8), (1.96, 0.95)):
        assert abs((np.abs(error) < quantile * deviation).mean() - coverage) < 0.07


def run(train, sweeps, state=None, chains=2, seed=1, **options):
    state = init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), chains=chains) if state is None else state
    options = {"mu": MU, "burn_in": 2, "progress": False, "key": jax.random.key(seed)} | options
    return gibbs(train, ratings(1), init=state, sweeps=sweeps, **options)


def assert_equal_leaves(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one():
    train = data.dense(ratings())
    full = run(train, 7, sweeps_per_call=2)
    state, posterior, trace = run(train, 5, sweeps_per_call=2, callback=lambda *_: True)  # stops after the first call
    assert len(trace) == 2
    resumed = run(train, 7, state, posterior=posterior, sweeps_per_call=2)
    assert_equal_leaves(full[:2], resumed[:2])
    np.testing.assert_array_equal(full.trace[2:], resumed.trace)


@pytest.mark.slow
def test_other_keys_and_other_chains_give_other_draws():
    train = data.dense(ratings())
    first, second = run(train, 7, sweeps_per_call=2), run(train, 7, sweeps_per_call=2, seed=2)
    assert not np.allclose(first.posterior.mean, second.posterior.mean)
    assert not np.allclose(first.posterior.mean[0], first.posterior.mean[1])


@pytest.mark.slow
def test_posterior_holds_the_mean_and_variance_of_the_draws(x64):
    train, test, states = data.dense(ratings()), ratings(1), []
    scale = (2.0, 4.0)
    _, posterior, trace = run(
        train, 9, sweeps_per_call=1, scale=scale, callback=lambda _, state, __: states.append(state)
    )
    draws, noise = [], []
    for state in states[2:]:
        user_tau, item_tau = (np.asarray(side.row_precision) for side in (state.users, state.items))
        noise.append(1 / (np.asarray(state.alpha)[:, None] * user_tau[:, test.user] * item_tau[:, test.item]))
        f = as_factors(state, MU)
        w, x = np.asarray(f.w)[:, test.user], np.asarray(f.x)[:, test.item]
        draws.append((w * x).sum(-1) + np.asarray(f.b)[:, test.user] + np.asarray(f.c)[:, test.item] + MU)
    draws = np.stack(draws)
    np.testing.assert_array_equal(posterior.count, 7)
    np.testing.assert_allclose(posterior.mean, np.clip(draws, *scale).mean(0), rtol=1e-5)
    np.testing.assert_allclose(posterior.center, draws.mean(0), rtol=1e-5)
    np.testing.assert_allclose(posterior.variance, draws.var(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trace[2:], [1 / np.sqrt(state.alpha) for state in states[2:]], rtol=1e-6)
    np.testing.assert_allclose(posterior.noise_variance, np.mean(noise, axis=0), rtol=1e-5)
    pooled = pool_chains(posterior)
    np.testing.assert_allclose(pooled.variance, draws.var(axis=(0, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pooled.mean, np.clip(draws, *scale).mean(axis=(0, 1)), rtol=1e-5)
    assert int(pooled.count) == 14


@pytest.mark.slow
def test_no_retrace_for_the_same_shapes():
    train = data.dense(ratings())
    run(train, 4, sweeps_per_call=2)
    before = run_sweeps._cache_size()
    run(train, 6, sweeps_per_call=2, seed=5)
    assert run_sweeps._cache_size() == before


@pytest.mark.slow
def test_masked_ratings_are_ignored():
    train = data.dense(ratings())
    garbage = Dense(jnp.where(train.where, train.value, jnp.nan), train.where)
    assert_equal_leaves(run(train, 4)[:2], run(garbage, 4)[:2])


@pytest.mark.slow
def test_vmap_over_priors_runs_a_grid():
    state = first_chain(init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0)))
    train = data.dense(ratings())
    sweep = lambda scale_matrix: gibbs_sweep(
        state, train, key=jax.random.key(1), mu=MU, priors=Priors(scale_matrix=scale_matrix)
    )
    grid = jax.jit(jax.vmap(sweep))(jnp.array([0.1, 10.0]))
    sweep = jax.jit(sweep)
    for k, scale_matrix in enumerate((0.1, 10.0)):
        np.testing.assert_allclose(grid.users.precision[k], sweep(scale_matrix).users.precision, rtol=2e-3)


@pytest.mark.slow
def test_features_predict_users_without_ratings_and_the_bar_shows_diagnostics(capsys):
    """Users with the feature rate everything 5, users without it 1; of each kind one has no ratings."""
    rng = np.random.default_rng(0)
    n, f = 40, np.repeat([[0.0], [1.0]], 20, axis=0)
    user, item = np.nonzero(rng.random((n, N_ITEMS)) < 0.8)
    kept = (user != 3) & (user != 33)
    train = Ratings(user[kept], item[kept], 1 + 4 * f[user[kept], 0], n, N_ITEMS)
    test, features = Ratings([3, 33], [0, 0], [1, 5], n, N_ITEMS), (f, None)
    state = init_chains(n, N_ITEMS, 1, key=jax.random.key(0), chains=2, features=features)
    options = {"mu": 3.0, "sweeps": 80, "burn_in": 40, "scale": (1.0, 5.0), "features": features}
    _, posterior, _ = gibbs(data.dense(train), test, init=state, key=jax.random.key(1), **options)
    np.testing.assert_allclose(posterior.mean[0], [1, 5], atol=0.6)
    shown = capsys.readouterr().err
    assert all(name in shown for name in ("rmse=", "noise=", "r_hat=", "ess="))


@pytest.mark.slow
def test_features_may_be_tables_or_bases():
    """One table per side, several, their bases, and none: each as `basis` would have made it."""
    users, items = feature_table(N_USERS, 3), feature_table(N_ITEMS, 2, 2)
    options = {"rank": 2, "key": jax.random.key(0), "sweeps": 2, "burn_in": 1, "progress": False}
    from_bases = gibbs(ratings(), features=((basis(users),), (basis(items),)), **options)
    for features in ((users, items), ([users], (items,)), (basis(users), items)):
        assert_equal_leaves(gibbs(ratings(), features=features, **options)[:2], from_bases[:2])
    without = gibbs(ratings(), **options)
    assert_equal_leaves(gibbs(ratings(), features=(None, ()), **options)[:2], without[:2])
    assert not np.allclose(without.trace, from_bases.trace)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": lambda: data.dense(Ratings([0], [0], [3], 7, 8))}, r"ratings: expected \(7, 9\) users and items"),
        ({"train": lambda: data.dense(dataclasses.replace(ratings(), weights=ratings().value))}, "without weights"),
        ({"train": lambda: layouts(ratings())[1][::-1]}, "by_user: expected Rows of side 'user'"),
        ({"features": feature_tables}, "features: expected features of the users of shapes"),
        ({"burn_in": lambda: 4}, r"burn_in: expected a number in \[0, sweeps\)"),
        ({"sweeps_per_call": lambda: 0}, "sweeps_per_call: expected at least 1"),
        (
            {"state": lambda: first_chain(init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0)))},
            "a leading axis of chains",
        ),
        pytest.param(
            {"posterior": lambda: run(data.dense(ratings()), 4, chains=1)[1]},
            "posterior: expected 2 chains of",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_wrong_arguments_of_gibbs_raise(wrong, message):
    options = {"train": data.dense(ratings())} | {name: make() for name, make in wrong.items()}
    with pytest.raises(ValueError, match=message):
        run(options.pop("train"), 4, options.pop("state", None), **options)


def test_features_that_are_no_pair_raise(as_users_run):
    table = feature_table(N_USERS, 3)
    for features, got in ((table, "ndarray"), ((table,), "1 parts")):
        with pytest.raises(ValueError, match=rf"features: expected a pair \(user features, item features\).*{got}"):
            init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), features=features)


def test_wrong_arguments_of_init_chains_and_basis_raise():
    with pytest.raises(ValueError, match="rank: expected between 1"):
        init_chains(3, 3, 0, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"features: expected features of all 3 items \(one row each\), got 4"):
        init_chains(3, 3, 1, key=jax.random.key(0), features=((), feature_table(4, 2)))
    with pytest.raises(ValueError, match=r"expected a table \[rows, features\] of finite numbers"):
        basis(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="all 5 rows are equal"):
        basis(np.ones((5, 2)))


def test_test_pairs_of_other_sizes_raise():
    state, test = init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0)), Ratings([8], [0], [3], 9, 9)
    with pytest.raises(ValueError, match=r"test: expected \(7, 9\) users and items, got \(9, 9\)"):
        gibbs(data.dense(ratings()), test, init=state, key=jax.random.key(0), mu=MU, sweeps=4, burn_in=1)


def test_a_chain_that_is_not_finite_raises():
    state = init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), chains=2)
    broken = dataclasses.replace(state, alpha=state.alpha.at[1].set(jnp.nan))
    with pytest.raises(FloatingPointError, match="sweep 4: a chain is no longer finite"):
        run(data.dense(ratings()), 4, broken)


def test_a_missing_arviz_raises_before_the_first_sweep_and_names_the_extra(monkeypatch):
    monkeypatch.setattr(gibbs_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'jaxrec\[bayes\]', or pass progress=False"):
        gibbs(ratings(), rank=2, key=jax.random.key(0), sweeps=2, burn_in=1)


@pytest.mark.slow
def test_gibbs_prepares_ratings_chains_and_mean():
    """A call with Ratings and `rank` gives the same as one with Dense, `init` and `mu`."""
    train, key = ratings(), jax.random.key(3)
    options = {"key": key, "sweeps": 3, "burn_in": 1, "progress": False}
    got = gibbs(train, ratings(1), rank=2, chains=2, **options)
    state = init_chains(N_USERS, N_ITEMS, 2, key=jax.random.fold_in(key, np.uint32(2**32 - 1)), chains=2)
    expected = gibbs(
        data.dense(train), ratings(1), init=state, mu=float(np.mean(train.value, dtype=np.float64)), **options
    )
    np.testing.assert_array_equal(got.posterior.mean, expected.posterior.mean)
    without_test = gibbs(train, rank=2, chains=2, **options)
    np.testing.assert_allclose(without_test.trace, got.trace, rtol=1e-6)  # two programs, compiled each for itself
    assert without_test.posterior.mean.shape == (2, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected either rank=.*got neither"),
        ({"rank": 2, "init": "a state"}, "expected either rank=.*got both"),
        ({"init": "a state", "chains": 2}, "chains, levels: already part of init="),
    ],
)
def test_exactly_one_of_rank_and_init_is_required(options, message):
    if "init" in options:
        options = options | {"init": init_chains(N_USERS, N_ITEMS, 2, key=jax.random.key(0), chains=2)}
    with pytest.raises(ValueError, match=message):
        gibbs(ratings(), key=jax.random.key(0), sweeps=2, burn_in=1, progress=False, **options)


def test_test_pairs_with_other_raw_ids_raise():
    """Even where train and test have as many users and items."""
    train = Ratings.from_columns(["a", "b"], ["x", "y"], [1.0, 2.0])
    other = Ratings.from_columns(["a", "c"], ["x", "y"], [1.0, 2.0])
    with pytest.raises(ValueError, match="expected the same user ids"):
        gibbs(train, other, rank=1, key=jax.random.key(0), sweeps=2, burn_in=1, progress=False)


def test_a_run_without_sweeps_left_raises():
    state, _, _ = gibbs(ratings(), rank=1, key=jax.random.key(0), sweeps=3, burn_in=1, progress=False)
    with pytest.raises(ValueError, match="sweeps: expected more than the 3 that `init` has made"):
        gibbs(ratings(), init=state, key=jax.random.key(0), sweeps=3, burn_in=1, progress=False)
