"""Matrix factorization: prediction(i, j) = w(j) . x(i) + b(j) + c(i) + mu(i)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray

from jaxrec.lookup import lookup
from jaxrec.types import Dense, Factors, Linked, Observed, Rows

__all__ = [
    "as_vectors",
    "biases",
    "check_tables",
    "init",
    "item_term",
    "learned",
    "predict",
    "predict_all",
    "predict_layout",
]


def init(
    n_users: int,
    n_items: int,
    rank: int,
    *,
    key: PRNGKeyArray,
    scale: float | Float[Array, ""] = 0.1,
    item_bias: bool = True,
    mu: ArrayLike | None = None,
    dtype: jnp.dtype | type = jnp.float32,
) -> Factors:
    """Random features, zero biases.

    Args:
        n_users: rows of w and b.
        n_items: rows of x and c.
        rank: d.
        key: a random key; users and items draw from different parts of it.
        scale: the standard deviation of the entries of w and x. At 0 the gradient of J is 0 in both: no start.
        item_bias: False leaves c out, as in the notes.
        mu: the offset, a number or one per item, or None.
        dtype: of every array.

    Raises:
        ValueError: mu is neither a number nor one per item.

    >>> factors = init(943, 1682, 8, key=jax.random.key(0), mu=3.5)
    >>> factors.w.shape, factors.x.shape, factors.c.shape
    ((943, 8), (1682, 8), (1682,))
    """
    if mu is not None and np.shape(mu) not in ((), (n_items,)):
        raise ValueError(f"mu: expected a number or one per item, shape ({n_items},), got shape {np.shape(mu)}.")
    key_w, key_x = jax.random.split(key)
    return Factors(
        w=scale * jax.random.normal(key_w, (n_users, rank), dtype),
        b=jnp.zeros(n_users, dtype),
        x=scale * jax.random.normal(key_x, (n_items, rank), dtype),
        c=jnp.zeros(n_items, dtype) if item_bias else None,
        mu=None if mu is None else jnp.asarray(mu, dtype),
    )


def predict(factors: Factors, user: Int[Array, "*n"], item: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """w(j) . x(i) + b(j) + c(i) + mu(i) for pairs (user[k], item[k]). Ids are trusted."""
    return jnp.sum(lookup(factors.w, user) * lookup(factors.x, item), axis=-1) + biases(factors, user, item)


def learned(factors: Factors) -> Factors:
    """Which arrays are learned, as a tree of bools: all but mu, which is data.

    No gradient reaches mu, but decoupled weight decay asks for none: optax.adamw(rate, mask=models.learned).
    """
    mask = jax.tree.map(lambda _: True, factors)
    return dataclasses.replace(mask, mu=None if factors.mu is None else False)


def biases(factors: Factors, user: Int[Array, "*n"], item: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """b(j) + c(i) + mu(i) for pairs (user[k], item[k]): the prediction without its product."""
    return lookup(factors.b, user) + lookup(item_term(factors), item)


def predict_all(factors: Factors) -> Float[Array, "n_users n_items"]:
    """Every user's prediction for every item: small data only. Large catalogues go through `retrieval.top_k`."""
    return factors.w @ factors.x.T + factors.b[:, None] + item_term(factors)[None, :]


def predict_layout(factors: Factors, ratings: Dense | Observed | Linked | Rows) -> Any:
    """The predictions for a layout's entries, in the shape of its `value` (Rows: one array per bucket)."""
    check_tables(factors, ratings)
    match ratings:
        case Dense():
            return predict_all(factors).T
        case Observed() | Linked():
            return predict(factors, ratings.user, ratings.item)
        case Rows():
            pairs = [
                (jnp.broadcast_to(bucket.row[:, None], bucket.other.shape), bucket.other) for bucket in ratings.buckets
            ]
            return [predict(factors, *(pair if ratings.side == "user" else pair[::-1])) for pair in pairs]
        case _:
            raise TypeError(f"expected ratings as Dense, Observed, Linked or Rows, got {type(ratings).__name__}.")


def check_tables(factors: Factors, ratings: Any) -> None:
    """Layouts that know the tables' sizes are held to them; the sizes are static, so that this costs nothing."""
    match ratings:
        case Linked():
            expected = len(ratings.user_start) - 1, len(ratings.item_start) - 1
        case Rows():
            expected = len(ratings.place), ratings.n_others
            expected = expected if ratings.side == "user" else expected[::-1]
        case _:
            return
    if (got := (len(factors.w), len(factors.x))) != expected:
        raise ValueError(f"factors: expected tables of {expected} users and items, as the ratings have, got {got}.")


def as_vectors(factors: Factors) -> tuple[Float[Array, "n_users k"], Float[Array, "n_items k"]]:
    """User and item vectors [., d + 2] whose product is the whole prediction, so that no ranking forgets c or mu.

    user (w(j), b(j), 1) . item (x(i), 1, c(i) + mu(i)).

    >>> factors = init(2, 3, 4, key=jax.random.key(0), mu=3.5)
    >>> users, items = as_vectors(factors)
    >>> bool(jnp.allclose(users @ items.T, predict_all(factors)))
    True
    """
    one = lambda table: jnp.ones((len(table), 1), table.dtype)
    users = jnp.concatenate([factors.w, factors.b[:, None], one(factors.w)], axis=1)
    items = jnp.concatenate([factors.x, one(factors.x), item_term(factors)[:, None]], axis=1)
    return users, items


def item_term(factors: Factors) -> Float[Array, " n_items"]:
    """c(i) + mu(i); mu is data, so no gradient reaches it."""
    term = jnp.zeros(factors.x.shape[:1], factors.x.dtype) if factors.c is None else factors.c
    return term if factors.mu is None else term + jax.lax.stop_gradient(factors.mu)
