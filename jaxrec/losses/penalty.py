"""The L2 penalty: l2/2 times squared norms of rows, of the full tables or the share of a minibatch."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.types import Factors, Observed

__all__ = ["L2", "PerSide", "check_per_row", "half_squared_norm", "l2_penalty", "per_side"]

# A number, or one number per row.
Strength = ArrayLike
# For both tables: one strength for both, or a pair (users', items').
L2 = Strength | tuple[Strength, Strength]


class PerSide(NamedTuple):
    """A strength for each side: a number, or one number per row.

    Attributes:
        users: strength of the users' rows, [] or [n_users].
        items: strength of the items' rows, [] or [n_items].
    """

    users: Any
    items: Any


def per_side(l2: L2) -> PerSide:
    """Splits `l2`, one number for both sides or a pair, into the users' and the items' strength."""
    if isinstance(l2, tuple):
        return PerSide(*l2)
    if jnp.ndim(l2) != 0:
        raise ValueError(
            f"l2: expected a number or a pair (users', items'), got an array of shape {jnp.shape(l2)}. "
            "Pass one number per row as a pair: l2=(l2_users, l2_items)."
        )
    return PerSide(l2, l2)


def half_squared_norm(rows: ArrayLike, l2: Strength) -> Array:
    """Sum of l2/2 ‖row‖^2 over rows [n, d] (or [n], for biases). l2 is a number or one per row."""
    (table,) = check.as_floats(rows=rows)
    check_per_row(l2, len(table))
    squares = table**2 if table.ndim == 1 else jnp.sum(table**2, axis=-1)
    return 0.5 * jnp.sum(l2 * squares)


def l2_penalty(factors: Factors, *, l2: L2, l2_bias: L2 = 0.0, batch: Observed | None = None) -> Array:
    """l2/2 (‖W‖^2 + ‖X‖^2) + l2_bias/2 (‖b‖^2 + ‖c‖^2); mu is data and is not penalized.

    For a minibatch, each row is penalized once per rating it has in the batch, divided by all its ratings::

        sum over the batch's ratings (i, j) of  l2/2 (‖w(j)‖^2 / user_count(j) + ‖x(i)‖^2 / item_count(i)),  b, c alike

    so that the batches of an epoch add up to the full penalty, less that of rows without ratings, which no batch has.

    Args:
        factors: the parameters.
        l2: a number, or a pair (users', items') of numbers or of one number per row.
        l2_bias: the same for b and c; at 0 these are not penalized.
        batch: ratings with `user_count` and `item_count`, for the minibatch's share; without counts, or None: the full
            penalty.

    Raises:
        ValueError: a strength that is negative, not finite, or not one per row; ids of the batch that are not in the
            tables.
    """
    check.factors("factors", factors)
    users, items = per_side(l2)
    bias_users, bias_items = per_side(l2_bias)
    check.strength("l2", l2, zero=True)
    check.strength("l2_bias", l2_bias, zero=True)
    tables = [(factors.w, users, "user"), (factors.x, items, "item"), (factors.b, bias_users, "user")]
    if factors.c is not None:
        tables.append((factors.c, bias_items, "item"))
    if batch is None or batch.user_count is None or batch.item_count is None:
        terms = [half_squared_norm(table, strength) for table, strength, _ in tables]
    else:
        share = {  # the counts of masked entries may be 0
            "user": jnp.where(batch.where, 1 / jnp.where(batch.where, batch.user_count, 1), 0),
            "item": jnp.where(batch.where, 1 / jnp.where(batch.where, batch.item_count, 1), 0),
        }
        ids = {
            "user": check.row_ids("user", batch.user, size=len(factors.w)),
            "item": check.row_ids("item", batch.item, size=len(factors.x)),
        }
        terms = [
            half_squared_norm(gather(table, ids[side]), share[side] * _strength_at(strength, ids[side], len(table)))
            for table, strength, side in tables
        ]
    return sum(terms[1:], start=terms[0])


def _strength_at(strength: Strength, ids: Array, size: int) -> Strength:
    if jnp.ndim(strength) == 0:
        return strength
    check_per_row(strength, size)
    return gather(jnp.asarray(strength), ids)


def check_per_row(strength: Strength, size: int) -> None:
    """Checks that `strength` is a number or one per row. An array of length 1 would be broadcast silently."""
    if jnp.shape(strength) not in ((), (size,)):
        raise ValueError(f"l2: expected a number or one per row, shape ({size},), got shape {jnp.shape(strength)}.")
