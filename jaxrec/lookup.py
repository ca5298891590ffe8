"""The one way to read rows of a table, or entries of a column, by id."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int, Shaped

__all__ = ["lookup"]


def lookup(table: Shaped[Array, "n ..."], ids: Int[Array, "..."]) -> Shaped[Array, "..."]:
    """Rows of a table: table[ids].

    Ids are trusted: they were checked on the host, where data is built, so XLA need not clamp them. On the CPU that
    is five times the default gather's speed (rows of 128 floats, 6.5 against 1.3 GB/s).
    """
    return jnp.asarray(table).at[ids].get(mode="promise_in_bounds")
