"""Differences between groups of users: the mean of any per-user metric in each group, with intervals.

>>> import jax.numpy as jnp
>>> ndcg, group = jnp.array([0.5, 0.25, jnp.nan, 1.0]), jnp.array([0, 0, 1, 1])
>>> by_group = group_means(ndcg, group, n_groups=2)
>>> by_group.mean.tolist(), by_group.n_users.tolist(), by_group.n_undefined.tolist()
([0.375, 1.0], [2, 1], [0, 1])
>>> by_group.difference.tolist()  # of each group's mean (rows) from each group's (columns)
[[0.0, -0.625], [0.625, 0.0]]
>>> several = group_means(jnp.array([0.5, 0.25, 1.0, 0.75, 0.5]), jnp.array([0, 0, 1, 1, 1]), n_groups=2)
>>> difference, low, high = (float(each[1, 0]) for each in (several.difference, several.low, several.high))
>>> print(f"{difference:.3f} [{low:.3f}, {high:.3f}]")  # of so few users
0.375 [-0.247, 0.997]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import betainc, ndtri
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.gather import gather

__all__ = ["GroupMeans", "group_means"]

EXPANDED_FROM = 100.0  # degrees of freedom


class GroupMeans(NamedTuple):
    """Result of `group_means`.

    Attributes:
        mean: [g], of the users of the group whose value is a number; NaN without any.
        difference: [g, g], mean of the row's group - mean of the column's.
        n_users: int32 [g], how many users the mean is of.
        n_undefined: int32 [g], how many more users the group has whose value is NaN.
        standard_error: [g], of the mean; NaN below two users.
        difference_error: [g, g], the standard error of the difference; 0 of a group from itself.
        low: [g, g], the lower end of the difference's interval.
        high: [g, g], the upper end.
    """

    mean: Array
    difference: Array
    n_users: Array
    n_undefined: Array
    standard_error: Array
    difference_error: Array
    low: Array
    high: Array


def group_means(
    value: Shaped[ArrayLike, " n"],
    group: Int[ArrayLike, " n"],
    *,
    n_groups: int,
    level: float | Float[ArrayLike, ""] = 0.95,
    where: Bool[ArrayLike, " n"] | None = None,
) -> GroupMeans:
    """The mean of a per-user metric in each group of users, and its differences between the groups, with intervals.

    With n(g) users, their mean m(g) and variance v(g) (with n - 1), the groups being of different users (Welch 1947)::

        standard_error(g)       = sqrt(e(g)),  e(g) = v(g) / n(g)
        difference(g, h)        = m(g) - m(h)
        difference_error(g, h)  = sqrt(e(g) + e(h))
        low, high               = difference -+ t difference_error, t the (1 + level) / 2 quantile of Student's t with
                                  (e(g) + e(h))^2 / (e(g)^2 / (n(g) - 1) + e(h)^2 / (n(h) - 1)) degrees of freedom

    Users whose value is NaN, such as those without test items, are left out and counted: groups that differ in how many
    are left out may not be comparable. The intervals are of one difference each: of many pairs of groups some exclude 0
    by chance. Two models for the same users are compared by `evaluation.compare`, which pairs them.

    Args:
        value: the metric of each user.
        group: the group of each user, in [0, n_groups).
        n_groups: g, the number of groups.
        level: of the intervals, in (0, 1).
        where: which users count; all by default.

    Raises:
        ValueError: arrays of different shapes; groups out of range (not checked under jit); n_groups below 1;
            a level outside (0, 1).

    Source: Ekstrand et al. 2018, All the cool kids, how do they fit in?; Welch 1947, The generalization of Student's
    problem when several different population variances are involved.
    """
    check.same_shape(value=value, group=group, where=where)
    size = check.size_of_table("n_groups", n_groups)
    if not check.traced(level) and not (np.ndim(level) == 0 and 0 < np.asarray(level).item() < 1):
        raise ValueError(f"level: expected a number in (0, 1), such as 0.95, got {level}.")
    (value,) = check.as_floats(value=value)
    where = jnp.ones(value.shape, bool) if where is None else check.mask("where", where, value.shape)
    group = jnp.where(where, check.row_ids("group", group, size=size, where=where), 0)
    defined = where & ~jnp.isnan(value)
    add = lambda values: jnp.zeros(size, values.dtype).at[group].add(values)
    count = add(defined.astype(jnp.int32))
    total = add(jnp.where(defined, value, 0))
    mean = jnp.where(count > 0, total / jnp.maximum(count, 1).astype(value.dtype), jnp.nan)
    undefined = add((where & ~defined).astype(jnp.int32))
    difference = mean[:, None] - mean[None, :]
    deviation = jnp.where(defined, value - gather(mean, group), 0)
    n = count.astype(value.dtype)
    squared_error = jnp.where(count > 1, add(deviation**2) / (jnp.maximum(n - 1, 1) * jnp.maximum(n, 1)), jnp.nan)
    error, half = _welch(squared_error, n, jnp.asarray(level, value.dtype))
    return GroupMeans(
        mean, difference, count, undefined, jnp.sqrt(squared_error), error, difference - half, difference + half
    )


def _welch(squared_error: Array, n: Array, level: Array) -> tuple[Array, Array]:
    """(standard error, half width of the interval) of the differences between groups, [g, g]; 0 on the diagonal."""
    e = squared_error
    total = jnp.where(jnp.eye(len(e), dtype=bool), 0 * e[:, None], e[:, None] + e[None, :])
    uncertainty = e**2 / jnp.maximum(n - 1, 1)
    terms = uncertainty[:, None] + uncertainty[None, :]
    freedom = jnp.where(terms > 0, total**2 / jnp.where(terms > 0, terms, 1), 1)
    return jnp.sqrt(total), _student_quantile(level, jnp.maximum(freedom, 1)) * jnp.sqrt(total)


@jax.jit
def _student_quantile(level: Array, freedom: Array) -> Array:
    """The t with P(|T| < t) = level, of Student's distribution with this many degrees of freedom, at least 1.

    P(|T| < t) is the incomplete beta function I_y(1/2, freedom / 2) at y = t^2 / (freedom + t^2), solved for log t by
    halving an interval. From 100 degrees of freedom on, where it loses digits in float32, by the expansion about the
    normal quantile (Abramowitz and Stegun 1964, Handbook of mathematical functions, 26.7.5).
    """
    few = jnp.minimum(freedom, EXPANDED_FROM)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        square = jnp.exp(2 * middle)
        is_below = betainc(jnp.full_like(few, 0.5), few / 2, square / (few + square)) < level
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    low, high = jax.lax.fori_loop(0, 50, halve, (jnp.full_like(few, -15), jnp.full_like(few, 15)))
    z, many = ndtri((1 + level) / 2), jnp.maximum(freedom, EXPANDED_FROM)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    expanded = z + (first + (second + third / many) / many) / many
    return jnp.where(freedom < EXPANDED_FROM, jnp.exp((low + high) / 2), expanded)
