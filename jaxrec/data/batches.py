"""Minibatches of observed ratings: shuffled anew each epoch, each with its share of the penalty."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec.counting_sort import row_counts
from jaxrec.types import Observed, Ratings

__all__ = ["minibatches"]


def minibatches(ratings: Ratings, batch_size: int, *, rng: int) -> Callable[[int], Iterator[Observed]]:
    """A function of the epoch's number that gives its batches: every rating once, in an order of (rng, epoch).

    Each batch carries its rows' rating counts, so `losses.cost` of the batches adds up to that of the whole, penalty
    and gradient too. The last batch is padded to `batch_size`, so that there is one shape and one compilation. Batches
    are a function of the epoch, so a resumed run sees those that the uninterrupted one would have seen.

    Args:
        ratings: what to draw from.
        batch_size: the ratings in each batch.
        rng: a seed. Every epoch has an order of its own, made of the seed and the epoch's number.

    Raises:
        ValueError: batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a number >= 1, got {batch_size}.")
    columns: dict[str, Any] = {
        "user": ratings.user,
        "item": ratings.item,
        "value": ratings.value,
        "where": np.ones(len(ratings), bool),
        "weights": ratings.weights,
        "user_count": row_counts(ratings.user),
        "item_count": row_counts(ratings.item),
    }

    def epoch_batches(epoch: int) -> Iterator[Observed]:
        order = np.random.default_rng((rng, epoch)).permutation(len(ratings))
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            pad = (0, batch_size - len(rows))
            cut: dict[str, Any] = {k: jnp.asarray(np.pad(v[rows], pad)) for k, v in columns.items() if v is not None}
            yield Observed(**cut)

    return epoch_batches
