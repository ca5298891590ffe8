"""The regularizer: l2/2 times squared norms of rows, whole or the share of a minibatch."""

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
    """A strength for each side: numbers, or one number per row.

    Attributes:
        users: of the users' rows, [] or [n_users].
        items: of the items' rows, [] or [n_items].
    """

    users: Any
    items: Any


def per_side(l2: L2) -> PerSide:
    """The users' and the items' strength of an `l2` that may be one number for both."""
    if isinstance(l2, tuple):
        return PerSide(*l2)
    if jnp.ndim(l2) != 0:
        raise ValueError(
            f"l2: expected a number or a pair (users', items'), got an array of shape {jnp.shape(l2)}. "
            "One number per row is given as a pair, since users and items differ in number: l2=(l2_users, l2_items)."
        )
    return PerSide(l2, l2)


def half_squared_norm(rows: ArrayLike, l2: Strength) -> Array:
    """l2/2 ‖row‖^2, summed over rows [n, d] (or [n], for biases); l2 is a number or one per row."""
    (table,) = check.as_floats(rows=rows)
    check_per_row(l2, len(table))
    squares = table**2 if table.ndim == 1 else jnp.sum(table**2, axis=-1)
    return 0.5 * jnp.sum(l2 * squares)


def l2_penalty(factors: Factors, *, l2: L2, l2_bias: L2 = 0.0, batch: Observed | None = None) -> Array:
    """l2/2 (‖W‖^2 + ‖X‖^2) + l2_bias/2 (‖b‖^2 + ‖c‖^2); mu is data and is not penalized.

    Args:
        factors: the parameters.
        l2: a number, or a pair (users', items') of numbers or of one number per row.
        l2_bias: the same for b and c; 0, as in the notes, leaves them free.
        batch: ratings that carry `user_count` and `item_count`: then every row is penalized once for each of its
            ratings in the batch and divided by all of them, so that the batches' penalties add up to the whole one.
            (Rows without any rating stand in no batch: their penalty is nobody's share.)

    Raises:
        ValueError: a strength that is negative, not finite, or not one per row; ids of the batch that are not in the
            tables.
    """
    users, items = per_side(l2)
    bias_users, bias_items = per_side(l2_bias)
    check.strength("l2", l2, zero=True)
    check.strength("l2_bias", l2_bias, zero=True)
    tables = [(factors.w, users, "user"), (factors.x, items, "item"), (factors.b, bias_users, "user")]
    if factors.c is not None:
        tables.append((factors.c, bias_items, "item"))
    if batch is None or batch.user_count is None or batch.item_count is None:
        parts = [half_squared_norm(table, strength) for table, strength, _ in tables]
    else:
        share = {  # a masked row's count may be anything, 0 too
            "user": jnp.where(batch.where, 1 / jnp.where(batch.where, batch.user_count, 1), 0),
            "item": jnp.where(batch.where, 1 / jnp.where(batch.where, batch.item_count, 1), 0),
        }
        ids = {
            "user": check.row_ids("user", batch.user, size=len(factors.w)),
            "item": check.row_ids("item", batch.item, size=len(factors.x)),
        }
        parts = [
            half_squared_norm(gather(table, ids[side]), share[side] * _at(strength, ids[side], len(table)))
            for table, strength, side in tables
        ]
    return sum(parts[1:], start=parts[0])


def _at(strength: Strength, ids: Array, size: int) -> Strength:
    if jnp.ndim(strength) == 0:
        return strength
    check_per_row(strength, size)
    return gather(jnp.asarray(strength), ids)


def check_per_row(strength: Strength, size: int) -> None:
    """A number or one per row: an array of length 1 would be broadcast, and mean something else."""
    if jnp.shape(strength) not in ((), (size,)):
        raise ValueError(f"l2: expected a number or one per row, shape ({size},), got shape {jnp.shape(strength)}.")
