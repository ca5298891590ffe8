"""Rows worked on some at a time: so that what each step gathers stays in the cache, and memory is bounded."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["by_chunks"]


MANY = 64  # chunks from which lanes pay what they cost to compile


def by_chunks(f: Callable[[Any], Any], rows: Any, size: int, *, lanes: int = 1) -> Any:
    """f(rows) where f works row by row: called with `size` rows at a time, one compilation, results laid end to end.

    Slices, and no padded copy of the rows: the last chunk begins early, and gives only what the others have not.

    Args:
        f: a pytree of arrays with one leading axis -> another one.
        rows: the pytree.
        size: rows at a time, >= 1.
        lanes: loops that the chunks are divided between, where they are many. XLA's CPU backend runs loops that do not
            need each other at the same time, and small operations of one fill what the other leaves of the cores; each
            is compiled for itself.
    """
    n = len(jax.tree.leaves(rows)[0])
    if n <= size:
        return f(rows)
    firsts = np.minimum(np.arange(0, n, size, dtype=np.int32), n - size)
    cut = lambda first: jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), rows)
    each = -(-len(firsts) // (lanes if len(firsts) >= MANY else 1))
    chunks = [
        jax.lax.map(lambda first: f(cut(first)), jnp.asarray(firsts[k : k + each])) for k in range(0, len(firsts), each)
    ]

    def join(*out: Array) -> Array:
        whole = [part.reshape(-1, *part.shape[2:]) for part in (*out[:-1], out[-1][:-1])]
        return jnp.concatenate([*whole, out[-1][-1, len(firsts) * size - n :]])

    return jax.tree.map(join, *chunks)
