"""Functions that keep what plain floating point would lose: products in full precision; values and gradients that are
finite, or infinite where they must be, and NaN only where the input is.

A NaN in one branch of a `where` reaches the gradient even where the other branch is taken (0 * NaN), so inputs that
would produce one are replaced before the arithmetic.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

__all__ = ["HIGHEST", "binary_cross_entropy", "log_softmax", "product", "unit_vectors"]

# Full precision of a product: by default a GPU multiplies float32 in TF32 and a TPU in bfloat16.
HIGHEST = jax.lax.Precision.HIGHEST


def binary_cross_entropy(logit: Float[Array, "*n"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """-y log g(z) - (1 - y) log(1 - g(z)) = y softplus(-z) + (1 - y) softplus(z), with g(z) = 1 / (1 + e^-z).

    An infinite logit costs 0 on the correct side and infinity on the wrong one. The gradient is g(z) - y everywhere.
    """

    def term(weight: Array, logit: Array) -> Array:  # an infinite logit of weight 0 costs nothing
        ignored = (weight == 0) & jnp.isinf(logit)
        return weight * jax.nn.softplus(jnp.where(ignored, 0, logit))

    return term(target, -logit) + term(1 - target, logit)


def product(a: Shaped[ArrayLike, "..."], b: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """A @ b in the full precision of its type, as is its derivative.

    By default a GPU multiplies float32 in TF32 and a TPU in bfloat16, with three and two digits: enough for the layers
    of a network, but not for what is solved, ranked or compared.
    """
    return jnp.matmul(a, b, precision=HIGHEST)


def log_softmax(score: Float[Array, "*n c"], where: Bool[Array, "*n c"]) -> Float[Array, "*n c"]:
    """Log-probabilities, score - log sum exp(score), over the last axis.

    Only entries where `where` is True count; the others get -inf. Scores of +inf share the probability equally, as
    equal finite scores would, and so do scores that are all -inf. Infinite scores have a gradient of 0. If all entries
    are masked, all are -inf.
    """
    score = jnp.where(where, score, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
    finite = jnp.isfinite(top) & (score > -jnp.inf)
    shifted = jnp.where(finite, score, 0) - jnp.where(jnp.isfinite(top), top, 0)
    infinite = jnp.where(where & jnp.isinf(top) & (score == top), 0, -jnp.inf)
    shifted = jnp.where(finite, shifted, jnp.where(jnp.isnan(top), top, infinite))
    positive = shifted != -jnp.inf  # the probability is
    total = jnp.sum(jnp.where(positive, jnp.exp(jnp.where(positive, shifted, 0)), 0), axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.where(total == 0, 1, total))


def unit_vectors(x: Shaped[ArrayLike, "*n d"]) -> Float[Array, "*n d"]:
    """Unit vectors x / ‖x‖ along the last axis; a vector of zeros stays zero, and its gradient is 0.

    The derivative is (I - u u') / ‖x‖, with u = x / ‖x‖. Neither depends on the size of x but for the factor 1 / ‖x‖,
    so both are computed from x / s, where s is the power of two next to the largest |x_k|: no digit is lost, and 1e25,
    whose square overflows float32, is as exact as 1. Numbers below the normal floats (1e-38 in float32) count as 0.

    Computed in float32 at least: narrower floats, integers and bools give float32. NaN and infinity give NaN.

    >>> unit_vectors(jnp.array([[3e25, 4e25], [0.0, 0.0]])).round(6).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    x = jnp.asarray(x)
    if x.dtype != jnp.float64:
        x = x.astype(jnp.float32)
    info = jnp.finfo(x.dtype)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0))
    power = jax.lax.reduce_precision(largest, exponent_bits=info.nexp, mantissa_bits=0)
    # clipped to the powers whose inverse is a normal number too
    x = x * (1 / jnp.clip(power, 2.0**info.minexp, 2.0**-info.minexp))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    nonzero = ~(largest < info.tiny)  # true of NaN, which must not become 0
    return x * jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, square, 1)), 0)
