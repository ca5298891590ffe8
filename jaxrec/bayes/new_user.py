r"""A new user's posterior from her first ratings, and what to ask her next: what a sampler's draws are kept for.

Given a draw s of the items' (x, c) and sureness τ(j), of the users' prior and of alpha, and given her own sureness τ,
her (w, b) has the normal posterior of the ridge. With X the rows (x, 1) of what she rated, r = y - mu - c - X m::

    (w, b) | s, τ, y ~ normal(m + A^-1 X' D r, A^-1)    A = X' D X + Λ,   D = τ diag(alpha τ(j)),   m + L' z her prior's

τ ~ gamma(a, rate a) is integrated by Gauss-Legendre quadrature over its prior quantiles. The draws were made without
her ratings, so (s, τ) counts by how well it foretold them, which the same Cholesky factor says, v the change above::

    log p(y | s, τ) = 1/2 (log det D + log det Λ - log det A - (r - X v)' D (r - X v) - v' Λ v) + a constant

Her posterior is the mixture of these normals: exact, but for the finite numbers of draws and nodes. Everything is a
pure function of one user; vmap, or `jax.lax.map` where memory matters, makes many.

>>> from jaxrec import data
>>> from jaxrec.solvers import gibbs
>>> ratings, kept = data.synthetic.low_rank(50, 40, 900, rng=0).ratings, []
>>> state = gibbs.start(50, 40, 2, key=jax.random.key(0), chains=2)
>>> keep = lambda state, _: kept.append(state) if state.step[0] > 20 else None
>>> how = {"mu": 3.5, "burn_in": 20, "sweeps": 60, "batch_size": 4, "callback": keep, "progress": False}
>>> _ = gibbs.gibbs(data.dense(ratings), state, ratings, key=jax.random.key(1), **how)
>>> known = draws(kept, mu=3.5)
>>> hers = posterior(known, jnp.array([3, 7]), jnp.array([5.0, 2.0]))
>>> posterior_predictive(known, hers).mean.shape, expected_variance_reduction(known, hers).shape  # of every item
((40,), (40,))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.bayes._gibbs import ChainState
from jaxrec.gather import gather
from jaxrec.kernels.cholesky import cho_solve, cholesky
from jaxrec.kernels.chunks import by_chunks
from jaxrec.solvers import ridge
from jaxrec.solvers.checks import floats

__all__ = [
    "Draws",
    "Mixture",
    "Prediction",
    "draws",
    "expected_variance_reduction",
    "lower_confidence_bound",
    "posterior",
    "posterior_predictive",
]

product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@register_dataclass
@dataclass(frozen=True)
class Draws:
    """What S draws say of a user who was not there; items come first, for they are looked up.

    Attributes:
        x: [n_items, S, k], (x, 1).
        offset: [n_items, S], mu + c: what an item gets from whoever rates it.
        precision_of: [n_items, S], alpha τ(j): of its ratings by a user of sureness 1.
        mean: [S, k], m of the users' prior.
        precision: [S, k, k], Λ of the users' prior.
        links: [S, r, k] for every group of the users' features.
        node: [S, T], values of her sureness.
        share: [T], the nodes' prior probabilities.
    """

    x: Array
    offset: Array
    precision_of: Array
    mean: Array
    precision: Array
    links: tuple[Array, ...]
    node: Array
    share: Array


@register_dataclass
@dataclass(frozen=True)
class Mixture:
    """A user's posterior: a normal for every draw and node.

    Attributes:
        log_weight: [S, T]; their exponentials sum to 1.
        mean: [S, T, k], of (w, b).
        covariance: [S, T, k, k].
    """

    log_weight: Array
    mean: Array
    covariance: Array


class Prediction(NamedTuple):
    """Of n items; a new rating of one has variance spread + noise, as in `gibbs.Posterior`.

    Attributes:
        mean: [n].
        variance: [n], the variance of what she thinks of it, within and between the mixture's components.
        noise_variance: [n], the mean of 1 / (alpha τ τ).
    """

    mean: Array
    variance: Array
    noise_variance: Array


def draws(states: Sequence[ChainState], *, mu: float, heteroscedastic: bool = True, nodes: int = 12) -> Draws:
    """States of a run, kept by a callback of `gibbs`, as draws; every chain of each is one.

    Args:
        states: after burn-in, and some sweeps apart, for those beside each other say nearly the same. Test RMSE of
            189 new users of ml-100k after 10 answers, by the draws: 1 .972, 5 .960, 20 .9585, 80 .957.
        mu: as the sampler had it.
        heteroscedastic: as its priors were; False: a new user's sureness is 1, too.
        nodes: T; 12 integrate her likelihood to 2 %, and the mean of 1 / τ, infinite for a <= 1, where a >= 2 to
            5 %. (The middles of equal shares need three times as many.)

    Raises:
        ValueError: no states; states without an axis of chains, or of other tables than the first; nodes < 1.
    """
    if not states:
        raise ValueError("states: expected at least one. Keep them in a callback of gibbs, after burn-in.")
    if nodes < 1:
        raise ValueError(f"nodes: expected at least 1, got {nodes}.")
    for state in states:
        got, expected = (each.items.rows.shape for each in (state, states[0]))
        if state.alpha.ndim != 1 or got[1:] != expected[1:]:
            raise ValueError(
                f"states: expected items' rows [chains, n_items, k] like the first's {expected}, got {got}."
            )
    together = jax.tree.map(lambda *each: jnp.concatenate(each), *states)
    users, items, alpha = together.users, together.items, together.alpha
    node, share = np.ones((len(alpha), 1)), np.ones(1)
    if heteroscedastic:
        from scipy.special import gammaincinv  # a third of a second to import, and only this needs it

        at, weight = np.polynomial.legendre.leggauss(nodes)
        a = np.asarray(users.row_precision_shape, np.float64)[:, None]
        node, share = gammaincinv(a, (at + 1) / 2) / a, weight / 2
        node = np.maximum(node, np.finfo(np.float32).tiny)  # above 0 in float32 too, for its logarithm
    rows, dtype = jnp.moveaxis(items.rows, 0, 1), items.rows.dtype
    return Draws(
        rows.at[..., -1].set(1),
        rows[..., -1] + jnp.asarray(mu, dtype),
        items.row_precision.T * alpha[None],
        users.mean,
        users.precision,
        users.links,
        jnp.asarray(node, dtype),
        jnp.asarray(share, dtype),
    )


def posterior(
    draws: Draws,
    item: Int[ArrayLike, " n"],
    value: Shaped[ArrayLike, " n"],
    where: Bool[ArrayLike, " n"] | None = None,
    *,
    z: tuple[Shaped[ArrayLike, " _"], ...] = (),
) -> Mixture:
    """The posterior of a user's (w, b) given her ratings; of no ratings, her prior.

    Args:
        draws: from `draws`.
        item: what she rated.
        value: her ratings.
        where: False where a place is empty; what stands there is not read.
        z: her features, one row for each of the users' groups, turned as `side_information.Basis` says; 0: not known.

    Raises:
        ValueError: columns of different lengths; items that the draws do not have; other features than theirs.
    """
    check.same_shape(item=item, value=value, where=where)
    item = check.row_ids("item", item, size=len(draws.x), where=where)
    if (got := [np.shape(each)[0] for each in z]) != (expected := [link.shape[1] for link in draws.links]):
        raise ValueError(f"z: expected a user's features of lengths {expected}, one row a group, got {got}.")
    y, *rows = (each.astype(draws.x.dtype) for each in floats(value, *z))
    return _posterior(draws, item, y, None if where is None else jnp.asarray(where, bool), tuple(rows))


@jax.jit
def _posterior(draws: Draws, item: Array, value: Array, where: Array | None, z: tuple[Array, ...]) -> Mixture:
    dtype = draws.x.dtype
    where = jnp.ones(item.shape, bool) if where is None else where
    item, y = jnp.where(where, item, 0), jnp.where(where, value, 0)
    x, offset, weight = (gather(each, item) for each in (draws.x, draws.offset, draws.precision_of))
    log_weight = jnp.sum(jnp.where(where[:, None], jnp.log(weight), 0), axis=0)
    weight = jnp.where(where[:, None], weight, 0)
    prior = sum((product("r,srk->sk", *each) for each in zip(z, draws.links, strict=True)), start=draws.mean)
    residual = y[:, None] - offset - product("nsk,sk->ns", x, prior)

    gram, rhs = product("nsk,nsl->skl", x, weight[..., None] * x), product("nsk,ns->sk", x, weight * residual)
    count = jnp.sum(where, dtype=dtype)
    normal = ridge.NormalEquations(
        draws.node[..., None, None] * gram[:, None], draws.node[..., None] * rhs[:, None], count
    )
    factor = ridge.factorize_matrix(normal, draws.precision[:, None])
    change = ridge.solve(factor)
    k = change.shape[-1]
    columns = jnp.broadcast_to(jnp.eye(k, dtype=dtype)[:, None, None], (k, *change.shape))
    covariance = jax.vmap(cho_solve, in_axes=(None, 0), out_axes=-1)(factor.cholesky, columns)

    error = residual[..., None] - product("nsk,stk->nst", x, change)
    misfit = draws.node * product("ns,nst->st", weight, error**2)
    misfit = misfit + product("stk,skl,stl->st", change, draws.precision, change)
    log_weight = log_weight[:, None] + count * jnp.log(draws.node)  # log det D
    log_weight = log_weight + _log_det(cholesky(draws.precision))[:, None] - _log_det(factor.cholesky) - misfit
    # Ratings that no draw foretells, 10^20 say, have densities of 0: then the draws count alike, and not as NaN. The
    # largest is 0 by its place, for computed once more in another order 10^12 would not be itself.
    log_weight = jnp.maximum(log_weight / 2 + jnp.log(draws.share)[None], -jnp.finfo(dtype).max / 4)
    flat = log_weight.ravel()
    best = jnp.argmax(flat)
    flat = jnp.where(jnp.arange(flat.size) == best, 0, jnp.minimum(flat - flat[best], 0))
    log_weight = jax.nn.log_softmax(flat).reshape(log_weight.shape)
    return Mixture(log_weight, prior[:, None] + change, covariance)


def posterior_predictive(draws: Draws, mixture: Mixture, items: Int[ArrayLike, " n"] | None = None) -> Prediction:
    """What she would say of items (None: of all): means and spreads by the law of total variance.

    Args:
        draws: that the mixture is of.
        mixture: from `posterior`.
        items: ids.

    Raises:
        ValueError: ids that the draws do not have; a mixture of other draws.
    """
    _check_mixture(draws, mixture)
    return _posterior_predictive(draws, mixture, _ids("items", items, draws))


@jax.jit
def _posterior_predictive(draws: Draws, mixture: Mixture, items: Array | None) -> Prediction:
    statistics = _collapse(draws, mixture)
    x, deviation, mean, noise_variance = _of_items(draws, statistics, items)
    variance = product(
        "ns,s->n", jnp.sum(_times_covariance(statistics, x) * x, axis=2) + deviation**2, statistics.share
    )
    return Prediction(mean, variance, noise_variance)


def expected_variance_reduction(
    draws: Draws,
    mixture: Mixture,
    candidates: Int[ArrayLike, " c"] | None = None,
    targets: Int[ArrayLike, " n"] | None = None,
    *,
    weights: Shaped[ArrayLike, " n"] | None = None,
    batch_size: int = 256,
) -> Float[Array, " c"]:
    """By how much the variances of her predictions, summed over the targets, are expected to fall if she rates j.

    With C the mixture's covariance of the predictions and σ(j)² the expected noise of a rating::

        reduction(j) = sum over targets i of weight(i) C(i,j)^2 / (C(j,j) + σ(j)^2)

    For one normal that is the fall itself, whatever she answers. For a mixture it is the fall by the best predictor
    that is linear in her answer; all that her answer says is expected to do no worse, so it is a lower bound.

    C = G G' with G of S (k + 1) columns, for all nodes of a draw share its x: nothing is [targets, targets].

    Args:
        draws: that the mixture is of.
        mixture: from `posterior`.
        candidates: what could be asked; None: every item. An item she has rated may be asked again here: leave it out.
        targets: what is to be known; None: every item.
        weights: how much each target matters, such as how often it is rated; None: 1.
        batch_size: candidates at a time.

    Raises:
        ValueError: weights of another number than targets; ids that the draws do not have; a mixture of other draws;
            batch_size < 1.

    Source: Cohn, Ghahramani, Jordan 1996, Active learning with statistical models.
    """
    n_targets = len(draws.x) if targets is None else np.size(targets)
    if weights is not None and np.shape(weights) != (n_targets,):
        got = np.shape(weights)
        raise ValueError(
            f"weights: expected one for each of {n_targets} targets, got {got[0] if len(got) == 1 else got}."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}.")
    _check_mixture(draws, mixture)
    statistics = _ids("candidates", candidates, draws), _ids("targets", targets, draws)
    weight = None if weights is None else floats(weights)[0].astype(draws.x.dtype)
    return _expected_variance_reduction(draws, mixture, *statistics, weight, batch_size=batch_size)


@partial(jax.jit, static_argnames="batch_size")
def _expected_variance_reduction(
    draws: Draws,
    mixture: Mixture,
    candidates: Array | None,
    targets: Array | None,
    weights: Array | None,
    *,
    batch_size: int,
) -> Array:
    statistics = _collapse(draws, mixture)
    flat = lambda x, deviation: jnp.concatenate([x.reshape(len(x), -1), deviation], axis=1)
    x, deviation, _, _ = _of_items(draws, statistics, targets)
    known = flat(x, deviation)
    weights = jnp.ones(len(known), known.dtype) if weights is None else weights

    def reduction(asked: Array) -> Array:
        x, deviation, _, noise_variance = _of_items(draws, statistics, asked)
        covariance_x = flat(
            statistics.share[None, :, None] * _times_covariance(statistics, x), statistics.share[None] * deviation
        )
        together = product("nf,cf->nc", known, covariance_x)
        return product("n,nc->c", weights, together**2) / (
            jnp.sum(flat(x, deviation) * covariance_x, axis=1) + noise_variance
        )

    candidates = jnp.arange(len(draws.x)) if candidates is None else candidates
    return by_chunks(reduction, candidates, batch_size)


def lower_confidence_bound(
    mean: Shaped[ArrayLike, "..."], deviation: Shaped[ArrayLike, "..."], share: float
) -> Float[Array, "..."]:
    """What a prediction exceeds with probability `share`, if it is normal: mean - z(share) deviation, to rank by.

    A list ranked by it prefers, of two items of one mean, the one that is known better. .5 is the mean itself.

    Raises:
        ValueError: share not in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number in (0, 1), got {share}.")
    check.same_shape(mean=mean, deviation=deviation)
    center, deviation = floats(mean, deviation)
    return center - jnp.asarray(NormalDist().inv_cdf(share), center.dtype) * deviation


def _ids(name: str, ids: ArrayLike | None, draws: Draws) -> Array | None:
    return None if ids is None else check.row_ids(name, ids, size=len(draws.x))


def _check_mixture(draws: Draws, mixture: Mixture) -> None:
    expected, got = (draws.node.shape, draws.mean.shape[1:]), (mixture.log_weight.shape, mixture.mean.shape[2:])
    if expected != got:
        raise ValueError(f"mixture: expected one of these draws, {expected} draws, nodes and coefficients, got {got}.")


class _Collapsed(NamedTuple):
    """A mixture with each draw's nodes as one: that is all that second moments see.

    Attributes:
        share: [S].
        center: [S, k].
        covariance: [S, k, k], within and between nodes.
        variance: [S], the share times the mean of 1 / τ.
    """

    share: Array
    center: Array
    covariance: Array
    variance: Array


def _collapse(draws: Draws, mixture: Mixture) -> _Collapsed:
    weight, within = jnp.exp(mixture.log_weight), jax.nn.softmax(mixture.log_weight, axis=1)
    center = product("st,stk->sk", within, mixture.mean)
    deviation = mixture.mean - center[:, None]
    covariance = product("st,stkl->skl", within, mixture.covariance) + product(
        "st,stk,stl->skl", within, deviation, deviation
    )
    return _Collapsed(jnp.sum(weight, axis=1), center, covariance, jnp.sum(weight / draws.node, axis=1))


def _of_items(draws: Draws, statistics: _Collapsed, items: Array | None) -> tuple[Array, Array, Array, Array]:
    """(x [n, S, k], how far each draw's prediction is from the mean [n, S], the mean [n], the noise [n])."""
    of = lambda table: table if items is None else gather(table, items)
    x = of(draws.x)
    each = of(draws.offset) + product("nsk,sk->ns", x, statistics.center)
    mean = product("ns,s->n", each, statistics.share)
    return x, each - mean[:, None], mean, product("ns,s->n", 1 / of(draws.precision_of), statistics.variance)


def _times_covariance(statistics: _Collapsed, x: Array) -> Array:
    """The products of x [n, S, k] with every draw's covariance."""
    return product("nsk,skl->nsl", x, statistics.covariance)


def _log_det(lower: Array) -> Array:
    """Of the matrix, from its Cholesky factor."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)), axis=-1)
