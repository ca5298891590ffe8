"""Layouts of fixed shape for the device: Dense, Observed, Linked, Rows. Each is copied to the device once.

Their size in bytes is known before they are built:

>>> ratings = Ratings(user=[0, 1, 1], item=[0, 0, 2], value=[5, 4, 0], n_users=2, n_items=3)
>>> memory(ratings)
{'dense': 30, 'observed': 39, 'linked': 91, 'rows_user': 52, 'rows_item': 78}
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxrec import check
from jaxrec.counting_sort import group_by, row_counts
from jaxrec.data.bucket_plan import n_padding, plan_buckets
from jaxrec.types import Bucket, Dense, Linked, Observed, Padded, Ratings, Rows

__all__ = [
    "dense",
    "free_memory",
    "linked",
    "memory",
    "observed",
    "pad_rows",
    "padded_items",
    "rows",
]

ID, VALUE, WHERE = 4, 4, 1  # bytes


def dense(ratings: Ratings) -> Dense:
    """Returns the matrices Y and R of the notes, [n_items, n_users], for small data.

    They take 5 bytes per pair, or 9 with weights.

    Raises:
        MemoryError: they would not fit in the free memory; nothing has been allocated.
        ValueError: a (user, item) pair occurs twice.
    """
    shape = (ratings.n_items, ratings.n_users)
    _check_fits(shape, _dense_bytes(ratings))
    position = ratings.item * np.int64(ratings.n_users) + ratings.user

    def scatter(column: np.ndarray) -> np.ndarray:
        matrix = np.zeros(shape, column.dtype)
        matrix.reshape(-1)[position] = column
        return matrix

    where = scatter(np.ones(len(ratings), bool))
    if repeated := len(ratings) - int(where.sum()):
        raise ValueError(
            f"expected each (user, item) pair once, got {repeated} ratings that repeat a pair. "
            "Ratings.from_columns(..., duplicates=...) merges them."
        )
    return Dense(
        value=jnp.asarray(scatter(ratings.value)),
        where=jnp.asarray(where),
        weights=None if ratings.weights is None else jnp.asarray(scatter(ratings.weights)),
    )


def observed(ratings: Ratings, *, pad_to_multiple: int = 1, counts: bool = False) -> Observed:
    """Returns the ratings as columns, in their order, padded to a multiple of `pad_to_multiple`.

    With `counts` each row has the rating counts of its user and its item, so that batches taken from it on the device
    (`training.epochs`) get their share of the penalty.

    Raises:
        ValueError: pad_to_multiple < 1.
    """
    extra = n_padding(len(ratings), pad_to_multiple)
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
    """Returns the ratings sorted by user, with the permutation that sorts them by item.

    They are padded at the end to a multiple of `pad_to_multiple`.

    Raises:
        ValueError: pad_to_multiple < 1.
    """
    extra = n_padding(len(ratings), pad_to_multiple)
    user_start, order = group_by(ratings.user, ratings.n_users)
    # Padding has the last ids, so that both orders stay sorted; it is masked by `where`.
    user_start = np.append(user_start[:-1], len(ratings) + extra).astype(np.int32)
    item = np.pad(ratings.item[order], (0, extra), constant_values=ratings.n_items - 1)
    value = _padded(ratings.value[order], extra)
    weights = None if ratings.weights is None else _padded(ratings.weights[order], extra)
    del order  # it is as large as two columns, and the second sort needs the memory
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
    """Returns the ratings of each user (or item) as a padded row, in buckets of rows of similar length.

    For example, ratings of items 7; 3, 5, 8; 2, 4 by users 0, 1, 2, padded to the longest row of one bucket:

        row  other    where
        0    7 0 0    1 0 0
        1    3 5 8    1 1 1
        2    2 4 0    1 1 0

    With several devices the solvers of one side's rows (`als`, `implicit_als`, `fold_in`, ...) solve a part of the rows
    on each; the factors are replicated on all. After `jax.config.update("jax_num_cpu_devices", n)` the cores of a CPU
    are several devices, which run more of XLA's operations in parallel than one device does: on 2 cores a sweep of ALS
    with ten conjugate-gradient steps takes two thirds of the time.

    Args:
        ratings: the ratings.
        side: 'user' or 'item': what a row is.
        bucket_growth: the ratio of the longest row that a bucket may hold to that of the next shorter bucket. Nearer
            to 1 there is less padding, but more shapes to compile. None minimizes the cost of padding and compilation
            together, where a bucket costs as much as 100,000 padded entries plus a hundredth of the ratings, and its
            length is a divisor of 10,080, because buckets of such lengths share programs in the solvers. Then ml-100k
            has 2 + 3 buckets (users + items) with 2.8 and 2.2 entries per rating, ml-1m 6 + 7 with 1.5, and 20M ratings
            17 + 16 with 1.2; at 1.5 these are 10 + 12, 12 + 16 and 20 + 17 buckets, all with 1.2.
        min_length: the longest row that the first bucket may hold; it also has the rows without ratings. A bucket is as
            long as its longest row, or by default the next divisor; rows longer than 10,080 keep their length.
        pad_to_multiple: the number of rows of every bucket is padded to a multiple of this.
        devices: the devices that share the rows of every bucket; the number of rows is padded to a multiple of the
            number of devices. None: the default device holds all rows.

    Raises:
        ValueError: side is neither 'user' nor 'item'; bucket_growth <= 1; min_length or pad_to_multiple < 1; there are
            no devices, or one is repeated.
    """
    check.choice("side", side, ("user", "item"))
    mesh = None if devices is None else _mesh(devices)
    pad_to_multiple = pad_to_multiple if mesh is None else math.lcm(pad_to_multiple, mesh.size)
    by_user = side == "user"
    own, other = (ratings.user, ratings.item) if by_user else (ratings.item, ratings.user)
    n_rows, n_others = (ratings.n_users, ratings.n_items) if by_user else (ratings.n_items, ratings.n_users)
    start, order = group_by(own, n_rows)
    length = np.diff(start)

    # Each array is put on its devices as soon as it is made: through one device it took half a gigabyte more.
    put = jnp.asarray if mesh is None else partial(jax.device_put, device=NamedSharding(mesh, P(mesh.axis_names)))
    buckets, position, offset = [], np.zeros(n_rows, np.int32), 0
    for members, n_lines, longest in plan_buckets(
        length, bucket_growth=bucket_growth, min_length=min_length, pad_to_multiple=pad_to_multiple
    ):
        position[members] = offset + np.arange(len(members))
        offset += n_lines
        count = np.pad(length[members], (0, n_lines - len(members)))
        where = np.arange(longest) < count[:, None]
        # The members' ratings, one member after the other: the order in which padded[where] is filled. The t-th of them
        # belongs to a member m and is order[start[m] + t - (the number of ratings of the members before m)].
        shift = start[members] - np.cumsum(length[members]) + length[members]
        source = order[np.repeat(shift, length[members]) + np.arange(count.sum())]

        def pad(column: np.ndarray, where: np.ndarray = where, source: np.ndarray = source) -> Array:
            padded = np.zeros(where.shape, column.dtype)
            padded[where] = column[source]
            return put(padded)

        buckets.append(
            Bucket(
                row=put(np.pad(members, (0, n_lines - len(members))).astype(np.int32)),
                other=pad(other),
                value=pad(ratings.value),
                where=put(where),
                weights=None if ratings.weights is None else pad(ratings.weights),
            )
        )
    layout = Rows(tuple(buckets), jnp.asarray(position), side, n_others, mesh)
    return replace(layout, position=layout.replicate(layout.position))


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"devices: expected distinct devices, at least one, got {devices}. Try jax.devices().")
    return Mesh(np.array(devices), ("rows",))


def padded_items(ratings: Ratings, users: ArrayLike) -> Padded:
    """Returns the items that each of these users has rated, in the ratings' order: (ids, where), padded with 0.

    Both are host arrays [len(users), longest], for `exclude` of `retrieval.top_k` and `relevant` of the ranking
    metrics.

    >>> ratings = Ratings(user=[0, 1, 1], item=[2, 0, 2], value=[5, 4, 0], n_users=3, n_items=3)
    >>> ids, where = padded_items(ratings, [1, 2])
    >>> ids.tolist(), where.tolist()
    ([[0, 2], [0, 0]], [[True, True], [False, False]])
    """
    users = check.ids("users", users, size=ratings.n_users)
    start, order = group_by(ratings.user, ratings.n_users)
    return pad_rows(start, ratings.item[order], users)


def pad_rows(start: np.ndarray, items: np.ndarray, users: np.ndarray) -> Padded:
    """Returns what `padded_items` does, from items sorted by user: user j's are items[start[j] : start[j + 1]]."""
    first, count = start[users], start[users + 1] - start[users]
    offset = np.arange(max(1, int(count.max(initial=0))))[None, :]
    where = offset < count[:, None]
    ids = np.zeros(where.shape, np.int32)
    ids[where] = items[(first[:, None] + offset)[where]]
    return Padded(ids, where)


def memory(
    ratings: Ratings, *, bucket_growth: float | None = None, min_length: int = 8, pad_to_multiple: int = 1
) -> dict[str, int]:
    """Returns the exact size in bytes of each layout of these ratings on one device, without building it.

    The keys are 'dense', 'observed', 'linked', 'rows_user' and 'rows_item'; the options are those of `rows`, and
    `pad_to_multiple` is also that of `observed` and `linked`. Building them takes up to 30 more bytes per rating.

    Raises:
        ValueError: as `rows`.
    """
    n = len(ratings) + n_padding(len(ratings), pad_to_multiple)
    entry = ID + VALUE + WHERE + (0 if ratings.weights is None else VALUE)
    sizes = {
        "dense": _dense_bytes(ratings),
        "observed": n * (ID + entry),
        "linked": n * (3 * ID + entry) + (ratings.n_users + 1 + ratings.n_items + 1) * ID,
    }
    for side, ids, size in (("user", ratings.user, ratings.n_users), ("item", ratings.item, ratings.n_items)):
        length = np.bincount(ids, minlength=size)
        plan = plan_buckets(length, bucket_growth=bucket_growth, min_length=min_length, pad_to_multiple=pad_to_multiple)
        sizes[f"rows_{side}"] = size * ID + sum(n_lines * (ID + longest * entry) for _, n_lines, longest in plan)
    return sizes


def _dense_bytes(ratings: Ratings) -> int:
    return ratings.n_items * ratings.n_users * (VALUE + WHERE + (0 if ratings.weights is None else VALUE))


def _check_fits(shape: tuple[int, int], needed: int) -> None:
    """Raises MemoryError if memory is short; NumPy would not: it allocates lazily, and the process would be killed."""
    free = free_memory()
    if 2 * needed > free:  # the host arrays and their device copies exist at once
        raise MemoryError(
            f"dense: {shape[0]} items x {shape[1]} users take {needed / 2**30:.1f} GiB, twice that while they are "
            f"built, and {free / 2**30:.1f} GiB are free. Use data.observed, data.linked or data.rows, which store "
            "only the rated pairs (see data.memory)."
        )


def free_memory() -> int:
    """Bytes of memory that are free now, as the kernel estimates them; all of the machine's where it does not say."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024  # "123456 kB"
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63


def _padded(column: np.ndarray, extra: int) -> Array:
    """Returns a column on the device with `extra` zeros at the end; 0 is a valid id, and False in a mask."""
    return jnp.array(np.pad(column, (0, extra)) if extra else column)  # a copy: jax 0.9.0 shares the host's memory
