"""The vocabulary: what ratings, parameters and results look like. Everything else is a function of these.

Letters are the notes': i = item, j = user; r(i,j)=1 where user j rated item i; y(i,j) the rating; x(i), c(i) an
item's features and bias; w(j), b(j) a user's. `Ratings` and `Dataset` live on the host; all else here is a pytree
of arrays for the device. A rating of 0 is a rating: only `where` says what was not rated. Padding ids are valid ids,
never -1.
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
from jax.tree_util import register_dataclass

from jaxrec.ratings import Dataset, Ratings

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
    """Ratings as the notes print them, items first: for small data and for formulas.

    Attributes:
        value: [n_items, n_users], Y.
        where: bool [n_items, n_users], R.
        weights: [n_items, n_users], or None for ones.
    """

    value: Array
    where: Array
    weights: Array | None = None

    @property
    def T(self) -> Dense:  # noqa: N802, as of an array
        """Users first."""
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
        user_count: [n], how many ratings the row's user has in the whole data, where these columns are a minibatch
            of it: `losses.cost` then takes the minibatch's share of the penalty. None for the whole data.
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
    """Observed ratings sorted by user, linked to the same ratings sorted by item: gradients without a scatter.

    Attributes:
        user: int32 [n], ascending; padding carries the last user.
        item: int32 [n].
        value: [n].
        where: bool [n].
        user_start: int32 [n_users + 1]; user j's ratings stand at user_start[j] : user_start[j + 1].
        by_item: int32 [n], a permutation: column[by_item] is the column sorted by item.
        item_start: int32 [n_items + 1], as user_start, into the order sorted by item.
        user_by_item: int32 [n], user[by_item]: the users of each item's ratings, in a row.
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
        row: int32 [r], which users (or items) these are; padding rows carry a valid row and no True in `where`.
        other: int32 [r, length], the other side's ids.
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
        buckets: every row stands in exactly one; rows without ratings too, in the shortest.
        position: int32 [n_rows], where each row stands once the buckets' results are laid end to end.
        side: 'user' (rows are users, `other` are items) or 'item'.
        n_others: rows of the other side's table.
        mesh: the devices that hold a part of every bucket's rows each; None: one holds all.
    """

    buckets: tuple[Bucket, ...]
    position: Array
    side: str = field(metadata={"static": True})
    n_others: int = field(metadata={"static": True})
    mesh: Mesh | None = field(default=None, metadata={"static": True})

    def map(self, f: Callable[..., list[Any]], *given: Any) -> Any:
        """One result per row, in row order: f(buckets, *given) -> a list of pytrees [r, ...], one per bucket.

        Where devices hold parts of the buckets, each computes those of its own rows, and all are given all results.
        A gather and no scatter: padding rows are never read, and every row is written once.
        """
        per_bucket = f if self.mesh is None else self._on_all(f)
        return jax.tree.map(
            lambda *parts: jax.numpy.concatenate(parts)[self.position], *per_bucket(self.buckets, *given)
        )

    def replicate(self, tree: Any) -> Any:
        """The tree of arrays on every device that holds rows: where the solvers leave factors, and best find them."""
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, P()))

    def _on_all(self, f: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        mesh = self.mesh
        assert mesh is not None
        everyone = partial(jax.lax.all_gather, axis_name=mesh.axis_names, tiled=True)
        # check_vma: that what is gathered is the same everywhere is not yet inferred by JAX
        return lambda buckets, *given: jax.shard_map(
            lambda buckets, *given: jax.tree.map(everyone, f(buckets, *given)),
            mesh=mesh,
            in_specs=(P(mesh.axis_names), *(P() for _ in given)),
            out_specs=P(),
            check_vma=False,
        )(buckets, *given)


@register_dataclass
@dataclass(frozen=True)
class Factors:
    """Parameters of matrix factorization: prediction(i, j) = w(j) . x(i) + b(j) + c(i) + mu(i).

    Attributes:
        w: [n_users, d].
        b: [n_users].
        x: [n_items, d].
        c: [n_items], or None for a model without item biases (the notes').
        mu: an offset that is data and not learned: a scalar (the global mean), [n_items] (the items' means), or None.
    """

    w: Array
    b: Array
    x: Array
    c: Array | None = None
    mu: Array | None = None


@register_dataclass
@dataclass(frozen=True)
class Total:
    """A sum and its count (the sum of weights): what is averaged travels so until the caller divides, once.

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
        """Sum / count; NaN where nothing was counted, for there is no mean of nothing."""
        return self.sum / self.count


class TopK(NamedTuple):
    """The best of a list, best first.

    Attributes:
        scores: [..., k], -inf at places that cannot be filled.
        ids: int32 [..., k], 0 at places that cannot be filled.
    """

    scores: Array
    ids: Array


class Padded(NamedTuple):
    """Lists of ids padded to one length.

    Attributes:
        ids: int32 [..., length]; where `where` is False, any valid id.
        where: bool [..., length].
    """

    ids: Any
    where: Any


@register_dataclass
@dataclass(frozen=True)
class SolverInfo:
    """How a solver ended.

    Attributes:
        converged: bool; False where it stopped at the last step it was allowed.
        steps: int, the steps taken.
        residual: the last step's relative decrease of the objective.
        trace: [steps + 1], the objective before the first and after each step.
    """

    converged: Any
    steps: Any
    residual: Any
    trace: Any
