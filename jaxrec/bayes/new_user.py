r"""The posterior of a new user from their first ratings, predictions from it, and the best item to ask about next.

The posterior of the user's (w, b) is a mixture of normals with weights p, means M and covariances V, one component for
each draw of everything else and each value of the user's own precision τ (`normal_mixture` has its equations). With
(x, 1) an item's row in the component's draw, the prediction of a rating has the moments of the mixture::

    mean             sum of p (mu + c + (x, 1) . M)
    variance         sum of p ((x, 1)' V (x, 1) + (mu + c + (x, 1) . M - mean)^2)       by the law of total variance
    noise variance   sum of p / (alpha τ(i) τ)

All functions are pure and of one user; use vmap for many, or `jax.lax.map` where memory is short.

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

from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxrec import check
from jaxrec.bayes.normal_mixture import Draws, Mixture, draws, posterior
from jaxrec.gather import gather
from jaxrec.kernels.chunks import by_chunks
from jaxrec.numerics import HIGHEST
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

einsum = partial(jnp.einsum, precision=HIGHEST)


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
    """Moments of (w, b) per draw, averaged over the draw's nodes: first and second moments of predictions need no more.

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
