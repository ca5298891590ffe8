"""Ratings that are not there: the shapes of their layouts, to compile for sizes and devices that are not at hand."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data import layouts
from jaxrec.types import Bucket, Factors, Linked, Observed, Rows

__all__ = ["f32", "factors", "linked", "observed", "rows"]

# Any: shapes stand where the layouts say arrays.
f32: Any = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
i32: Any = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
flags: Any = partial(jax.ShapeDtypeStruct, dtype=jnp.bool_)


def rows(n_users: int, n_items: int, n: int) -> tuple[Rows, Rows]:
    """`data.rows` of both sides of about n ratings, their numbers log-normal, as MovieLens' are."""

    def side(name: str, n_rows: int, n_others: int, sigma: float) -> Rows:
        share = np.random.default_rng(0).lognormal(0, sigma, n_rows)
        for _ in range(20):  # rows as long as there are others are full
            length = np.clip(share * n / share.sum(), 1, n_others).astype(int)
            share = share * np.where(length < n_others, n / length.sum(), 1)
        plan = layouts._plan(length, bucket_growth=None, min_length=8, pad_to_multiple=1)
        of = lambda r, l: Bucket(i32((r,)), i32((r, l)), f32((r, l)), flags((r, l)))  # noqa: E741
        return Rows(tuple(of(each.n_lines, each.longest) for each in plan), i32((n_rows,)), name, n_others)

    return side("user", n_users, n_items, 1.2), side("item", n_items, n_users, 2.0)


def linked(n_users: int, n_items: int, n: int) -> Linked:
    """`data.linked` of n ratings."""
    ids = i32((n,))
    starts = i32((n_users + 1,)), i32((n_items + 1,))
    return Linked(ids, ids, f32((n,)), flags((n,)), starts[0], ids, starts[1], ids)


def observed(n: int) -> Observed:
    """`data.observed` of n ratings, with counts."""
    ids, numbers = i32((n,)), f32((n,))
    return Observed(ids, ids, numbers, flags((n,)), None, numbers, numbers)


def factors(n_users: int, n_items: int, d: int, *, biases: bool) -> Factors:
    """`models.init`'s."""
    c, mu = (f32((n_items,)), f32(())) if biases else (None, None)
    return Factors(f32((n_users, d)), f32((n_users,)), f32((n_items, d)), c, mu)
