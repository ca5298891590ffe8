"""The data types of ratings, parameters and results.

The notation is the notes': i is an item and j a user; r(i,j)=1 where user j rated item i; y(i,j) is the rating; x(i),
c(i) are an item's features and bias; w(j), b(j) a user's. `Ratings` and `Dataset` live on the host; all other types
here are pytrees of arrays for the device. A rating of 0 is a rating: only `where` marks what was not rated. Padding ids
are valid ids, never -1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrec.dataset import Dataset
from jaxrec.pytree import register_dataclass
from jaxrec.ratings import Ratings

__all__ = [
    "Bucket",
    "Dataset",
    "Dense",
    "Factors",
    "Linked",
    "Observed",
    "Padded",
    "Ratings",
    "Rows",
    "SolverInfo",
    "TopK",
    "Total",
]


@register_dataclass
@dataclass(frozen=True)
class Dense:
    """Ratings as the notes' matrices, items first: for small data and for formulas.

    Attributes:
        value: [n_items, n_users], Y.
        where: bool [n_items, n_users], R.
        weights: [n_items, n_users], or None for ones.
    """

    value: Array
    where: Array
    weights: Array | None = None

    @property
    def T(self) -> Dense:  # noqa: N802, as in NumPy
        """The transpose, users first."""
        return Dense(self.value.T, self.where.T, None if self.weights is None else self.weights.T)


@register_dataclass
@dataclass(frozen=True)
class Observed:
    """Observed ratings as columns, in any order, padded with `where` False.

    Attributes:
        user: int32 [n].
        item: int32 [n].
        value: [n].
        where: bool [n].
        weights: [n], or None for ones.
        user_count: [n], the number of ratings of the row's user in the full data, if these columns are a minibatch:
            `losses.cost` then computes the minibatch's share of the penalty. None for the full data.
        item_count: [n], the same for the row's item.
    """

    user: Array
    item: Array
    value: Array
    where: Array
    weights: Array | None = None
    user_count: Array | None = None
    item_count: Array | None = None


@register_dataclass
@dataclass(frozen=True)
class Linked:
    """Observed ratings sorted by user, with a permutation that sorts them by item: gradients need no scatter.

    Attributes:
        user: int32 [n], ascending; padding has the last user.
        item: int32 [n].
        value: [n].
        where: bool [n].
        user_start: int32 [n_users + 1]; user j's ratings are user_start[j] : user_start[j + 1].
        by_item: int32 [n], a permutation: column[by_item] is the column sorted by item.
        item_start: int32 [n_items + 1], like user_start, for the ratings sorted by item.
        user_by_item: int32 [n], user[by_item]: the users of each item's ratings, consecutively.
        weights: [n], or None for ones.
    """

    user: Array
    item: Array
    value: Array
    where: Array
    user_start: Array
    by_item: Array
    item_start: Array
    user_by_item: Array
    weights: Array | None = None


@register_dataclass
@dataclass(frozen=True)
class Bucket:
    """Rows of similar length, padded to one length.

    Attributes:
        row: int32 [r], the ids of these users (or items); padding rows have a valid id and no True in `where`.
        other: int32 [r, length], the ids of the other side.
        value: [r, length].
        where: bool [r, length].
        weights: [r, length], or None for ones.
    """

    row: Array
    other: Array
    value: Array
    where: Array
    weights: Array | None = None


@register_dataclass
@dataclass(frozen=True)
class Rows:
    """One side's ratings, a padded list per row, in buckets of similar length.

    Attributes:
        buckets: each row is in exactly one of them; rows without ratings are in the shortest.
        position: int32 [n_rows], the position of each row in the concatenation of the buckets' rows.
        side: 'user' (rows are users, `other` are items) or 'item'.
        n_others: the number of rows of the other side's table.
        mesh: the devices over which the rows of every bucket are sharded; None if one device holds all.
    """

    buckets: tuple[Bucket, ...]
    position: Array
    side: str = field(metadata={"static": True})
    n_others: int = field(metadata={"static": True})
    mesh: Mesh | None = field(default=None, metadata={"static": True})

    def map(self, f: Callable[..., list[Any]], *args: Any) -> Any:
        """One result per row, in row order: f(buckets, *args) -> a list of pytrees [r, ...], one per bucket.

        If the buckets are sharded, each device computes the results of its own rows, and all devices receive all
        results. A gather and no scatter: results of padding rows are never read, and every row is written once.
        """
        per_bucket = f if self.mesh is None else self._on_all_devices(f)
        return jax.tree.map(
            lambda *results: jax.numpy.concatenate(results)[self.position], *per_bucket(self.buckets, *args)
        )

    def replicate(self, tree: Any) -> Any:
        """Replicates a pytree of arrays over the devices of `mesh`, where the solvers place and expect factors."""
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, P()))

    def _on_all_devices(self, f: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        mesh = self.mesh
        assert mesh is not None
        all_gather = partial(jax.lax.all_gather, axis_name=mesh.axis_names, tiled=True)

        def gathered(buckets: tuple[Bucket, ...], *args: Any) -> list[Any]:
            return jax.tree.map(all_gather, f(buckets, *args))

        def sharded(buckets: tuple[Bucket, ...], *args: Any) -> list[Any]:
            # check_vma=False: JAX does not infer yet that gathered results are equal on all devices.
            return jax.shard_map(
                gathered,
                mesh=mesh,
                in_specs=(P(mesh.axis_names), *(P() for _ in args)),
                out_specs=P(),
                check_vma=False,
            )(buckets, *args)

        return sharded


@register_dataclass
@dataclass(frozen=True)
class Factors:
    """Parameters of matrix factorization: prediction(i, j) = w(j) . x(i) + b(j) + c(i) + mu(i).

    Attributes:
        w: [n_users, d].
        b: [n_users].
        x: [n_items, d].
        c: [n_items], or None for a model without item biases (as in the notes).
        mu: an offset that is data and not trained: a scalar (the global mean), [n_items] (the items' means), or None.
    """

    w: Array
    b: Array
    x: Array
    c: Array | None = None
    mu: Array | None = None


@register_dataclass
@dataclass(frozen=True)
class Total:
    """A sum and its count (the sum of weights), which the caller divides once to get the mean.

    >>> a, b = Total(jax.numpy.array(6.0), jax.numpy.array(2.0)), Total(jax.numpy.array(0.0), jax.numpy.array(1.0))
    >>> float((a + b).mean())
    2.0
    """

    sum: Array
    count: Array

    def __add__(self, other: Total) -> Total:
        """Totals of disjoint parts of the data add up."""
        return Total(self.sum + other.sum, self.count + other.count)

    def mean(self) -> Array:
        """Sum / count; NaN if the count is 0."""
        return self.sum / self.count


class TopK(NamedTuple):
    """The k best items, best first.

    Attributes:
        scores: [..., k], -inf at positions that cannot be filled.
        ids: int32 [..., k], 0 at positions that cannot be filled.
    """

    scores: Array
    ids: Array


class Padded(NamedTuple):
    """Lists of ids padded to one length.

    Attributes:
        ids: int32 [..., length]; any valid id at padding.
        where: bool [..., length], False at padding.
    """

    ids: Any
    where: Any


@register_dataclass
@dataclass(frozen=True)
class SolverInfo:
    """How a solver terminated.

    Attributes:
        converged: bool; False if it stopped at the maximum number of steps.
        steps: int, the steps taken.
        residual: the relative decrease of the objective in the last step.
        trace: [steps + 1], the objective before the first and after each step.
    """

    converged: Any
    steps: Any
    residual: Any
    trace: Any
