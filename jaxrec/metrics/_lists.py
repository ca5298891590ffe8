"""What the metrics beyond accuracy share: lists of ids that are rows of tables, and means over their positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Int

from jaxrec import check

# Recommended ids [*n, k], best first; or a second list of ids of the same users, of another length.
Ids = Int[ArrayLike, "*n k"] | Sequence[Any]


def rows_of_lists(name: str, ids: Any, where: ArrayLike | None, *, size: int) -> tuple[Array, Array]:
    """Returns ids [*n, k] that index a table of this size, 0 where masked, and their mask (all True for None)."""
    shape = ids.shape if hasattr(ids, "shape") else jnp.shape(jnp.asarray(ids))
    if len(shape) == 0:
        raise ValueError(f"{name}: expected a list of ids [k], or several [*n, k], got one number.")
    mask = jnp.ones(shape, bool) if where is None else check.mask(f"the mask of {name}", where, shape)
    return jnp.where(mask, check.row_ids(name, ids, size=size, where=mask), 0), mask


def comparable_lists(
    ids: Any, filled: ArrayLike | None, **others: tuple[Any, ArrayLike | None]
) -> tuple[tuple[Array, Array], ...]:
    """Returns lists of the same users as (ids, mask) pairs whose ids are only compared with one another.

    Ids that do not fit in int32 are renumbered. The leading axes must be those of `ids`; the lengths may differ.
    """
    names = ["ids", *others]
    arrays = check.comparable_ids(ids=ids, **{name: values for name, (values, _) in others.items()})
    masks = [filled, *(mask for _, mask in others.values())]
    for name, array in zip(names, arrays, strict=True):
        if array.ndim == 0 or array.shape[:-1] != arrays[0].shape[:-1]:
            raise ValueError(
                f"{name}: expected lists [*n, length] of the same n users, got "
                f"{', '.join(f'{each} {one.shape}' for each, one in zip(names, arrays, strict=True))}."
            )
    return tuple(
        (array, jnp.ones(array.shape, bool) if mask is None else check.mask(f"the mask of {name}", mask, array.shape))
        for name, array, mask in zip(names, arrays, masks, strict=True)
    )


def each_list(function: Callable[..., Any], shape: tuple[int, ...], *arrays: Array) -> Any:
    """Applies a function of one list to lists with leading axes of this shape."""
    for _ in shape:
        function = jax.vmap(function)
    return function(*arrays)


def mean_where(values: Array, where: Array) -> Array:
    """The mean over the last axis of the unmasked values; NaN where all are masked."""
    count = jnp.sum(where, axis=-1).astype(values.dtype)
    total = jnp.sum(jnp.where(where, values, 0), axis=-1)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def members(ids: Array, others: Array, where: Array) -> Array:
    """Which of the ids [k] are among the unmasked others [e]."""
    return jnp.any((ids[:, None] == others[None, :]) & where[None, :], axis=1)


def first_positions(ids: Array, where: Array) -> Array:
    """Which unmasked positions of [k] hold an id that no earlier unmasked position holds."""
    k = len(ids)
    earlier = jnp.arange(k)[None, :] < jnp.arange(k)[:, None]
    return where & ~jnp.any((ids[:, None] == ids[None, :]) & earlier & where[None, :], axis=1)


def item_numbers(name: str, values: Any, *, signed: bool = False) -> Array:
    """Returns a table of one number per item [n_items] in float32 at least, after checking that none is negative."""
    (table,) = check.as_floats(**{name: values})
    if table.ndim != 1 or len(table) == 0:
        raise ValueError(f"{name}: expected one number for each item [n_items], got shape {table.shape}.")
    if not signed:
        check.strength(name, table, zero=True)
    return table
