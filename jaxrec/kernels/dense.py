"""Normal equations of all rows of a small, masked matrix as one matrix product, and their solves, with the batch last.

Entry (i, r) of the matrix is row r's target at row i of the table. All Gram matrices at once are the product of the
k (k + 1) / 2 products of the table's columns with the weights: 1 / density times the flops that the observed entries
need, at the speed of a large product. A vmap over tables (members of a grid, chains) makes the product wider, and
leaves weights that all members share as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxrec.kernels import cholesky
from jaxrec.kernels.cholesky import MIN_PIVOT_EPS
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.numerics import HIGHEST

__all__ = ["dense_normal_equations", "solve"]


def dense_normal_equations(
    table: Float[Array, "m k"],
    weight: Float[Array, "m n"],
    y: Float[Array, "m n"],
    table_weight: Float[Array, " m"] | None = None,
) -> tuple[Float[Array, "k k n"], Float[Array, "k n"]]:
    """(X' D X, X' D y) of every row, with the rows last.

    For k = 2 each Gram matrix has three distinct entries, rows of one product with the weights W [m, n]::

        [ x0 x0 ]'       [ g0 ]                      [ g0[r]  g1[r] ]
        [ x1 x0 ]   W  = [ g1 ]     gram[:, :, r] =  [ g1[r]  g2[r] ]
        [ x1 x1 ]        [ g2 ]

    Args:
        table: X, the features of all.
        weight: the diagonal of D for each row, 0 where nothing was observed.
        y: the targets, finite there too.
        table_weight: another factor of D, the same for every row; None: ones.
    """
    k = table.shape[1]
    first, second = np.tril_indices(k)
    position = np.zeros((k, k), np.int32)
    position[first, second] = position[second, first] = np.arange(len(first))
    weighted = table if table_weight is None else table * table_weight[:, None]
    products = table[:, first] * weighted[:, second]
    gram = jnp.matmul(products.T, weight, precision=HIGHEST)
    return gram[position], jnp.matmul(weighted.T, weight * y, precision=HIGHEST)


def solve(matrix: Float[Array, "k k n"], rhs: Float[Array, "k n"]) -> tuple[Float[Array, "k n"], Float[Array, " n"]]:
    """(the z with matrix z = rhs of n positive definite matrices, their pivot ratios).

    On a CPU by elimination without pivoting, where a loop over columns works on long vectors; elsewhere by
    `cholesky.solve`, because 2 k steps of a loop are as many launches. The ratios are those of `cholesky.pivot_ratio`;
    matrices that rounding has made singular are solved as in `cholesky.solve`.
    """
    return by_platform(_solve, matrix, rhs)


def _solve(matrix: Array, rhs: Array, *, platform: Platform) -> tuple[Array, Array]:
    if platform != "cpu":
        (z,), ratio = cholesky.solve(jnp.moveaxis(matrix, -1, 0), (rhs.T,), platform=platform)
        return z.T, ratio
    k = len(rhs)
    index = jnp.arange(k)[:, None]
    diagonal = jnp.moveaxis(jnp.diagonal(matrix), -1, 0)
    least = MIN_PIVOT_EPS * jnp.finfo(matrix.dtype).eps * diagonal

    def eliminate(j: Array, a: Array) -> Array:  # [k, k + 1, n]
        pivot_row = a[j]
        pivot_row = pivot_row.at[j].max(least[j])
        factor = jnp.where(index > j, a[:, j] / pivot_row[j][None], 0)
        return (a - factor[:, None, :] * pivot_row[None, :, :]).at[j].set(pivot_row)

    upper = jax.lax.fori_loop(0, k, eliminate, jnp.concatenate([matrix, rhs[:, None, :]], axis=1))
    ratio = jnp.min(jnp.moveaxis(jnp.diagonal(upper[:, :k]), -1, 0) / diagonal, axis=0, initial=1)

    def substitute(step: Array, z: Array) -> Array:  # entries of z that are not solved yet are 0
        j = k - 1 - step
        return z.at[j].set((upper[j, k] - jnp.sum(upper[j, :k] * z, axis=0)) / upper[j, j])

    return jax.lax.fori_loop(0, k, substitute, jnp.zeros_like(rhs)), ratio
