"""Functions that keep what floating point would lose: exact products; values and gradients that are finite, or infinite
where they must be, but NaN only where the input is.

A NaN in one branch of a `where` reaches the gradient even where the other branch is taken (0 * NaN), so what would make
one is replaced before the arithmetic.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

__all__ = ["binary_cross_entropy", "log_softmax", "product", "unit"]


def binary_cross_entropy(logit: Float[Array, "*n"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """-y log g(z) - (1 - y) log(1 - g(z)) = y softplus(-z) + (1 - y) softplus(z), with g(z) = 1 / (1 + e^-z).

    An infinite logit costs 0 on the right side and infinity on the wrong one. Its gradient is g(z) - y throughout.
    """

    def part(weight: Array, logit: Array) -> Array:  # where the weight is 0 an infinite logit is no matter
        idle = (weight == 0) & jnp.isinf(logit)
        return weight * jax.nn.softplus(jnp.where(idle, 0, logit))

    return part(target, -logit) + part(1 - target, logit)


def product(a: Shaped[ArrayLike, "..."], b: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """A @ b with every digit of its type, as its derivative is.

    By default a GPU multiplies float32 in TF32 and a TPU in bfloat16, of three digits and two: enough for a network's
    layers, and not for what is solved, ranked, or compared.
    """
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def log_softmax(score: Float[Array, "*n c"], where: Bool[Array, "*n c"]) -> Float[Array, "*n c"]:
    """Log-probabilities, score - log sum exp(score), over the last axis.

    Only entries where `where` is True count; the others get -inf. Scores of +inf share the whole probability equally,
    as equal finite scores would, and so do scores that are all -inf. Infinite scores have a gradient of 0. Where
    nothing is unmasked, all is -inf.
    """
    score = jnp.where(where, score, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
    finite = jnp.isfinite(top) & (score > -jnp.inf)
    shifted = jnp.where(finite, score, 0) - jnp.where(jnp.isfinite(top), top, 0)
    infinite = jnp.where(where & jnp.isinf(top) & (score == top), 0, -jnp.inf)
    shifted = jnp.where(finite, shifted, jnp.where(jnp.isnan(top), top, infinite))
    some = shifted != -jnp.inf
    total = jnp.sum(jnp.where(some, jnp.exp(jnp.where(some, shifted, 0)), 0), axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.where(total == 0, 1, total))


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
