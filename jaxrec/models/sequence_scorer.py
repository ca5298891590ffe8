"""Scores of the next item by a fitted sequence model, for the users of a table of events and for requests.

Each user's vector is the model's output at their last event, computed once from packed rows; scores are its products
with the item table. Of a user with more than `window` events the model sees the newest `window`: `dropped` counts the
others, per user.

>>> import jax, jax.numpy as jnp
>>> from jaxrec import Ratings, data
>>> from jaxrec.models.sequence import Transformer
>>> train = Ratings([0, 0, 0, 1, 1], [5, 3, 4, 0, 1], [1] * 5, 3, 6)
>>> packed = data.sequences(train, length=2, order="position")
>>> model = Transformer(n_items=6, window=2, width=8)
>>> params = model.init(jax.random.key(0), packed.item, packed.segment, packed.position)
>>> scorer = sequence_scorer(model, params, packed)
>>> scorer(jnp.array([0, 2])).shape, scorer.dropped.tolist()  # user 2 has no events: all scores are 0
((2, 6), [1, 0, 0])
>>> request = scorer.scores(jnp.array([[5, 3, 4]]))  # a list of raw positions, of any length
>>> bool(jnp.allclose(request[0], scorer(jnp.array([0]))[0], atol=1e-6))
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.numerics import product
from jaxrec.prediction import Vectors
from jaxrec.pytree import register_dataclass

__all__ = ["SequenceScorer", "ensemble_vectors", "sequence_scorer", "vectors_at_last"]

ROWS_PER_CALL = 256  # packed rows that the network maps at once: at length 50, 13k events


@register_dataclass
@dataclass(frozen=True)
class SequenceScorer:
    """Scores from the last events. A pytree, and a function of users: a scorer of `evaluation.evaluate`.

    Attributes:
        users: [n_users, d], the model's output at each user's last event; 0 for a user without events.
        items: [n_items, d], the item table.
        dropped: int32 [n_users], the number of each user's events that the model does not see.
        params: the model's parameters.
        model: the model, of `models.sequence` or `models.gru`.
    """

    users: Array
    items: Array
    dropped: Array
    params: Any
    model: Any = field(metadata={"static": True})

    @property
    def n_users(self) -> int:
        """The number of users."""
        return len(self.users)

    @property
    def n_items(self) -> int:
        """The number of items."""
        return len(self.items)

    @property
    def vectors(self) -> Vectors:
        """(users, items), whose products are the scores: for `retrieval.top_k` and approximate indexes."""
        return Vectors(self.users, self.items)

    def __call__(self, users: Int[ArrayLike, " n"]) -> Float[Array, "n n_items"]:
        """Scores of all items for users, by their positions; 0 for a user without events.

        Raises:
            ValueError: positions that are not in the table (not checked under jit).
        """
        return product(gather(self.users, check.row_ids("users", users, size=self.n_users)), self.items.T)

    def scores(
        self, items: Int[ArrayLike, "n length"], *, where: Bool[ArrayLike, "n length"] | None = None
    ) -> Float[Array, "n n_items"]:
        """Scores of all items for requests: lists of items, oldest first; 0 for an empty list.

        Of more than `window` items the newest are read. A model with time gaps needs times, which a list has not.

        Args:
            items: the lists, padded to one length.
            where: False in padding, which may be anywhere; None if there is none.

        Raises:
            ValueError: arrays of different shapes; ids that are not in the catalog (not checked under jit); a model
                with time gaps.
        """
        check.same_shape(items=items, where=where)
        if np.ndim(items) != 2:
            raise ValueError(f"items: expected [n, length], one list per request, got {np.ndim(items)} dimensions.")
        mask = jnp.ones(np.shape(items), bool) if where is None else check.mask("where", where, np.shape(items))
        ids = check.row_ids("items", items, size=self.n_items, where=mask)
        return _request_scores(self.params, self.items, ids, mask, model=self.model)


@partial(jax.jit, static_argnames="model")
def _request_scores(params: Any, table: Array, items: Array, where: Array, *, model: Any) -> Array:
    window = min(model.window, max(1, items.shape[1]))
    count = jnp.sum(where, axis=1, dtype=jnp.int32)
    place = jnp.cumsum(where, axis=1, dtype=jnp.int32) - 1 - jnp.maximum(count - window, 0)[:, None]
    place = jnp.where(where & (place >= 0), place, window)  # beyond the window: dropped
    row = jnp.arange(len(items), dtype=jnp.int32)[:, None]
    item = jnp.zeros((len(items), window), jnp.int32).at[row, place].set(items, mode="drop")
    kept = jnp.minimum(count, window)
    position = jnp.arange(window, dtype=jnp.int32)[None, :]
    valid = position < kept[:, None]
    h = model.apply(params, item, valid.astype(jnp.int32), jnp.where(valid, position, 0))
    last = jnp.take_along_axis(h, jnp.maximum(kept - 1, 0)[:, None, None], axis=1)[:, 0]
    return product(jnp.where(kept[:, None] > 0, last, 0), table.T)


def sequence_scorer(model: Any, params: Any, packed: Any) -> SequenceScorer:
    """Returns the scorer of the users of packed events.

    Args:
        model: of `models.sequence` or `models.gru`.
        params: its parameters.
        packed: `data.sequences(ratings, length=model.window)` of the users to score: train, or later events too.

    Raises:
        ValueError: events of another number of items; rows longer than the model's window; parameters that give
            vectors that are not finite.
    """
    if packed.n_items != model.n_items:
        raise ValueError(f"packed: expected events of the model's {model.n_items} items, got {packed.n_items}.")
    if packed.item.shape[1] > model.window:
        raise ValueError(f"packed: expected rows of at most the model's window, {model.window}, got {packed.length}.")
    users = vectors_at_last(model, params, packed)
    items = model.apply(params, method="items")
    for name, vectors in (("users", users), ("items", items)):
        if not check.traced(vectors) and not bool(jnp.all(jnp.isfinite(vectors))):
            raise ValueError(f"params: expected finite vectors of the {name}, got NaN or infinity. Did it diverge?")
    return SequenceScorer(users, items, packed.dropped, params, model)


@partial(jax.jit, static_argnames="model")
def vectors_at_last(model: Any, params: Any, packed: Any) -> Float[Array, "n_users d"]:
    """The model's output at each user's last event; 0 for a user without events."""
    n_rows, length = packed.item.shape
    size = min(ROWS_PER_CALL, n_rows)
    events = packed.item, packed.segment, packed.position, packed.gap

    def block(number: Array) -> Array:  # the last one begins early
        first = jnp.minimum(number * size, n_rows - size)
        rows = [None if each is None else jax.lax.dynamic_slice_in_dim(each, first, size) for each in events]
        return model.apply(params, *rows)

    h = jax.lax.map(block, jnp.arange(-(-n_rows // size), dtype=jnp.int32))
    number = packed.row // size
    row = packed.row - jnp.minimum(number * size, n_rows - size)
    flat = h.reshape(-1, h.shape[-1])
    return jnp.where(packed.count[:, None] > 0, gather(flat, (number * size + row) * length + packed.last), 0)


def ensemble_vectors(scorers: Sequence[SequenceScorer]) -> Vectors:
    """Vectors whose products are the mean of the scorers' scores: the vectors side by side, users' divided by S.

    Raises:
        ValueError: no scorers; scorers of other users or items.
    """
    sizes = {(scorer.n_users, scorer.n_items) for scorer in scorers}
    if len(sizes) != 1:
        raise ValueError(f"scorers: expected one or more, of the same users and items, got sizes {sorted(sizes)}.")
    users = jnp.concatenate([scorer.users for scorer in scorers], axis=1) / len(scorers)
    return Vectors(users, jnp.concatenate([scorer.items for scorer in scorers], axis=1))
