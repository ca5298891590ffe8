"""Closed-form gradients of the costs, and `cost`, the joint cost that is differentiated by them.

With e(i,j) = weight * slope(prediction(i,j), y(i,j)) where r(i,j)=1, and 0 elsewhere::

    dJ/dw(j) = sum over i of e(i,j) x(i) + l2 w(j)        dJ/db(j) = sum over i of e(i,j) (+ l2_bias b(j))
    dJ/dx(i) = sum over j of e(i,j) w(j) + l2 x(i)        dJ/dc(i) = sum over j of e(i,j) (+ l2_bias c(i))

In matrices, with E [n_items, n_users]: dJ/dW = E'X + l2 W and dJ/dX = E W + l2 X. The loss enters only through its
slope, its derivative with respect to the prediction (`pointwise.slope_of`).

>>> import jax, jax.numpy as jnp
>>> from jaxrec import losses
>>> from jaxrec.models import init
>>> from jaxrec.types import Dense
>>> ratings = Dense(value=jnp.array([[5.0, 0.0], [4.0, 3.0]]), where=jnp.array([[True, False], [True, True]]))
>>> factors = init(2, 2, 3, key=jax.random.key(0))
>>> closed, autodiff = gradient(factors, ratings, l2=0.1), jax.grad(losses.cost)(factors, ratings, l2=0.1)
>>> bool(jnp.allclose(closed.w, autodiff.w, atol=1e-6)), bool(jnp.allclose(closed.x, autodiff.x, atol=1e-6))
(True, True)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.kernels.platform import with_derivative_of
from jaxrec.losses import collaborative
from jaxrec.losses.layouts import (
    DataGradient,
    as_minibatch,
    check_tables,
    data_gradient,
    predict_entries,
)
from jaxrec.losses.penalty import L2, Strength, l2_penalty
from jaxrec.losses.pointwise import PointwiseLoss, Slope, half_squared_error, logistic, slope_of
from jaxrec.numerics import product
from jaxrec.prediction import in_float32, item_term
from jaxrec.types import Dense, Factors, Linked, Observed

__all__ = [
    "ItemGradient",
    "UserGradient",
    "ValueAndGradient",
    "cost",
    "gradient",
    "item_gradient",
    "user_gradient",
    "value_and_gradient",
]


class UserGradient(NamedTuple):
    """Gradient of a user's cost.

    Attributes:
        w: [d].
        b: [].
    """

    w: Array
    b: Array


class ItemGradient(NamedTuple):
    """Gradient of an item's cost.

    Attributes:
        x: [d].
        c: [], or None for an item without a bias.
    """

    x: Array
    c: Array | None


class ValueAndGradient(NamedTuple):
    """The joint cost and its gradient.

    Attributes:
        value: [], the cost.
        gradient: Factors, with the shapes and types of the parameters.
    """

    value: Array
    gradient: Factors


def user_gradient(
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
) -> UserGradient:
    """Gradient of `losses.user_cost` with respect to (w, b). Same arguments and errors."""
    check.pointwise_loss(loss)
    collaborative.check_row(x, y, where, row={"b": b}, l2=l2, l2_bias=l2_bias, offset=offset)
    w, b, x, offset = check.as_floats(w=w, b=b, x=x, offset=offset)
    where = jnp.asarray(where)
    x = jnp.where(where[:, None], x, 0)
    e = _errors(product(x, w) + b + offset, y, where, weights, slope_of(loss))
    return UserGradient(product(x.T, e) + l2 * w, jnp.sum(e) + l2_bias * b)


def item_gradient(
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
) -> ItemGradient:
    """Gradient of `losses.item_cost` with respect to x, and to c if the item has a bias. Same arguments."""
    check.pointwise_loss(loss)
    collaborative.check_row(w, y, where, row={} if c is None else {"c": c}, l2=l2, l2_bias=l2_bias, offset=offset)
    check.same_shape(y=y, b=b)
    x, w, b, c, offset = check.as_floats(x=x, w=w, b=b, c=c, offset=offset)
    where = jnp.asarray(where)
    w = jnp.where(where[:, None], w, 0)
    e = _errors(product(w, x) + b + offset + (0.0 if c is None else c), y, where, weights, slope_of(loss))
    gradient_x = product(w.T, e) + l2 * x
    return ItemGradient(gradient_x, None if c is None else jnp.sum(e) + l2_bias * c)


def gradient(
    factors: Factors,
    ratings: Dense | Observed | Linked,
    *,
    l2: L2,
    loss: PointwiseLoss = half_squared_error,
    l2_bias: L2 = 0.0,
) -> Factors:
    """Gradient of `losses.cost`, as Factors. The gradient of mu is 0, since mu is data.

    Dense takes two matrix products, Linked sparse products (scatter-adds on devices where they are fast), Observed
    scatter-adds. Computed in float32 or wider and returned in the parameters' types.

    Raises:
        ValueError: as for `losses.cost`.
    """
    _check(factors, ratings, l2, l2_bias, loss)
    return _jitted_gradient(factors, ratings, l2, l2_bias, loss=loss)


@partial(jax.jit, static_argnames="loss")
def _jitted_gradient(
    factors: Factors, ratings: Dense | Observed | Linked, l2: L2, l2_bias: L2, *, loss: PointwiseLoss
) -> Factors:
    promoted = in_float32(factors)
    e = _errors(predict_entries(promoted, ratings), ratings.value, ratings.where, ratings.weights, slope_of(loss))
    return _cast_like(
        factors, _add_penalty_gradient(promoted, ratings, data_gradient(promoted, ratings, e), l2, l2_bias)
    )


def value_and_gradient(
    factors: Factors,
    ratings: Dense | Observed | Linked,
    *,
    l2: L2,
    loss: PointwiseLoss = half_squared_error,
    l2_bias: L2 = 0.0,
) -> ValueAndGradient:
    """`losses.cost` and its gradient, from one evaluation of the predictions.

    On a TPU, the half squared and the logistic loss of Dense ratings use a kernel that does not store the errors.

    Raises:
        ValueError: as for `losses.cost`.
    """
    _check(factors, ratings, l2, l2_bias, loss)
    return ValueAndGradient(*_jitted_value_and_gradient(factors, ratings, l2, l2_bias, loss=loss))


@partial(jax.jit, static_argnames="loss")
def _jitted_value_and_gradient(
    factors: Factors,
    ratings: Dense | Observed | Linked,
    l2: L2,
    l2_bias: L2,
    *,
    loss: PointwiseLoss,
) -> tuple[Array, Factors]:
    promoted = in_float32(factors)
    kernel, slope = _tpu_kernel(promoted, ratings, loss), slope_of(loss)

    def by_xla(factors: Factors, ratings: Any) -> tuple[Array, DataGradient]:
        prediction = predict_entries(factors, ratings)
        value = loss(prediction, ratings.value, where=ratings.where, weights=ratings.weights).sum
        e = _errors(prediction, ratings.value, ratings.where, ratings.weights, slope)
        return value, data_gradient(factors, ratings, e)

    if kernel is None:
        value, data = by_xla(promoted, ratings)
    else:
        value, data = jax.lax.platform_dependent(
            promoted, ratings, tpu=with_derivative_of(by_xla, kernel), default=by_xla
        )
    batch = as_minibatch(ratings)
    penalty = l2_penalty(promoted, l2=l2, l2_bias=l2_bias, batch=batch)
    return value + penalty, _cast_like(factors, _add_penalty_gradient(promoted, ratings, data, l2, l2_bias))


def cost(
    factors: Factors,
    ratings: Dense | Observed | Linked,
    *,
    l2: L2,
    loss: PointwiseLoss = half_squared_error,
    l2_bias: L2 = 0.0,
) -> Float[Array, ""]:
    """`losses.cost` with the closed form as its reverse-mode derivative: the same number, a cheaper `jax.grad`.

    The ratings' values and weights, l2 and l2_bias are differentiable too.
    Forward mode (jvp, Hessian-vector products) is not supported here; use `losses.cost`.
    """
    _check(factors, ratings, l2, l2_bias, loss)
    as_float = lambda strength: jnp.asarray(strength, jnp.result_type(strength, 0.0))  # integers have no derivative
    l2, l2_bias = jax.tree.map(as_float, (l2, l2_bias))
    return _cost(loss, factors, ratings, l2, l2_bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cost(loss: PointwiseLoss, factors: Factors, ratings: Any, l2: L2, l2_bias: L2) -> Array:
    return collaborative.cost(factors, ratings, l2=l2, loss=loss, l2_bias=l2_bias)


def _cost_forward(loss: PointwiseLoss, factors: Factors, ratings: Any, l2: L2, l2_bias: L2) -> Any:
    value, factors_gradient = value_and_gradient(factors, ratings, l2=l2, loss=loss, l2_bias=l2_bias)
    return value, (factors_gradient, factors, ratings, l2, l2_bias)


def _cost_backward(loss: PointwiseLoss, saved: Any, cotangent: Array) -> Any:
    factors_gradient, factors, ratings, l2, l2_bias = saved
    scale = lambda tree: jax.tree.map(lambda leaf: (cotangent * leaf.astype(cotangent.dtype)).astype(leaf.dtype), tree)
    batch = as_minibatch(ratings)
    # The cost is element-wise in values, weights and strengths, so autodiff needs no scatter for these.
    prediction = predict_entries(factors, ratings)
    data_term = lambda value, weights: loss(prediction, value, where=ratings.where, weights=weights).sum
    data = ratings.value, ratings.weights
    floating = tuple(
        n for n, array in enumerate(data) if array is not None and jnp.issubdtype(array.dtype, jnp.inexact)
    )
    data_gradients = dict(zip(floating, jax.grad(data_term, floating)(*data) if floating else (), strict=True))
    l2_gradient, l2_bias_gradient = jax.grad(
        lambda l2, l2_bias: l2_penalty(factors, l2=l2, l2_bias=l2_bias, batch=batch), argnums=(0, 1)
    )(l2, l2_bias)
    no_gradient = jax.tree.map(lambda _: None, ratings)  # ids and masks have no derivative
    ratings_gradient = dataclasses.replace(
        no_gradient, value=scale(data_gradients.get(0)), weights=scale(data_gradients.get(1))
    )
    return scale(factors_gradient), ratings_gradient, scale(l2_gradient), scale(l2_bias_gradient)


_cost.defvjp(_cost_forward, _cost_backward)


def _check(factors: Factors, ratings: Any, l2: L2, l2_bias: L2, loss: PointwiseLoss) -> None:
    check.pointwise_loss(loss)
    check_tables(factors, ratings)
    if not isinstance(ratings, Dense | Observed | Linked):
        raise TypeError(f"expected ratings as Dense, Observed or Linked, got {type(ratings).__name__}.")
    check.strength("l2", l2, zero=True)
    check.strength("l2_bias", l2_bias, zero=True)


def _cast_like(factors: Factors, gradient: Factors) -> Factors:
    """Casts the gradient to the parameters' types."""
    return jax.tree.map(lambda parameter, derivative: derivative.astype(parameter.dtype), factors, gradient)


def _errors(prediction: Array, target: ArrayLike, where: Array, weights: ArrayLike | None, slope: Slope) -> Array:
    """e(i,j): weighted slopes where rated, 0 elsewhere. Masked entries are set to 0 before the arithmetic."""
    check.same_shape(prediction=prediction, target=target, where=where, weights=weights)
    prediction, target, weights = check.as_floats(prediction=prediction, target=target, weights=weights)
    zero_masked = lambda array: jnp.where(where, array, 0)
    e = slope(zero_masked(prediction), zero_masked(target))
    return zero_masked(e) if weights is None else zero_masked(e) * zero_masked(weights)


def _tpu_kernel(
    factors: Factors, ratings: Any, loss: PointwiseLoss
) -> Callable[[Factors, Any], tuple[Array, DataGradient]] | None:
    """Returns the TPU's implementation of the data term's value and gradient, or None if no kernel covers this case."""
    has_kernel = loss in (half_squared_error, logistic)
    fits = factors.w.dtype == jnp.float32 and factors.w.shape[1] <= 510  # a larger d does not fit into VMEM
    if not (isinstance(ratings, Dense) and ratings.weights is None and has_kernel and fits):
        return None

    def tpu_kernel(factors: Factors, ratings: Dense) -> tuple[Array, DataGradient]:
        from jaxrec.kernels import tpu_cost  # imports Pallas, needed only when a program is lowered for a TPU

        tables = factors.w, factors.b, factors.x, item_term(factors)
        pointwise = tpu_cost.logistic if loss is logistic else tpu_cost.half_squared_error
        value, *data_gradient = tpu_cost.cost_and_sums(*tables, ratings.value, ratings.where, loss=pointwise)
        return value, DataGradient(*data_gradient)

    return tpu_kernel


def _add_penalty_gradient(
    factors: Factors, ratings: Dense | Observed | Linked, data: DataGradient, l2: L2, l2_bias: L2
) -> Factors:
    """The data gradient plus the gradient of the penalty, as Factors."""
    batch = as_minibatch(ratings)
    # The penalty is element-wise in the tables (a minibatch's in its own rows only), so autodiff is as cheap.
    penalty_gradient = jax.grad(l2_penalty)(factors, l2=l2, l2_bias=l2_bias, batch=batch)
    gradient = dataclasses.replace(factors, w=data.w, b=data.b, x=data.x, c=None if factors.c is None else data.c)
    gradient = dataclasses.replace(gradient, mu=None if factors.mu is None else jnp.zeros_like(factors.mu))
    return jax.tree.map(jnp.add, gradient, penalty_gradient)
