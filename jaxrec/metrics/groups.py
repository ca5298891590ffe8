"""Differences between groups of users: the mean of any per-user metric in each group.

>>> import jax.numpy as jnp
>>> ndcg, group = jnp.array([0.5, 0.25, jnp.nan, 1.0]), jnp.array([0, 0, 1, 1])
>>> by_group = group_means(ndcg, group, n_groups=2)
>>> by_group.mean.tolist(), by_group.n_users.tolist(), by_group.n_undefined.tolist()
([0.375, 1.0], [2, 1], [0, 1])
>>> by_group.difference.tolist()  # of each group's mean (rows) from each group's (columns)
[[0.0, -0.625], [0.625, 0.0]]
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, Shaped

from jaxrec import check

__all__ = ["GroupMeans", "group_means"]


class GroupMeans(NamedTuple):
    """Result of `group_means`.

    Attributes:
        mean: [g], of the users of the group whose value is a number; NaN without any.
        difference: [g, g], mean of the row's group - mean of the column's.
        n_users: int32 [g], how many users the mean is of.
        n_undefined: int32 [g], how many more users the group has whose value is NaN.
    """

    mean: Array
    difference: Array
    n_users: Array
    n_undefined: Array


def group_means(
    value: Shaped[ArrayLike, " n"],
    group: Int[ArrayLike, " n"],
    *,
    n_groups: int,
    where: Bool[ArrayLike, " n"] | None = None,
) -> GroupMeans:
    """The mean of a per-user metric in each group of users, and its differences between the groups.

    Users whose value is NaN, such as those without test items, are left out and counted: groups that differ in how many
    are left out may not be comparable. A difference has the noise of both means; `evaluation.compare` has intervals.

    Args:
        value: the metric of each user.
        group: the group of each user, in [0, n_groups).
        n_groups: g, the number of groups.
        where: which users count; all by default.

    Raises:
        ValueError: arrays of different shapes; groups out of range (not checked under jit); n_groups below 1.

    Source: Ekstrand et al. 2018, All the cool kids, how do they fit in?
    """
    check.same_shape(value=value, group=group, where=where)
    size = check.size_of_table("n_groups", n_groups)
    (value,) = check.as_floats(value=value)
    where = jnp.ones(value.shape, bool) if where is None else check.mask("where", where, value.shape)
    group = jnp.where(where, check.row_ids("group", group, size=size, where=where), 0)
    defined = where & ~jnp.isnan(value)
    add = lambda values: jnp.zeros(size, values.dtype).at[group].add(values)
    count = add(defined.astype(jnp.int32))
    total = add(jnp.where(defined, value, 0))
    mean = jnp.where(count > 0, total / jnp.maximum(count, 1).astype(value.dtype), jnp.nan)
    undefined = add((where & ~defined).astype(jnp.int32))
    return GroupMeans(mean, mean[:, None] - mean[None, :], count, undefined)
