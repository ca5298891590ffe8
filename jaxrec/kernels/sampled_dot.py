"""Dot products of sampled pairs of rows: the predictions of observed ratings, and nothing else of W X'."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.gather import gather, rows_where

__all__ = ["sampled_dot"]

# Floats of each table gathered at once on the CPU, so that both blocks stay in the cache. 10M pairs of rows of 32,
# sorted by user, 2 cores: .16 to .19 s in chunks of 512 to 16k pairs; with a sum over the row in place of the product
# with ones, .36 to .45; all at once, which writes what it gathered to memory, 1.2.
CHUNK = 2**17


def sampled_dot(
    w: Float[Array, "n_users d"], x: Float[Array, "n_items d"], user: Int[Array, " n"], item: Int[Array, " n"]
) -> Float[Array, " n"]:
    """out[k] = w[user[k]] . x[item[k]]; ids are trusted.

    On the CPU in chunks; an accelerator's compiler fuses the gathers into the sum, and gets it whole.
    """
    return jax.lax.platform_dependent(w, x, user, item, cpu=_chunked, default=_whole)


def _whole(w: Array, x: Array, user: Array, item: Array) -> Array:
    return jnp.sum(gather(w, user) * gather(x, item), axis=-1)


def _chunked(w: Array, x: Array, user: Array, item: Array) -> Array:
    n, size = len(user), max(1, CHUNK // max(1, w.shape[1]))
    ones = jnp.ones((w.shape[1], 1), w.dtype)

    def chunk(pair: tuple[Array, Array]) -> Array:
        user, item = pair
        products = gather(w, user) * rows_where(x, item, item >= 0, on="cpu")  # all of them are: see there
        return (products @ ones)[:, 0]  # a product sums faster than a sum

    whole = n - n % size
    chunks = jax.lax.map(chunk, (user[:whole].reshape(-1, size), item[:whole].reshape(-1, size)))
    return jnp.concatenate([chunks.reshape(-1), chunk((user[whole:], item[whole:]))])
