r"""Ordinal ratings: an ordered probit likelihood, with the draws and moments that a Gibbs sampler needs.

The rating of item i by user j has level r where its latent z lies between the cuts r - 1 and r.

::

    z(i,j) ~ normal(η(i,j), 1 / p(i,j))          y(i,j) = level r where cut(r-1) < z(i,j) <= cut(r)
    P(y = level r) = Φ(sqrt(p) (cut(r) - η)) - Φ(sqrt(p) (cut(r-1) - η))
    cuts ~ normal(0, scale^2), put in order

Given z, the rest of the model has normal data; given the rest, z is a truncated normal. The cuts are drawn with z
integrated out: given z, a cut could only move between the two nearest z, hardly at all with many ratings. Their log
density is concave (log(Φ(b) - Φ(a)) is, in (a, b)), so a Newton step from anywhere points towards the mode. It is the
proposal of a Metropolis-Hastings step.

Sources: Albert, Chib 1993, Bayesian analysis of binary and polychotomous response data; Cowles 1996, Accelerating
Monte Carlo Markov chain convergence for cumulative-link generalized linear models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import log_ndtr, ndtr, ndtri
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.cholesky import cho_solve, cholesky, solve_transposed
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

HIGHEST = jax.lax.Precision.HIGHEST
TAIL_START = 8.0  # standard deviations from which on a tail is computed by its Mills ratio, because its mass underflows
LOG_ROOT_2PI = math.log(2 * math.pi) / 2
MIN_STEP_SIZE = 0.01  # the shortest Newton step that is proposed, as a fraction of the full step


@register_dataclass
@dataclass(frozen=True)
class OrdinalScale:
    """The possible ratings, and the cuts between their latents.

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
    """Draws the z of every rating: normal(η, 1 / p) truncated to the interval of its level; 0 where masked.

    Let Q = 1 - Φ, and (a, b) the interval in standard deviations from η, mirrored where most of it is below 0. Then z
    solves Q(z) = Q(a) - u (Q(a) - Q(b)) with u uniform: by the inverse of Φ up to a = `TAIL_START`, and beyond by a few
    fixed-point steps on the same equation with Q = φ m, m the Mills ratio::

        (z^2 - a^2) / 2 = -log(1 - u (1 - Q(b) / Q(a))) + log(m(z) / m(a))        m(z) is about 1 / z

    Raises:
        ValueError: arrays of different shapes; levels out of range.
    """
    check.same_shape(eta=eta, precision=precision, level=level, where=where)
    level = check.row_ids("level", level, size=np.size(cut) + 1, where=where)
    return _draw_latents(*floats(cut, eta, precision), level, jnp.asarray(where), key=key)


@jax.jit
def _draw_latents(cut: Array, eta: Array, precision: Array, level: Array, where: Array, *, key: PRNGKeyArray) -> Array:
    eta, precision = jnp.where(where, eta, 0), jnp.where(where, precision, 1)
    root = jnp.sqrt(precision)
    below, above = _level_bounds(cut, jnp.where(where, level, 0))
    lower, upper = (below - eta) * root, (above - eta) * root
    mirrored = lower < -upper
    a, b = jnp.where(mirrored, -upper, lower), jnp.where(mirrored, -lower, upper)
    u = jax.random.uniform(key, eta.shape, eta.dtype) + jnp.finfo(eta.dtype).eps / 2  # neither 0 nor 1

    a_center = jnp.minimum(a, TAIL_START)
    q_a, q_b = ndtr(-a_center), ndtr(-jnp.maximum(b, a_center))
    z_center = -ndtri(q_a - u * (q_a - q_b))

    a_tail = jnp.maximum(a, TAIL_START)
    b_tail = jnp.maximum(b, a_tail)
    log_ratio = jnp.log(_mills_ratio(b_tail) / _mills_ratio(a_tail)) - (b_tail - a_tail) * (b_tail + a_tail) / 2
    share = -jnp.expm1(log_ratio)  # 1 - Q(b) / Q(a)
    exponential, z_tail = -jnp.log1p(-u * share), a_tail
    for _ in range(4):  # each step reduces the error by a factor of z^2 > 64
        half_gap = exponential + jnp.log(_mills_ratio(z_tail) / _mills_ratio(a_tail))  # (z^2 - a^2) / 2
        z_tail = a_tail + 2 * half_gap / (a_tail + jnp.sqrt(a_tail * a_tail + 2 * half_gap))
    z = jnp.where(a > TAIL_START, z_tail, z_center)
    return jnp.where(where, jnp.clip(eta + jnp.where(mirrored, -z, z) / root, below, above), 0)


def _mills_ratio(z: Array) -> Array:
    """Q(z) / φ(z) for z >= `TAIL_START`, by Laplace's continued fraction."""
    fraction = z
    for k in range(8, 0, -1):
        fraction = z + k / fraction
    return 1 / fraction


def _level_bounds(cut: Array, level: Array) -> tuple[Array, Array]:
    """Returns the cuts below and above each level; -inf below the first and inf above the last."""
    infinite = jnp.full(1, jnp.inf, cut.dtype)
    bounds = jnp.concatenate([-infinite, cut, infinite])
    return gather(bounds, level), gather(bounds, level + 1)


@jax.jit
def log_interval(lower: Shaped[ArrayLike, "*n"], upper: Shaped[ArrayLike, "*n"]) -> Float[Array, "*n"]:
    """log(Φ(upper) - Φ(lower)) for lower < upper, accurate in both tails; finite even if they differ by only rounding.

    Bounds beyond 1e18 standard deviations, whose square float32 cannot represent, are clipped to 1e18.
    """
    low, high = floats(lower, upper)
    limit = jnp.sqrt(jnp.finfo(low.dtype).max) / 16
    low, high = jnp.clip(low, -limit, limit), jnp.clip(high, -limit, limit)
    mirrored = low < -high
    a, b = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    min_share = jnp.finfo(a.dtype).eps  # of 1 - Q(b) / Q(a)

    a_center = jnp.minimum(a, TAIL_START)
    log_q = log_ndtr(-a_center)
    log_ratio = log_ndtr(-jnp.maximum(b, a_center)) - log_q
    center = log_q + jnp.log(-jnp.expm1(jnp.minimum(log_ratio, -min_share)))

    a_tail = jnp.maximum(a, TAIL_START)
    b_tail = jnp.maximum(b, a_tail)
    log_ratio = jnp.log(_mills_ratio(b_tail) / _mills_ratio(a_tail)) - (b_tail - a_tail) * ((b_tail + a_tail) / 2)
    log_q = -a_tail * a_tail / 2 - LOG_ROOT_2PI + jnp.log(_mills_ratio(a_tail))
    tail = log_q + jnp.log(-jnp.expm1(jnp.minimum(log_ratio, -min_share)))
    return jnp.where(a > TAIL_START, tail, center)


def probabilities(
    cut: Shaped[ArrayLike, " cuts"], eta: Shaped[ArrayLike, "*n"], precision: Shaped[ArrayLike, "*n"]
) -> Float[Array, "*n levels"]:
    """Probability of every level, on the last axis."""
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
    """Mean and variance of the ratings whose latents have mean η and precision p."""
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
    scale: float | Shaped[ArrayLike, ""],
    *,
    key: PRNGKeyArray,
) -> Float[Array, " cuts"]:
    """Draws the cuts given every η and p, by one Metropolis-Hastings step; a rejected proposal leaves them unchanged.

    With g the gradient of the log density at the cuts, H minus its Hessian, and s the step size::

        proposal ~ normal(cut + s H^-1 g, (1 - (1 - s)^2) H^-1)

    This is reversible for a normal density, so nearly every proposal is accepted where there are many ratings. s is 1
    with probability 1/2, and otherwise log-uniform between `MIN_STEP_SIZE` and 1: far from the mode a full step may
    never be accepted, because the reverse step is too unlikely.

    Raises:
        ValueError: arrays of different shapes; levels out of range; a scale that is not positive.
    """
    check.same_shape(eta=eta, precision=precision, level=level, where=where)
    level = check.row_ids("level", level, size=np.size(cut) + 1, where=where)
    check.strength("scale", scale)
    return _draw_cuts(*floats(cut, eta, precision), level, jnp.asarray(where), scale, key=key)


@jax.jit
def _draw_cuts(
    cut: Array,
    eta: Array,
    precision: Array,
    level: Array,
    where: Array,
    scale: float | Array,
    *,
    key: PRNGKeyArray,
) -> Array:
    key_noise, key_step, key_accept = jax.random.split(key, 3)
    eta, precision = jnp.where(where, eta, 0), jnp.where(where, precision, 1)
    level = jnp.where(where, level, 0)
    # 1 with probability 1/2, otherwise log-uniform.
    step_size = MIN_STEP_SIZE ** jnp.maximum(jax.random.uniform(key_step, dtype=cut.dtype, minval=-1), 0)
    noise_scale = jnp.sqrt(1 - (1 - step_size) ** 2)
    current = _Expansion.at(cut, eta, precision, level, where, scale)
    noise = jax.random.normal(key_noise, cut.shape, cut.dtype)
    proposed = current.proposal_mean(step_size) + noise_scale * solve_transposed(current.lower, noise)
    ordered = jnp.all(jnp.diff(proposed) > 0)
    proposal = _Expansion.at(jnp.where(ordered, proposed, cut), eta, precision, level, where, scale)
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
    """Second-order expansion of the cuts' log density at given cuts.

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
        cls, cut: Array, eta: Array, precision: Array, level: Array, where: Array, scale: float | Array
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

                       | U(0) + D(1) |                       | A(0) + B(1)    M(1)           0           |
            gradient = | U(1) + D(2) | - cut / scale^2   H = | M(1)           A(1) + B(2)    M(2)        | + I / scale^2
                       | U(2) + D(3) |                       | 0              M(2)           A(2) + B(3) |
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
        prior_precision = 1 / jnp.asarray(scale, cut.dtype) ** 2
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
