"""Rows worked on some at a time: so that what each step gathers stays in the cache, and memory is bounded."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["by_chunks"]


def by_chunks(f: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """f(rows) where f works row by row: called with `size` rows at a time, one compilation, results laid end to end.

    Slices, and no padded copy of the rows: the last chunk begins early, and gives only what the others have not.

    Args:
        f: a pytree of arrays with one leading axis -> another one.
        rows: the pytree.
        size: rows at a time, >= 1.
    """
    n = len(jax.tree.leaves(rows)[0])
    if n <= size:
        return f(rows)
    firsts = jnp.minimum(jnp.arange(0, n, size, dtype=jnp.int32), n - size)
    cut = lambda first: jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), rows)
    chunks = jax.lax.map(lambda first: f(cut(first)), firsts)

    def join(out: Array) -> Array:
        whole = out[:-1].reshape(-1, *out.shape[2:])
        return jnp.concatenate([whole, out[-1, len(firsts) * size - n :]])

    return jax.tree.map(join, chunks)
