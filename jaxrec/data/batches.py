"""Minibatches of observed ratings: shuffled anew each epoch, each with its share of the penalty."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec.group import counts_of
from jaxrec.types import Observed, Ratings

__all__ = ["minibatches"]


def minibatches(ratings: Ratings, size: int, *, seed: int) -> Callable[[int], Iterator[Observed]]:
    """A function of the epoch's number that gives its batches: every rating once, in an order of (seed, epoch).

    Each batch carries its rows' rating counts, so `losses.cost` of the batches adds up to that of the whole, penalty
    and gradient too. The last batch is padded to `size`: one shape, one compilation. Being a function of the epoch, a
    resumed run sees the batches that the uninterrupted one would have seen.

    Raises:
        ValueError: size < 1.
    """
    if size < 1:
        raise ValueError(f"size: expected a number >= 1, got {size}.")
    columns: dict[str, Any] = {
        "user": ratings.user,
        "item": ratings.item,
        "value": ratings.value,
        "where": np.ones(len(ratings), bool),
        "weights": ratings.weights,
        "user_count": counts_of(ratings.user),
        "item_count": counts_of(ratings.item),
    }

    def epoch_batches(epoch: int) -> Iterator[Observed]:
        order = np.random.default_rng((seed, epoch)).permutation(len(ratings))
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            pad = (0, size - len(rows))
            cut: dict[str, Any] = {k: jnp.asarray(np.pad(v[rows], pad)) for k, v in columns.items() if v is not None}
            yield Observed(**cut)

    return epoch_batches
