r"""The standard normal between two bounds: draws from it and its log probability, accurate far out in both tails.

With φ and Φ the standard normal density and distribution function, Q = 1 - Φ, and m = Q / φ the Mills ratio, which is
about 1 / z: beyond `TAIL_START` standard deviations Q underflows, but log Q(z) = -z^2 / 2 - log sqrt(2π) + log m(z)
does not. An interval most of which is below 0 is mirrored, so that only the upper tail has to be computed.

Source: Laplace's continued fraction of the Mills ratio, Abramowitz, Stegun 1964, Handbook of mathematical functions,
26.2.14.

>>> import jax.numpy as jnp
>>> lower, upper = jnp.array([-1.0, 30.0]), jnp.array([1.0, 31.0])
>>> [round(float(p), 2) for p in log_interval(lower, upper)]  # the second is log 5e-198, far below float32's range
[-0.38, -454.32]
>>> [round(float(z), 2) for z in truncated_normal(lower, upper, jnp.array([0.25, 0.5]))]  # a quartile and a median
[-0.44, 30.02]
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr, ndtr, ndtri
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from jaxrec.solvers.checks import floats

__all__ = ["LOG_ROOT_2PI", "log_interval", "truncated_normal"]

TAIL_START = 8.0  # standard deviations from which on a tail is computed by its Mills ratio, because its mass underflows
LOG_ROOT_2PI = math.log(2 * math.pi) / 2


def truncated_normal(lower: Array, upper: Array, u: Array) -> Array:
    """The quantiles u of a standard normal truncated to (lower, upper): draws from it where u is uniform on (0, 1).

    Let (a, b) be the interval, mirrored where most of it is below 0. Then z solves Q(z) = Q(a) - u (Q(a) - Q(b)): by
    the inverse of Φ up to a = `TAIL_START`, and beyond by a few fixed-point steps on the same equation with Q = φ m::

        (z^2 - a^2) / 2 = -log(1 - u (1 - Q(b) / Q(a))) + log(m(z) / m(a))

    Rounding may leave z just outside of the interval: clip it in the units of the result. Where the interval is
    mirrored, u counts from above.
    """
    mirrored = lower < -upper
    a, b = jnp.where(mirrored, -upper, lower), jnp.where(mirrored, -lower, upper)

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
    return jnp.where(mirrored, -z, z)


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


def _mills_ratio(z: Array) -> Array:
    """Q(z) / φ(z) for z >= `TAIL_START`, by Laplace's continued fraction."""
    fraction = z
    for k in range(8, 0, -1):
        fraction = z + k / fraction
    return 1 / fraction
