r"""Bayesian matrix factorization with side information by Gibbs sampling: not one fit, but draws from the posterior.

The model of a rating of item j by user i, with a hierarchical prior for each side's rows (`hierarchy`)::

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
>>> train, test = data.splits.random(ratings, test=0.2, rng=0)
>>> state = start(50, 40, 2, key=jax.random.key(0), chains=2)
>>> known = data.dense(train)
>>> state, posterior, _ = gibbs(known, state, test, key=jax.random.key(1), mu=3.5, burn=20, sweeps=60, progress=False)
>>> posterior.mean.shape, pooled(posterior).mean.shape, int(state.step[0])  # two chains, both together
((2, 180), (180,), 60)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from jaxtyping import Int, PRNGKeyArray
from tqdm import tqdm

from jaxrec import check
from jaxrec.lookup import lookup
from jaxrec.solvers import hierarchy, ordinal
from jaxrec.solvers.als import check_sides, check_tables
from jaxrec.solvers.checks import check_dense
from jaxrec.solvers.conditionals import Cells, Known, Side, cells, draw_rows, equations, errors, with_values
from jaxrec.solvers.hierarchy import Basis, Level, Priors
from jaxrec.solvers.ordinal import Levels
from jaxrec.solvers.predictive import Posterior, pooled, with_draw
from jaxrec.types import Dense, Factors, Ratings

__all__ = ["Features", "Posterior", "State", "factors", "gibbs", "pooled", "start", "sweep"]

Features = tuple[tuple[Basis, ...], tuple[Basis, ...]]


@register_dataclass
@dataclass(frozen=True)
class State:
    """Where a chain is; several chains have a leading axis throughout.

    Attributes:
        users: their rows (w, b) and prior.
        items: their rows (x, c) and prior.
        alpha: [], the noise precision; 1 where ratings are levels.
        step: int32 [], sweeps made.
        levels: the ratings there are and the latents' cuts; None where the ratings' noise is normal.
    """

    users: Level
    items: Level
    alpha: Array
    step: Array
    levels: Levels | None = None


def start(
    n_users: int,
    n_items: int,
    rank: int,
    *,
    key: PRNGKeyArray,
    chains: int = 1,
    groups: Features = ((), ()),
    levels: Sequence[float] | np.ndarray | None = None,
) -> State:
    """Where chains begin: small random rows, links of 0. Features are given in `groups`, as to `gibbs`.

    Args:
        n_users: rows of the users' table.
        n_items: rows of the items'.
        rank: factors of each.
        key: of the rows.
        chains: how many, each with rows of its own.
        groups: (users', items') groups of features.
        levels: None: noise is normal. Otherwise the ratings there can be, such as (1, 2, 3, 4, 5), and they are levels;
            or all ratings there are (`train.value`), and the cuts start nearer, at the quantiles of their shares.

    Raises:
        ValueError: a size or number of chains below 1; features of another number of rows; fewer than two levels.
    """
    for name, size in (("n_users", n_users), ("n_items", n_items), ("rank", rank), ("chains", chains)):
        check.size_of_table(name, size)
    for name, n, bases in (("users", n_users, groups[0]), ("items", n_items, groups[1])):
        if wrong := [len(b.z) for b in bases if len(b.z) != n]:
            raise ValueError(f"groups: expected features of all {n} {name} (one row each), got {wrong[0]} rows.")

    scale = None if levels is None else ordinal.levels_of(levels)

    def level(key: Array, n: int, bases: tuple[Basis, ...]) -> Level:
        rows = 0.3 * jax.random.normal(key, (n, rank + 1))
        links = tuple(jnp.zeros((b.z.shape[1], rank + 1), rows.dtype) for b in bases)
        ones = tuple(jnp.ones((), rows.dtype) for _ in bases)
        mean, precision = jnp.zeros(rank + 1, rows.dtype), 10 * jnp.eye(rank + 1, dtype=rows.dtype)
        return Level(rows, mean, precision, jnp.ones(n, rows.dtype), jnp.full((), 5.0, rows.dtype), links, ones)

    def one(key: Array) -> State:
        of_users, of_items = jax.random.split(key)
        users, items = level(of_users, n_users, groups[0]), level(of_items, n_items, groups[1])
        of_levels = jax.tree.map(lambda a: a.astype(users.rows.dtype), scale)
        return State(users, items, jnp.ones((), users.rows.dtype), jnp.zeros((), jnp.int32), of_levels)

    return jax.vmap(one)(jax.random.split(key, chains))


def sweep(
    state: State,
    known: Known,
    *,
    key: PRNGKeyArray,
    mu: float | Array = 0.0,
    groups: Features = ((), ()),
    priors: Priors = Priors(),  # noqa: B008 (it is frozen)
) -> State:
    """Every unknown drawn once given all others: the users' sureness, prior and rows, the items', alpha or cuts. Pure.

    Args:
        state: of one chain; vmap makes several.
        known: the ratings, Dense for small data or Rows of both sides; the draws are the same but for rounding (where
            ratings are levels, latents are drawn in a layout's own order, and what is the same is the distribution).
        key: of this sweep.
        mu: the mean rating: data, not drawn. Of latents 0, for the cuts lie about what they lie about.
        groups: (users', items') groups of features.
        priors: of the unknowns.

    Raises:
        ValueError: a state of several chains, or whose parts do not fit; ratings, features and priors as `gibbs`.
    """
    if jnp.ndim(state.alpha) != 0:
        raise ValueError(f"state: expected one chain's, got alpha of shape {state.alpha.shape}; vmap makes several.")
    _check_state(state)
    _check_known(known, state)
    _check_groups(state, groups)
    _check_mu(mu)
    hierarchy.check_priors(priors)
    return _sweep(state, known, key=key, mu=mu, groups=groups, priors=priors)


@jax.jit
def _sweep(
    state: State, known: Known, *, key: PRNGKeyArray, mu: float | Array, groups: Features, priors: Priors
) -> State:
    key_users, key_items, key_last = jax.random.split(key, 3)

    def of(side: Side, level: Level, others: Level, key: Array) -> tuple[Level, Array, Array]:
        """The side's sureness, prior and rows; how many ratings there are, and their squared errors, weighted by τ."""
        key_sureness, key_prior, key_rows, key_latents = jax.random.split(key, 4)
        data = known if state.levels is None else _latents(state.levels, known, side, level, others, mu, key_latents)
        bases, given = groups[side == "item"], equations(data, side, others, mu)
        if priors.uneven:
            error = state.alpha * errors(given, level.rows)
            level = hierarchy.draw_sureness(level, given.known, error, key=key_sureness)
        level = hierarchy.draw(level, bases, priors, key=key_prior)
        level = draw_rows(level, bases, given, state.alpha, key=key_rows)
        return level, jnp.sum(given.known), jnp.sum(level.sureness * errors(given, level.rows))

    users, _, _ = of("user", state.users, state.items, key_users)
    items, n, error = of("item", state.items, users, key_items)
    if state.levels is not None:  # now that z is of no more use
        each = [_flat(state.levels, part) for part in cells(known, "item", items, users, mu)]
        eta, precision, level, where = (jnp.concatenate(parts) for parts in zip(*each, strict=True))
        cut = ordinal.draw_cuts(state.levels.cut, eta, precision, level, where, priors.cuts, key=key_last)
        return State(users, items, state.alpha, state.step + 1, replace(state.levels, cut=cut))
    shape, rate = priors.noise
    alpha = hierarchy.gamma(key_last, shape + n / 2, rate + error / 2)
    return State(users, items, alpha, state.step + 1)


def _latents(
    levels: Levels, known: Known, side: Side, own: Level, others: Level, mu: float | Array, key: PRNGKeyArray
) -> Known:
    """The ratings with z in their place, of one side's layout: drawn for that side alone, and forgotten."""
    parts = cells(known, side, own, others, mu)
    draw = lambda part, key: ordinal.draw_latents(
        levels.cut, part.eta, part.sureness, ordinal.level_of(levels, part.value), part.where, key=key
    )
    keys = jax.random.split(key, len(parts))
    return with_values(known, side, [draw(part, key) for part, key in zip(parts, keys, strict=True)])


def _flat(levels: Levels, part: Cells) -> tuple[Array, Array, Array, Array]:
    level = ordinal.level_of(levels, part.value)
    return part.eta.ravel(), part.sureness.ravel(), level.ravel(), part.where.ravel()


def factors(state: State, mu: float | Array = 0.0) -> Factors:
    """One chain's present draw, as the Factors that `models.predict` and all else take; of latents where there are.

    Raises:
        ValueError: mu that is neither a number nor one per item.
    """
    if jnp.shape(mu) not in ((), state.items.rows.shape[-2:-1]):
        raise ValueError(f"mu: expected a number or one per item, got shape {jnp.shape(mu)}.")
    (w, b), (x, c) = ((level.rows[..., :-1], level.rows[..., -1]) for level in (state.users, state.items))
    return Factors(w, b, x, c, jnp.asarray(mu, x.dtype))


def gibbs(
    known: Known,
    state: State,
    test: Ratings,
    *,
    key: PRNGKeyArray,
    mu: float,
    sweeps: int,
    burn: int,
    scale: tuple[float, float] | None = None,
    groups: Features = ((), ()),
    priors: Priors = Priors(),  # noqa: B008
    posterior: Posterior | None = None,
    block: int = 20,
    callback: Callable[[State, Posterior], bool | None] | None = None,
    progress: bool = True,
) -> tuple[State, Posterior, np.ndarray]:
    """Sweeps of all chains until each has made `sweeps`, the first `burn` of them not counted.

    The keys of a sweep depend on its number alone: a state and posterior that were kept go on as if never stopped.

    Args:
        known: the ratings to learn from, Dense or (Rows of side 'user', Rows of side 'item'), without weights. Of
            levels latents are drawn for every cell of Dense: where few are rated, Rows are faster.
        state: from `start`, or from an earlier call.
        test: the pairs to predict. Their values are read by nothing but the bar, which shows the RMSE so far.
        key: of the whole run.
        mu: the mean rating; 0 where ratings are levels.
        sweeps: in all, those made before included.
        burn: of these, how many go uncounted.
        scale: what predictions are clipped to; None: nothing.
        groups: (users', items') groups of features, each with its own link matrix and strength, from `basis`.
        priors: of the unknowns.
        posterior: from an earlier call, to go on with.
        block: sweeps between two looks at the bar, one compilation.
        callback: called after every block with state and posterior; a true answer stops.
        progress: show a bar: the RMSE so far, and of the noise's deviation its mean, R-hat and effective sample size.

    Returns:
        (state, posterior, the trace of the noise's standard deviation [sweeps made here, chains]). Of levels it is
        that of test's pairs, the root of their mean variance.

    Raises:
        ValueError: ratings of other tables than the state's, with weights, or none of its levels; a state whose parts
            do not fit; features that the state was not started with; priors that are not finite and positive; test
            pairs out of range, or others than the posterior's; a scale that is no interval; burn not in [0, sweeps);
            block < 1.
        FloatingPointError: a chain is no longer finite.
    """
    _check(known, state, test, groups, sweeps, burn, block)
    hierarchy.check_priors(priors)
    _check_mu(mu)
    if scale is not None and not (len(scale) == 2 and scale[0] < scale[1]):
        raise ValueError(f"scale: expected (lowest, highest), got {scale}.")
    chains, n = len(state.alpha), len(test)
    if posterior is None:
        zero, per_pair = jnp.zeros(chains, state.alpha.dtype), jnp.zeros((chains, n), state.alpha.dtype)
        posterior = Posterior(zero, per_pair, per_pair, per_pair, per_pair)
    each = (posterior.mean, posterior.center, posterior.spread, posterior.noise)
    if any(part.shape != (chains, n) for part in each) or posterior.count.shape != (chains,):
        raise ValueError(f"posterior: expected {chains} chains of {n} pairs, got shape {posterior.mean.shape}.")
    if not isinstance(known, Dense):
        state, posterior = known[0].beside((state, posterior))
    pairs, y, trace = (jnp.asarray(test.user), jnp.asarray(test.item)), np.asarray(test.value), []
    keys, made = jax.random.split(key, chains), int(state.step[0])
    with tqdm(total=sweeps, initial=made, desc="gibbs", unit="sweep", disable=not progress) as bar:
        while made < sweeps:
            some = min(block, sweeps - made)
            given = {"mu": mu, "groups": groups, "priors": priors, "burn": burn, "scale": scale}
            state, posterior, sigma = _block(state, posterior, known, pairs, keys, steps=some, **given)
            trace.append(np.asarray(sigma).T)
            made += some
            if not np.isfinite(trace[-1]).all():
                raise FloatingPointError(
                    f"sweep {made}: a chain is no longer finite. Run in float64, or raise scatter."
                )
            if made > burn and progress:
                error = float(np.sqrt(np.mean((np.asarray(pooled(posterior).mean) - y) ** 2)))
                bar.set_postfix(rmse=f"{error:.4f}", noise=f"{trace[-1][-1].mean():.3f}", **_met(trace, made - burn))
            bar.update(some)
            if callback is not None and callback(state, posterior):
                break
    return state, posterior, np.concatenate(trace) if trace else np.zeros((0, chains))


@partial(jax.jit, static_argnames="steps")
def _block(
    state: State,
    posterior: Posterior,
    known: Known,
    pairs: tuple[Int[Array, " n"], Int[Array, " n"]],
    keys: Array,
    *,
    steps: int,
    mu: float | Array,
    groups: Features,
    priors: Priors,
    burn: int | Array,
    scale: tuple[float | Array, float | Array] | None,
) -> tuple[State, Posterior, Array]:
    def step(carry: tuple[State, Posterior], _: None, key: Array) -> tuple[tuple[State, Posterior], Array]:
        state, posterior = carry
        state = _sweep(state, known, key=jax.random.fold_in(key, state.step), mu=mu, groups=groups, priors=priors)
        u, v = lookup(state.users.rows, pairs[0]), lookup(state.items.rows, pairs[1])
        prediction = mu + jnp.sum(u[:, :-1] * v[:, :-1], axis=1) + u[:, -1] + v[:, -1]
        sureness = lookup(state.users.sureness, pairs[0]) * lookup(state.items.sureness, pairs[1])
        noise, sigma = 1 / (state.alpha * sureness), 1 / jnp.sqrt(state.alpha)
        if state.levels is not None:
            prediction, noise = ordinal.moments(state.levels, prediction, sureness)
            sigma = jnp.sqrt(jnp.mean(noise))
        more = with_draw(posterior, prediction, noise, scale)
        keep = lambda new, old: jnp.where(state.step > burn, new, old)
        return (state, jax.tree.map(keep, more, posterior)), sigma

    def chain(state: State, posterior: Posterior, key: Array) -> tuple[State, Posterior, Array]:
        (state, posterior), sigma = jax.lax.scan(partial(step, key=key), (state, posterior), length=steps)
        return state, posterior, sigma

    return jax.vmap(chain)(state, posterior, keys)


def _met(trace: list[np.ndarray], counted: int) -> dict[str, str]:
    """R-hat and effective sample size of the noise's trace since burn-in, by ArviZ, where it is long enough."""
    draws = np.concatenate(trace)[-counted:]
    if len(draws) < 4:
        return {}
    from arviz_stats.base import array_stats  # a second to import: for those who watch

    axes = {"chain_axis": 1, "draw_axis": 0}
    met = {"r_hat": f"{float(array_stats.rhat(draws, **axes)):.2f}"} if draws.shape[1] > 1 else {}
    return met | {"ess": f"{float(array_stats.ess(draws, **axes)):.0f}"}


def _check(known: Known, state: State, test: Ratings, groups: Features, sweeps: int, burn: int, block: int) -> None:
    if state.alpha.ndim != 1:
        raise ValueError(f"state: expected a leading axis of chains, got alpha of shape {state.alpha.shape}; `start`.")
    sizes = state.users.rows.shape[1], state.items.rows.shape[1]
    if any(jnp.shape(leaf)[:1] != state.alpha.shape for leaf in jax.tree.leaves(state)):
        raise ValueError(f"state: expected {len(state.alpha)} chains in every part, as alpha has; `start`.")
    _check_state(state)
    _check_known(known, state)
    _check_groups(state, groups)
    if (test.n_users, test.n_items) != sizes:
        raise ValueError(f"test: expected {sizes} users and items, got {(test.n_users, test.n_items)}.")
    if not 0 <= burn < sweeps:
        raise ValueError(f"burn: expected a number in [0, sweeps), got {burn} of {sweeps}.")
    if block < 1:
        raise ValueError(f"block: expected at least 1, got {block}.")


def _shape(state: State, part: Array) -> tuple[int, ...]:
    """Of one chain's."""
    return jnp.shape(part)[jnp.ndim(state.alpha) :]


def _check_state(state: State) -> None:
    shape = partial(_shape, state)
    k = shape(state.users.rows)[-1:]
    for name, level in (("users", state.users), ("items", state.items)):
        rows, n = shape(level.rows), shape(level.rows)[:1]
        fits = len(rows) == 2 and rows[1:] == k and shape(level.sureness) == n and shape(level.evenness) == ()
        links = all(shape(link)[1:] == k for link in level.links) and len(level.links) == len(level.strengths)
        if not (fits and links and shape(level.mean) == k and shape(level.precision) == k + k):
            raise ValueError(
                f"state.{name}: expected rows [n, k], mean [k], precision [k, k], sureness [n] and links [r, k], with "
                f"the users' k, got {jax.tree.map(jnp.shape, jax.tree.leaves(level))}. `start` makes a state."
            )


def _check_known(known: Known, state: State) -> None:
    (n_users, k), (n_items, _) = _shape(state, state.users.rows), _shape(state, state.items.rows)
    if isinstance(known, Dense):
        parts: list[Any] = [known]
        got = np.shape(known.value)[::-1]
        if got != (n_users, n_items):
            raise ValueError(f"known: expected {(n_users, n_items)} users and items, as the state has, got {got}.")
        check_dense(known, n_users, n_items)
    else:
        empty = lambda *shape: jnp.broadcast_to(jnp.float32(0), shape)
        one = Factors(empty(n_users, k - 1), empty(n_users), empty(n_items, k - 1))
        if check.traced(known):
            check_tables(*known, one)
        else:
            check_sides(*known, one, 1)
        parts = [bucket for rows in known for bucket in rows.buckets]
    if any(part.weights is not None for part in parts):
        raise ValueError("known: expected ratings without weights, for all have the same noise. Drop them, or use als.")
    if state.levels is not None and not check.traced(parts, state.levels):
        allowed = np.unique(np.asarray(state.levels.value, np.float32))
        for part in parts:
            value = np.asarray(part.value).astype(np.float32)[np.asarray(part.where)]
            if len(other := np.setdiff1d(value, allowed)):
                raise ValueError(f"known: expected ratings among the levels {allowed.tolist()}, got {other[0]}.")


def _check_groups(state: State, groups: Features) -> None:
    for name, level, bases in (("users", state.users, groups[0]), ("items", state.items, groups[1])):
        got_z, n = [b.z.shape for b in bases], _shape(state, level.rows)[0]
        if got_z != (wanted := [(n, _shape(state, link)[0]) for link in level.links]):
            raise ValueError(f"groups: expected features of the {name} of shapes {wanted}, as in `start`, got {got_z}.")


def _check_mu(mu: float | Array) -> None:
    if jnp.shape(mu) != ():
        raise ValueError(f"mu: expected a number, got shape {jnp.shape(mu)}.")
    if not check.traced(mu) and not np.isfinite(float(mu)):
        raise ValueError(f"mu: expected a finite number, got {mu}.")
