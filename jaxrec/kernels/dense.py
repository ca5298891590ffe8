"""Normal equations of all rows at once where the ratings fill a table: one product of the mask with pairs of features.

The Gram matrix of row r is the sum of x x' over what it rated, so that all of them together are

    where [n, m] @ vec(x x') [m, d (d + 1) / 2]

a matrix product at full speed, with nothing gathered. It takes n m d^2 flops whatever the share of the cells that were
rated: 943 x 1,682 cells at d = 16 are .4 GFLOP. With chains or a grid of models in front (vmap), the mask is shared and
the product has as many more columns.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxrec.kernels.least_squares import Equations

__all__ = ["normal_equations"]

HIGHEST = jax.lax.Precision.HIGHEST  # accelerators would otherwise round to bfloat16 or TF32


def normal_equations(
    table: Float[Array, "m d"],
    others: Float[Array, " m"],
    weights: Float[Array, " m"],
    where: Float[Array, "n m"],
    y: Float[Array, "n m"],
) -> Equations:
    """The sums of `least_squares.normal_equations` with an intercept, for targets y - others, from a table's cells.

    Args:
        table: the features.
        others: what the features' owners add to a prediction, taken off the targets.
        weights: of every entry that the owner is in.
        where: 1 where a row has a target, 0 elsewhere.
        y: targets less what does not change; 0 where there are none.
    """
    d = table.shape[1]
    first, second = np.triu_indices(d)
    place = np.zeros((d, d), np.int32)
    place[first, second] = place[second, first] = np.arange(len(first))
    weigh = lambda columns: columns * weights[:, None]
    bare = jnp.concatenate([table, others[:, None], jnp.ones_like(others)[:, None]], axis=1)  # x, c, 1
    pairs = jnp.concatenate([table[:, first] * table[:, second], bare, others[:, None] * bare[:, : d + 1]], axis=1)
    product = lambda cells, columns: jnp.matmul(cells, weigh(columns), precision=HIGHEST)
    known, told, p = product(where, pairs), product(y, bare), len(first)
    packed, x, c, one = known[:, :p], known[:, p : p + d], known[:, p + d], known[:, p + d + 1]
    cx, cc = known[:, p + d + 2 : -1], known[:, -1]
    square = jnp.matmul(y * y, weights, precision=HIGHEST) - 2 * told[:, d] + cc
    sums = jnp.stack([square, told[:, d + 1] - c, one], axis=1)
    return Equations(packed[:, place], (told[:, :d] - cx, x), sums)
