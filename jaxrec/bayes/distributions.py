r"""Draws from the Wishart and the gamma distribution, parametrized by an inverse scale matrix and by a rate.

::

    Λ ~ Wishart(ν, S^-1)        p(Λ) = |Λ|^((ν - k - 1) / 2) exp(-trace(S Λ) / 2) / constant        mean ν S^-1
    λ ~ gamma(a, b)             p(λ) = λ^(a - 1) exp(-b λ) / constant                               mean a / b

They are the conjugate priors of a normal's precision: of a matrix and of a number.

Source: Bartlett 1934, The vector representation of a sample.

>>> import jax
>>> precision, root = wishart(5.0, jnp.eye(2), key=jax.random.key(0))
>>> bool(jnp.allclose(root @ root.T @ precision, jnp.eye(2), atol=1e-4))  # the root is of the inverse
True
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray

from jaxrec import check
from jaxrec.kernels.cholesky import cholesky, solve_transposed
from jaxrec.numerics import HIGHEST
from jaxrec.solvers.checks import floats

__all__ = ["Number", "WishartDraw", "gamma", "unchecked_gamma", "unchecked_wishart", "wishart"]

Number = int | float | Array


class WishartDraw(NamedTuple):
    """A draw from a Wishart distribution.

    Attributes:
        precision: [k, k], Λ.
        root: [k, k], R with R R' = Λ^-1.
    """

    precision: Array
    root: Array


def wishart(dof: Number, scale_matrix: Float[ArrayLike, "k k"], *, key: PRNGKeyArray) -> WishartDraw:
    """Draws Λ ~ Wishart(dof, scale_matrix^-1) and a root R of its inverse, R R' = Λ^-1, by Bartlett's decomposition.

    With scale_matrix = K K', and A lower triangular with standard normals below the diagonal and the square roots of
    chi-squares with dof, dof - 1, ... degrees of freedom on it: Λ = (K'^-1 A) (K'^-1 A)' and R = K A'^-1. dof > k - 1;
    the mean of Λ is dof scale_matrix^-1.

    Raises:
        ValueError: scale_matrix is not square; dof is too small or not finite.

    Source: Bartlett 1934, The vector representation of a sample.
    """
    check.random_key(key)
    if np.ndim(scale_matrix) != 2 or np.shape(scale_matrix)[0] != np.shape(scale_matrix)[1]:
        raise ValueError(f"scale_matrix: expected a square matrix, got shape {np.shape(scale_matrix)}.")
    if not check.traced(dof) and not np.shape(scale_matrix)[0] - 1 < float(dof) < np.inf:
        raise ValueError(
            f"dof: expected a finite number > {np.shape(scale_matrix)[0] - 1}, the matrix size less 1, got {dof}."
        )
    return WishartDraw(*unchecked_wishart(dof, jnp.asarray(scale_matrix), key=key))


@jax.jit
def unchecked_wishart(dof: Number, scale_matrix: Array, *, key: PRNGKeyArray) -> tuple[Array, Array]:
    """`wishart` without checks, as (Λ, R): for compiled code."""
    k = len(scale_matrix)
    key_below, key_diagonal = jax.random.split(key)
    dtype = scale_matrix.dtype
    chi_square = 2 * unchecked_gamma((dof - jnp.arange(k, dtype=dtype)) / 2, 1.0, key=key_diagonal)
    chi_square = jnp.maximum(chi_square, jnp.finfo(dtype).tiny)  # can be 0 with few degrees of freedom
    a = jnp.tril(jax.random.normal(key_below, (k, k), dtype), -1) + jnp.diag(jnp.sqrt(chi_square))
    # Jitter: where the rows lie in a subspace, rounding can cancel the little that a small s adds to the diagonal.
    lower = cholesky(scale_matrix + jnp.diag(2 * k * jnp.finfo(dtype).eps * jnp.diagonal(scale_matrix)))
    transposed_solve = lambda lower, columns: solve_transposed(jnp.broadcast_to(lower, (k, k, k)), columns.T).T
    precision_root = transposed_solve(lower, a)
    root = jnp.matmul(lower, transposed_solve(a, jnp.eye(k, dtype=dtype)), precision=HIGHEST)
    return jnp.matmul(precision_root, precision_root.T, precision=HIGHEST), root


def gamma(shape: Number, rate: Number, *, key: PRNGKeyArray) -> Array:
    """Draws from the gamma distribution of mean shape / rate.

    Raises:
        ValueError: a shape or rate that is not finite and positive.
    """
    check.random_key(key)
    check.strength("shape", shape)
    check.strength("rate", rate)
    shape, rate = floats(shape, rate)
    return unchecked_gamma(shape, rate, key=key)


@jax.jit
def unchecked_gamma(shape: Number, rate: Number, *, key: PRNGKeyArray) -> Array:
    """`gamma` without checks, in the type of the shape: for compiled code."""
    shape = jnp.asarray(shape)
    return jax.random.gamma(key, shape, dtype=shape.dtype) / rate
