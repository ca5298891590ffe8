"""Shapes of the layouts of ratings, without the ratings: to compile for sizes and devices that are not available."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.bucket_plan import plan_buckets
from jaxrec.types import Bucket, Factors, Linked, Observed, Rows

__all__ = ["f32", "factors", "linked", "observed", "rows"]

# Any, because these shapes are used where the layouts' fields are arrays.
f32: Any = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
i32: Any = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
flags: Any = partial(jax.ShapeDtypeStruct, dtype=jnp.bool_)


def rows(n_users: int, n_items: int, n: int) -> tuple[Rows, Rows]:
    """(by user, by item): shapes of `data.rows` of about n ratings, with log-normal counts per row like MovieLens's."""

    def side(name: str, n_rows: int, n_others: int, sigma: float) -> Rows:
        share = np.random.default_rng(0).lognormal(0, sigma, n_rows)
        for _ in range(20):  # a row holds at most n_others ratings; the other rows grow until the lengths sum to n
            length = np.clip(share * n / share.sum(), 1, n_others).astype(int)
            share = share * np.where(length < n_others, n / length.sum(), 1)
        plan = plan_buckets(length, bucket_growth=None, min_length=8, pad_to_multiple=1)
        bucket = lambda n, length: Bucket(i32((n,)), i32((n, length)), f32((n, length)), flags((n, length)))
        buckets = tuple(bucket(lines.n_lines, lines.longest) for lines in plan)
        return Rows(buckets, i32((n_rows,)), name, n_others)

    return side("user", n_users, n_items, 1.2), side("item", n_items, n_users, 2.0)


def linked(n_users: int, n_items: int, n: int) -> Linked:
    """Shapes of `data.linked` of n ratings."""
    ids = i32((n,))
    starts = i32((n_users + 1,)), i32((n_items + 1,))
    return Linked(ids, ids, f32((n,)), flags((n,)), starts[0], ids, starts[1], ids)


def observed(n: int) -> Observed:
    """Shapes of `data.observed` of n ratings, with counts."""
    ids, values = i32((n,)), f32((n,))
    return Observed(ids, ids, values, flags((n,)), None, values, values)


def factors(n_users: int, n_items: int, d: int, *, biases: bool) -> Factors:
    """Shapes of the factors of `models.init`."""
    c, mu = (f32((n_items,)), f32(())) if biases else (None, None)
    return Factors(f32((n_users, d)), f32((n_users,)), f32((n_items, d)), c, mu)
