"""Sparse times dense: sum the rows of a table that each row of a compressed sparse matrix names.

| `on` | |
| --- | --- |
| `"cpu"` | JAX's own product of a BCSR matrix; 500k entries and d = 32, 1.2 ms against 24 for a sorted segment_sum |
| `"gpu"` | a sorted segment_sum; or as on a TPU, see `fast_scatters` |
| `"tpu"` | `by_pieces`: no scatter at all |

20M entries, d = 32 on an H100: 1.25 ms by a sorted segment_sum, 5.5 to 10 by the BCSR product, which is cuSPARSE there.
"""

from functools import partial

import jax
import jax.numpy as jnp
import jaxlib
from jax import Array
from jaxtyping import Float, Int

from jaxrec.gather import gather
from jaxrec.kernels.platform import On, by_platform
from jaxrec.types import Linked

__all__ = ["by_pieces", "csr_matmul", "fast_scatters", "linked_matmul"]

# Entries that are summed in one go; a row ends with a piece of fewer.
PIECE = 32


def fast_scatters(on: On) -> bool:
    """Whether float32 scatter-adds are atomic adds: on GPUs, but for jaxlib 0.10.2 to 0.11.1.

    Those compare and swap instead, and are 450 to 2,000 times slower where many entries meet (openxla/xla#46225,
    jax-ml/jax#38806). 0.11.2 was measured to be fast.
    """
    return on == "gpu" and not (0, 10, 2) <= jaxlib.version.__version_info__[:3] < (0, 11, 2)


def csr_matmul(
    start: Int[Array, " starts"],
    col: Int[Array, " n"],
    value: Float[Array, " n"],
    table: Float[Array, "k d"],
    *,
    on: On | None = None,
) -> Float[Array, "m d"]:
    """out[r] = sum over start[r] <= p < start[r+1] of value[p] * table[col[p]].

    This is what the gradient of a gather is, without the scatter-add that autodiff makes of it. Differentiable and
    vmap-able.

    Args:
        start: row pointers, ascending, from 0 to n.
        col: ids into `table`; trusted.
        value: the entries; 0 for padding.
        table: the dense matrix.
        on: the form; None: by the platform.
    """
    given = start, col, value, table
    return by_platform(_csr_matmul, *given) if on is None else _csr_matmul(*given, on=on)


def _csr_matmul(start: Array, col: Array, value: Array, table: Array, *, on: On) -> Array:
    m, d = len(start) - 1, table.shape[1]
    if on == "cpu":
        from jax.experimental import sparse  # 0.1 s to import, and only this needs it

        # Columns are filled up to a multiple of 8, the width of a CPU's vectors: 20M entries, d=32 .06 s, d=33 .18 s,
        # and .12 s filled up to 40.
        filled = jnp.pad(table, ((0, 0), (0, -d % 8)))
        return (sparse.BCSR((value, col, start), shape=(m, len(table))) @ filled)[:, :d]
    if fast_scatters(on):
        row = jnp.repeat(jnp.arange(m, dtype=jnp.int32), jnp.diff(start), total_repeat_length=len(col))
        return jax.ops.segment_sum(value[:, None] * gather(table, col), row, m, indices_are_sorted=True)
    return by_pieces(start, col, value, table)


def by_pieces(start: Array, col: Array, value: Array, table: Array) -> Array:
    """`csr_matmul` by gathers alone, in an order that does not change from run to run.

    Rows are cut into pieces of PIECE entries, whose sums are sums over an axis; and a row's pieces are added up by an
    associative scan that begins anew at each row. There are at most n / PIECE + m of them.
    """
    n, m, d = len(col), len(start) - 1, table.shape[1]
    if n == 0 or m == 0:
        return jnp.zeros((m, d), table.dtype)
    begin = jnp.pad(jnp.cumsum(-(-jnp.diff(start) // PIECE), dtype=jnp.int32), (1, 0))  # each row's first piece
    pieces = -(-n // PIECE) + m
    row = jnp.repeat(jnp.arange(m, dtype=jnp.int32), jnp.diff(begin), total_repeat_length=pieces)
    number = jnp.arange(pieces, dtype=jnp.int32) - gather(begin, row)
    entry = (gather(start, row) + PIECE * number)[:, None] + jnp.arange(PIECE, dtype=jnp.int32)[None, :]
    there = entry < gather(start, row + 1)[:, None]
    entry = jnp.minimum(entry, n - 1)
    weight = jnp.where(there, gather(value, entry), 0)
    sums = jnp.sum(weight[:, :, None] * gather(table, gather(col, entry)), axis=1)

    def add(before: tuple[Array, Array], after: tuple[Array, Array]) -> tuple[Array, Array]:
        anew, total = after
        return before[0] | anew, jnp.where(anew[:, None], total, before[1] + total)

    _, totals = jax.lax.associative_scan(add, (number == 0, sums))
    return jnp.where((start[1:] > start[:-1])[:, None], gather(totals, begin[1:] - 1), 0)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def linked_matmul(value: Array, ratings: Linked, table: Array, side: str) -> Array:
    """The rows of `table` that each user's (or item's) ratings name, times a number per rating, summed.

    side='user': out[j] = sum over the ratings (i, j) of user j of value(i, j) * table[i]; side='item' the same with the
    roles exchanged. A multi-hot history times a kernel is this, without the zeros. Its derivative in the table is the
    other side's sum, so that neither direction scatters; values are data here: no derivative reaches them.

    Args:
        value: [n], a number per rating, in the users' order; 0 for what is left out and for padding.
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
