"""H'H and H'Y of the sequence ridge (`solvers.sequence_ridge`), from the pairs of events: H is never built.

An item p and an item q of one user, p first and `lag` events before q, meet in H'H in every row after q. The row m
events after q has a(d, lag + m) a(d', m), so the pair adds a number that depends on the lag, and on how many rows n
follow q, only::

    F(d, d', lag, n) = sum for m = 1 .. n of a(d, lag + m) a(d', m)

It is added to H'H at (d, i(p)), (d', i(q)), and at the mirrored place. H'Y gets, at (d, i(p)), i(q)::

    g(d, lag) = sum for t = 1 .. lag of a(d, t) f(lag - t)

So one pass over the pairs of events within the window, lag by lag, gives both: at most N * window additions to each
block, for N events. Rows read backward have their H'Y transposed, and their H'H has F(d', d, lag, n), n the events
before p.
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

CHUNK = 65_536  # pairs at a time: their values stay in a cache


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
    # None makes a program without backward rows.
    back = None if float(backward_weight) == 0 else jnp.asarray(backward_weight, by_age.dtype)
    event = np.argsort(-before, kind="stable").astype(np.int32)
    columns = (jnp.asarray(column) for column in (train.item[rows], event, before, after))
    return _pair_sums(*columns, by_age, future, back, n_items=train.n_items, chunk=min(CHUNK, len(rows)))


@partial(jax.jit, static_argnames=("n_items", "chunk"))
def _pair_sums(
    item: Array,
    event: Array,
    before: Array,
    after: Array,
    age_weight: Array,
    future: Array,
    backward: Array | None,
    *,
    n_items: int,
    chunk: int,
) -> SequenceSums:
    """H'H and H'Y, lag by lag; `before` and `after` are how many events of the same user are on either side.

    `event` has the events by falling `before`: those with an event `lag` before them come first, and no other is
    visited. The sums are [n_items, n_items, D D + D] until the end: what a pair adds to all blocks is one row, which
    takes a seventh of the time of as many scattered numbers (one core, D = 4: 42 and 300 ns a pair).
    """
    n_kernels, window = age_weight.shape
    dtype = age_weight.dtype
    n_lags = window + len(future)
    gram_rows = _gram_rows(age_weight, n_lags)
    convolved = jax.vmap(lambda row: jnp.convolve(row, future.astype(dtype), precision="highest"))(age_weight)
    cross_rows = jnp.pad(convolved.T, ((1, 0), (0, 0)))  # [n_lags, D], at lag 0 nothing
    rows_after, rows_before = jnp.minimum(after, window), jnp.minimum(before, window)
    n_pairs = jnp.searchsorted(-before[event], -jnp.arange(n_lags, dtype=before.dtype), side="right")
    padded = jnp.pad(event, (0, -len(event) % chunk))

    def add_chunk(number: Array, pairs: Array, lag: Array) -> Array:
        second = jax.lax.dynamic_slice(padded, (number * chunk,), (chunk,))
        first = jnp.maximum(second - lag, 0)
        gram = gather(gram_rows[lag], gather(rows_after, second))
        if backward is not None:
            transposed = gather(gram_rows[lag], gather(rows_before, first)).swapaxes(1, 2)
            gram += backward * transposed
        cross = jnp.broadcast_to(cross_rows[lag], (chunk, n_kernels))
        value = jnp.concatenate([gram.reshape(chunk, -1), cross], axis=1)
        counts = number * chunk + jnp.arange(chunk, dtype=jnp.int32) < n_pairs[lag]
        at = pairs.at[gather(item, first), gather(item, second)]
        return at.add(jnp.where(counts[:, None], value, 0).astype(dtype), mode="promise_in_bounds")

    def add_lag(lag: Array, pairs: Array) -> Array:
        n_chunks = (n_pairs[lag] + chunk - 1) // chunk
        return jax.lax.fori_loop(0, n_chunks, partial(add_chunk, lag=lag), pairs)

    zeros = jnp.zeros((n_items, n_items, n_kernels * n_kernels + n_kernels), dtype)
    pairs = jax.lax.fori_loop(0, n_lags, add_lag, zeros)
    size = n_kernels * n_items
    blocks = pairs[..., : n_kernels * n_kernels].reshape(n_items, n_items, n_kernels, n_kernels)
    gram = blocks.transpose(2, 0, 3, 1).reshape(size, size)
    cross = pairs[..., n_kernels * n_kernels :].transpose(2, 0, 1)
    if backward is not None:
        cross += backward * cross.swapaxes(1, 2)
    count = jnp.zeros(n_items, dtype).at[item].add(1)
    return SequenceSums(gram + gram.T, cross.reshape(size, n_items), count)


def _gram_rows(age_weight: Array, n_lags: int) -> Float[Array, "n_lags rows D D"]:
    """F(d, d', lag, n) at [lag, n, d, d'], halved at lag 0: a matrix and its transpose have it twice."""
    window = age_weight.shape[1]
    lag = jnp.arange(n_lags, dtype=jnp.int32)[:, None]
    age = lag + jnp.arange(window, dtype=jnp.int32)[None, :]  # less 1
    older = jnp.where(age < window, age_weight[:, jnp.minimum(age, window - 1)], 0)  # [D, n_lags, m]
    sums = jnp.cumsum(jnp.einsum("elm,dm->lmed", older, age_weight, precision="highest"), axis=1)
    sums = jnp.pad(sums, ((0, 0), (1, 0), (0, 0), (0, 0)))
    return jnp.where(lag[:, :, None, None] == 0, sums / 2, sums)


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
