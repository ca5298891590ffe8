"""Vectors of length 1, whatever their size: no square overflows, none vanishes, and the gradient is always a number."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

__all__ = ["unit"]


def unit(x: Shaped[ArrayLike, "*n d"]) -> Float[Array, "*n d"]:
    """Divides by the length: x / ‖x‖ along the last axis; a vector of zeros stays one, and the gradient there is 0.

    Its derivative is (I - u u') / ‖x‖, u = x / ‖x‖. Neither depends on the size of x but by the factor 1 / ‖x‖, so
    both are computed from x / s, s the power of two next to the largest |x_k|: no digit is lost, and 1e25, whose
    square float32 does not hold, is as good as 1. Numbers too small for a normal float (1e-38 in float32) count as 0.

    Computed in float32 at least: narrower floats, integers and bools give float32. NaN and infinity give NaN.

    >>> unit(jnp.array([[3e25, 4e25], [0.0, 0.0]])).round(6).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    x = jnp.asarray(x)
    if x.dtype != jnp.float64:
        x = x.astype(jnp.float32)
    info = jnp.finfo(x.dtype)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0))
    power = jax.lax.reduce_precision(largest, exponent_bits=info.nexp, mantissa_bits=0)
    # between the powers whose inverse is a normal number too
    x = x * (1 / jnp.clip(power, 2.0**info.minexp, 2.0**-info.minexp))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    some = ~(largest < info.tiny)  # NaN is not hidden as a 0
    return x * jnp.where(some, jax.lax.rsqrt(jnp.where(some, square, 1)), 0)
