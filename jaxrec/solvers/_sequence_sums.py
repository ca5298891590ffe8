"""H'H and H'Y of the sequence ridge (`solvers.sequence_ridge`), from the pairs of events: H is never built.

An item p and an item q of one user, p first and `lag` events before q, meet in H'H in every row after q. The row m
events after q has a(d, lag + m) a(d', m), so the pair adds a number that depends on the lag, and on how many rows n
follow q, only::

    F(d, d', lag, n) = sum for m = 1 .. n of a(d, lag + m) a(d', m)

It is added to H'H at (d, i(p)), (d', i(q)), and at the mirrored place. H'Y gets, at (d, i(p)), i(q)::

    g(d, lag) = sum for t = 1 .. lag of a(d, t) f(lag - t)

So one pass over the pairs of events within the window, lag by lag, gives both: N * window additions to each block, for
N events. Rows read backward have their H'Y transposed, and their H'H has F(d', d, lag, n), n the events before p.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from jaxrec import check
from jaxrec.data.layouts import free_memory
from jaxrec.events import Order, events_in_order
from jaxrec.gather import gather
from jaxrec.models.recency import as_age_weight
from jaxrec.types import Ratings

__all__ = ["SequenceSums", "sequence_ridge_memory", "sequence_sums"]


class SequenceSums(NamedTuple):
    """What the regression needs of the sequences, whatever l2 is.

    Attributes:
        gram: [D n_items, D n_items], H'H.
        cross: [D n_items, n_items], H'Y.
        item_count: [n_items], the number of events of each item.
    """

    gram: Array
    cross: Array
    item_count: Array


def sequence_sums(
    train: Ratings,
    age_weight: Shaped[ArrayLike, "D window"],
    *,
    next_weight: Sequence[float] | Shaped[ArrayLike, " horizon"] = (1.0,),
    backward_weight: float = 0.0,
    order: Order = "time",
) -> SequenceSums:
    """Returns H'H and H'Y of the sequences of train, from the pairs of events within the window.

    Arguments and errors are those of `sequence_ridge`.
    """
    by_age = as_age_weight(age_weight)
    _check_events(train)
    (future,) = check.as_floats(next_weight=next_weight)
    if future.ndim != 1 or len(future) == 0:
        raise ValueError(
            f"next_weight: expected [horizon], weights of the events from the next on, got {future.shape}."
        )
    check.all_finite("next_weight", future)
    if np.ndim(backward_weight) != 0:
        raise ValueError(f"backward_weight: expected one number, got shape {np.shape(backward_weight)}.")
    check.strength("backward_weight", backward_weight, zero=True)
    _check_memory(train.n_items, len(by_age))
    start, rows = events_in_order(train, order)
    n_events = np.diff(start)
    if n_events.max(initial=0) < 2:
        raise ValueError(
            "train: expected a user with two events or more, because there is nothing to predict, got none."
        )
    user = np.repeat(np.arange(train.n_users), n_events)
    before = (np.arange(len(rows)) - start[user]).astype(np.int32)
    after = (n_events[user] - 1 - before).astype(np.int32)
    longest = int(n_events.max())
    # Kernels beyond the longest sequence never count: no pairs are made for them.
    by_age, future = by_age[:, : longest - 1], future[:longest]
    item = jnp.asarray(train.item[rows])
    # None makes a program without backward rows.
    back = None if float(backward_weight) == 0 else jnp.asarray(backward_weight, by_age.dtype)
    return _pair_sums(item, jnp.asarray(before), jnp.asarray(after), by_age, future, back, n_items=train.n_items)


@partial(jax.jit, static_argnames="n_items")
def _pair_sums(
    item: Array, before: Array, after: Array, age_weight: Array, future: Array, backward: Array | None, *, n_items: int
) -> SequenceSums:
    """H'H and H'Y, lag by lag; `before` and `after` are how many events of the same user are on either side."""
    n_kernels, window = age_weight.shape
    dtype = age_weight.dtype
    n_lags = window + len(future)
    table = _gram_table(age_weight, n_lags)
    convolved = jax.vmap(lambda row: jnp.convolve(row, future.astype(dtype), precision="highest"))(age_weight)
    cross_table = jnp.pad(convolved, ((0, 0), (1, 0)))  # [D, n_lags], at lag 0 nothing
    rows_after, rows_before = jnp.minimum(after, window), jnp.minimum(before, window)
    event = jnp.arange(len(item), dtype=jnp.int32)
    block = n_items * jnp.arange(n_kernels, dtype=jnp.int32)

    def add_lag(lag: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        gram, cross = sums
        valid = before >= lag
        first = jnp.maximum(event - lag, 0)
        p, q = gather(item, first), item
        follow, precede = rows_after, gather(rows_before, first)
        for d in range(n_kernels):
            value = jnp.where(valid, cross_table[d, lag], 0)
            cross = _add(cross, p + block[d], q, value)
            if backward is not None:
                cross = _add(cross, q + block[d], p, backward * value)
            for other in range(n_kernels):
                value = gather(table[d, other, lag], follow)
                if backward is not None:
                    value += backward * gather(table[other, d, lag], precede)
                gram = _add(gram, p + block[d], q + block[other], jnp.where(valid, value, 0))
        return gram, cross

    size = n_kernels * n_items
    zeros = jnp.zeros((size, size), dtype), jnp.zeros((size, n_items), dtype)
    gram, cross = jax.lax.fori_loop(0, n_lags, add_lag, zeros)
    count = jnp.zeros(n_items, dtype).at[item].add(1)
    return SequenceSums(gram + gram.T, cross, count)


def _add(table: Array, row: Array, column: Array, value: Array) -> Array:
    return table.at[row, column].add(value.astype(table.dtype), mode="promise_in_bounds")


def _gram_table(age_weight: Array, n_lags: int) -> Float[Array, "D D n_lags rows"]:
    """F(d, d', lag, n), halved at lag 0, because the sum of a matrix and its transpose has those pairs twice."""
    window = age_weight.shape[1]
    lag = jnp.arange(n_lags, dtype=jnp.int32)[:, None]
    age = lag + jnp.arange(window, dtype=jnp.int32)[None, :]  # less 1
    older = jnp.where(age < window, age_weight[:, jnp.minimum(age, window - 1)], 0)  # [D, n_lags, m]
    sums = jnp.cumsum(older[:, None] * age_weight[None, :, None, :], axis=-1)
    sums = jnp.pad(sums, ((0, 0), (0, 0), (0, 0), (1, 0)))
    return jnp.where(lag == 0, sums / 2, sums)


def _check_events(train: Ratings) -> None:
    if train.weights is not None:
        raise ValueError(
            "train: expected ratings without weights, because an event's weight is its age's. Pass "
            "dataclasses.replace(train, weights=None)."
        )


def sequence_ridge_memory(n_items: int, n_kernels: int) -> int:
    """Bytes of `sequence_ridge` at its peak, in float32: two matrices of the size of H'H and two of the size of H'Y.

    >>> [round(sequence_ridge_memory(18_357, n_kernels) / 2**30, 1) for n_kernels in (1, 2, 3)]  # Amazon's Sports, GiB
    [5.0, 15.1, 30.1]
    """
    return 4 * 2 * ((n_kernels * n_items) ** 2 + n_kernels * n_items**2)


def _check_memory(n_items: int, n_kernels: int) -> None:
    """Raises MemoryError if memory is short, before anything is allocated."""
    needed, free = sequence_ridge_memory(n_items, n_kernels), _free_bytes()
    if needed > free:
        fits = max((d for d in range(1, n_kernels) if sequence_ridge_memory(n_items, d) <= free), default=0)
        advice = (
            f"Use {fits} rows of age_weight." if fits else "Leave out rare items, or use a machine with more memory."
        )
        raise MemoryError(
            f"sequence_ridge: {n_items} items x {n_kernels} rows of age_weight take {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free. {advice}"
        )


def _free_bytes() -> int:
    """Free bytes of the device that computes."""
    stats = jax.devices()[0].memory_stats()
    return free_memory() if not stats else stats["bytes_limit"] - stats["bytes_in_use"]
