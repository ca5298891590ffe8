"""Sparse times dense: sum the rows of a table that each row of a compressed sparse matrix names."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

__all__ = ["csr_matmul"]


def csr_matmul(
    start: Int[Array, " starts"], col: Int[Array, " n"], value: Float[Array, " n"], table: Float[Array, "k d"]
) -> Float[Array, "m d"]:
    """out[r] = sum over start[r] <= p < start[r+1] of value[p] * table[col[p]].

    This is what the gradient of a gather is, without the scatter-add that autodiff makes of it: on the CPU, 500k
    entries and d=32, 1.2 ms against 24 ms for a sorted segment_sum. Differentiable and vmap-able.

    Args:
        start: row pointers, ascending, from 0 to n.
        col: ids into `table`; trusted.
        value: the entries; 0 for padding.
        table: the dense matrix. Its columns are filled up to a multiple of 8, the width of the CPU's vectors: 20M
            entries, d=32 .06 s, d=33 .18 s, and .12 s filled up to 40.
    """
    from jax.experimental import sparse  # 0.1 s to import, and only this needs it

    d = table.shape[1]
    filled = jnp.pad(table, ((0, 0), (0, -d % 8)))
    return (sparse.BCSR((value, col, start), shape=(len(start) - 1, len(table))) @ filled)[:, :d]
