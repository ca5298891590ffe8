"""Rows worked on some at a time: so that what each step gathers stays in the cache, and memory is bounded."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["by_chunks"]


def by_chunks(f: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """f(rows) where f works row by row: called with `size` rows at a time, one compilation, results laid end to end.

    Slices, and no padded copy of the rows: the last chunk begins early, and what it gives of rows that the one before
    it had is the same. The results are written where they stay, for those of a sweep of ALS are gigabytes.

    Args:
        f: a pytree of arrays with one leading axis -> another one.
        rows: the pytree.
        size: rows at a time, >= 1.
    """
    n = len(jax.tree.leaves(rows)[0])
    if n <= size:
        return f(rows)
    cut = lambda first: jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), rows)
    put = lambda out, part, first: jax.lax.dynamic_update_slice_in_dim(out, part, first, 0)

    def chunk(number: Array, out: Any) -> Any:
        first = jnp.minimum(number * size, n - size)
        return jax.tree.map(lambda out, part: put(out, part, first), out, f(cut(first)))

    like = jax.eval_shape(f, jax.eval_shape(cut, jnp.int32(0)))
    empty = jax.tree.map(lambda a: jnp.zeros((n, *a.shape[1:]), a.dtype), like)
    return jax.lax.fori_loop(0, -(-n // size), chunk, empty)
