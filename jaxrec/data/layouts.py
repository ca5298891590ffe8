"""Fixed shapes for the device: Dense, Observed, Linked, Rows. Vectorized; each crosses to the device once.

What they cost is known before they are built:

>>> ratings = Ratings(user=[0, 1, 1], item=[0, 0, 2], value=[5, 4, 0], n_users=2, n_items=3)
>>> memory(ratings)
{'dense': 30, 'observed': 39, 'linked': 91, 'rows_user': 52, 'rows_item': 78}
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxrec import check
from jaxrec.counting_sort import group_by, partition, row_counts
from jaxrec.types import Bucket, Dense, Linked, Observed, Padded, Ratings, Rows

__all__ = ["dense", "linked", "memory", "observed", "pad_rows", "padded_items", "rows"]

ID, VALUE, WHERE = 4, 4, 1  # bytes
# What compiling one bucket more costs, in padded entries: .4 s on 2 cores, where an exact sweep at d = 64 takes .3 us
# an entry, and there are 15; and a hundredth of the entries, so that large data, which may be on a GPU, have few
# buckets too. (A GPU's program makes fewer of them: `solvers.batched_ridge`.)
PRICE, SHARE = 100_000, 1 / 100
# Lengths nearer than this are one to the cost model.
FINEST = 1.05


def dense(ratings: Ratings) -> Dense:
    """Y and R as the notes print them, [n_items, n_users]: small data only (n_items * n_users * 5 bytes; 9 weighted).

    Raises:
        MemoryError: larger than the memory that is free now; nothing has been allocated.
        ValueError: a pair occurs twice: one cell cannot hold both.
    """
    shape = (ratings.n_items, ratings.n_users)
    _check_fits(shape, _dense_bytes(ratings))
    pair = ratings.item * np.int64(ratings.n_users) + ratings.user

    def put(column: np.ndarray) -> np.ndarray:
        cells = np.zeros(shape, column.dtype)
        cells.reshape(-1)[pair] = column
        return cells

    where = put(np.ones(len(ratings), bool))
    if repeated := len(ratings) - int(where.sum()):
        raise ValueError(
            f"{repeated} ratings repeat a (user, item) pair, and a cell holds one. "
            "Ratings.from_columns(..., duplicates=...) merges them."
        )
    return Dense(
        value=jnp.asarray(put(ratings.value)),
        where=jnp.asarray(where),
        weights=None if ratings.weights is None else jnp.asarray(put(ratings.weights)),
    )


def observed(ratings: Ratings, *, pad_to_multiple: int = 1, counts: bool = False) -> Observed:
    """The ratings as columns, in their order, padded to a multiple of `pad_to_multiple`.

    With `counts` each row carries how many ratings its user and its item have, so that batches cut from it on the
    device (`training.epochs`) take their share of the penalty.

    Raises:
        ValueError: multiple < 1.
    """
    extra = _extra(len(ratings), pad_to_multiple)
    return Observed(
        user=_padded(ratings.user, extra),
        item=_padded(ratings.item, extra),
        value=_padded(ratings.value, extra),
        where=_padded(np.ones(len(ratings), bool), extra),
        weights=None if ratings.weights is None else _padded(ratings.weights, extra),
        user_count=_padded(row_counts(ratings.user), extra) if counts else None,
        item_count=_padded(row_counts(ratings.item), extra) if counts else None,
    )


def linked(ratings: Ratings, *, pad_to_multiple: int = 1) -> Linked:
    """The ratings sorted by user and linked to the order by item; padded at the end to a multiple of `pad_to_multiple`.

    Raises:
        ValueError: multiple < 1.
    """
    extra = _extra(len(ratings), pad_to_multiple)
    user_start, order = group_by(ratings.user, ratings.n_users)
    # Padding carries the last ids, so that both orders stay sorted; `where` keeps it out of every sum.
    user_start = np.append(user_start[:-1], len(ratings) + extra).astype(np.int32)
    item = np.pad(ratings.item[order], (0, extra), constant_values=ratings.n_items - 1)
    value = _padded(ratings.value[order], extra)
    weights = None if ratings.weights is None else _padded(ratings.weights[order], extra)
    del order  # as large as two columns, and the second sort needs the room
    item_start, by_item = group_by(item, ratings.n_items)
    user = np.repeat(np.arange(ratings.n_users, dtype=np.int32), np.diff(user_start))
    return Linked(
        user=jnp.asarray(user),
        item=jnp.asarray(item),
        value=value,
        where=_padded(np.ones(len(ratings), bool), extra),
        weights=weights,
        user_start=jnp.asarray(user_start),
        by_item=jnp.asarray(by_item.astype(np.int32, copy=False)),
        item_start=jnp.asarray(item_start.astype(np.int32, copy=False)),
        user_by_item=jnp.asarray(user[by_item]),
    )


def rows(
    ratings: Ratings,
    side: str,
    *,
    bucket_growth: float | None = None,
    min_length: int = 8,
    pad_to_multiple: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Rows:
    """Each user's (or item's) ratings as a padded list, in buckets of similar length.

    Over several devices the solvers of one side's rows (`als`, `implicit_als`, `fold_in`, ...) let each solve its own;
    the factors stand on all of them. The cores of a CPU are several devices after
    `jax.config.update("jax_num_cpu_devices", n)`, and more of XLA's operations run at once then than within one: on 2
    cores a sweep of ALS by ten conjugate-gradient steps takes two thirds of the time.

    Args:
        ratings: any.
        side: 'user' or 'item': what a row is.
        bucket_growth: a bucket's longest row over the next shorter bucket's. Nearer to 1 pads less and compiles more
            shapes. None: the buckets whose padding and compilation cost least together, a bucket as much as 100,000
            padded entries and a hundredth of the ratings. ml-100k has 2 + 3 buckets then, of 2.7 and 2.2 entries a
            rating, ml-1m 6 + 6 of 1.4 and 1.5, and 20M ratings 17 + 17 of 1.2; by 1.5 they are 10 + 12, 12 + 16 and
            20 + 17, all of 1.2.
        min_length: the first bucket's length; rows without ratings stand there.
        pad_to_multiple: every bucket's number of rows is padded to a multiple of this.
        devices: those that hold a part of every bucket each, which is padded to a multiple of their number; None: the
            default device has all.

    Raises:
        ValueError: a side that is neither; bucket_growth <= 1; shortest or multiple < 1; no device, or one named twice.
    """
    check.choice("side", side, ("user", "item"))
    mesh = None if devices is None else _mesh(devices)
    pad_to_multiple = pad_to_multiple if mesh is None else math.lcm(pad_to_multiple, mesh.size)
    by_user = side == "user"
    own, other = (ratings.user, ratings.item) if by_user else (ratings.item, ratings.user)
    n_rows, n_others = (ratings.n_users, ratings.n_items) if by_user else (ratings.n_items, ratings.n_users)
    start, order = group_by(own, n_rows)
    length = np.diff(start)

    # each array goes where it stays as soon as it is made: all of them on one device first were half a gigabyte more
    put = jnp.asarray if mesh is None else partial(jax.device_put, device=NamedSharding(mesh, P(mesh.axis_names)))
    buckets, position, placed = [], np.zeros(n_rows, np.int32), 0
    for members, n_lines, longest in _plan(
        length, bucket_growth=bucket_growth, min_length=min_length, pad_to_multiple=pad_to_multiple
    ):
        position[members] = placed + np.arange(len(members))
        placed += n_lines
        count = np.pad(length[members], (0, n_lines - len(members)))
        where = np.arange(longest) < count[:, None]
        # the members' ratings one after the other, which is how a mask takes them up
        skipped = start[members] - np.cumsum(length[members]) + length[members]
        source = order[np.repeat(skipped, length[members]) + np.arange(count.sum())]

        def lines(column: np.ndarray, where: np.ndarray = where, source: np.ndarray = source) -> Array:
            padded = np.zeros(where.shape, column.dtype)
            padded[where] = column[source]
            return put(padded)

        buckets.append(
            Bucket(
                row=put(np.pad(members, (0, n_lines - len(members))).astype(np.int32)),
                other=lines(other),
                value=lines(ratings.value),
                where=put(where),
                weights=None if ratings.weights is None else lines(ratings.weights),
            )
        )
    found = Rows(tuple(buckets), jnp.asarray(position), side, n_others, mesh)
    return replace(found, position=found.replicate(found.position))


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"devices: expected at least one and none twice, such as jax.devices(), got {devices}.")
    return Mesh(np.array(devices), ("rows",))


def padded_items(ratings: Ratings, users: ArrayLike) -> Padded:
    """(ids, where) [len(users), longest]: the items of each of these users' ratings, in their order, padded with 0.

    Host arrays, such as `exclude` of `retrieval.top_k` and `relevant` of the ranking metrics want them.

    >>> ratings = Ratings(user=[0, 1, 1], item=[2, 0, 2], value=[5, 4, 0], n_users=3, n_items=3)
    >>> ids, where = padded_items(ratings, [1, 2])
    >>> ids.tolist(), where.tolist()
    ([[0, 2], [0, 0]], [[True, True], [False, False]])
    """
    users = check.ids("users", users, size=ratings.n_users)
    start, order = group_by(ratings.user, ratings.n_users)
    return pad_rows(start, ratings.item[order], users)


def pad_rows(start: np.ndarray, items: np.ndarray, users: np.ndarray) -> Padded:
    """(ids, where) of `padded_items`, from items sorted by user: user j's stand at start[j] : start[j + 1]."""
    first, count = start[users], start[users + 1] - start[users]
    at = np.arange(max(1, int(count.max(initial=0))))[None, :]
    where = at < count[:, None]
    ids = np.zeros(where.shape, np.int32)
    ids[where] = items[(first[:, None] + at)[where]]
    return Padded(ids, where)


def memory(
    ratings: Ratings, *, bucket_growth: float | None = None, min_length: int = 8, pad_to_multiple: int = 1
) -> dict[str, int]:
    """Bytes of each layout of these ratings, to the byte, from two counts and without building any.

    The names are 'dense', 'observed', 'linked', 'rows_user' and 'rows_item'; the options are those of `rows`, and
    `pad_to_multiple` also that of `observed` and `linked`. Building takes up to 30 bytes a rating more, for a moment.

    Raises:
        ValueError: as `rows`.
    """
    n = len(ratings) + _extra(len(ratings), pad_to_multiple)
    entry = ID + VALUE + WHERE + (0 if ratings.weights is None else VALUE)
    out = {
        "dense": _dense_bytes(ratings),
        "observed": n * (ID + entry),
        "linked": n * (3 * ID + entry) + (ratings.n_users + 1 + ratings.n_items + 1) * ID,
    }
    for side, ids, size in (("user", ratings.user, ratings.n_users), ("item", ratings.item, ratings.n_items)):
        length = np.bincount(ids, minlength=size)
        plan = _plan(length, bucket_growth=bucket_growth, min_length=min_length, pad_to_multiple=pad_to_multiple)
        out[f"rows_{side}"] = size * ID + sum(lines * (ID + longest * entry) for _, lines, longest in plan)
    return out


class _Lines(NamedTuple):
    """What a bucket will hold."""

    members: np.ndarray
    n_lines: int  # the members, padded to a multiple
    longest: int


def _plan(length: np.ndarray, *, bucket_growth: float | None, min_length: int, pad_to_multiple: int) -> list[_Lines]:
    """The buckets of rows with these numbers of ratings, shortest first."""
    if bucket_growth is not None and not 1 < bucket_growth < np.inf:
        raise ValueError(f"bucket_growth: expected a number > 1, or None, got {bucket_growth}.")
    if min_length < 1:
        raise ValueError(f"min_length: expected a length >= 1, got {min_length}.")
    limits = [min_length]
    while limits[-1] < length.max():
        limits.append(int(np.ceil(limits[-1] * (bucket_growth or FINEST))))
    which = np.searchsorted(limits, length)
    if bucket_growth is None:
        count = np.bincount(which, minlength=len(limits))
        runs = partition(np.asarray(limits), count, PRICE + SHARE * length.sum())
        which = np.repeat(np.arange(len(runs)), [last - first for first, last in runs])[which]
    plan = []
    for number in np.unique(which):
        members = np.flatnonzero(which == number)
        n_lines = len(members) + _extra(len(members), pad_to_multiple)
        plan.append(_Lines(members, n_lines, max(1, int(length[members].max()))))
    return plan


def _dense_bytes(ratings: Ratings) -> int:
    return ratings.n_items * ratings.n_users * (VALUE + WHERE + (0 if ratings.weights is None else VALUE))


def _check_fits(shape: tuple[int, int], needed: int) -> None:
    """Raises before NumPy can: it promises memory that is not there, and the process is killed on touching it."""
    import psutil

    free = psutil.virtual_memory().available
    if 2 * needed > free:  # the host's arrays and the device's, for a moment
        raise MemoryError(
            f"dense: {shape[0]} items x {shape[1]} users take {needed / 2**30:.1f} GiB, twice that while they are "
            f"built, and {free / 2**30:.1f} GiB are free. Use data.observed, data.linked or data.rows, which hold only "
            "what was rated (see data.memory)."
        )


def _padded(column: np.ndarray, extra: int) -> Array:
    """A column on the device, with `extra` zeros (a valid id, False) at the end."""
    return jnp.array(np.pad(column, (0, extra)) if extra else column)  # a copy: jax 0.9.0 shared the memory


def _extra(n: int, pad_to_multiple: int) -> int:
    if pad_to_multiple < 1:
        raise ValueError(f"pad_to_multiple: expected a number >= 1, got {pad_to_multiple}.")
    extra = -n % pad_to_multiple
    if n + extra > check.INT32_MAX:
        raise ValueError(
            f"expected at most {check.INT32_MAX} entries in a column (positions are int32), got {n + extra}."
        )
    return extra
