r"""Bayesian matrix factorization with side information by Gibbs sampling: not one fit, but draws from the posterior.

The model of a rating of item j by user i, with a hierarchical prior for each side's rows (`side_information`)::

    y(i,j) ~ normal(mu + w(i) . x(j) + b(i) + c(j), 1 / (alpha τ(i) τ(j)))        alpha ~ gamma

Given the items, a user's (w, b) regresses y - c - mu on (x, 1), with weights alpha τ and a normal prior: her posterior
is the ridge of `solvers.ridge` with a matrix as penalty, and is drawn from exactly, all users at once. An item's (x, c)
regresses y - b - mu on (w, 1). A sweep draws each side's τ, prior and rows, and alpha. A prediction is the mean over
sweeps of predictions clipped to the scale; its spread over sweeps, with the noise, says how sure it is.

Or ratings are levels, and the model is of a latent z that cuts make a level of (`ordinal`): alpha is 1, for the cuts
set the scale; before each side is drawn, z is, given all else, and takes the ratings' place; the cuts are drawn last,
without z.

>>> from jaxrec import data
>>> ratings = data.synthetic.low_rank(50, 40, 900, rng=0).ratings
>>> train, test = data.splits.random(ratings, test_fraction=0.2, rng=0)
>>> options = {"rank": 2, "chains": 2, "burn_in": 20, "sweeps": 60, "progress": False}
>>> state, posterior, _ = gibbs(train, test, key=jax.random.key(1), **options)
>>> posterior.mean.shape, pool_chains(posterior).mean.shape, int(state.step[0])  # two chains, both together
((2, 180), (180,), 60)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike
from jaxtyping import Int, PRNGKeyArray, Shaped
from tqdm import tqdm

from jaxrec import check
from jaxrec.bayes import ordinal, side_information
from jaxrec.bayes.ordinal import OrdinalScale
from jaxrec.bayes.posterior import Posterior, pool_chains, update
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
from jaxrec.bayes.side_information import Basis, Priors, SideState
from jaxrec.data import layouts
from jaxrec.gather import gather
from jaxrec.solvers.checks import check_dense
from jaxrec.solvers.common import check_sides, check_tables, mean_rating
from jaxrec.types import Dense, Factors, Ratings

__all__ = ["ChainState", "Features", "GibbsResult", "as_factors", "gibbs", "gibbs_sweep", "init_chains"]

# Up to this many cells products with the mask of a dense matrix are faster than lists of what was rated.
DENSE_CELLS = 4_000_000

# (users', items') groups of features.
Features = tuple[tuple[Basis, ...], tuple[Basis, ...]]


@register_dataclass
@dataclass(frozen=True)
class ChainState:
    """Where a chain is; several chains have a leading axis throughout.

    Attributes:
        users: their rows (w, b) and prior.
        items: their rows (x, c) and prior.
        alpha: [], the noise precision; 1 where ratings are levels.
        step: int32 [], sweeps made.
        levels: the ratings there are and the latents' cuts; None where the ratings' noise is normal.
    """

    users: SideState
    items: SideState
    alpha: Array
    step: Array
    levels: OrdinalScale | None = None


def init_chains(
    n_users: int,
    n_items: int,
    rank: int,
    *,
    key: PRNGKeyArray,
    chains: int = 1,
    features: Features = ((), ()),
    levels: Sequence[float] | np.ndarray | None = None,
) -> ChainState:
    """Where chains begin: small random rows, links of 0. Features are given in `features`, as to `gibbs`.

    Args:
        n_users: rows of the users' table.
        n_items: rows of the items'.
        rank: factors of each.
        key: of the rows.
        chains: how many, each with rows of its own.
        features: (users', items') groups of features.
        levels: None: noise is normal. Otherwise the ratings there can be, such as (1, 2, 3, 4, 5), and they are levels;
            or all ratings there are (`train.value`), and the cuts start nearer, at the quantiles of their shares.

    Raises:
        ValueError: a size or number of chains below 1; features of another number of rows; fewer than two levels.
    """
    for name, size in (("n_users", n_users), ("n_items", n_items), ("rank", rank), ("chains", chains)):
        check.size_of_table(name, size)
    for name, n, bases in (("users", n_users, features[0]), ("items", n_items, features[1])):
        if wrong := [len(b.z) for b in bases if len(b.z) != n]:
            raise ValueError(f"features: expected features of all {n} {name} (one row each), got {wrong[0]} rows.")

    scale = None if levels is None else ordinal.ordinal_scale(levels)

    def level(key: Array, n: int, bases: tuple[Basis, ...]) -> SideState:
        rows = 0.3 * jax.random.normal(key, (n, rank + 1))
        links = tuple(jnp.zeros((b.z.shape[1], rank + 1), rows.dtype) for b in bases)
        ones = tuple(jnp.ones((), rows.dtype) for _ in bases)
        mean, precision = jnp.zeros(rank + 1, rows.dtype), 10 * jnp.eye(rank + 1, dtype=rows.dtype)
        return SideState(rows, mean, precision, jnp.ones(n, rows.dtype), jnp.full((), 5.0, rows.dtype), links, ones)

    def one(key: Array) -> ChainState:
        of_users, of_items = jax.random.split(key)
        users, items = level(of_users, n_users, features[0]), level(of_items, n_items, features[1])
        of_levels = jax.tree.map(lambda a: a.astype(users.rows.dtype), scale)
        return ChainState(users, items, jnp.ones((), users.rows.dtype), jnp.zeros((), jnp.int32), of_levels)

    return jax.vmap(one)(jax.random.split(key, chains))


def gibbs_sweep(
    state: ChainState,
    ratings: TrainRatings,
    *,
    key: PRNGKeyArray,
    mu: float | Shaped[ArrayLike, ""] = 0.0,
    features: Features = ((), ()),
    priors: Priors = Priors(),  # noqa: B008 (it is frozen)
) -> ChainState:
    """Every unknown drawn once given all others: the users' sureness, prior and rows, the items', alpha or cuts. Pure.

    Args:
        state: of one chain; vmap makes several.
        ratings: the ratings, Dense for small data or Rows of both sides; the draws are the same but for rounding (where
            ratings are levels, latents are drawn in a layout's own order, and what is the same is the distribution).
        key: of this sweep.
        mu: the mean rating: data, not drawn. Of latents 0, for the cuts lie about what they lie about.
        features: (users', items') groups of features.
        priors: of the unknowns.

    Raises:
        ValueError: a state of several chains, or whose parts do not fit; ratings, features and priors as `gibbs`.
    """
    if jnp.ndim(state.alpha) != 0:
        raise ValueError(f"state: expected one chain's, got alpha of shape {state.alpha.shape}; vmap makes several.")
    _check_state(state)
    _check_ratings(ratings, state)
    _check_features(state, features)
    _check_mu(mu)
    side_information.check_priors(priors)
    return _gibbs_sweep(state, ratings, key=key, mu=mu, features=features, priors=priors)


@jax.jit
def _gibbs_sweep(
    state: ChainState,
    ratings: TrainRatings,
    *,
    key: PRNGKeyArray,
    mu: ArrayLike,
    features: Features,
    priors: Priors,
) -> ChainState:
    key_users, key_items, key_last = jax.random.split(key, 3)

    def of(side: SideName, level: SideState, others: SideState, key: Array) -> tuple[SideState, Array, Array]:
        """The side's sureness, prior and rows; how many ratings there are, and their squared errors, weighted by τ."""
        key_row_precision, key_prior, key_rows, key_latents = jax.random.split(key, 4)
        data = (
            ratings if state.levels is None else _latents(state.levels, ratings, side, level, others, mu, key_latents)
        )
        bases, given = features[side == "item"], row_statistics(data, side, others, mu)
        if priors.heteroscedastic:
            error = state.alpha * squared_errors(given, level.rows)
            level = side_information.draw_row_precision(level, given.n_ratings, error, key=key_row_precision)
        level = side_information.draw(level, bases, priors, key=key_prior)
        level = draw_rows(level, bases, given, state.alpha, key=key_rows)
        return level, jnp.sum(given.n_ratings), jnp.sum(level.row_precision * squared_errors(given, level.rows))

    users, _, _ = of("user", state.users, state.items, key_users)
    items, n, error = of("item", state.items, users, key_items)
    if state.levels is not None:  # now that z is of no more use
        each = [_flat(state.levels, part) for part in cells(ratings, "item", items, users, mu)]
        eta, precision, level, where = (jnp.concatenate(parts) for parts in zip(*each, strict=True))
        cut = ordinal.draw_cuts(state.levels.cut, eta, precision, level, where, priors.cuts, key=key_last)
        return ChainState(users, items, state.alpha, state.step + 1, replace(state.levels, cut=cut))
    shape, rate = priors.noise
    alpha = side_information.gamma(shape + n / 2, rate + error / 2, key=key_last)
    return ChainState(users, items, alpha, state.step + 1)


def _latents(
    levels: OrdinalScale,
    ratings: TrainRatings,
    side: SideName,
    own: SideState,
    others: SideState,
    mu: ArrayLike,
    key: PRNGKeyArray,
) -> TrainRatings:
    """The ratings with z in their place, of one side's layout: drawn for that side alone, and forgotten."""
    parts = cells(ratings, side, own, others, mu)
    draw = lambda part, key: ordinal.draw_latents(
        levels.cut, part.eta, part.row_precision, ordinal.level_index(levels, part.value), part.where, key=key
    )
    keys = jax.random.split(key, len(parts))
    return with_values(ratings, side, [draw(part, key) for part, key in zip(parts, keys, strict=True)])


def _flat(levels: OrdinalScale, part: Cells) -> tuple[Array, Array, Array, Array]:
    level = ordinal.level_index(levels, part.value)
    return part.eta.ravel(), part.row_precision.ravel(), level.ravel(), part.where.ravel()


def as_factors(state: ChainState, mu: ArrayLike = 0.0) -> Factors:
    """One chain's present draw, as the Factors that `models.predict` and all else take; of latents where there are.

    Raises:
        ValueError: mu that is neither a number nor one per item.
    """
    if jnp.shape(mu) not in ((), state.items.rows.shape[-2:-1]):
        raise ValueError(f"mu: expected a number or one per item, got shape {jnp.shape(mu)}.")
    (w, b), (x, c) = ((level.rows[..., :-1], level.rows[..., -1]) for level in (state.users, state.items))
    return Factors(w, b, x, c, jnp.asarray(mu, x.dtype))


class GibbsResult(NamedTuple):
    """What a run of the sampler returns.

    Attributes:
        state: the chains' last state; `gibbs(..., init=state, posterior=posterior)` goes on from it.
        posterior: of test's pairs, of each chain.
        trace: [sweeps made here, chains], the noise's standard deviation. Of levels it is that of test's pairs, the
            root of their mean variance.
    """

    state: ChainState
    posterior: Posterior
    trace: np.ndarray


def gibbs(
    train: Ratings | TrainRatings,
    test: Ratings | None = None,
    *,
    key: PRNGKeyArray,
    sweeps: int,
    burn_in: int,
    rank: int | None = None,
    init: ChainState | None = None,
    chains: int | None = None,
    levels: Sequence[float] | np.ndarray | None = None,
    mu: float | None = None,
    scale: tuple[float, float] | None = None,
    features: Features = ((), ()),
    priors: Priors = Priors(),  # noqa: B008
    posterior: Posterior | None = None,
    sweeps_per_call: int = 20,
    callback: Callable[[int, ChainState, Posterior], bool | None] | None = None,
    progress: bool = True,
) -> GibbsResult:
    """Sweeps of all chains until each has made `sweeps`, the first `burn_in` of them not counted.

    The keys of a sweep depend on its number alone, so a state and posterior that were kept continue bit for bit.

    Args:
        train: the ratings to learn from, without weights. Or, prepared for several calls or laid out over devices,
            Dense or a pair (Rows of side 'user', Rows of side 'item'). With levels, a latent is drawn for every cell of
            Dense, so that Rows are faster where few are rated.
        test: the pairs to predict; None: none. Their ratings are only used for the RMSE in the progress bar.
        key: of the whole run.
        sweeps: in all, those made before included.
        burn_in: of these, how many are not counted.
        rank: factors of each user and item; chains start as `init_chains` makes them, with `chains` and `levels`.
        init: instead of `rank`, the chains' state: from `init_chains`, or from an earlier call.
        chains: how many, beside `rank`; None: 1.
        levels: beside `rank`, as in `init_chains`: None for normal noise, or the ratings there can be.
        mu: the mean rating; None: that of train's ratings, or 0 where ratings are levels.
        scale: what predictions are clipped to; None: nothing.
        features: (users', items') groups of features, each with its own link matrix and strength, from `basis`.
        priors: of the unknowns.
        posterior: from an earlier call, to continue.
        sweeps_per_call: sweeps in one compiled call, between two updates of the progress bar.
        callback: callback(step, state, posterior) after every call, step being the sweeps made. Return True to stop.
        progress: show a progress bar: the RMSE so far, and of the noise's deviation its mean, R-hat and effective
            sample size.

    Raises:
        ValueError: neither or both of `rank` and `init`, or `chains` or `levels` beside `init`; ratings of other tables
            than the state's, with weights, or none of its levels; a state whose parts do not fit; features that the
            state was not started with; priors that are not finite and positive; test pairs out of range, or others than
            the posterior's; a scale that is no interval; burn_in not in [0, sweeps); sweeps_per_call < 1.
        FloatingPointError: a chain is no longer finite.
    """
    state = _start(train, rank, init, chains, levels, features, key)
    ratings = _layout(train, state) if isinstance(train, Ratings) else train
    n_chains = len(state.alpha) if np.ndim(state.alpha) == 1 else 0
    sizes = state.users.rows.shape[-2], state.items.rows.shape[-2]
    none = np.zeros(0)
    test = Ratings(none.astype(np.int32), none.astype(np.int32), none, *sizes) if test is None else test
    _check(ratings, state, test, features, sweeps, burn_in, sweeps_per_call)
    side_information.check_priors(priors)
    if mu is None:
        mu = mean_rating(train) if state.levels is None else 0.0
    _check_mu(mu)
    if scale is not None and not (len(scale) == 2 and scale[0] < scale[1]):
        raise ValueError(f"scale: expected (lowest, highest), got {scale}.")
    n = len(test)
    if posterior is None:
        zero, per_pair = jnp.zeros(n_chains, state.alpha.dtype), jnp.zeros((n_chains, n), state.alpha.dtype)
        posterior = Posterior(zero, per_pair, per_pair, per_pair, per_pair)
    each = (posterior.mean, posterior.center, posterior.variance, posterior.noise_variance)
    if any(part.shape != (n_chains, n) for part in each) or posterior.count.shape != (n_chains,):
        raise ValueError(f"posterior: expected {n_chains} chains of {n} pairs, got shape {posterior.mean.shape}.")
    if not isinstance(ratings, Dense):
        state, posterior = ratings[0].replicate((state, posterior))
    pairs, y, trace = (jnp.asarray(test.user), jnp.asarray(test.item)), np.asarray(test.value), []
    keys, made = jax.random.split(key, n_chains), int(state.step[0])
    with tqdm(total=sweeps, initial=made, desc="gibbs", unit="sweep", disable=not progress) as bar:
        while made < sweeps:
            steps = min(sweeps_per_call, sweeps - made)
            options = {"mu": mu, "features": features, "priors": priors, "burn_in": burn_in, "scale": scale}
            state, posterior, sigma = _sweeps(state, posterior, ratings, pairs, keys, steps=steps, **options)
            trace.append(np.asarray(sigma).T)
            made += steps
            if not np.isfinite(trace[-1]).all():
                raise FloatingPointError(
                    f"sweep {made}: a chain is no longer finite. Run in float64, or raise priors.scale_matrix."
                )
            if made > burn_in and progress:
                shown = {"noise": f"{trace[-1][-1].mean():.3f}"} | _diagnostics(trace, made - burn_in)
                if n:
                    error = np.asarray(pool_chains(posterior).mean) - y
                    shown = {"rmse": f"{float(np.sqrt(np.mean(error**2))):.4f}"} | shown
                bar.set_postfix(**shown)
            bar.update(steps)
            if callback is not None and callback(made, state, posterior):
                break
    return GibbsResult(state, posterior, np.concatenate(trace) if trace else np.zeros((0, n_chains)))


def _start(
    train: Ratings | TrainRatings,
    rank: int | None,
    init: ChainState | None,
    chains: int | None,
    levels: Sequence[float] | np.ndarray | None,
    features: Features,
    key: PRNGKeyArray,
) -> ChainState:
    """`init` if it is given, otherwise chains of this rank."""
    if (init is None) == (rank is None):
        raise ValueError(
            "expected either rank=, for chains that start at random, or init=, a state of `init_chains` or of an "
            f"earlier call, got {'neither' if init is None else 'both'}."
        )
    if init is not None:
        if chains is not None or levels is not None:
            raise ValueError("chains, levels: init= has them already. Drop them, or give rank= in its place.")
        return init
    assert rank is not None
    if isinstance(train, Ratings):
        sizes = train.n_users, train.n_items
    elif isinstance(train, Dense):
        sizes = np.shape(train.value)[1], np.shape(train.value)[0]
    else:
        sizes = len(train[0].position), train[0].n_others
    # the run's keys are fold_in(split(key), step): this one is none of them
    key = jax.random.fold_in(key, jnp.uint32(2**32 - 1))
    return init_chains(*sizes, rank, key=key, chains=1 if chains is None else chains, features=features, levels=levels)


def _layout(train: Ratings, state: ChainState) -> TrainRatings:
    """Dense where that is small and no latent is drawn for every cell; Rows otherwise."""
    if train.n_users * train.n_items <= DENSE_CELLS and state.levels is None:
        return layouts.dense(train)
    return layouts.rows(train, "user"), layouts.rows(train, "item")


@partial(jax.jit, static_argnames="steps")
def _sweeps(
    state: ChainState,
    posterior: Posterior,
    ratings: TrainRatings,
    pairs: tuple[Int[Array, " n"], Int[Array, " n"]],
    keys: Array,
    *,
    steps: int,
    mu: ArrayLike,
    features: Features,
    priors: Priors,
    burn_in: int | Array,
    scale: tuple[float | Array, float | Array] | None,
) -> tuple[ChainState, Posterior, Array]:
    def step(carry: tuple[ChainState, Posterior], _: None, key: Array) -> tuple[tuple[ChainState, Posterior], Array]:
        state, posterior = carry
        state = _gibbs_sweep(
            state, ratings, key=jax.random.fold_in(key, state.step), mu=mu, features=features, priors=priors
        )
        u, v = gather(state.users.rows, pairs[0]), gather(state.items.rows, pairs[1])
        prediction = jnp.asarray(mu, u.dtype) + jnp.sum(u[:, :-1] * v[:, :-1], axis=1) + u[:, -1] + v[:, -1]
        row_precision = gather(state.users.row_precision, pairs[0]) * gather(state.items.row_precision, pairs[1])
        noise, sigma = 1 / (state.alpha * row_precision), 1 / jnp.sqrt(state.alpha)
        if state.levels is not None:
            prediction, noise = ordinal.moments(state.levels, prediction, row_precision)
            sigma = jnp.sqrt(jnp.mean(noise))
        more = update(posterior, prediction, noise, scale)
        keep = lambda new, old: jnp.where(state.step > burn_in, new, old)
        return (state, jax.tree.map(keep, more, posterior)), sigma

    def chain(state: ChainState, posterior: Posterior, key: Array) -> tuple[ChainState, Posterior, Array]:
        (state, posterior), sigma = jax.lax.scan(partial(step, key=key), (state, posterior), length=steps)
        return state, posterior, sigma

    return jax.vmap(chain)(state, posterior, keys)


def _diagnostics(trace: list[np.ndarray], counted: int) -> dict[str, str]:
    """R-hat and effective sample size of the noise's trace since burn-in, by ArviZ, where it is long enough."""
    draws = np.concatenate(trace)[-counted:]
    if len(draws) < 4:
        return {}
    from arviz_stats.base import array_stats  # a second to import: for those who watch

    axes = {"chain_axis": 1, "draw_axis": 0}
    shown = {"r_hat": f"{float(array_stats.rhat(draws, **axes)):.2f}"} if draws.shape[1] > 1 else {}
    return shown | {"ess": f"{float(array_stats.ess(draws, **axes)):.0f}"}


def _check(
    ratings: TrainRatings,
    state: ChainState,
    test: Ratings,
    features: Features,
    sweeps: int,
    burn_in: int,
    sweeps_per_call: int,
) -> None:
    if state.alpha.ndim != 1:
        raise ValueError(
            f"state: expected a leading axis of chains, got alpha of shape {state.alpha.shape}; `init_chains`."
        )
    sizes = state.users.rows.shape[1], state.items.rows.shape[1]
    if any(jnp.shape(leaf)[:1] != state.alpha.shape for leaf in jax.tree.leaves(state)):
        raise ValueError(f"state: expected {len(state.alpha)} chains in every part, as alpha has; `init_chains`.")
    _check_state(state)
    _check_ratings(ratings, state)
    _check_features(state, features)
    if (test.n_users, test.n_items) != sizes:
        raise ValueError(f"test: expected {sizes} users and items, got {(test.n_users, test.n_items)}.")
    if not 0 <= burn_in < sweeps:
        raise ValueError(f"burn_in: expected a number in [0, sweeps), got {burn_in} of {sweeps}.")
    if sweeps_per_call < 1:
        raise ValueError(f"sweeps_per_call: expected at least 1, got {sweeps_per_call}.")


def _shape(state: ChainState, part: Array) -> tuple[int, ...]:
    """Of one chain's."""
    return jnp.shape(part)[jnp.ndim(state.alpha) :]


def _check_state(state: ChainState) -> None:
    shape = partial(_shape, state)
    k = shape(state.users.rows)[-1:]
    for name, level in (("users", state.users), ("items", state.items)):
        rows, n = shape(level.rows), shape(level.rows)[:1]
        fits = (
            len(rows) == 2
            and rows[1:] == k
            and shape(level.row_precision) == n
            and shape(level.row_precision_shape) == ()
        )
        links = all(shape(link)[1:] == k for link in level.links) and len(level.links) == len(level.strengths)
        if not (fits and links and shape(level.mean) == k and shape(level.precision) == k + k):
            raise ValueError(
                f"state.{name}: expected rows [n, k], mean [k], precision [k, k], sureness [n] and links [r, k], with "
                f"the users' k, got {jax.tree.map(jnp.shape, jax.tree.leaves(level))}. `init_chains` makes a state."
            )


def _check_ratings(ratings: TrainRatings, state: ChainState) -> None:
    (n_users, k), (n_items, _) = _shape(state, state.users.rows), _shape(state, state.items.rows)
    if isinstance(ratings, Dense):
        parts: list[Any] = [ratings]
        got = np.shape(ratings.value)[::-1]
        if got != (n_users, n_items):
            raise ValueError(f"ratings: expected {(n_users, n_items)} users and items, as the state has, got {got}.")
        check_dense(ratings, n_users, n_items)
    else:
        empty = lambda *shape: jnp.broadcast_to(jnp.float32(0), shape)
        one = Factors(empty(n_users, k - 1), empty(n_users), empty(n_items, k - 1))
        if check.traced(ratings):
            check_tables(*ratings, one)
        else:
            check_sides(*ratings, one, 1)
        parts = [bucket for rows in ratings for bucket in rows.buckets]
    if any(part.weights is not None for part in parts):
        raise ValueError(
            "ratings: expected ratings without weights, for all have the same noise. Drop them, or use als."
        )
    if state.levels is not None and not check.traced(parts, state.levels):
        allowed = np.unique(np.asarray(state.levels.value, np.float32))
        for part in parts:
            value = np.asarray(part.value).astype(np.float32)[np.asarray(part.where)]
            if len(other := np.setdiff1d(value, allowed)):
                raise ValueError(f"ratings: expected ratings among the levels {allowed.tolist()}, got {other[0]}.")


def _check_features(state: ChainState, features: Features) -> None:
    for name, level, bases in (("users", state.users, features[0]), ("items", state.items, features[1])):
        got_z, n = [b.z.shape for b in bases], _shape(state, level.rows)[0]
        if got_z != (expected := [(n, _shape(state, link)[0]) for link in level.links]):
            raise ValueError(
                f"features: expected features of the {name} of shapes {expected}, as in `init_chains`, got {got_z}."
            )


def _check_mu(mu: ArrayLike) -> None:
    if jnp.shape(mu) != ():
        raise ValueError(f"mu: expected a number, got shape {jnp.shape(mu)}.")
    if not check.traced(mu) and not np.isfinite(np.asarray(mu)):
        raise ValueError(f"mu: expected a finite number, got {mu}.")
