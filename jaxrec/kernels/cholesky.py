"""Cholesky factors and solves for batches of small matrices, in plain JAX with the batch as the last axis.

Why not `jnp.linalg.cholesky`: on the CPU it is a LAPACK call that hands its batch to the thread pool that runs it, and
waits there. Two at once (two buckets of rows, say) on a 2-core machine wait for each other for ever: jaxlib 0.10.2,
both workers in CholeskyFactorization::Kernel -> BlockingCounter::Wait, at d = 16 in most runs of an ALS sweep.
Against LAPACK, factorize and solve, 2 cores: 943 x (9, 17, 33) 0.6, 1.8, 7 ms against 0.7, 1.3, 3 ms; 4096 x 64 147
against 113 ms; 1024 x 128 515 against 102 ms. With the batch first the same loops took 2 to 4 times as long.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

__all__ = ["cho_solve", "cholesky", "solve_transposed"]

# Floats of matrices worked on at once: 4 MiB, near the cache. 1/4 and 4 times this were slower at d = 64.
CHUNK = 2**20


def cholesky(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """The lower triangular L with L L' = matrix; NaN where the matrix is not positive definite."""
    if matrix.size == 0:
        return matrix
    d = matrix.shape[-1]
    flat = matrix.reshape(-1, d, d)
    size = min(len(flat), max(1, CHUNK // (d * d)))
    padding = jnp.broadcast_to(jnp.eye(d, dtype=matrix.dtype), (-len(flat) % size, d, d))
    chunks = jnp.concatenate([flat, padding]).reshape(-1, size, d, d)
    return jax.lax.map(_eliminate, chunks).reshape(-1, d, d)[: len(flat)].reshape(matrix.shape)


def _eliminate(chunk: Float[Array, "batch d d"]) -> Float[Array, "batch d d"]:
    """Gaussian elimination without pivoting, which for a symmetric matrix leaves U = D^(1/2) L'."""
    d = chunk.shape[-1]
    below = jnp.arange(d)[:, None]

    def column(j: Array, a: Array) -> Array:  # a: [d, d, batch]
        pivot = jax.lax.dynamic_index_in_dim(a, j, keepdims=False)
        factor = jnp.where(below > j, pivot / jax.lax.dynamic_index_in_dim(pivot, j), 0)
        return a - factor[:, None, :] * pivot[None, :, :]

    upper = jax.lax.fori_loop(0, d, column, jnp.moveaxis(chunk, 0, -1))
    diagonal = jnp.diagonal(upper)  # [batch, d]
    lower = jnp.moveaxis(upper, -1, 0).swapaxes(-1, -2) / jnp.sqrt(diagonal)[:, None, :]
    return jnp.where(jnp.tri(d, dtype=bool), lower, 0)


def cho_solve(lower: Float[Array, "*batch d d"], rhs: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Z with L L' z = rhs."""
    if rhs.size == 0:
        return rhs
    batch_last, right = jnp.moveaxis(lower, (-2, -1), (0, 1)), jnp.moveaxis(rhs, -1, 0)

    def entry(j: Array, z: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(batch_last, j, keepdims=False)
        return z.at[j].set((right[j] - jnp.sum(row * z, axis=0)) / row[j])

    forward = jax.lax.fori_loop(0, rhs.shape[-1], entry, jnp.zeros_like(right))
    return solve_transposed(lower, jnp.moveaxis(forward, 0, -1))


def solve_transposed(lower: Float[Array, "*batch d d"], rhs: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Z with L' z = rhs, by back substitution."""
    if rhs.size == 0:
        return rhs
    d = rhs.shape[-1]
    batch_last, right = jnp.moveaxis(lower, (-2, -1), (1, 0)), jnp.moveaxis(rhs, -1, 0)  # row j is L's column j

    def entry(step: Array, z: Array) -> Array:
        j = d - 1 - step
        column = jax.lax.dynamic_index_in_dim(batch_last, j, keepdims=False)
        return z.at[j].set((right[j] - jnp.sum(column * z, axis=0)) / column[j])

    return jnp.moveaxis(jax.lax.fori_loop(0, d, entry, jnp.zeros_like(right)), 0, -1)
