r"""Ordinal ratings: an ordered probit likelihood, with the draws and moments that a Gibbs sampler needs.

The rating of item i by user j has level r where its latent z lies between the cuts (cutpoints, thresholds) r - 1 and r.
Its linear predictor is η = mu + w(j) . x(i) + b(j) + c(i), and its precision p = τ(i) τ(j)::

    z(i,j) ~ normal(η(i,j), 1 / p(i,j))          y(i,j) = level r where cut(r-1) < z(i,j) <= cut(r)
    P(y = level r) = Φ(sqrt(p) (cut(r) - η)) - Φ(sqrt(p) (cut(r-1) - η))
    cuts ~ normal(0, prior_deviation^2), in ascending order

Given z, the rest of the model has normal data; given the rest, z is a truncated normal. The cuts are drawn with z
integrated out: given z, a cut could only move between the two nearest z, hardly at all with many ratings. Their log
density is concave (log(Φ(b) - Φ(a)) is, in (a, b)), so a Newton step from anywhere points towards the mode. It is the
proposal of a Metropolis-Hastings step.

Sources: Albert, Chib 1993, Bayesian analysis of binary and polychotomous response data; Cowles 1996, Accelerating
Monte Carlo Markov chain convergence for cumulative-link generalized linear models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.bayes.truncated_normal import LOG_ROOT_2PI, log_interval, truncated_normal
from jaxrec.gather import gather
from jaxrec.kernels.cholesky import cho_solve, cholesky, solve_transposed
from jaxrec.numerics import HIGHEST
from jaxrec.pytree import register_dataclass
from jaxrec.solvers.checks import floats

__all__ = [
    "Moments",
    "OrdinalScale",
    "draw_cuts",
    "draw_latents",
    "level_index",
    "log_interval",
    "moments",
    "ordinal_scale",
    "probabilities",
]

MIN_STEP_SIZE = 0.01  # the shortest Newton step that is proposed, as a fraction of the full step


@register_dataclass
@dataclass(frozen=True)
class OrdinalScale:
    """The levels of an ordinal scale: the possible ratings, and the cuts between their latents.

    Attributes:
        value: [L], ascending.
        cut: [L - 1], ascending; cut r separates the values r and r + 1.
    """

    value: Array
    cut: Array


def ordinal_scale(values: Sequence[float] | np.ndarray) -> OrdinalScale:
    """Returns the distinct ratings, with cuts at the normal quantiles of their cumulative shares; float32, on the host.

    Raises:
        ValueError: not a column of finite numbers; all are equal.

    >>> levels = ordinal_scale([1.0, 2.0, 2.0, 3.0])  # cumulative shares 1/4 and 3/4
    >>> levels.value.tolist(), [round(float(cut), 2) for cut in levels.cut]
    ([1.0, 2.0, 3.0], [-0.67, 0.67])
    """
    value, count = np.unique(check.finite("levels", values), return_counts=True)
    if len(value) < 2:
        raise ValueError(f"levels: expected at least 2 different ratings, got {value.tolist()}.")
    cut = [NormalDist().inv_cdf(share) for share in np.cumsum(count)[:-1] / count.sum()]
    return OrdinalScale(jnp.asarray(value, jnp.float32), jnp.asarray(cut, jnp.float32))


def level_index(levels: OrdinalScale, value: Shaped[ArrayLike, "*n"]) -> Int[Array, "*n"]:
    """Returns the index of the level whose value is nearest to each rating, of any dtype."""
    return _level_index(*floats(levels.value, value))


@jax.jit
def _level_index(values: Array, value: Array) -> Array:
    return jnp.searchsorted((values[1:] + values[:-1]) / 2, value, method="compare_all").astype(jnp.int32)


def draw_latents(
    cut: Shaped[ArrayLike, " cuts"],
    eta: Shaped[ArrayLike, "*n"],
    precision: Shaped[ArrayLike, "*n"],
    level: Int[ArrayLike, "*n"],
    where: Bool[ArrayLike, "*n"],
    *,
    key: PRNGKeyArray,
) -> Float[Array, "*n"]:
    """Draws the latent z of every rating: normal(η, 1 / p) truncated to the interval of its level; 0 where masked.

    Args:
        cut: [L - 1], the cuts.
        eta: η, the linear predictor of every rating.
        precision: p.
        level: index of every rating's level, from `level_index`.
        where: False where masked; the other columns may hold anything there.
        key: of the draw.

    Raises:
        ValueError: arrays of different shapes; levels out of range.
    """
    check.random_key(key)
    check.same_shape(eta=eta, precision=precision, level=level, where=where)
    level = check.row_ids("level", level, size=np.size(cut) + 1, where=where)
    return _draw_latents(*floats(cut, eta, precision), level, jnp.asarray(where), key=key)


@jax.jit
def _draw_latents(cut: Array, eta: Array, precision: Array, level: Array, where: Array, *, key: PRNGKeyArray) -> Array:
    eta, precision = jnp.where(where, eta, 0), jnp.where(where, precision, 1)
    root = jnp.sqrt(precision)
    below, above = _level_bounds(cut, jnp.where(where, level, 0))
    lower, upper = (below - eta) * root, (above - eta) * root
    u = jax.random.uniform(key, eta.shape, eta.dtype) + jnp.finfo(eta.dtype).eps / 2  # neither 0 nor 1
    z = eta + truncated_normal(lower, upper, u) / root
    return jnp.where(where, jnp.clip(z, below, above), 0)


def _level_bounds(cut: Array, level: Array) -> tuple[Array, Array]:
    """Returns the cuts below and above each level; -inf below the first and inf above the last."""
    infinite = jnp.full(1, jnp.inf, cut.dtype)
    bounds = jnp.concatenate([-infinite, cut, infinite])
    return gather(bounds, level), gather(bounds, level + 1)


def probabilities(
    cut: Shaped[ArrayLike, " cuts"], eta: Shaped[ArrayLike, "*n"], precision: Shaped[ArrayLike, "*n"]
) -> Float[Array, "*n levels"]:
    """Probability of every level, on the last axis, of ratings with linear predictor η and precision p."""
    check.same_shape(eta=eta, precision=precision)
    return _probabilities(*floats(cut, eta, precision))


@jax.jit
def _probabilities(cut: Array, eta: Array, precision: Array) -> Array:
    level, eta, root = jnp.arange(len(cut) + 1), eta[..., None], jnp.sqrt(precision)[..., None]
    bounds = _level_bounds(cut, level)
    lower, upper = ((bound.reshape((1,) * (eta.ndim - 1) + (-1,)) - eta) * root for bound in bounds)
    return jnp.exp(log_interval(lower, upper))


class Moments(NamedTuple):
    """Mean and variance of ratings.

    Attributes:
        mean: [...].
        variance: [...].
    """

    mean: Array
    variance: Array


def moments(levels: OrdinalScale, eta: Shaped[ArrayLike, "*n"], precision: Shaped[ArrayLike, "*n"]) -> Moments:
    """Mean and variance of the ratings with linear predictor η and precision p."""
    check.same_shape(eta=eta, precision=precision)
    return Moments(*_moments(levels, *floats(eta, precision)))


@jax.jit
def _moments(levels: OrdinalScale, eta: Array, precision: Array) -> tuple[Array, Array]:
    probability = _probabilities(levels.cut, eta, precision)
    value = levels.value.reshape((1,) * eta.ndim + (-1,))
    mean = jnp.sum(probability * value, axis=-1)
    return mean, jnp.sum(probability * (value - mean[..., None]) ** 2, axis=-1)


def draw_cuts(
    cut: Shaped[ArrayLike, " cuts"],
    eta: Shaped[ArrayLike, " n"],
    precision: Shaped[ArrayLike, " n"],
    level: Int[ArrayLike, " n"],
    where: Bool[ArrayLike, " n"],
    prior_deviation: float | Shaped[ArrayLike, ""],
    *,
    key: PRNGKeyArray,
) -> Float[Array, " cuts"]:
    """Draws the cuts given every η and p, by one Metropolis-Hastings step; a rejected proposal leaves them unchanged.

    With g the gradient of the log density at the cuts, H minus its Hessian, and s the step size::

        proposal ~ normal(cut + s H^-1 g, (1 - (1 - s)^2) H^-1)

    This is reversible for a normal density, so nearly every proposal is accepted where there are many ratings. s is 1
    with probability 1/2, and otherwise log-uniform between `MIN_STEP_SIZE` and 1: far from the mode a full step may
    never be accepted, because the reverse step is too unlikely.

    Args:
        cut: [L - 1], the current cuts.
        eta: η, the linear predictor of every rating.
        precision: p.
        level: index of every rating's level, from `level_index`.
        where: False where masked; the other columns may hold anything there.
        prior_deviation: standard deviation of the normal prior of the cuts.
        key: of the draw.

    Raises:
        ValueError: arrays of different shapes; levels out of range; a prior deviation that is not positive.
    """
    check.random_key(key)
    check.same_shape(eta=eta, precision=precision, level=level, where=where)
    level = check.row_ids("level", level, size=np.size(cut) + 1, where=where)
    check.strength("prior_deviation", prior_deviation)
    return _draw_cuts(*floats(cut, eta, precision), level, jnp.asarray(where), prior_deviation, key=key)


@jax.jit
def _draw_cuts(
    cut: Array,
    eta: Array,
    precision: Array,
    level: Array,
    where: Array,
    prior_deviation: float | Array,
    *,
    key: PRNGKeyArray,
) -> Array:
    key_noise, key_step, key_accept = jax.random.split(key, 3)
    eta, precision = jnp.where(where, eta, 0), jnp.where(where, precision, 1)
    level = jnp.where(where, level, 0)
    # 1 with probability 1/2, otherwise log-uniform.
    step_size = MIN_STEP_SIZE ** jnp.maximum(jax.random.uniform(key_step, dtype=cut.dtype, minval=-1), 0)
    noise_scale = jnp.sqrt(1 - (1 - step_size) ** 2)
    current = _Expansion.at(cut, eta, precision, level, where, prior_deviation)
    noise = jax.random.normal(key_noise, cut.shape, cut.dtype)
    proposed = current.proposal_mean(step_size) + noise_scale * solve_transposed(current.lower, noise)
    ordered = jnp.all(jnp.diff(proposed) > 0)
    proposal = _Expansion.at(jnp.where(ordered, proposed, cut), eta, precision, level, where, prior_deviation)
    # Rating by rating, because the sums are large and their difference is small.
    change = jnp.sum(jnp.where(where, proposal.log_likelihood - current.log_likelihood, 0))
    change = change + proposal.log_prior - current.log_prior
    reverse, forward = (
        proposal.log_proposal(cut, step_size, noise_scale),
        current.log_proposal(proposed, step_size, noise_scale),
    )
    log_ratio = change + reverse - forward
    accepted = ordered & (-jax.random.exponential(key_accept, dtype=cut.dtype) < log_ratio)
    return jnp.where(accepted, proposed, cut)


class _Expansion(NamedTuple):
    """Second-order Taylor expansion of the cuts' log density at some cuts.

    Attributes:
        cut: [C], the cuts.
        log_likelihood: [n], of every rating.
        log_prior: [], without its constant.
        gradient: [C].
        lower: [C, C], the Cholesky factor of minus the Hessian.
    """

    cut: Array
    log_likelihood: Array
    log_prior: Array
    gradient: Array
    lower: Array

    @classmethod
    def at(
        cls, cut: Array, eta: Array, precision: Array, level: Array, where: Array, prior_deviation: float | Array
    ) -> "_Expansion":
        """Expands the log density at `cut`, by sums over the ratings of each level.

        A rating of level r depends only on the cuts below and above it, at a and b in standard deviations from η::

            a = sqrt(p) (cut(r-1) - η)        b = sqrt(p) (cut(r) - η)        P = Φ(b) - Φ(a)

        With f_a = φ(a) / P and f_b = φ(b) / P, the first derivatives and minus the second derivatives of log P, summed
        over the ratings of level r, are::

            upper cut       U(r) = sum of  sqrt(p) f_b        A(r) = sum of p f_b (f_b + b)
            lower cut       D(r) = sum of -sqrt(p) f_a        B(r) = sum of p f_a (f_a - a)
            both                                              M(r) = sum of -p f_a f_b

        For 4 levels and the 3 cuts between them, level 0 | cut 0 | level 1 | cut 1 | level 2 | cut 2 | level 3, the
        gradient and minus the Hessian H are::

                       | U(0) + D(1) |                 | A(0) + B(1)    M(1)           0           |
            gradient = | U(1) + D(2) | - q cut     H = | M(1)           A(1) + B(2)    M(2)        | + q I
                       | U(2) + D(3) |                 | 0              M(2)           A(2) + B(3) |

        where q = 1 / prior_deviation^2 is the precision of the cuts' prior.
        """
        root = jnp.sqrt(precision)
        a, b = ((bound - eta) * root for bound in _level_bounds(cut, level))
        log_likelihood = log_interval(a, b)
        f_a, f_b = (jnp.exp(-(bound**2) / 2 - LOG_ROOT_2PI - log_likelihood) for bound in (a, b))
        a, b = jnp.where(level == 0, 0, a), jnp.where(level == len(cut), 0, b)  # not infinite: f_a or f_b is 0
        first = [root * f_b, -root * f_a]
        second = [precision * f_b * (f_b + b), precision * f_a * (f_a - a), -precision * f_a * f_b]
        one_hot = level[:, None] == jnp.arange(len(cut) + 1, dtype=level.dtype)[None]
        sums = jnp.matmul(jnp.stack(first + second), (one_hot & where[:, None]).astype(cut.dtype), precision=HIGHEST)
        upper_gradient, lower_gradient, upper_curvature, lower_curvature, mixed = sums  # U, D, A, B, M
        prior_precision = 1 / jnp.asarray(prior_deviation, cut.dtype) ** 2
        off_diagonal = jnp.diag(mixed[1:-1], 1)
        diagonal = jnp.diag(upper_curvature[:-1] + lower_curvature[1:] + prior_precision)
        gradient = upper_gradient[:-1] + lower_gradient[1:] - prior_precision * cut
        log_prior = -prior_precision * jnp.sum(cut**2) / 2
        lower = cholesky(diagonal + off_diagonal + off_diagonal.T)
        return cls(cut, log_likelihood, log_prior, gradient, lower)

    def proposal_mean(self, step_size: Array) -> Array:
        return self.cut + step_size * cho_solve(self.lower, self.gradient)

    def log_proposal(self, cut: Array, step_size: Array, noise_scale: Array) -> Array:
        """Log density of proposing `cut` from here, up to a constant that is the same for all expansions."""
        white = jnp.matmul(self.lower.T, cut - self.proposal_mean(step_size), precision=HIGHEST) / noise_scale
        return jnp.sum(jnp.log(jnp.diagonal(self.lower))) - jnp.sum(white**2) / 2
