"""Sparse times dense: sums of the rows of a table that each row of a compressed sparse matrix names.

| `platform` | implementation |
| --- | --- |
| `"cpu"` | JAX's own product of a BCSR matrix; 500k entries and d = 32, 1.2 ms against 24 for a sorted segment_sum |
| `"gpu"` | a sorted segment_sum; or as on a TPU, see `fast_scatters` |
| `"tpu"` | `by_pieces`, without a scatter |

20M entries, d = 32 on an H100: 1.25 ms by a sorted segment_sum, 5.5 to 10 by the BCSR product, which is cuSPARSE there.
"""

from functools import partial

import jax
import jax.numpy as jnp
import jaxlib
from jax import Array
from jaxtyping import Float, Int

from jaxrec.gather import gather
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.types import Linked

__all__ = ["by_pieces", "csr_matmul", "fast_scatters", "linked_matmul"]

# Entries of a row that are summed along one axis; the last piece of a row may have fewer.
PIECE_ENTRIES = 32


def fast_scatters(platform: Platform) -> bool:
    """Whether float32 scatter-adds are atomic adds: on GPUs, except with jaxlib 0.10.2 to 0.11.1.

    Those compare and swap instead, and are 450 to 2,000 times slower where many entries meet (openxla/xla#46225,
    jax-ml/jax#38806). 0.11.2 was measured to be fast.
    """
    return platform == "gpu" and not (0, 10, 2) <= jaxlib.version.__version_info__[:3] < (0, 11, 2)


def csr_matmul(
    start: Int[Array, " starts"],
    col: Int[Array, " n"],
    value: Float[Array, " n"],
    table: Float[Array, "k d"],
    *,
    platform: Platform | None = None,
) -> Float[Array, "m d"]:
    """out[r] = sum over start[r] <= p < start[r+1] of value[p] * table[col[p]].

    This is the gradient of a gather, without the scatter-add that autodiff makes of it. Differentiable and vmap-able.

    Args:
        start: row pointers, ascending, from 0 to n.
        col: ids into `table`; trusted.
        value: the entries; 0 for padding.
        table: the dense matrix.
        platform: whose implementation to run; None: that of the platform the program is lowered for.
    """
    args = start, col, value, table
    return by_platform(_csr_matmul, *args) if platform is None else _csr_matmul(*args, platform=platform)


def _csr_matmul(start: Array, col: Array, value: Array, table: Array, *, platform: Platform) -> Array:
    m, d = len(start) - 1, table.shape[1]
    if platform == "cpu":
        from jax.experimental import sparse  # takes 0.1 s to import, and only this branch needs it

        # Columns are padded to a multiple of 8, the width of a CPU's vectors: 20M entries take 0.06 s with d = 32,
        # 0.18 s with d = 33, and 0.12 s with d = 33 padded to 40.
        padded = jnp.pad(table, ((0, 0), (0, -d % 8)))
        return (sparse.BCSR((value, col, start), shape=(m, len(table))) @ padded)[:, :d]
    if fast_scatters(platform):
        row = jnp.repeat(jnp.arange(m, dtype=jnp.int32), jnp.diff(start), total_repeat_length=len(col))
        return jax.ops.segment_sum(value[:, None] * gather(table, col), row, m, indices_are_sorted=True)
    return by_pieces(start, col, value, table)


def by_pieces(start: Array, col: Array, value: Array, table: Array) -> Array:
    """`csr_matmul` by gathers alone, in an order that does not change from run to run.

    Rows are cut into pieces of at most `PIECE_ENTRIES` entries: at most n / PIECE_ENTRIES + m pieces. A piece is summed
    along an axis, and the pieces of a row are added by an associative scan that restarts at every row, so that a row's
    last piece holds its sum. For rows of 70, 10, 0 and 33 entries::

        entries of the pieces    32 32  6 | 10 | | 32  1
        index in the row          0  1  2 |  0 | |  0  1
    """
    n, m, d = len(col), len(start) - 1, table.shape[1]
    if n == 0 or m == 0:
        return jnp.zeros((m, d), table.dtype)
    # the first piece of each row
    first_piece = jnp.pad(jnp.cumsum(-(-jnp.diff(start) // PIECE_ENTRIES), dtype=jnp.int32), (1, 0))
    n_pieces = -(-n // PIECE_ENTRIES) + m
    row = jnp.repeat(jnp.arange(m, dtype=jnp.int32), jnp.diff(first_piece), total_repeat_length=n_pieces)
    index_in_row = jnp.arange(n_pieces, dtype=jnp.int32) - gather(first_piece, row)
    first_entry = gather(start, row) + PIECE_ENTRIES * index_in_row
    entry = first_entry[:, None] + jnp.arange(PIECE_ENTRIES, dtype=jnp.int32)[None, :]
    valid = entry < gather(start, row + 1)[:, None]
    entry = jnp.minimum(entry, n - 1)
    weight = jnp.where(valid, gather(value, entry), 0)
    sums = jnp.sum(weight[:, :, None] * gather(table, gather(col, entry)), axis=1)

    def add(before: tuple[Array, Array], after: tuple[Array, Array]) -> tuple[Array, Array]:
        restarts, total = after
        return before[0] | restarts, jnp.where(restarts[:, None], total, before[1] + total)

    _, totals = jax.lax.associative_scan(add, (index_in_row == 0, sums))
    return jnp.where((start[1:] > start[:-1])[:, None], gather(totals, first_piece[1:] - 1), 0)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def linked_matmul(value: Array, ratings: Linked, table: Array, side: str) -> Array:
    """For each user (or item), the sum of the rows of `table` that its ratings name, times a number per rating.

    side='user': out[j] = sum over the ratings (i, j) of user j of value(i, j) * table[i]; side='item' the same with the
    roles exchanged. This is the product of a multi-hot history and a kernel, without the zeros. Its derivative with
    respect to the table is the sum over the other side, so that neither direction scatters; values are held fixed: no
    derivative reaches them.

    Args:
        value: [n], a number per rating, in the users' order; 0 for ratings that do not count and for padding.
        ratings: Linked.
        table: [n_items, d] for side='user', [n_users, d] for side='item'.
        side: 'user' or 'item'.
    """
    if side == "user":
        return csr_matmul(ratings.user_start, ratings.item, value, table)
    return csr_matmul(ratings.item_start, ratings.user_by_item, gather(value, ratings.by_item), table)


def _forward(value: Array, ratings: Linked, table: Array, side: str) -> tuple[Array, tuple[Array, Linked]]:
    return linked_matmul(value, ratings, table, side), (value, ratings)


def _backward(side: str, saved: tuple[Array, Linked], g: Array) -> tuple[None, None, Array]:
    value, ratings = saved
    return None, None, linked_matmul(value, ratings, g, "item" if side == "user" else "user")


linked_matmul.defvjp(_forward, _backward)
