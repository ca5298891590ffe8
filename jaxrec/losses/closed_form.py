"""The costs' gradients, written out; and `cost`, the joint cost that uses them when it is differentiated.

With e(i,j) = weight * slope(prediction(i,j), y(i,j)) where r(i,j)=1, and 0 elsewhere::

    dJ/dw(j) = sum over i of e(i,j) x(i) + l2 w(j)        dJ/db(j) = sum over i of e(i,j) (+ l2_bias b(j))
    dJ/dx(i) = sum over j of e(i,j) w(j) + l2 x(i)        dJ/dc(i) = sum over j of e(i,j) (+ l2_bias c(i))

The slope is all that these need to know of a loss, and it belongs to the loss (`pointwise.slope_of`).

>>> import jax, jax.numpy as jnp
>>> from jaxrec import losses
>>> from jaxrec.models import init
>>> from jaxrec.types import Dense
>>> ratings = Dense(value=jnp.array([[5.0, 0.0], [4.0, 3.0]]), where=jnp.array([[True, False], [True, True]]))
>>> factors = init(2, 2, 3, key=jax.random.key(0))
>>> by_hand, by_jax = gradient(factors, ratings, l2=0.1), jax.grad(losses.cost)(factors, ratings, l2=0.1)
>>> bool(jnp.allclose(by_hand.w, by_jax.w, atol=1e-6)), bool(jnp.allclose(by_hand.x, by_jax.x, atol=1e-6))
(True, True)
"""

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
from jaxrec.gather import gather
from jaxrec.kernels.csr import csr_matmul, fast_scatters
from jaxrec.kernels.platform import On, by_platform, derived_as
from jaxrec.kernels.sampled_dot import sampled_dot
from jaxrec.losses import collaborative
from jaxrec.losses.penalty import L2, Strength, l2_penalty
from jaxrec.losses.pointwise import PointwiseLoss, Slope, half_squared_error, logistic, slope_of
from jaxrec.numerics import product
from jaxrec.prediction import biases, check_tables, in_float32, item_term, predict_layout
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
    """Of a user's cost.

    Attributes:
        w: [d].
        b: [].
    """

    w: Array
    b: Array


class ItemGradient(NamedTuple):
    """Of an item's cost.

    Attributes:
        x: [d].
        c: [], or None for an item without a bias.
    """

    x: Array
    c: Array | None


class ValueAndGradient(NamedTuple):
    """Of the joint cost.

    Attributes:
        value: [], the cost.
        gradient: Factors, as the parameters.
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
    """Gradient of `losses.user_cost` with respect to (w, b). Same arguments, and the same errors."""
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
    """Gradient of `losses.item_cost` with respect to x, and to c where the item has a bias. Same arguments."""
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
    """The gradient of `losses.cost` as Factors; mu's is 0, for mu is data.

    Dense: two matrix products. Linked: two sparse products and no scatter. Observed: scatter-adds. Computed in float32
    at least, and returned in the parameters' own types.

    Raises:
        ValueError: as `losses.cost`.
    """
    _check(factors, ratings, l2, l2_bias)
    return _gradient_of(factors, ratings, l2, l2_bias, loss=loss)


@partial(jax.jit, static_argnames="loss")
def _gradient_of(
    factors: Factors, ratings: Dense | Observed | Linked, l2: L2, l2_bias: L2, *, loss: PointwiseLoss
) -> Factors:
    wide = in_float32(factors)
    e = _errors(_predict(wide, ratings), ratings.value, ratings.where, ratings.weights, slope_of(loss))
    return _like(factors, _gradient(wide, ratings, _sums(wide, ratings, e), l2, l2_bias))


def value_and_gradient(
    factors: Factors,
    ratings: Dense | Observed | Linked,
    *,
    l2: L2,
    loss: PointwiseLoss = half_squared_error,
    l2_bias: L2 = 0.0,
) -> ValueAndGradient:
    """`losses.cost` and its gradient, from one evaluation of the predictions.

    On a TPU the squared and the logistic loss of Dense have a kernel that keeps the errors out of memory.

    Raises:
        ValueError: as `losses.cost`.
    """
    _check(factors, ratings, l2, l2_bias)
    return ValueAndGradient(*_value_and_gradient_of(factors, ratings, l2, l2_bias, loss=loss))


@partial(jax.jit, static_argnames="loss")
def _value_and_gradient_of(
    factors: Factors,
    ratings: Dense | Observed | Linked,
    l2: L2,
    l2_bias: L2,
    *,
    loss: PointwiseLoss,
) -> tuple[Array, Factors]:
    wide = in_float32(factors)
    kernel, slope = _kernel(wide, ratings, loss), slope_of(loss)

    def by_xla(factors: Factors, ratings: Any) -> tuple[Array, _Sums]:
        prediction = _predict(factors, ratings)
        value = loss(prediction, ratings.value, where=ratings.where, weights=ratings.weights).sum
        e = _errors(prediction, ratings.value, ratings.where, ratings.weights, slope)
        return value, _sums(factors, ratings, e)

    if kernel is None:
        value, sums = by_xla(wide, ratings)
    else:
        value, sums = jax.lax.platform_dependent(wide, ratings, tpu=derived_as(by_xla, kernel), default=by_xla)
    batch = ratings if isinstance(ratings, Observed) else None
    penalty = l2_penalty(wide, l2=l2, l2_bias=l2_bias, batch=batch)
    return value + penalty, _like(factors, _gradient(wide, ratings, sums, l2, l2_bias))


def cost(
    factors: Factors,
    ratings: Dense | Observed | Linked,
    *,
    l2: L2,
    loss: PointwiseLoss = half_squared_error,
    l2_bias: L2 = 0.0,
) -> Float[Array, ""]:
    """`losses.cost`, whose reverse-mode derivative is the closed form: the same number, a cheaper `jax.grad`.

    Cotangents also flow to the ratings' values and weights and to l2 and l2_bias.
    Forward mode (jvp, Hessian-vector products) is not defined here: plain `losses.cost` has it.
    """
    _check(factors, ratings, l2, l2_bias)
    as_float = lambda strength: jnp.asarray(strength, jnp.result_type(strength, 0.0))  # an int has no derivative
    l2, l2_bias = jax.tree.map(as_float, (l2, l2_bias))
    return _twin(loss, factors, ratings, l2, l2_bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _twin(loss: PointwiseLoss, factors: Factors, ratings: Any, l2: L2, l2_bias: L2) -> Array:
    return collaborative.cost(factors, ratings, l2=l2, loss=loss, l2_bias=l2_bias)


def _twin_forward(loss: PointwiseLoss, factors: Factors, ratings: Any, l2: L2, l2_bias: L2) -> Any:
    value, by_factors = value_and_gradient(factors, ratings, l2=l2, loss=loss, l2_bias=l2_bias)
    return value, (by_factors, factors, ratings, l2, l2_bias)


def _twin_backward(loss: PointwiseLoss, saved: Any, cotangent: Array) -> Any:
    by_factors, factors, ratings, l2, l2_bias = saved
    scale = lambda tree: jax.tree.map(lambda leaf: (cotangent * leaf.astype(cotangent.dtype)).astype(leaf.dtype), tree)
    batch = ratings if isinstance(ratings, Observed) else None
    # In values, weights and strengths the cost is element-wise: autodiff of these costs no scatter.
    prediction = predict_layout(factors, ratings)
    data_term = lambda value, weights: loss(prediction, value, where=ratings.where, weights=weights).sum
    data = ratings.value, ratings.weights
    floating = tuple(n for n, each in enumerate(data) if each is not None and jnp.issubdtype(each.dtype, jnp.inexact))
    by_data = dict(zip(floating, jax.grad(data_term, floating)(*data) if floating else (), strict=True))
    by_l2, by_l2_bias = jax.grad(
        lambda l2, l2_bias: l2_penalty(factors, l2=l2, l2_bias=l2_bias, batch=batch), argnums=(0, 1)
    )(l2, l2_bias)
    none = jax.tree.map(lambda _: None, ratings)  # ids and masks have no derivative
    by_ratings = dataclasses.replace(none, value=scale(by_data.get(0)), weights=scale(by_data.get(1)))
    return scale(by_factors), by_ratings, scale(by_l2), scale(by_l2_bias)


_twin.defvjp(_twin_forward, _twin_backward)


def _check(factors: Factors, ratings: Any, l2: L2, l2_bias: L2) -> None:
    if not isinstance(ratings, Dense | Observed | Linked):
        raise TypeError(f"expected ratings as Dense, Observed or Linked, got {type(ratings).__name__}.")
    check_tables(factors, ratings)
    check.strength("l2", l2, zero=True)
    check.strength("l2_bias", l2_bias, zero=True)


def _like(factors: Factors, gradient: Factors) -> Factors:
    """The gradient in the parameters' own types."""
    return jax.tree.map(lambda parameter, by: by.astype(parameter.dtype), factors, gradient)


def _predict(factors: Factors, ratings: Dense | Observed | Linked) -> Array:
    """`predict_layout` without its gathers in memory; autodiff goes the other way (its transpose would be slow)."""
    if isinstance(ratings, Dense):
        return predict_layout(factors, ratings)
    dot = sampled_dot(factors.w, factors.x, ratings.user, ratings.item)
    return dot + biases(factors, ratings.user, ratings.item)


def _errors(prediction: Array, target: ArrayLike, where: Array, weights: ArrayLike | None, slope: Slope) -> Array:
    """e(i,j): weighted slopes where rated, 0 elsewhere; what is masked is replaced before the arithmetic."""
    check.same_shape(prediction=prediction, target=target, where=where, weights=weights)
    prediction, target, weights = check.as_floats(prediction=prediction, target=target, weights=weights)
    zero = lambda array: jnp.where(where, array, 0)
    e = slope(zero(prediction), zero(target))
    return zero(e) if weights is None else zero(e) * zero(weights)


class _Sums(NamedTuple):
    """The data term's derivatives in w, b, x and c."""

    w: Array
    b: Array
    x: Array
    c: Array


def _sums(factors: Factors, ratings: Dense | Observed | Linked, e: Array) -> _Sums:
    """The four sums of the module's docstring."""
    match ratings:
        case Dense():
            return _Sums(product(e.T, factors.x), jnp.sum(e, axis=0), product(e, factors.w), jnp.sum(e, axis=1))
        case Linked():
            return by_platform(_linked_sums, factors, ratings, e)
        case Observed():
            return _scattered_sums(factors, ratings, e, by_user=False)
        case _:
            raise TypeError(f"expected ratings as Dense, Observed or Linked, got {type(ratings).__name__}.")


def _linked_sums(factors: Factors, ratings: Linked, e: Array, *, on: On) -> _Sums:
    """Two sparse products and no scatter, but where scatters are fast.

    20M ratings, d = 32 on an H100, value and gradient: 4.2 ms by scatters, 4.8 by autodiff of the plain cost, 22.7 by
    the products that a CPU is given.
    """
    if fast_scatters(on):
        return _scattered_sums(factors, ratings, e, by_user=True)
    e_by_item = gather(e, ratings.by_item)
    one = lambda table: jnp.ones((len(table), 1), table.dtype)  # a row's sum of e is its product with ones
    of_users = lambda table: csr_matmul(ratings.user_start, ratings.item, e, table, on=on)
    of_items = lambda table: csr_matmul(ratings.item_start, ratings.user_by_item, e_by_item, table, on=on)
    w, b = of_users(factors.x), of_users(one(factors.x))[:, 0]
    x, c = of_items(factors.w), of_items(one(factors.w))[:, 0]
    return _Sums(w, b, x, c)


def _scattered_sums(factors: Factors, ratings: Observed | Linked, e: Array, *, by_user: bool) -> _Sums:
    """By scatter-adds; `by_user` where the entries are sorted by user."""
    of_users = partial(jax.ops.segment_sum, segment_ids=ratings.user, num_segments=len(factors.w))
    of_users = partial(of_users, indices_are_sorted=by_user)
    of_items = partial(jax.ops.segment_sum, segment_ids=ratings.item, num_segments=len(factors.x))
    w = of_users(e[:, None] * gather(factors.x, ratings.item))
    x = of_items(e[:, None] * gather(factors.w, ratings.user))
    return _Sums(w, of_users(e), x, of_items(e))


def _kernel(
    factors: Factors, ratings: Any, loss: PointwiseLoss
) -> Callable[[Factors, Any], tuple[Array, _Sums]] | None:
    """The same on a TPU, where there is a kernel for it."""
    known = loss in (half_squared_error, logistic)
    fits = factors.w.dtype == jnp.float32 and factors.w.shape[1] <= 510  # more does not in VMEM
    if not (isinstance(ratings, Dense) and ratings.weights is None and known and fits):
        return None

    def on_tpu(factors: Factors, ratings: Dense) -> tuple[Array, _Sums]:
        from jaxrec.kernels import tpu_cost  # Pallas, where a program is lowered for a TPU only

        tables = factors.w, factors.b, factors.x, item_term(factors)
        pointwise = tpu_cost.logistic if loss is logistic else tpu_cost.half_squared_error
        value, *sums = tpu_cost.cost_and_sums(*tables, ratings.value, ratings.where, loss=pointwise)
        return value, _Sums(*sums)

    return on_tpu


def _gradient(factors: Factors, ratings: Dense | Observed | Linked, sums: _Sums, l2: L2, l2_bias: L2) -> Factors:
    """The sums, plus the penalty's gradient."""
    batch = ratings if isinstance(ratings, Observed) else None
    # The penalty is element-wise in the tables (a minibatch's touches only its rows), so its gradient is autodiff's.
    by_penalty = jax.grad(l2_penalty)(factors, l2=l2, l2_bias=l2_bias, batch=batch)
    data = dataclasses.replace(factors, w=sums.w, b=sums.b, x=sums.x, c=None if factors.c is None else sums.c)
    data = dataclasses.replace(data, mu=None if factors.mu is None else jnp.zeros_like(factors.mu))
    return jax.tree.map(jnp.add, data, by_penalty)
