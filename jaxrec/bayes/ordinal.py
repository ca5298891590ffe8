r"""Ratings as levels: an ordered probit likelihood, by the three draws and sums that a Gibbs sampler needs of it.

::

    z(i,j) ~ normal(η(i,j), 1 / p(i,j))          y(i,j) = level r where cut(r-1) < z(i,j) <= cut(r)
    P(y = level r) = Φ(sqrt(p) (cut(r) - η)) - Φ(sqrt(p) (cut(r-1) - η))
    cuts ~ normal(0, scale^2), put in order

Given z the rest of a model sees normal data; given the rest, z is a truncated normal. The cuts are drawn with z
integrated out: between the z on both its sides a cut of many ratings could hardly move. Their log density is concave
(log(Φ(b) - Φ(a)) is, in both), so a Newton step from anywhere points at its mode, and Metropolis-Hastings corrects.

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
FAR = 8.0  # deviations beyond which a tail is drawn from by its ratio to the density, for its mass underflows
LOG_ROOT_2PI = math.log(2 * math.pi) / 2
SHORT = 0.01  # the smallest share of a Newton step that is tried


@register_dataclass
@dataclass(frozen=True)
class OrdinalScale:
    """What ratings there are, and where the latents are cut.

    Attributes:
        value: [L], ascending.
        cut: [L - 1], ascending: cut r lies between the values r and r + 1.
    """

    value: Array
    cut: Array


def ordinal_scale(values: Sequence[float] | np.ndarray) -> OrdinalScale:
    """The levels among ratings, with cuts at the normal quantiles of their shares, in float32, on the host.

    Raises:
        ValueError: not a column of finite numbers; all are equal.

    >>> levels = ordinal_scale([1.0, 2.0, 2.0, 3.0])  # a quarter below, a half between
    >>> levels.value.tolist(), [round(float(cut), 2) for cut in levels.cut]
    ([1.0, 2.0, 3.0], [-0.67, 0.67])
    """
    value, count = np.unique(check.finite("levels", values), return_counts=True)
    if len(value) < 2:
        raise ValueError(f"levels: expected at least 2 different ratings, got {value.tolist()}.")
    cut = [NormalDist().inv_cdf(share) for share in np.cumsum(count)[:-1] / count.sum()]
    return OrdinalScale(jnp.asarray(value, jnp.float32), jnp.asarray(cut, jnp.float32))


def level_index(levels: OrdinalScale, value: Shaped[ArrayLike, "*n"]) -> Int[Array, "*n"]:
    """Which level a rating is: that of the nearest value. Ratings of any type."""
    return _level_of(*floats(levels.value, value))


@jax.jit
def _level_of(values: Array, value: Array) -> Array:
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
    """The z of every rating, a normal(η, 1 / p) between its level's two cuts; 0 where masked.

    With Q = 1 - Φ and (a, b) the interval in deviations, turned over where most of it is below 0, z solves
    Q(z) = Q(a) - u (Q(a) - Q(b)), u uniform. Where a is `FAR` out, it solves by a few steps, with Q = φ m::

        (z^2 - a^2) / 2 = -log(1 - u (1 - Q(b) / Q(a))) + log(m(z) / m(a))        m(z): about 1 / z

    Raises:
        ValueError: arrays of different shapes; levels that the cuts do not have.
    """
    check.same_shape(eta=eta, precision=precision, level=level, where=where)
    level = check.row_ids("level", level, size=np.size(cut) + 1, where=where)
    return _draw_latents(*floats(cut, eta, precision), level, jnp.asarray(where), key=key)


@jax.jit
def _draw_latents(cut: Array, eta: Array, precision: Array, level: Array, where: Array, *, key: PRNGKeyArray) -> Array:
    eta, precision = jnp.where(where, eta, 0), jnp.where(where, precision, 1)
    root = jnp.sqrt(precision)
    below, above = _ends(cut, jnp.where(where, level, 0))
    lower, upper = (below - eta) * root, (above - eta) * root
    over = lower < -upper
    a, b = jnp.where(over, -upper, lower), jnp.where(over, -lower, upper)
    u = jax.random.uniform(key, eta.shape, eta.dtype) + jnp.finfo(eta.dtype).eps / 2  # never 0, never 1

    near = jnp.minimum(a, FAR)
    at_a, at_b = ndtr(-near), ndtr(-jnp.maximum(b, near))
    inside = -ndtri(at_a - u * (at_a - at_b))

    far = jnp.maximum(a, FAR)
    end = jnp.maximum(b, far)
    less = -jnp.expm1(jnp.log(_mills(end) / _mills(far)) - (end - far) * (end + far) / 2)  # 1 - Q(b) / Q(a)
    gap, tail = -jnp.log1p(-u * less), far
    for _ in range(4):  # each brings it nearer by a factor of z^2 > 64
        more = gap + jnp.log(_mills(tail) / _mills(far))
        tail = far + 2 * more / (far + jnp.sqrt(far * far + 2 * more))
    z = jnp.where(a > FAR, tail, inside)
    return jnp.where(where, jnp.clip(eta + jnp.where(over, -z, z) / root, below, above), 0)


def _mills(z: Array) -> Array:
    """Q(z) / φ(z) for z >= `FAR`, by Laplace's continued fraction."""
    fraction = z
    for k in range(8, 0, -1):
        fraction = z + k / fraction
    return 1 / fraction


def _ends(cut: Array, level: Array) -> tuple[Array, Array]:
    """Where a rating's level begins and ends."""
    infinite = jnp.full(1, jnp.inf, cut.dtype)
    ends = jnp.concatenate([-infinite, cut, infinite])
    return gather(ends, level), gather(ends, level + 1)


@jax.jit
def log_interval(lower: Shaped[ArrayLike, "*n"], upper: Shaped[ArrayLike, "*n"]) -> Float[Array, "*n"]:
    """log(Φ(upper) - Φ(lower)), lower < upper, in both tails; finite where they differ by less than rounding.

    Beyond 10^18 deviations, whose square float32 does not hold, it is that of 10^18.
    """
    low, up = floats(lower, upper)
    most = jnp.sqrt(jnp.finfo(low.dtype).max) / 16
    low, up = jnp.clip(low, -most, most), jnp.clip(up, -most, most)
    over = low < -up
    a, b = jnp.where(over, -up, low), jnp.where(over, -low, up)
    least = jnp.finfo(a.dtype).eps  # of 1 - Q(b) / Q(a)

    near = jnp.minimum(a, FAR)
    above = log_ndtr(-near)
    inside = above + jnp.log(-jnp.expm1(jnp.minimum(log_ndtr(-jnp.maximum(b, near)) - above, -least)))

    far = jnp.maximum(a, FAR)
    end = jnp.maximum(b, far)
    ratio = jnp.log(_mills(end) / _mills(far)) - (end - far) * ((end + far) / 2)
    tail = -far * far / 2 - LOG_ROOT_2PI + jnp.log(_mills(far)) + jnp.log(-jnp.expm1(jnp.minimum(ratio, -least)))
    return jnp.where(a > FAR, tail, inside)


def probabilities(
    cut: Shaped[ArrayLike, " cuts"], eta: Shaped[ArrayLike, "*n"], precision: Shaped[ArrayLike, "*n"]
) -> Float[Array, "*n levels"]:
    """Of every level."""
    check.same_shape(eta=eta, precision=precision)
    return _probabilities(*floats(cut, eta, precision))


@jax.jit
def _probabilities(cut: Array, eta: Array, precision: Array) -> Array:
    each, eta, root = jnp.arange(len(cut) + 1), eta[..., None], jnp.sqrt(precision)[..., None]
    lower, upper = ((end.reshape((1,) * (eta.ndim - 1) + (-1,)) - eta) * root for end in _ends(cut, each))
    return jnp.exp(log_interval(lower, upper))


class Moments(NamedTuple):
    """Of ratings.

    Attributes:
        mean: [...].
        variance: [...].
    """

    mean: Array
    variance: Array


def moments(levels: OrdinalScale, eta: Shaped[ArrayLike, "*n"], precision: Shaped[ArrayLike, "*n"]) -> Moments:
    """The rating's mean and variance."""
    check.same_shape(eta=eta, precision=precision)
    return Moments(*_moments(levels, *floats(eta, precision)))


@jax.jit
def _moments(levels: OrdinalScale, eta: Array, precision: Array) -> tuple[Array, Array]:
    share = _probabilities(levels.cut, eta, precision)
    value = levels.value.reshape((1,) * eta.ndim + (-1,))
    mean = jnp.sum(share * value, axis=-1)
    return mean, jnp.sum(share * (value - mean[..., None]) ** 2, axis=-1)


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
    """The cuts given every η and p, by Metropolis-Hastings: they move, or stay where they are.

    With g and H the gradient of the log density and minus its Hessian at the cuts, and s the share of the step::

        proposal ~ normal(cut + s H^-1 g, (1 - (1 - s)^2) H^-1)

    which is reversible where the density is normal, and nearly always accepted where ratings are many. s is 1 or
    less, down to `SHORT`, by a coin. Far from the mode a whole step may never be taken: the way back is too unlikely.

    Raises:
        ValueError: arrays of different shapes; levels that the cuts do not have; a scale that is not positive.
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
    key_noise, key_share, key_accept = jax.random.split(key, 3)
    eta, precision = jnp.where(where, eta, 0), jnp.where(where, precision, 1)
    level = jnp.where(where, level, 0)
    share = SHORT ** jnp.maximum(jax.random.uniform(key_share, dtype=cut.dtype, minval=-1), 0)  # 1 every other time
    spread = jnp.sqrt(1 - (1 - share) ** 2)
    here = _Around.at(cut, eta, precision, level, where, scale)
    noise = jax.random.normal(key_noise, cut.shape, cut.dtype)
    proposed = here.center(share) + spread * solve_transposed(here.lower, noise)
    ordered = jnp.all(jnp.diff(proposed) > 0)
    there = _Around.at(jnp.where(ordered, proposed, cut), eta, precision, level, where, scale)
    # Entry by entry: the sums are large, and their difference is small.
    gain = jnp.sum(jnp.where(where, there.each - here.each, 0)) + there.prior - here.prior
    log_ratio = gain + there.log_density(cut, share, spread) - here.log_density(proposed, share, spread)
    accepted = ordered & (-jax.random.exponential(key_accept, dtype=cut.dtype) < log_ratio)
    return jnp.where(accepted, proposed, cut)


class _Around(NamedTuple):
    """The log density about some cuts: its terms, its gradient, and the Cholesky factor of minus its Hessian."""

    cut: Array
    each: Array
    prior: Array
    gradient: Array
    lower: Array

    @classmethod
    def at(
        cls, cut: Array, eta: Array, precision: Array, level: Array, where: Array, scale: float | Array
    ) -> "_Around":
        """By sums over every level's ratings: of each, the two cuts about it are all that matters."""
        root = jnp.sqrt(precision)
        a, b = ((end - eta) * root for end in _ends(cut, level))
        each = log_interval(a, b)
        at_a, at_b = (jnp.exp(-(end**2) / 2 - LOG_ROOT_2PI - each) for end in (a, b))
        a, b = jnp.where(level == 0, 0, a), jnp.where(level == len(cut), 0, b)
        first = [root * at_b, -root * at_a]
        second = [precision * at_b * (at_b + b), precision * at_a * (at_a - a), -precision * at_a * at_b]
        at_level = level[:, None] == jnp.arange(len(cut) + 1, dtype=level.dtype)[None]
        sums = jnp.matmul(jnp.stack(first + second), (at_level & where[:, None]).astype(cut.dtype), precision=HIGHEST)
        to_b, to_a, at_upper, at_lower, between = sums
        inverse = 1 / jnp.asarray(scale, cut.dtype) ** 2
        off = jnp.diag(between[1:-1], 1)
        precision_of = jnp.diag(at_upper[:-1] + at_lower[1:] + inverse) + off + off.T
        gradient = to_b[:-1] + to_a[1:] - inverse * cut
        return cls(cut, each, -inverse * jnp.sum(cut**2) / 2, gradient, cholesky(precision_of))

    def center(self, share: Array) -> Array:
        return self.cut + share * cho_solve(self.lower, self.gradient)

    def log_density(self, cut: Array, share: Array, spread: Array) -> Array:
        """Of a proposal from here, but for what does not depend on here."""
        white = jnp.matmul(self.lower.T, cut - self.center(share), precision=HIGHEST) / spread
        return jnp.sum(jnp.log(jnp.diagonal(self.lower))) - jnp.sum(white**2) / 2
