r"""The posterior of a new user from their first ratings, predictions from it, and the best item to ask about next.

Given a draw s of the items' (x, c) and τ(i), of the users' prior and of alpha, and given the user's own precision τ,
their (w, b) have the normal posterior of a ridge regression. With X the rows (x, 1) of the rated items, m the mean of
the user's prior (with features, m + L' z), Λ its precision, and r = y - mu - c - X m::

    (w, b) | s, τ, y ~ normal(m + δ, A^-1)        A = X' D X + Λ,   D = τ diag(alpha τ(i)),   δ = A^-1 X' D r

τ ~ gamma(a, rate a) is integrated by Gauss-Legendre quadrature over its prior quantiles. The draws were made without
the user's ratings, so each (s, τ) is weighted by their likelihood, which the same Cholesky factor gives::

    log p(y | s, τ) = 1/2 (log det D + log det Λ - log det A - (r - X δ)' D (r - X δ) - δ' Λ δ) + a constant

The posterior is the mixture of these normals, exact up to the finite numbers of draws and nodes. All functions are pure
and of one user; use vmap for many, or `jax.lax.map` where memory is short.

>>> from jaxrec import data
>>> from jaxrec.bayes import gibbs
>>> ratings, states = data.synthetic.low_rank(50, 40, 900, rng=0).ratings, []
>>> keep = lambda step, state, _: states.append(state) if step > 20 else None
>>> options = {"rank": 2, "chains": 2, "burn_in": 20, "sweeps": 60, "sweeps_per_call": 4, "progress": False}
>>> _ = gibbs(ratings, mu=3.5, key=jax.random.key(1), callback=keep, **options)
>>> kept = draws(states, mu=3.5)
>>> mixture = posterior(kept, jnp.array([3, 7]), jnp.array([5.0, 2.0]))
>>> posterior_predictive(kept, mixture).mean.shape, expected_variance_reduction(kept, mixture).shape  # of every item
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
from jaxrec.bayes.model import ChainState
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

einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@register_dataclass
@dataclass(frozen=True)
class Draws:
    """S posterior draws packed for scoring unseen users. Items are the leading axis because they are indexed.

    Attributes:
        x: [n_items, S, k], (x, 1) of every item.
        offset: [n_items, S], mu + c, the part of a prediction that is the same for all users.
        noise_precision: [n_items, S], alpha τ(i), the precision of an item's ratings by a user with τ = 1.
        mean: [S, k], m of the users' prior.
        precision: [S, k, k], Λ of the users' prior.
        links: [S, r, k] per group of user features.
        node: [S, T], quadrature nodes of the user's τ.
        node_probability: [T], prior probabilities of the nodes.
    """

    x: Array
    offset: Array
    noise_precision: Array
    mean: Array
    precision: Array
    links: tuple[Array, ...]
    node: Array
    node_probability: Array


@register_dataclass
@dataclass(frozen=True)
class Mixture:
    """Posterior of one user: a mixture of normals, one component per draw and node.

    Attributes:
        log_weight: [S, T], log weights of the components; the weights sum to 1.
        mean: [S, T, k], means of (w, b).
        covariance: [S, T, k, k], covariances of (w, b).
    """

    log_weight: Array
    mean: Array
    covariance: Array


class Prediction(NamedTuple):
    """Predictions of n items. As in `Posterior`, a new rating has variance `variance + noise_variance`.

    Attributes:
        mean: [n].
        variance: [n], variance of the user's mean rating, within and between the components of the mixture.
        noise_variance: [n], mean of 1 / (alpha τ(i) τ).
    """

    mean: Array
    variance: Array
    noise_variance: Array


def draws(states: Sequence[ChainState], *, mu: float, heteroscedastic: bool = True, nodes: int = 12) -> Draws:
    """Packs states of a run, saved by a callback of `gibbs`, into draws: one per state and chain.

    Args:
        states: after burn-in, and several sweeps apart, because consecutive states are strongly correlated. Test RMSE
            of 189 new users of ml-100k after 10 answers, by the number of draws: 1: 0.972, 5: 0.960, 20: 0.9585,
            80: 0.957.
        mu: the same as for the sampler.
        heteroscedastic: the same as in the sampler's priors. False: τ of a new user is 1, too.
        nodes: T. 12 nodes integrate the likelihood to within 2 %, and the mean of 1 / τ to within 5 % where a >= 2 (it
            is infinite for a <= 1). Midpoints of equal shares would need three times as many.

    Raises:
        ValueError: no states; states without an axis of chains, or of other sizes than the first; nodes < 1.
    """
    if not states:
        raise ValueError("states: expected at least one. Save them in a callback of gibbs, after burn-in.")
    if nodes < 1:
        raise ValueError(f"nodes: expected at least 1, got {nodes}.")
    for state in states:
        got, expected = (each.items.rows.shape for each in (state, states[0]))
        if state.alpha.ndim != 1 or got[1:] != expected[1:]:
            raise ValueError(
                f"states: expected item rows [chains, n_items, k], as in the first state {expected}, got {got}."
            )
    merged = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)
    users, items, alpha = merged.users, merged.items, merged.alpha
    node, probability = np.ones((len(alpha), 1)), np.ones(1)
    if heteroscedastic:
        from scipy.special import gammaincinv  # takes a third of a second to import, and only this needs it

        abscissa, weight = np.polynomial.legendre.leggauss(nodes)
        a = np.asarray(users.row_precision_shape, np.float64)[:, None]
        node, probability = gammaincinv(a, (abscissa + 1) / 2) / a, weight / 2
        node = np.maximum(node, np.finfo(np.float32).tiny)  # above 0 in float32 too, because its logarithm is taken
    rows, dtype = jnp.moveaxis(items.rows, 0, 1), items.rows.dtype
    return Draws(
        rows.at[..., -1].set(1),
        rows[..., -1] + jnp.asarray(mu, dtype),
        items.row_precision.T * alpha[None],
        users.mean,
        users.precision,
        users.links,
        jnp.asarray(node, dtype),
        jnp.asarray(probability, dtype),
    )


def posterior(
    draws: Draws,
    item: Int[ArrayLike, " n"],
    value: Shaped[ArrayLike, " n"],
    where: Bool[ArrayLike, " n"] | None = None,
    *,
    z: tuple[Shaped[ArrayLike, " _"], ...] = (),
) -> Mixture:
    """Returns the posterior of one user's (w, b) given their ratings; without ratings, the prior.

    Per draw and node, this is a ridge regression (see the formulas at the top of this module). An example with one draw
    and one node: the prior has m = (0, 0) and Λ = I, and τ = 1. The user rates one item as 5, and the item has
    (x, 1) = (1, 1), offset mu + c = 3 and alpha τ(i) = 1. Then X = (1 1), D = 1, r = 5 - 3 = 2, and::

        A = X' D X + Λ = | 2  1 |    X' D r = | 2 |    δ = A^-1 X' D r = | 2/3 |    A^-1 = 1/3 |  2  -1 |
                         | 1  2 |             | 2 |                      | 2/3 |               | -1   2 |

    So (w, b) ~ normal((2/3, 2/3), A^-1), and the prediction of the item moves from 3 to 3 + 4/3. With S draws and T
    nodes, A is [S, T, k, k]: X' D X of a draw is scaled by each of its nodes.

    Args:
        draws: from `draws`.
        item: the rated items.
        value: the ratings of these items.
        where: False at padding, whose item and value are ignored.
        z: the user's features, one row per group of user features, rotated as in `side_information.Basis`; 0 where
            unknown.

    Raises:
        ValueError: columns of different lengths; items out of range; features of other sizes than the draws'.
    """
    check.same_shape(item=item, value=value, where=where)
    item = check.row_ids("item", item, size=len(draws.x), where=where)
    if (got := [np.shape(each)[0] for each in z]) != (expected := [link.shape[1] for link in draws.links]):
        raise ValueError(f"z: expected user features of lengths {expected}, one row per group, got {got}.")
    y, *features = (each.astype(draws.x.dtype) for each in floats(value, *z))
    return _posterior(draws, item, y, None if where is None else jnp.asarray(where, bool), tuple(features))


@jax.jit
def _posterior(draws: Draws, item: Array, value: Array, where: Array | None, z: tuple[Array, ...]) -> Mixture:
    dtype = draws.x.dtype
    where = jnp.ones(item.shape, bool) if where is None else where
    item, y = jnp.where(where, item, 0), jnp.where(where, value, 0)
    x, offset, weight = (gather(table, item) for table in (draws.x, draws.offset, draws.noise_precision))
    log_weight = jnp.sum(jnp.where(where[:, None], jnp.log(weight), 0), axis=0)
    weight = jnp.where(where[:, None], weight, 0)
    prior = sum((einsum("r,srk->sk", *args) for args in zip(z, draws.links, strict=True)), start=draws.mean)
    residual = y[:, None] - offset - einsum("nsk,sk->ns", x, prior)  # r

    gram, rhs = einsum("nsk,nsl->skl", x, weight[..., None] * x), einsum("nsk,ns->sk", x, weight * residual)
    count = jnp.sum(where, dtype=dtype)
    equations = ridge.NormalEquations(
        draws.node[..., None, None] * gram[:, None], draws.node[..., None] * rhs[:, None], count
    )
    factor = ridge.factorize_matrix(equations, draws.precision[:, None])
    delta = ridge.solve(factor)
    k = delta.shape[-1]
    identity = jnp.broadcast_to(jnp.eye(k, dtype=dtype)[:, None, None], (k, *delta.shape))
    covariance = jax.vmap(cho_solve, in_axes=(None, 0), out_axes=-1)(factor.cholesky, identity)

    error = residual[..., None] - einsum("nsk,stk->nst", x, delta)
    misfit = draws.node * einsum("ns,nst->st", weight, error**2)
    misfit = misfit + einsum("stk,skl,stl->st", delta, draws.precision, delta)
    log_weight = log_weight[:, None] + count * jnp.log(draws.node)  # log det D
    log_weight = log_weight + _log_det(cholesky(draws.precision))[:, None] - _log_det(factor.cholesky) - misfit
    # Extreme ratings, such as 1e20, have density 0 under every draw: the bound makes the weights equal instead of NaN.
    # The largest log weight is set to 0 by its index, because a value of 1e12 that XLA computes a second time, in
    # another order, need not cancel with itself.
    log_weight = jnp.maximum(log_weight / 2 + jnp.log(draws.node_probability)[None], -jnp.finfo(dtype).max / 4)
    flat = log_weight.ravel()
    best = jnp.argmax(flat)
    flat = jnp.where(jnp.arange(flat.size) == best, 0, jnp.minimum(flat - flat[best], 0))
    log_weight = jax.nn.log_softmax(flat).reshape(log_weight.shape)
    return Mixture(log_weight, prior[:, None] + delta, covariance)


def posterior_predictive(draws: Draws, mixture: Mixture, items: Int[ArrayLike, " n"] | None = None) -> Prediction:
    """Predicts the user's ratings of items: means, and variances by the law of total variance.

    Args:
        draws: the same as for `posterior`.
        mixture: from `posterior`.
        items: the items to predict; None: all.

    Raises:
        ValueError: ids out of range; a mixture of other draws.
    """
    _check_mixture(draws, mixture)
    return _posterior_predictive(draws, mixture, _ids("items", items, draws))


@jax.jit
def _posterior_predictive(draws: Draws, mixture: Mixture, items: Array | None) -> Prediction:
    moments = _moments_per_draw(draws, mixture)
    x, deviation, mean, noise_variance = _predict_per_draw(draws, moments, items)
    variance = einsum("ns,s->n", jnp.sum(_times_covariance(moments, x) * x, axis=2) + deviation**2, moments.weight)
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
    """Expected decrease of the user's predictive variance, summed over the targets, if they rate a candidate item i.

    With C the mixture's covariance of the predictions and σ(i)^2 the expected noise variance of a rating of item i::

        reduction(i) = sum over targets t of weight(t) C(t,i)^2 / (C(i,i) + σ(i)^2)

    For a single normal this is the decrease itself, whatever the answer. For a mixture it is the decrease by the best
    predictor that is linear in the answer. The posterior given the answer is expected to do no worse, so it is a lower
    bound.

    C = G G', where G has S (k + 1) columns because all nodes of a draw share its x: no matrix is [targets, targets].

    Args:
        draws: the same as for `posterior`.
        mixture: from `posterior`.
        candidates: items to ask about; None: every item. Rated items are not excluded: leave them out.
        targets: items whose ratings are to be predicted; None: every item.
        weights: importance of each target, such as how often it is rated; None: 1.
        batch_size: number of candidates that are processed at once.

    Raises:
        ValueError: another number of weights than of targets; ids out of range; a mixture of other draws;
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
    ids = _ids("candidates", candidates, draws), _ids("targets", targets, draws)
    weight = None if weights is None else floats(weights)[0].astype(draws.x.dtype)
    return _expected_variance_reduction(draws, mixture, *ids, weight, batch_size=batch_size)


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
    moments = _moments_per_draw(draws, mixture)
    flatten = lambda x, deviation: jnp.concatenate([x.reshape(len(x), -1), deviation], axis=1)
    x, deviation, _, _ = _predict_per_draw(draws, moments, targets)
    target_columns = flatten(x, deviation)
    weights = jnp.ones(len(target_columns), target_columns.dtype) if weights is None else weights

    def reduction(items: Array) -> Array:
        x, deviation, _, noise_variance = _predict_per_draw(draws, moments, items)
        weighted_columns = flatten(
            moments.weight[None, :, None] * _times_covariance(moments, x), moments.weight[None] * deviation
        )
        covariance = einsum("nf,cf->nc", target_columns, weighted_columns)
        return einsum("n,nc->c", weights, covariance**2) / (
            jnp.sum(flatten(x, deviation) * weighted_columns, axis=1) + noise_variance
        )

    candidates = jnp.arange(len(draws.x)) if candidates is None else candidates
    return by_chunks(reduction, candidates, batch_size)


def lower_confidence_bound(
    mean: Shaped[ArrayLike, "..."], standard_deviation: Shaped[ArrayLike, "..."], level: float
) -> Float[Array, "..."]:
    """Returns what a normal prediction exceeds with probability `level`: mean - z(level) * standard_deviation.

    A ranking by this bound prefers, of two items with the same mean, the one with the smaller deviation. A level of 0.5
    gives the mean.

    Raises:
        ValueError: level not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1), got {level}.")
    check.same_shape(mean=mean, standard_deviation=standard_deviation)
    center, deviation = floats(mean, standard_deviation)
    return center - jnp.asarray(NormalDist().inv_cdf(level), center.dtype) * deviation


def _ids(name: str, ids: ArrayLike | None, draws: Draws) -> Array | None:
    return None if ids is None else check.row_ids(name, ids, size=len(draws.x))


def _check_mixture(draws: Draws, mixture: Mixture) -> None:
    expected, got = (draws.node.shape, draws.mean.shape[1:]), (mixture.log_weight.shape, mixture.mean.shape[2:])
    if expected != got:
        raise ValueError(f"mixture: expected (draws, nodes), (coefficients,) {expected}, as in the draws, got {got}.")


class _MomentsPerDraw(NamedTuple):
    """Moments of (w, b) per draw, averaged over the draw's nodes: all that second moments of predictions depend on.

    Attributes:
        weight: [S], weights of the draws, which sum to 1.
        mean: [S, k].
        covariance: [S, k, k], within and between nodes.
        inverse_precision: [S], the draw's weight times its mean of 1 / τ.
    """

    weight: Array
    mean: Array
    covariance: Array
    inverse_precision: Array


def _moments_per_draw(draws: Draws, mixture: Mixture) -> _MomentsPerDraw:
    weight, node_weight = jnp.exp(mixture.log_weight), jax.nn.softmax(mixture.log_weight, axis=1)
    mean = einsum("st,stk->sk", node_weight, mixture.mean)
    deviation = mixture.mean - mean[:, None]
    covariance = einsum("st,stkl->skl", node_weight, mixture.covariance) + einsum(
        "st,stk,stl->skl", node_weight, deviation, deviation
    )
    return _MomentsPerDraw(jnp.sum(weight, axis=1), mean, covariance, jnp.sum(weight / draws.node, axis=1))


def _predict_per_draw(draws: Draws, moments: _MomentsPerDraw, items: Array | None) -> tuple[Array, Array, Array, Array]:
    """Returns x [n, S, k], each draw's deviation from the mean prediction [n, S], that mean and noise variance [n]."""
    select = lambda table: table if items is None else gather(table, items)
    x = select(draws.x)
    prediction = select(draws.offset) + einsum("nsk,sk->ns", x, moments.mean)
    mean = einsum("ns,s->n", prediction, moments.weight)
    noise_variance = einsum("ns,s->n", 1 / select(draws.noise_precision), moments.inverse_precision)
    return x, prediction - mean[:, None], mean, noise_variance


def _times_covariance(moments: _MomentsPerDraw, x: Array) -> Array:
    """Products of x [n, S, k] with the covariance of each draw."""
    return einsum("nsk,skl->nsl", x, moments.covariance)


def _log_det(lower: Array) -> Array:
    """Log determinant of a matrix, from its lower Cholesky factor."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)), axis=-1)
