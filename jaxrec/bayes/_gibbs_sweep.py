r"""One sweep of the Gibbs sampler, and several with the moments of predictions: pure functions, for jit and vmap.

A sweep draws every unknown from its conditional distribution given the ratings and all other unknowns::

    1. users: τ and a (`side_information.draw_row_precision`), then Λ, m, L, λ (`side_information.draw`), then the rows
       (w, b) (`row_posterior.draw_rows`)
    2. items: the same, given the new users
    3. alpha | rest ~ gamma(shape + n / 2, rate + 1/2 sum of τ(i) τ(j) (y(i,j) - prediction(i,j))^2)

With ordinal ratings, alpha is 1; a latent z is drawn for every rating before each side, and replaces it there
(`ordinal.draw_latents`); step 3 draws the cuts instead, with z integrated out (`ordinal.draw_cuts`).

Sources: Salakhutdinov, Mnih 2008, Bayesian probabilistic matrix factorization using MCMC; Simm et al. 2015, Macau:
scalable Bayesian multi-relational factorization with side information using MCMC; Albert, Chib 1993, Bayesian analysis
of binary and polychotomous response data.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Int, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.bayes import ordinal, side_information
from jaxrec.bayes.distributions import gamma
from jaxrec.bayes.model import Bases, ChainState, check_bases, check_mu, check_ratings, check_state
from jaxrec.bayes.ordinal import OrdinalScale
from jaxrec.bayes.posterior import Posterior, update
from jaxrec.bayes.row_posterior import (
    Cells,
    SideName,
    TrainRatings,
    cells,
    draw_rows,
    row_statistics,
    squared_errors,
    with_values,
)
from jaxrec.bayes.side_information import Priors, SideState
from jaxrec.gather import gather
from jaxrec.kernels.sampled_dot import sampled_dot

__all__ = ["gibbs_sweep", "run_sweeps"]


def gibbs_sweep(
    state: ChainState,
    ratings: TrainRatings,
    *,
    key: PRNGKeyArray,
    mu: float | Shaped[ArrayLike, ""] = 0.0,
    bases: Bases = ((), ()),
    priors: Priors = Priors(),  # noqa: B008 (it is frozen)
) -> ChainState:
    """Draws every unknown once given all others: τ, prior and rows of the users, of the items, then alpha or the cuts.

    Pure: for jit, vmap and loops.

    Args:
        state: of one chain; use vmap for several.
        ratings: Dense for small data, or Rows of both sides. The draws are the same up to rounding; for ordinal ratings
            only their distribution is the same, because latents are drawn in the order of the layout.
        key: of this sweep.
        mu: the mean rating, held fixed. 0 for ordinal ratings, because the cuts adapt to it.
        bases: (bases of the users' groups of features, bases of the items'), from `basis`.
        priors: hyperparameters.

    Raises:
        ValueError: a state of several chains, or with parts of inconsistent shapes; ratings, bases and priors as the
            ratings, features and priors of `gibbs`.
    """
    check.random_key(key)
    if jnp.ndim(state.alpha) != 0:
        raise ValueError(f"state: expected one chain, got alpha of shape {state.alpha.shape}. Use vmap for several.")
    check_state(state)
    check_ratings(ratings, state)
    check_bases(state, bases)
    check_mu(mu)
    side_information.check_priors(priors)
    return _sweep(state, ratings, key=key, mu=mu, bases=bases, priors=priors)


@jax.jit
def _sweep(
    state: ChainState,
    ratings: TrainRatings,
    *,
    key: PRNGKeyArray,
    mu: ArrayLike,
    bases: Bases,
    priors: Priors,
) -> ChainState:
    key_users, key_items, key_last = jax.random.split(key, 3)

    def draw_side(side: SideName, own: SideState, others: SideState, key: Array) -> tuple[SideState, Array, Array]:
        """Returns the side with new τ, prior and rows, the number of ratings, and the squared error weighted by τ."""
        key_row_precision, key_prior, key_rows, key_latents = jax.random.split(key, 4)
        data = (
            ratings
            if state.levels is None
            else _with_latents(state.levels, ratings, side, own, others, mu, key_latents)
        )
        side_bases, statistics = bases[side == "item"], row_statistics(data, side, others, mu)
        if priors.heteroscedastic:
            error = state.alpha * squared_errors(statistics, own.rows)
            own = side_information.draw_row_precision(own, statistics.n_ratings, error, key=key_row_precision)
        own = side_information.draw(own, side_bases, priors, key=key_prior)
        own = draw_rows(own, side_bases, statistics, state.alpha, key=key_rows)
        return own, jnp.sum(statistics.n_ratings), jnp.sum(own.row_precision * squared_errors(statistics, own.rows))

    users, _, _ = draw_side("user", state.users, state.items, key_users)
    items, n, error = draw_side("item", state.items, users, key_items)
    if state.levels is not None:  # the cuts are drawn with z integrated out
        flat_tables = [_flat(state.levels, table) for table in cells(ratings, "item", items, users, mu)]
        eta, precision, level, where = (jnp.concatenate(columns) for columns in zip(*flat_tables, strict=True))
        cut = ordinal.draw_cuts(state.levels.cut, eta, precision, level, where, priors.cuts, key=key_last)
        return ChainState(users, items, state.alpha, state.step + 1, replace(state.levels, cut=cut))
    shape, rate = priors.noise
    alpha = gamma(shape + n / 2, rate + error / 2, key=key_last)
    return ChainState(users, items, alpha, state.step + 1)


def _with_latents(
    levels: OrdinalScale,
    ratings: TrainRatings,
    side: SideName,
    own: SideState,
    others: SideState,
    mu: ArrayLike,
    key: PRNGKeyArray,
) -> TrainRatings:
    """Replaces the ratings in one side's layout by latents z, drawn for the update of that side only."""
    tables = cells(ratings, side, own, others, mu)

    def draw(table: Cells, key: Array) -> Array:
        level = ordinal.level_index(levels, table.value)
        return ordinal.draw_latents(levels.cut, table.eta, table.row_precision, level, table.where, key=key)

    keys = jax.random.split(key, len(tables))
    return with_values(ratings, side, [draw(table, key) for table, key in zip(tables, keys, strict=True)])


def _flat(levels: OrdinalScale, table: Cells) -> tuple[Array, Array, Array, Array]:
    """Returns (η, precision, level, where) of the cells, as columns."""
    level = ordinal.level_index(levels, table.value)
    return table.eta.ravel(), table.row_precision.ravel(), level.ravel(), table.where.ravel()


@partial(jax.jit, static_argnames="steps")
def run_sweeps(
    state: ChainState,
    posterior: Posterior,
    ratings: TrainRatings,
    pairs: tuple[Int[Array, " n"], Int[Array, " n"]],
    keys: Array,
    *,
    steps: int,
    mu: ArrayLike,
    bases: Bases,
    priors: Priors,
    burn_in: int | Array,
    scale: tuple[float | Array, float | Array] | None,
) -> tuple[ChainState, Posterior, Array]:
    """Runs `steps` sweeps of every chain; returns (state, posterior, trace [chains, steps]), as in `GibbsResult`.

    Args:
        state: of all chains.
        posterior: of all chains, to be updated by every sweep after `burn_in`.
        ratings: as for `gibbs_sweep`.
        pairs: (users, items) to predict.
        keys: one per chain; the key of a sweep is derived from it and the sweep's number.
        steps: number of sweeps.
        mu: as for `gibbs_sweep`.
        bases: as for `gibbs_sweep`.
        priors: as for `gibbs_sweep`.
        burn_in: number of sweeps, of all that the state has made, whose predictions are not averaged.
        scale: (lowest, highest) rating, to which predictions are clipped; None: no clipping.
    """

    def step(carry: tuple[ChainState, Posterior], _: None, key: Array) -> tuple[tuple[ChainState, Posterior], Array]:
        state, posterior = carry
        state = _sweep(state, ratings, key=jax.random.fold_in(key, state.step), mu=mu, bases=bases, priors=priors)
        (w, b), (x, c) = ((side.rows[:, :-1], side.rows[:, -1]) for side in (state.users, state.items))
        prediction = sampled_dot(w, x, *pairs) + gather(b, pairs[0]) + gather(c, pairs[1]) + jnp.asarray(mu, w.dtype)
        row_precision = gather(state.users.row_precision, pairs[0]) * gather(state.items.row_precision, pairs[1])
        noise_variance, sigma = 1 / (state.alpha * row_precision), 1 / jnp.sqrt(state.alpha)
        if state.levels is not None:
            prediction, noise_variance = ordinal.moments(state.levels, prediction, row_precision)
            sigma = jnp.sqrt(jnp.mean(noise_variance))
        updated = update(posterior, prediction, noise_variance, scale)
        after_burn_in = lambda new, old: jnp.where(state.step > burn_in, new, old)
        return (state, jax.tree.map(after_burn_in, updated, posterior)), sigma

    def chain(state: ChainState, posterior: Posterior, key: Array) -> tuple[ChainState, Posterior, Array]:
        (state, posterior), sigma = jax.lax.scan(partial(step, key=key), (state, posterior), length=steps)
        return state, posterior, sigma

    return jax.vmap(chain)(state, posterior, keys)
