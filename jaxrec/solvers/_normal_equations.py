r"""Normal equations of a ridge regression: built, factorized, solved, and sampled from.

With features X, weights D, targets y, a penalty matrix P (of an l2 penalty: diagonal) and the prior mean m::

    gram = X' D X      rhs = X' D y                      `normal_equations`
    L L' = gram + P                                      `factorize`, `factorize_matrix`
    v = (L L')^-1 (rhs + P m)                            `solve`
    draw = v + L'^-1 noise,  noise ~ normal(0, I)        `sample`: of covariance (gram + P)^-1

`ridge` has these functions too, and those that use them.

Source: Hoerl, Kennard 1970, Ridge regression: biased estimation for nonorthogonal problems.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Num, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.kernels import cholesky
from jaxrec.numerics import HIGHEST
from jaxrec.pytree import register_dataclass
from jaxrec.solvers.checks import check_columns, check_factor, floats

__all__ = [
    "Factor",
    "NormalEquations",
    "Number",
    "as_columns",
    "as_prior_mean",
    "factorize",
    "factorize_matrix",
    "normal_equations",
    "regularize_empty_rows",
    "sample",
    "solve",
]

Number = int | float | Shaped[ArrayLike, ""]


@register_dataclass
@dataclass(frozen=True)
class NormalEquations:
    """The normal equations of one row.

    Attributes:
        gram: [d, d], X' D X over the observed entries.
        rhs: [d], X' D y.
        count: the sum of the weights; 0 for a row without ratings.
    """

    gram: Array
    rhs: Array
    count: Array


@register_dataclass
@dataclass(frozen=True)
class Factor:
    """A factorized row, or a batch of rows: the Cholesky factor of gram + penalty, and the other inputs of `solve`.

    Attributes:
        cholesky: [..., d, d], lower triangular.
        rhs: [..., d], X' D y.
        penalty: [..., d, d], P; for a normal likelihood, the precision of the prior.
    """

    cholesky: Array
    rhs: Array
    penalty: Array


def normal_equations(
    x: Num[ArrayLike, "n d"],
    y: Shaped[ArrayLike, " n"],
    where: Bool[ArrayLike, " n"] | None = None,
    weights: Shaped[ArrayLike, " n"] | None = None,
) -> NormalEquations:
    """Gram matrix and right-hand side over the observed entries; masked entries may hold anything, also NaN.

    Sums are taken in float32 at least, whatever the types of the columns.

    Raises:
        ValueError: columns that do not have one entry for each row of x.
    """
    check_columns(x, y, where, weights)
    return _normal_equations(*as_columns(x, y, where, weights))


@jax.jit
def _normal_equations(x: Array, y: Array, where: Array | None, weights: Array | None) -> NormalEquations:
    if where is not None:
        x, y = jnp.where(where[:, None], x, 0), jnp.where(where, y, 0)
        weights = None if weights is None else jnp.where(where, weights, 0)
    weighted = x if weights is None else x * weights[:, None]
    if weights is not None:
        count = jnp.sum(weights)
    else:
        count = jnp.asarray(len(y), y.dtype) if where is None else jnp.sum(where, dtype=y.dtype)
    # HIGHEST: otherwise accelerators round the inputs of the product to bfloat16 or TF32.
    gram = jnp.matmul(x.T, weighted, precision=HIGHEST)
    return NormalEquations(gram, jnp.matmul(weighted.T, y, precision=HIGHEST), count)


def factorize(
    equations: NormalEquations, l2: Number | Shaped[ArrayLike, "*batch d"] | Shaped[ArrayLike, " d"]
) -> Factor:
    """The Cholesky factor of gram + penalty, of one row or of a batch of rows, for the penalty 1/2 sum of l2 (v - m)^2.

    In a row without ratings, a coefficient with l2 = 0 (an unpenalized bias) would have no solution. There its l2 is
    taken as 1, so that the solution is the prior mean instead of NaN.

    Args:
        equations: from `normal_equations`, with leading batch axes or without.
        l2: >= 0, a number, or one per coefficient ([d], or [..., d] per row). For a matrix use `factorize_matrix`.
            Where gram + penalty is not positive definite, as with l2 = 0 and fewer independent ratings than
            coefficients, the factor is NaN or, because of rounding, large finite numbers: `solve` raises then.

    Raises:
        ValueError: an l2 is negative, not finite, or of a wrong shape.
    """
    check.strength("l2", l2, zero=True)
    shape = equations.rhs.shape
    if np.shape(l2) not in ((), shape[-1:], shape):
        raise ValueError(
            f"l2: expected a number, or one per coefficient, of shape {shape[-1:]} or {shape}, got {np.shape(l2)}."
        )
    return _factorize(equations, jnp.asarray(l2, equations.gram.dtype))


@jax.jit
def _factorize(equations: NormalEquations, l2: Array) -> Factor:
    l2 = regularize_empty_rows(jnp.broadcast_to(l2, equations.rhs.shape), equations.count)
    shape = (*l2.shape, l2.shape[-1])
    penalty = jnp.broadcast_to(jnp.eye(shape[-1], dtype=l2.dtype), shape) * l2[..., None]
    return Factor(cholesky.cholesky(equations.gram + penalty), equations.rhs, penalty)


def regularize_empty_rows(l2: Array, count: Array) -> Array:
    """l2 with 1 in place of 0 in rows without ratings, whose equations would otherwise be singular."""
    return jnp.where((l2 == 0) & (count[..., None] == 0), 1, l2)


def factorize_matrix(equations: NormalEquations, penalty: Shaped[ArrayLike, "*batch d d"]) -> Factor:
    """The Cholesky factor of gram + penalty for the penalty 1/2 (v - m)' P (v - m), with a matrix P, or one per row.

    Args:
        equations: from `normal_equations`, with leading batch axes or without.
        penalty: P, symmetric. For a normal likelihood with a normal prior it is the precision of the prior.

    Raises:
        ValueError: P is not a matrix over the coefficients, or not finite.
    """
    shape = equations.gram.shape
    if np.shape(penalty)[-2:] != shape[-2:]:
        raise ValueError(f"penalty: expected matrices {shape[-2:]}, got shape {np.shape(penalty)}.")
    if not check.traced(penalty) and not np.isfinite(np.asarray(penalty)).all():
        raise ValueError("penalty: expected finite numbers, got others.")
    return _factorize_matrix(equations, jnp.asarray(penalty, equations.gram.dtype))


@jax.jit
def _factorize_matrix(equations: NormalEquations, penalty: Array) -> Factor:
    penalty = jnp.broadcast_to(penalty, equations.gram.shape)
    return Factor(cholesky.cholesky(equations.gram + penalty), equations.rhs, penalty)


def solve(factor: Factor, prior_mean: Number | Shaped[ArrayLike, "*batch d"] = 0.0) -> Float[Array, "*batch d"]:
    """The ridge solution, which is the posterior mean; for a row without ratings it is `prior_mean`.

    Its relative error is that of normal equations: about 10 eps divided by `kernels.cholesky.pivot_ratio`. For badly
    scaled rows use `solve_user`, `solve_item` or `fold_in`, which refit from the features; a factor has none.

    Raises:
        ValueError: the equations are singular up to rounding, or so badly scaled that the solution would be off by 1 %;
            or the prior mean has a wrong shape.
    """
    mean = as_prior_mean(factor, prior_mean)
    check_factor(factor)
    return _solve(factor, mean)


@jax.jit
def _solve(factor: Factor, mean: Array) -> Array:
    prior_rhs = jnp.sum(factor.penalty * jnp.broadcast_to(mean, factor.rhs.shape)[..., None, :], axis=-1)  # P m
    return cholesky.cho_solve(factor.cholesky, factor.rhs + prior_rhs)


def sample(
    factor: Factor, prior_mean: Number | Shaped[ArrayLike, "*batch d"] = 0.0, *, key: PRNGKeyArray
) -> Float[Array, "*batch d"]:
    """A draw from the posterior normal(solve(factor), (gram + P)^-1); the weights are the precisions of the noise.

    Raises:
        ValueError: as `solve`.
    """
    check.random_key(key)
    mean = as_prior_mean(factor, prior_mean)
    check_factor(factor)
    return _sample(factor, mean, key)


@jax.jit
def _sample(factor: Factor, mean: Array, key: PRNGKeyArray) -> Array:
    noise = jax.random.normal(key, factor.rhs.shape, factor.rhs.dtype)
    return _solve(factor, mean) + cholesky.solve_transposed(factor.cholesky, noise)


def as_columns(
    x: ArrayLike, y: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None
) -> tuple[Array, Array, Array | None, Array | None]:
    """Returns (x, y, where, weights) as arrays, the numbers in float32 at least."""
    features, target, weight = floats(x, y, weights)
    return features, target, None if where is None else jnp.asarray(where, bool), weight


def as_prior_mean(factor: Factor, mean: Number | ArrayLike) -> Array:
    """Returns the prior mean in the factor's type.

    Raises:
        ValueError: neither a number nor of the coefficients' shape.
    """
    shape = factor.rhs.shape
    if np.shape(mean) not in ((), shape[-1:], shape):
        raise ValueError(f"prior_mean: expected a number or shape {shape[-1:]} or {shape}, got {np.shape(mean)}.")
    return jnp.asarray(mean, factor.rhs.dtype)
