"""Costs of a packed batch of sequences: the mean over events of a loss of the item that comes next.

| cost | an event's negatives | cost of a step with n events |
| --- | --- | --- |
| `softmax_cost` | the whole catalog | n n_items products, four times, in tiles |
| `sampled_softmax_cost` | items drawn for the batch, corrected for how they are drawn | one product per negative |
| `gbce_cost` | items drawn for the batch, as independent yes or no | one product per negative |

Each is made for a model of `models.sequence` or `models.gru`, and is a cost(params, batch, *, key) for `training.fit`,
`training.fit_epochs` or `training.make_step`, whose batch is rows of packed events.

>>> import jax, optax
>>> from jaxrec import Ratings, data
>>> from jaxrec.models.sequence import Transformer
>>> from jaxrec.training import fit_epochs
>>> chain = Ratings([0, 0, 0, 1, 1, 1], [0, 1, 2, 1, 2, 3], [1] * 6, 2, 4)  # each item is followed by the next one
>>> rows = packed_rows(data.sequences(chain, length=3, order="position"))
>>> model = Transformer(n_items=4, window=3, width=8, layers=1, dropout=0.0)
>>> params = model.init(jax.random.key(0), rows.item, rows.segment, rows.position)
>>> fitted = fit_epochs(softmax_cost(model), params, rows, optimizer=optax.adam(0.05), batch_size=2,
...                     key=jax.random.key(1), epochs=20, progress=False)
>>> bool(fitted.history.loss[-1] < 0.5 < fitted.history.loss[0])  # log 4 = 1.39 at first
True

Source: Petrov and Macdonald 2023 (gSASRec, generalized binary cross-entropy); Klenitskiy and Vasilev 2023, Turning
dross into gold loss (the softmax, and many negatives).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, PRNGKeyArray

from jaxrec import check, losses
from jaxrec.gather import gather
from jaxrec.numerics import product
from jaxrec.pytree import register_dataclass
from jaxrec.training.negatives import Negatives
from jaxrec.training.step import Cost
from jaxrec.types import Total

__all__ = [
    "NextItems",
    "PackedRows",
    "gbce_cost",
    "next_items",
    "packed_rows",
    "sampled_softmax_cost",
    "softmax_cost",
]

Draw = Callable[..., Negatives]  # draw(key=key) -> negatives [c] that all events of a batch share


@register_dataclass
@dataclass(frozen=True)
class PackedRows:
    """The columns of packed sequences that training reads, [n_rows, length]; the rows are independent.

    Attributes:
        item: the items.
        where: False in padding.
        segment: which events of a row are of one user; 0 in padding.
        position: of each event in its segment.
        gap: the time since the event before, or None.
        weights: of the events, or None.
    """

    item: Any
    where: Any
    segment: Any
    position: Any
    gap: Any
    weights: Any


def packed_rows(packed: Any) -> PackedRows:
    """The rows of packed sequences, `data.sequences`, without the columns of their users: data of `fit_epochs`."""
    return PackedRows(*(getattr(packed, name) for name in PackedRows.__dataclass_fields__))


class NextItems(NamedTuple):
    """What follows each event.

    Attributes:
        item: int32 [n_rows, length], the item of the next event of the segment; 0 where there is none.
        where: bool [n_rows, length], False at the last event of a segment, and in padding.
    """

    item: Array
    where: Array


def next_items(
    item: Int[ArrayLike, "n_rows length"],
    segment: Int[ArrayLike, "n_rows length"],
    *,
    where: Bool[ArrayLike, "n_rows length"] | None = None,
) -> NextItems:
    """The item after each event of its segment: what a sequence model is trained to predict there.

    Args:
        item: packed items, as `data.sequences` returns them.
        segment: which events are of one user; 0 is padding.
        where: False for events that are left out, which are neither read from nor predicted; None if there are none.

    Raises:
        ValueError: arrays of different shapes.

    >>> found = next_items([[5, 3, 4, 2]], [[1, 1, 1, 2]])
    >>> found.item.tolist(), found.where.tolist()
    ([[3, 4, 0, 0]], [[True, True, False, False]])
    """
    check.same_shape(item=item, segment=segment, where=where)
    items, segments = jnp.asarray(item), jnp.asarray(segment)
    valid = segments > 0 if where is None else (segments > 0) & jnp.asarray(where)
    follows = (segments[:, 1:] == segments[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    follows = jnp.pad(follows, ((0, 0), (0, 1)))
    return NextItems(jnp.where(follows, jnp.roll(items, -1, axis=1), 0).astype(jnp.int32), follows)


class _Predicted(NamedTuple):
    """All events of a batch, n = n_rows * length: vectors [n, d], what comes next [n], and the item table."""

    vector: Array
    table: Array
    item: Array
    where: Array
    weights: Array | None


def softmax_cost(model: Any) -> Cost:
    """-log softmax of the next item over the whole catalog: `losses.catalogue_softmax`.

    Args:
        model: a model of `models.sequence` or `models.gru`.
    """

    def cost(params: Any, batch: PackedRows, *, key: PRNGKeyArray) -> Total:
        at = _predicted(model, params, batch, key)
        return losses.catalogue_softmax(at.vector, at.table, at.item, where=at.where, weights=at.weights)

    return cost


def sampled_softmax_cost(model: Any, draw: Draw) -> Cost:
    """-log softmax of the next item among itself and negatives that the batch shares: `losses.softmax.sampled`.

    Args:
        model: a model of `models.sequence` or `models.gru`.
        draw: draw(key=key) -> negatives [c] of one batch, such as `partial(negatives.uniform, (512,), n_items)`.
    """

    def cost(params: Any, batch: PackedRows, *, key: PRNGKeyArray) -> Total:
        key_model, key_draw = jax.random.split(key)
        at, drawn = _predicted(model, params, batch, key_model), draw(key=key_draw)
        return losses.softmax.sampled(
            at.vector,
            gather(at.table, at.item),
            gather(at.table, drawn.ids),
            at.item,
            drawn.ids,
            log_q=drawn.log_q,
            where=at.where,
            weights=at.weights,
        )

    return cost


def gbce_cost(model: Any, draw: Draw, *, t: float = 0.75) -> Cost:
    """Generalized binary cross-entropy of the next item and of negatives that the batch shares: `losses.gbce`.

    Negatives that are the event's own next item are left out.

    Args:
        model: a model of `models.sequence` or `models.gru`.
        draw: as in `sampled_softmax_cost`; uniformly, for the calibration to hold.
        t: calibration, in [0, 1].
    """

    def cost(params: Any, batch: PackedRows, *, key: PRNGKeyArray) -> Total:
        key_model, key_draw = jax.random.split(key)
        at, drawn = _predicted(model, params, batch, key_model), draw(key=key_draw)
        score = jnp.sum(at.vector * gather(at.table, at.item), axis=1)
        negative = product(at.vector, gather(at.table, drawn.ids).T)
        differs = at.item[:, None] != drawn.ids[None, :]
        return losses.gbce(
            score,
            negative,
            n_items=len(at.table),
            t=t,
            negative_where=differs,
            where=at.where,
            weights=at.weights,
        )

    return cost


def _predicted(model: Any, params: Any, batch: PackedRows, key: PRNGKeyArray) -> _Predicted:
    events = batch.item, batch.segment, batch.position, batch.gap
    vector = model.apply(params, *events, train=True, rngs={"dropout": key})
    after = next_items(batch.item, batch.segment, where=batch.where)
    weights = None if batch.weights is None else jnp.roll(batch.weights, -1, axis=1).reshape(-1)
    flat = vector.reshape(-1, vector.shape[-1])
    return _Predicted(
        flat, model.apply(params, method="items"), after.item.reshape(-1), after.where.reshape(-1), weights
    )
