"""Checks of the solvers' arguments: shapes always, numbers and ids only where they are concrete (not traced)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import check
from jaxrec.losses.penalty import L2, per_side
from jaxrec.types import Dense, Ratings, Rows

__all__ = [
    "OVERFLOW",
    "check_dense",
    "check_finite",
    "check_is_rows",
    "check_rows",
    "check_strength",
    "floats",
    "in_float32",
    "like",
]


# Why a row's solution may not be finite: the end of the error message.
OVERFLOW = (
    "There is a NaN in its numbers or in the features, or weights times squares exceed the type's range: scale them, "
    "or run in float64."
)


def check_is_rows(rows: Any) -> None:
    """Raises a ValueError where these are not Rows, and says how Ratings become Rows."""
    if not isinstance(rows, Rows):
        advice = " Call data.rows(ratings, 'user')." if isinstance(rows, Ratings) else ""
        raise ValueError(f"rows: expected Rows, got {type(rows).__name__}.{advice}")


def check_rows(rows: Rows) -> None:
    """Checks that the buckets' arrays fit one another, and that their ids name rows of the tables.

    The ids of padding are checked too. Only the minimum and maximum of each column are taken, which needs some
    milliseconds for 20M ratings: `data.rows` has already checked the ids of the layouts that it makes.

    Raises:
        ValueError: otherwise.
    """
    n_rows, n_bucket_rows = len(rows.position), sum(len(bucket.row) for bucket in rows.buckets)
    check.choice("rows.side", rows.side, ("user", "item"))
    for bucket in rows.buckets:
        if len(np.shape(bucket.other)) != 2 or np.shape(bucket.row) != np.shape(bucket.other)[:1]:
            raise ValueError(
                f"rows: expected buckets of row [r] and other [r, length], got {np.shape(bucket.row)} and "
                f"{np.shape(bucket.other)}."
            )
        check.same_shape(other=bucket.other, value=bucket.value, where=bucket.where, weights=bucket.weights)
        check.row_ids("rows: other", bucket.other, size=rows.n_others)
        check.row_ids("rows: row", bucket.row, size=n_rows)
    check.row_ids("rows: position", rows.position, size=n_bucket_rows)


def check_dense(ratings: Dense, n_users: int, n_items: int) -> None:
    """Checks that the matrix has the tables' items and users.

    Raises:
        ValueError: otherwise.
    """
    check.same_shape(value=ratings.value, where=ratings.where, weights=ratings.weights)
    if np.shape(ratings.where) != (n_items, n_users):
        raise ValueError(
            f"ratings: expected a matrix of the {n_items} items and {n_users} users of the factors, items first, got "
            f"shape {np.shape(ratings.where)}."
        )


def check_strength(name: str, strength: L2, n_users: int, n_items: int, *, zero: bool = False) -> None:
    """Checks a number, or a pair (users', items') of numbers or of one number per row: finite and > 0, or 0 if `zero`.

    Raises:
        ValueError: otherwise.
    """
    if isinstance(strength, tuple) and len(strength) != 2:
        raise ValueError(f"{name}: expected a number or a pair (users', items'), got {len(strength)} parts.")
    for part, n, side in zip(per_side(strength), (n_users, n_items), ("users", "items"), strict=True):
        if np.shape(part) not in ((), (n,)):
            raise ValueError(
                f"{name}: expected a number or one for each of {n} {side}, shape ({n},), got shape {np.shape(part)}."
            )
    check.strength(name, strength, zero=zero)


def check_finite(what: str, solved: Any, why: str) -> None:
    """Checks that solutions are finite, where they are concrete.

    Raises:
        ValueError: otherwise; `why` says what the cause may be and what to do.
    """
    if check.traced(solved):
        return
    for leaf in jax.tree.leaves(solved):
        array = np.asarray(leaf)
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0]) if array.ndim else 0
            raise ValueError(f"{what}: row {row} has no finite solution. {why}")


def check_columns(x: Any, y: Any, where: Any, weights: Any) -> None:
    """Checks features x [n, d], and that the other columns have shape [n]; None passes.

    Raises:
        ValueError: otherwise.
    """
    if np.ndim(x) != 2:
        raise ValueError(f"x: expected features [n, d], got shape {np.shape(x)}.")
    n = np.shape(x)[:1]
    if any(column is not None and np.shape(column) != n for column in (y, where, weights)):
        shapes = {"y": y, "where": where, "weights": weights}
        got = ", ".join(f"{name}: {np.shape(column)}" for name, column in shapes.items() if column is not None)
        raise ValueError(f"expected arrays of one shape, got {got}, rows_of_x: {n}.")


def check_factor(factor: Any) -> None:
    """Checks that a `ridge.Factor`, where it is concrete, is accurate enough to solve with.

    Raises:
        ValueError: a pivot is below 2^11 eps of its diagonal entry. Then a solution is off by 1 % or more, up to being
            meaningless where the equations are singular.
    """
    if check.traced(factor):
        return
    lower = np.asarray(factor.cholesky)
    square = np.sum(lower**2, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.diagonal(lower, axis1=-2, axis2=-1) ** 2 / square
    if share.size and not np.min(share) >= 2**11 * np.finfo(lower.dtype).eps:  # also raises for NaN
        raise ValueError(
            f"factor: the equations are singular or too badly scaled for {lower.dtype}: eliminating the other "
            f"coefficients leaves {np.min(share):.1e} of a diagonal entry. Raise l2, or run in "
            "float64; solve_user, solve_item and fold_in solve badly scaled rows from their features."
        )


def in_float32(tree: Any) -> Any:
    """Converts all numbers of a tree to float32, or to float64 if one of them is float64."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, floats(*leaves))


def floats(*arrays: Any) -> tuple[Any, ...]:
    """Converts arrays to float32, or to float64 if one of them is float64; None stays None."""
    return check.as_floats(**{f"array {number}": array for number, array in enumerate(arrays)})


def like(tree: Any, reference: Any) -> Any:
    """Casts a tree to the floating types of a reference of the same structure; where that has no float, no cast."""

    def cast(leaf: Any, old: Any) -> Any:
        return leaf.astype(jnp.result_type(old)) if jnp.issubdtype(jnp.result_type(old), jnp.floating) else leaf

    return jax.tree.map(cast, tree, reference)
