"""The model's unknowns as the state of a chain: how chains start, and checks of what must fit their state.

Where they are in `ChainState` (w, b, x, c, alpha of BPMF, all else of `side_information` and `ordinal`)::

    y(i,j) ~ normal(mu + w(j) . x(i) + b(j) + c(i), 1 / (alpha τ(i) τ(j)))

    users.rows            (w(j), b(j))     prior normal(m + sum over groups of L' z(j), Λ^-1)
    users.mean            m
    users.precision       Λ
    users.link_matrices   L                one for each group of features
    users.strengths       λ                one for each group of features
    users.row_precision   τ(j)
    items.*                                the same for (x(i), c(i)) and τ(i)
    alpha                 alpha
    levels.cut                             the cuts of ordinal ratings

Source: Salakhutdinov, Mnih 2008, Bayesian probabilistic matrix factorization using MCMC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray

from jaxrec import check
from jaxrec.bayes import ordinal
from jaxrec.bayes.ordinal import OrdinalScale
from jaxrec.bayes.row_posterior import TrainRatings
from jaxrec.bayes.side_information import Basis, SideState, basis
from jaxrec.pytree import register_dataclass
from jaxrec.solvers.checks import check_dense
from jaxrec.solvers.common import check_sides, check_tables
from jaxrec.types import Dense, Factors

__all__ = [
    "Bases",
    "ChainState",
    "Features",
    "SideFeatures",
    "as_bases",
    "as_factors",
    "check_bases",
    "check_mu",
    "check_ratings",
    "check_state",
    "init_chains",
    "side_bases",
]

# One side's features: a table [rows, features]; its `Basis`, where it is used several times; several of these, each
# with its own link matrix; or None.
SideFeatures = ArrayLike | Basis | Sequence[ArrayLike | Basis] | None
# (user features, item features), as a caller has them.
Features = tuple[SideFeatures, SideFeatures]
# (bases of the users' groups of features, bases of the items'), as compiled code takes them.
Bases = tuple[tuple[Basis, ...], tuple[Basis, ...]]


@register_dataclass
@dataclass(frozen=True)
class ChainState:
    """State of one chain, or of several with a leading axis in every array.

    Attributes:
        users: rows (w, b) of the users, and their prior.
        items: rows (x, c) of the items, and their prior.
        alpha: [], noise precision; 1 for ordinal ratings.
        step: int32 [], number of completed sweeps.
        levels: possible ratings and cuts, for ordinal ratings; None for ratings with normal noise.
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
    features: Features = (None, None),
    levels: Sequence[float] | np.ndarray | None = None,
) -> ChainState:
    """Initial state of the chains: small random rows, and link matrices of 0.

    Args:
        n_users: number of users.
        n_items: number of items.
        rank: number of factors of each user and item.
        key: of the rows.
        chains: number of chains, each with its own random rows.
        features: (user features, item features), the same as for `gibbs`.
        levels: None: normal noise. Otherwise ratings are ordinal, and these are the possible ratings, such as
            (1, 2, 3, 4, 5); or all ratings (`train.value`), so that the cuts start at the quantiles of the levels'
            shares, nearer to where they end.

    Raises:
        ValueError: a size or number of chains below 1; features of another number of rows; fewer than two levels.
    """
    check.random_key(key)
    for name, size in (("n_users", n_users), ("n_items", n_items), ("rank", rank), ("chains", chains)):
        check.size_of_table(name, size)
    user_bases, item_bases = as_bases(features)
    for name, n, bases in (("users", n_users, user_bases), ("items", n_items, item_bases)):
        if wrong := [len(b.coordinates) for b in bases if len(b.coordinates) != n]:
            raise ValueError(f"features: expected features of all {n} {name} (one row each), got {wrong[0]} rows.")

    scale = None if levels is None else ordinal.ordinal_scale(levels)

    def init_side(key: Array, n: int, bases: tuple[Basis, ...]) -> SideState:
        rows = 0.3 * jax.random.normal(key, (n, rank + 1))
        link_matrices = tuple(jnp.zeros((b.coordinates.shape[1], rank + 1), rows.dtype) for b in bases)
        strengths = tuple(jnp.ones((), rows.dtype) for _ in bases)
        mean, precision = jnp.zeros(rank + 1, rows.dtype), 10 * jnp.eye(rank + 1, dtype=rows.dtype)
        row_precision, shape = jnp.ones(n, rows.dtype), jnp.full((), 5.0, rows.dtype)
        return SideState(rows, mean, precision, row_precision, shape, link_matrices, strengths)

    def init_chain(key: Array) -> ChainState:
        user_key, item_key = jax.random.split(key)
        users, items = init_side(user_key, n_users, user_bases), init_side(item_key, n_items, item_bases)
        chain_scale = jax.tree.map(lambda a: a.astype(users.rows.dtype), scale)
        return ChainState(users, items, jnp.ones((), users.rows.dtype), jnp.zeros((), jnp.int32), chain_scale)

    return jax.vmap(init_chain)(jax.random.split(key, chains))


def as_bases(features: Features) -> Bases:
    """Returns the bases of both sides' features; those that are bases already stay as they are.

    Raises:
        ValueError: not a pair; features as in `basis`.
    """
    if not isinstance(features, tuple) or len(features) != 2:
        raise ValueError(
            "features: expected a pair (user features, item features), each a table, several tables or None, got "
            f"{f'{len(features)} parts' if isinstance(features, tuple) else type(features).__name__}."
        )
    users, items = features
    return side_bases(users), side_bases(items)


def side_bases(features: SideFeatures) -> tuple[Basis, ...]:
    """Returns the bases of one side's features, one per group.

    Raises:
        ValueError: as `basis`.
    """
    groups = () if features is None else features if isinstance(features, tuple | list) else (features,)
    return tuple(each if isinstance(each, Basis) else basis(each) for each in groups)


def as_factors(state: ChainState, mu: ArrayLike = 0.0) -> Factors:
    """Returns the current draw of one chain as Factors, which predict the latents where ratings are ordinal.

    Raises:
        ValueError: mu that is neither a number nor one per item.
    """
    if jnp.shape(mu) not in ((), state.items.rows.shape[-2:-1]):
        raise ValueError(f"mu: expected a number or one per item, got shape {jnp.shape(mu)}.")
    (w, b), (x, c) = ((side.rows[..., :-1], side.rows[..., -1]) for side in (state.users, state.items))
    return Factors(w, b, x, c, jnp.asarray(mu, x.dtype))


def _shape(state: ChainState, part: Array) -> tuple[int, ...]:
    """Shape of an array of the state, without the axis of chains."""
    return jnp.shape(part)[jnp.ndim(state.alpha) :]


def check_state(state: ChainState) -> None:
    """Checks that a state's parts fit one another; raises a ValueError otherwise."""
    shape = partial(_shape, state)
    k = shape(state.users.rows)[-1:]
    for name, side in (("users", state.users), ("items", state.items)):
        rows, n = shape(side.rows), shape(side.rows)[:1]
        fits = (
            len(rows) == 2
            and rows[1:] == k
            and shape(side.row_precision) == n
            and shape(side.row_precision_shape) == ()
        )
        links = side.link_matrices
        links_fit = all(shape(link)[1:] == k for link in links) and len(links) == len(side.strengths)
        if not (fits and links_fit and shape(side.mean) == k and shape(side.precision) == k + k):
            raise ValueError(
                f"state.{name}: expected rows [n, k], mean [k], precision [k, k], row_precision [n] and link_matrices "
                f"[r, k], with the k of the users, got {jax.tree.map(jnp.shape, jax.tree.leaves(side))}. `init_chains` "
                "makes a state."
            )


def check_ratings(ratings: TrainRatings, state: ChainState) -> None:
    """Checks that ratings are of the state's tables, unweighted and of its levels; raises a ValueError otherwise."""
    (n_users, k), (n_items, _) = _shape(state, state.users.rows), _shape(state, state.items.rows)
    if isinstance(ratings, Dense):
        parts: list[Any] = [ratings]
        got = np.shape(ratings.value)[::-1]
        if got != (n_users, n_items):
            raise ValueError(f"ratings: expected {(n_users, n_items)} users and items, as the state has, got {got}.")
        check_dense(ratings, n_users, n_items)
    else:
        zeros = lambda *shape: jnp.broadcast_to(jnp.float32(0), shape)
        factors = Factors(zeros(n_users, k - 1), zeros(n_users), zeros(n_items, k - 1))  # for their shapes only
        if check.traced(ratings):
            check_tables(*ratings, factors)
        else:
            check_sides(*ratings, factors, 1)
        parts = [bucket for rows in ratings for bucket in rows.buckets]
    if any(part.weights is not None for part in parts):
        raise ValueError(
            "ratings: expected ratings without weights, which the sampler does not use. Drop them, or use als."
        )
    if state.levels is not None and not check.traced(parts, state.levels):
        allowed = np.unique(np.asarray(state.levels.value, np.float32))
        for part in parts:
            value = np.asarray(part.value).astype(np.float32)[np.asarray(part.where)]
            if len(unknown := np.setdiff1d(value, allowed)):
                raise ValueError(f"ratings: expected ratings among the levels {allowed.tolist()}, got {unknown[0]}.")


def check_bases(state: ChainState, bases: Bases) -> None:
    """Checks that features are those the state was started with; raises a ValueError otherwise."""
    for name, side, side_bases in (("users", state.users, bases[0]), ("items", state.items, bases[1])):
        got, n = [b.coordinates.shape for b in side_bases], _shape(state, side.rows)[0]
        if got != (expected := [(n, _shape(state, link)[0]) for link in side.link_matrices]):
            raise ValueError(
                f"features: expected features of the {name} of shapes {expected} in their bases, as in `init_chains`, "
                f"got {got}."
            )


def check_mu(mu: ArrayLike) -> None:
    """Checks that mu is a finite number; raises a ValueError otherwise."""
    if jnp.shape(mu) != ():
        raise ValueError(f"mu: expected a number, got shape {jnp.shape(mu)}.")
    if not check.traced(mu) and not np.isfinite(np.asarray(mu)):
        raise ValueError(f"mu: expected a finite number, got {mu}.")
