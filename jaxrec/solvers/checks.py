"""What the solvers check at the door: shapes always, and numbers and ids wherever they are concrete."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import check
from jaxrec.losses.penalty import L2, pair
from jaxrec.types import Dense, Factors, Rows

__all__ = ["check_dense", "check_factors", "check_finite", "check_rows", "check_strength", "in_float32", "like"]


def check_factors(factors: Factors) -> None:
    """Parts that fit: w [n_users, d], b [n_users], x [n_items, d], c [n_items] or None, mu [], [n_items] or None.

    Raises:
        ValueError: otherwise.
    """
    w, b, x, c, mu = (
        None if part is None else jnp.shape(part) for part in (factors.w, factors.b, factors.x, factors.c, factors.mu)
    )
    fits = len(w) == len(x) == 2 and w[1] == x[1] and b == w[:1] and c in (None, x[:1]) and mu in (None, (), x[:1])
    if not fits:
        raise ValueError(
            "factors: expected w [n_users, d], b [n_users], x [n_items, d], c [n_items] or None, mu [] or [n_items] or "
            f"None; got w {w}, b {b}, x {x}, c {c}, mu {mu}."
        )


def check_rows(rows: Rows) -> None:
    """Buckets whose arrays fit, and whose ids name rows of the tables.

    Padding's ids are read too. Ids of layouts from `data.rows` were checked there: this is a minimum and a maximum of
    each column, some milliseconds for 20M ratings.

    Raises:
        ValueError: otherwise.
    """
    n_rows, lines = len(rows.place), sum(len(bucket.row) for bucket in rows.buckets)
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
    check.row_ids("rows: place", rows.place, size=lines)


def check_dense(ratings: Dense, n_users: int, n_items: int) -> None:
    """A matrix of the tables' items and users.

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
    """A number, or a pair (users', items') of numbers or of exactly one per row: finite and positive, or 0 if allowed.

    Raises:
        ValueError: otherwise.
    """
    if isinstance(strength, tuple) and len(strength) != 2:
        raise ValueError(f"{name}: expected a number or a pair (users', items'), got {len(strength)} parts.")
    for part, n, side in zip(pair(strength), (n_users, n_items), ("users", "items"), strict=True):
        if np.shape(part) not in ((), (n,)):
            raise ValueError(
                f"{name}: expected a number or one for each of {n} {side}, shape ({n},), got shape {np.shape(part)}."
            )
    check.strength(name, strength, zero=zero)


def check_finite(what: str, solved: Any, why: str) -> None:
    """Concrete solutions that are numbers.

    Raises:
        ValueError: otherwise; `why` says what they come from and what to do.
    """
    if check.traced(solved):
        return
    for leaf in jax.tree.leaves(solved):
        array = np.asarray(leaf)
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0]) if array.ndim else 0
            raise ValueError(f"{what}: row {row} has no finite solution. {why}")


def in_float32(tree: Any) -> Any:
    """A tree's numbers all in float32, or in float64 where one of them is: what is summed is so in no less."""
    leaves = jax.tree.leaves(tree)
    wide = any(jnp.result_type(leaf) == jnp.float64 for leaf in leaves)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.float64 if wide else jnp.float32), tree)


def like(tree: Any, given: Any) -> Any:
    """A tree's numbers in the floating types of another of the same structure."""
    to = lambda leaf, old: (
        leaf.astype(jnp.result_type(old)) if jnp.issubdtype(jnp.result_type(old), jnp.floating) else leaf
    )
    return jax.tree.map(to, tree, given)
