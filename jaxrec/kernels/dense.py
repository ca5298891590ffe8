"""Normal equations of all rows of a small, masked matrix as one matrix product, and their solves, batch last.

Entry (i, r) of the matrix is row r's target at the table's row i. All Gram matrices at once are the product of the
k (k + 1) / 2 products of the table's columns with the weights: more flops than what is observed needs, by 1 / density,
and at the speed of a large product. A vmap over tables (members of a grid, chains) makes the product wider, and leaves
weights that all share as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxrec.kernels import cholesky
from jaxrec.kernels.cholesky import LEAST
from jaxrec.kernels.platform import On, by_platform

__all__ = ["dense_normal_equations", "solve"]

HIGHEST = jax.lax.Precision.HIGHEST  # accelerators would otherwise round to bfloat16 or TF32


def dense_normal_equations(
    table: Float[Array, "m k"],
    weight: Float[Array, "m n"],
    y: Float[Array, "m n"],
    of_other: Float[Array, " m"] | None = None,
) -> tuple[Float[Array, "k k n"], Float[Array, "k n"]]:
    """(X' D X, X' D y) of every row, the rows last.

    Args:
        table: X, the features of all.
        weight: D's diagonal for each row, 0 where nothing was observed.
        y: the targets, finite also there.
        of_other: another factor of D, the same in every row; None: ones.
    """
    k = table.shape[1]
    first, second = np.tril_indices(k)
    place = np.zeros((k, k), np.int32)
    place[first, second] = place[second, first] = np.arange(len(first))
    weighted = table if of_other is None else table * of_other[:, None]
    products = table[:, first] * weighted[:, second]
    gram = jnp.matmul(products.T, weight, precision=HIGHEST)
    return gram[place], jnp.matmul(weighted.T, weight * y, precision=HIGHEST)


def solve(matrix: Float[Array, "k k n"], rhs: Float[Array, "k n"]) -> tuple[Float[Array, "k n"], Float[Array, " n"]]:
    """(the z with matrix z = rhs of n positive definite matrices, the shares).

    By elimination without pivoting on a CPU, where a loop over columns is one of long vectors; elsewhere by
    `cholesky.solve`, for 2 k steps of a loop are as many launches. The shares are those of `cholesky.shares`; what
    rounding has made singular is answered as in `cholesky.solve`.
    """
    return by_platform(_solve, matrix, rhs)


def _solve(matrix: Array, rhs: Array, *, on: On) -> tuple[Array, Array]:
    if on != "cpu":
        (z,), share = cholesky.solve(jnp.moveaxis(matrix, -1, 0), (rhs.T,), on=on)
        return z.T, share
    k = len(rhs)
    index = jnp.arange(k)[:, None]
    diagonal = jnp.moveaxis(jnp.diagonal(matrix), -1, 0)
    least = LEAST * jnp.finfo(matrix.dtype).eps * diagonal

    def eliminate(j: Array, a: Array) -> Array:  # [k, k + 1, n]
        pivot = a[j]
        pivot = pivot.at[j].max(least[j])
        factor = jnp.where(index > j, a[:, j] / pivot[j][None], 0)
        return (a - factor[:, None, :] * pivot[None, :, :]).at[j].set(pivot)

    upper = jax.lax.fori_loop(0, k, eliminate, jnp.concatenate([matrix, rhs[:, None, :]], axis=1))
    share = jnp.min(jnp.moveaxis(jnp.diagonal(upper[:, :k]), -1, 0) / diagonal, axis=0, initial=1)

    def back(step: Array, z: Array) -> Array:  # what is not solved yet is 0 in z
        j = k - 1 - step
        return z.at[j].set((upper[j, k] - jnp.sum(upper[j, :k] * z, axis=0)) / upper[j, j])

    return jax.lax.fori_loop(0, k, back, jnp.zeros_like(rhs)), share
