"""Costs of collaborative filtering: the loss over the observed ratings plus l2/2 times squared norms.

`user_cost` and `item_cost` are for one user or item; `users_cost` and `items_cost` sum them by vmap. `cost` is the
joint cost J(w, b, x) of any layout. Each returns one number, loss.sum + penalty, to be minimized.

Alice's row of the lecture notes' table of five films (the third is not rated; 0 is a rating), with x held fixed:

>>> import jax, jax.numpy as jnp
>>> x = jnp.array([[0.9, 0.0], [1.0, 0.01], [0.99, 0.0], [0.1, 1.0], [0.0, 0.9]])  # romance, action
>>> y, rated = jnp.array([5.0, 5.0, 0.0, 0.0, 0.0]), jnp.array([True, True, False, True, True])
>>> w, b = jnp.array([5.0, 0.0]), jnp.array(0.0)
>>> round(float(user_cost(w, b, x, y, rated, l2=0.0)), 4)  # ((4.5-5)^2 + (5-5)^2 + 0.5^2 + 0^2) / 2
0.25
>>> round(float(user_cost(w, b, x, y, rated, l2=0.1)), 4)  # + 0.1/2 * 25
1.5
>>> jax.grad(user_cost)(w, b, x, y, rated, l2=0.0).tolist()  # sum of residual * x = -0.5 (0.9, 0) + 0.5 (0.1, 1)
[-0.399..., 0.5]
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.losses.layouts import as_minibatch, predict_entries
from jaxrec.losses.penalty import L2, Strength, check_per_row, l2_penalty
from jaxrec.losses.pointwise import PointwiseLoss, half_squared_error
from jaxrec.numerics import product
from jaxrec.types import Dense, Factors, Linked, Observed, Rows, Total

__all__ = ["check_row", "cost", "data_term", "item_cost", "items_cost", "user_cost", "users_cost"]


def user_cost(
    w: Shaped[ArrayLike, " d"],
    b: Shaped[ArrayLike, ""],
    x: Shaped[ArrayLike, "n_items d"],
    y: Shaped[ArrayLike, " n_items"],
    where: Bool[ArrayLike, " n_items"],
    *,
    l2: Strength,
    loss: PointwiseLoss = half_squared_error,
    weights: Shaped[ArrayLike, " n_items"] | None = None,
    offset: float | Shaped[ArrayLike, ""] | Shaped[ArrayLike, " n_items"] = 0.0,
    l2_bias: Strength = 0.0,
) -> Float[Array, ""]:
    """One user's cost: the loss of w . x(i) + b over their ratings y(i), plus l2/2 ‖w‖^2.

    With x held fixed and the default loss, this is ridge regression.

    Args:
        w: the user's parameters.
        b: the user's bias, penalized only through `l2_bias`.
        x: the items' features.
        y: the user's ratings.
        where: True where the user rated the item.
        l2: the strength of the penalty.
        loss: a pointwise loss.
        weights: one per rating.
        offset: added to the prediction: c(i) + mu(i), where the model has them.
        l2_bias: the strength of b's penalty.

    Source: the lecture notes' J(w(j), b(j)).
    """
    check.pointwise_loss(loss)
    check_row(x, y, where, row={"b": b}, l2=l2, l2_bias=l2_bias, offset=offset)
    w, b, x, offset = check.as_floats(w=w, b=b, x=x, offset=offset)
    penalty = 0.5 * l2 * jnp.sum(w**2) + 0.5 * l2_bias * b**2
    where = jnp.asarray(where)
    x = jnp.where(where[:, None], x, 0)  # masked features too: 0 * NaN would put NaN into the gradient
    return loss(product(x, w) + b + offset, y, where=where, weights=weights).sum + penalty


def item_cost(
    x: Shaped[ArrayLike, " d"],
    w: Shaped[ArrayLike, "n_users d"],
    b: Shaped[ArrayLike, " n_users"],
    y: Shaped[ArrayLike, " n_users"],
    where: Bool[ArrayLike, " n_users"],
    *,
    l2: Strength,
    loss: PointwiseLoss = half_squared_error,
    weights: Shaped[ArrayLike, " n_users"] | None = None,
    c: Shaped[ArrayLike, ""] | None = None,
    offset: float | Shaped[ArrayLike, ""] = 0.0,
    l2_bias: Strength = 0.0,
) -> Float[Array, ""]:
    """One item's cost: the loss of w(j) . x + b(j) over its ratings y(j), plus l2/2 ‖x‖^2; w and b are fixed.

    Args:
        x: the item's features.
        w: the users' parameters.
        b: the users' biases.
        y: the item's ratings.
        where: True where the user rated it.
        l2: the strength of the penalty.
        loss: a pointwise loss.
        weights: one per rating.
        c: the item's bias, or None for a model without item biases.
        offset: added to the prediction: mu(i), where the model has it.
        l2_bias: the strength of c's penalty.

    Source: the lecture notes' J(x(i)).
    """
    check.pointwise_loss(loss)
    check_row(w, y, where, row={} if c is None else {"c": c}, l2=l2, l2_bias=l2_bias, offset=offset)
    check.same_shape(y=y, b=b)
    x, w, b, c, offset = check.as_floats(x=x, w=w, b=b, c=c, offset=offset)
    where = jnp.asarray(where)
    w = jnp.where(where[:, None], w, 0)
    prediction = product(w, x) + b + offset
    penalty = 0.5 * l2 * jnp.sum(x**2)
    if c is not None:
        prediction, penalty = prediction + c, penalty + 0.5 * l2_bias * c**2
    return loss(prediction, y, where=where, weights=weights).sum + penalty


def check_row(
    features: ArrayLike,
    y: ArrayLike,
    where: ArrayLike,
    *,
    row: Mapping[str, ArrayLike],
    l2: Strength,
    l2_bias: Strength,
    offset: ArrayLike,
) -> None:
    """Checks one user's or item's arrays: a feature vector, a target and a mask entry per rating, and scalars.

    Raises:
        ValueError: the shapes differ; `row`, l2 or l2_bias is not a scalar; a strength is negative or not finite.
    """
    if jnp.ndim(features) != 2:
        raise ValueError(f"expected features [n, d], got shape {jnp.shape(features)}.")
    rows_of_features = jax.ShapeDtypeStruct(jnp.shape(features)[:1], jnp.bool_)
    check.same_shape(rows_of_features=rows_of_features, y=y, where=where)
    for name, number in {**row, "l2": l2, "l2_bias": l2_bias}.items():
        if jnp.ndim(number):  # an array would be broadcast over the entries
            raise ValueError(f"{name}: expected a number, got shape {jnp.shape(number)}.")
    if jnp.shape(offset) not in ((), jnp.shape(y)):
        raise ValueError(
            f"offset: expected a number or one per entry, shape {jnp.shape(y)}, got shape {jnp.shape(offset)}."
        )
    check.strength("l2", l2, zero=True)
    check.strength("l2_bias", l2_bias, zero=True)


def users_cost(
    w: Shaped[ArrayLike, "n_users d"],
    b: Shaped[ArrayLike, " n_users"],
    x: Shaped[ArrayLike, "n_items d"],
    y: Shaped[ArrayLike, "n_items n_users"],
    where: Bool[ArrayLike, "n_items n_users"],
    *,
    l2: Strength,
    loss: PointwiseLoss = half_squared_error,
) -> Float[Array, ""]:
    """Sum of `user_cost` over all users. `l2` is a number or one per user."""
    check.pointwise_loss(loss)
    w, b, y, where = (jnp.asarray(array) for array in (w, b, y, where))
    check_per_row(l2, len(b))
    one_user_cost = lambda w, b, y, where, l2: user_cost(w, b, x, y, where, l2=l2, loss=loss)
    return jnp.sum(jax.vmap(one_user_cost, in_axes=(0, 0, 1, 1, 0))(w, b, y, where, jnp.broadcast_to(l2, b.shape)))


def items_cost(
    x: Shaped[ArrayLike, "n_items d"],
    w: Shaped[ArrayLike, "n_users d"],
    b: Shaped[ArrayLike, " n_users"],
    y: Shaped[ArrayLike, "n_items n_users"],
    where: Bool[ArrayLike, "n_items n_users"],
    *,
    l2: Strength,
    loss: PointwiseLoss = half_squared_error,
) -> Float[Array, ""]:
    """Sum of `item_cost` over all items. `l2` is a number or one per item."""
    check.pointwise_loss(loss)
    x, y, where = (jnp.asarray(array) for array in (x, y, where))
    check_per_row(l2, len(x))
    one_item_cost = lambda x, y, where, l2: item_cost(x, w, b, y, where, l2=l2, loss=loss)
    return jnp.sum(jax.vmap(one_item_cost)(x, y, where, jnp.broadcast_to(l2, x.shape[:1])))


def data_term(
    factors: Factors, ratings: Dense | Observed | Linked | Rows, *, loss: PointwiseLoss = half_squared_error
) -> Total:
    """The loss over the observed ratings, without the penalty. With `squared_error` its mean is RMSE^2."""
    check.pointwise_loss(loss)
    if isinstance(ratings, Rows):
        totals = [
            loss(prediction, bucket.value, where=bucket.where, weights=bucket.weights)
            for prediction, bucket in zip(predict_entries(factors, ratings), ratings.buckets, strict=True)
        ]
        return sum(totals[1:], start=totals[0])
    return loss(predict_entries(factors, ratings), ratings.value, where=ratings.where, weights=ratings.weights)


def cost(
    factors: Factors,
    ratings: Dense | Observed | Linked | Rows,
    *,
    l2: L2,
    loss: PointwiseLoss = half_squared_error,
    l2_bias: L2 = 0.0,
) -> Float[Array, ""]:
    """The joint cost J(w, b, x): loss over observed (i, j) + l2/2 (‖W‖^2 + ‖X‖^2) + l2_bias/2 (‖b‖^2 + ‖c‖^2).

    The same number for every layout. Differentiated by JAX, in both modes; `closed_form.cost` has a cheaper gradient.

    Args:
        factors: the parameters; c and mu may be None.
        ratings: Dense, Observed, Linked or Rows; a minibatch (Observed with counts) takes its share of the penalty.
        l2: a number, or a pair (users', items') of numbers or of one number per row.
        loss: a pointwise loss; `logistic` for binary labels.
        l2_bias: the same for b and c.

    Raises:
        ValueError: `l2` is an array and not a pair, negative or not finite; parts of the factors do not fit one another
            or the ratings; ids of Observed are not in the tables (not checked under jit).

    Source: the lecture notes' J(w, b, x).
    """
    batch = as_minibatch(ratings)
    return data_term(factors, ratings, loss=loss).sum + l2_penalty(factors, l2=l2, l2_bias=l2_bias, batch=batch)
