"""Minibatches of observed ratings: reshuffled every epoch, each with its share of the penalty."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec.counting_sort import row_counts
from jaxrec.types import Observed, Ratings

__all__ = ["minibatches"]


def minibatches(ratings: Ratings, batch_size: int, *, rng: int) -> Callable[[int], Iterator[Observed]]:
    """Returns a function from an epoch's number to its batches: every rating once, in an order set by (rng, epoch).

    Each batch carries the rating counts of its users and items, so `losses.cost` summed over the batches equals the
    cost of all ratings, including penalty and gradient. The last batch is padded to `batch_size`: one shape, one
    compilation. The batches depend only on the epoch, so a resumed run sees the batches of an uninterrupted one.

    Args:
        ratings: the ratings to draw from.
        batch_size: the number of ratings per batch.
        rng: a seed; each epoch's order is drawn from the seed and the epoch's number.

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
            batch: dict[str, Any] = {k: jnp.asarray(np.pad(v[rows], pad)) for k, v in columns.items() if v is not None}
            yield Observed(**batch)

    return epoch_batches
