"""A cost on dense ratings and its gradients' data terms for TPUs, without predictions or errors in HBM.

XLA fuses prediction, loss and slope, but must write the errors E [n_items, n_users], for the two products E W and E' X
need all of it. Here a tile of E lives in VMEM and goes into its product there. Two passes over the ratings, for a
TPU's results must be done one block after the other: the first sums along users, E W, and the loss; the second makes
the tiles again and sums along items, E' X. Twice the ratings and masks, and the masks once more to be copied to bytes
(12 bytes per entry in all), in place of once these and three times E (17); 4 products of a tile in place of 3.

Biases are two more columns: with x1 = (x, c, 1) and w1 = (w, 1, b) a tile's predictions are x1 w1', and E w1 holds E's
row sums, E' x1 its column sums. E w1's last column, E b, nobody needs: the items' losses go there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float

__all__ = ["Pointwise", "cost_and_sums", "half_squared_error", "logistic"]

# (value, slope) of every entry, from (prediction, target): what a loss is here.
Pointwise = Callable[[Array, Array], tuple[Array, Array]]

# The place of a block that fills its dimension. With x64 enabled a plain 0 is an int64, which Mosaic refuses.
FIRST = np.int32(0)
# Items and users of a tile: 1 MiB of errors in VMEM. Multiples of a mask's tile, 32 by 128.
ITEMS, USERS = 512, 512


def half_squared_error(prediction: Array, target: Array) -> tuple[Array, Array]:
    """1/2 (prediction - target)^2 and prediction - target."""
    error = prediction - target
    return 0.5 * error * error, error


def logistic(logit: Array, target: Array) -> tuple[Array, Array]:
    """The binary cross-entropy log(1 + exp(logit)) - target logit, and g(logit) - target."""
    small = jnp.exp(-jnp.abs(logit))  # cannot overflow
    value = jnp.maximum(logit, 0) + jnp.log1p(small) - target * logit
    return value, jnp.where(logit >= 0, 1, small) / (1 + small) - target


def cost_and_sums(
    w: Float[Array, "n_users d"],
    b: Float[Array, " n_users"],
    x: Float[Array, "n_items d"],
    c: Float[Array, " n_items"],
    value: Float[Array, "n_items n_users"],
    where: Bool[Array, "n_items n_users"],
    *,
    loss: Pointwise = half_squared_error,
    interpret: Any = False,
) -> tuple[
    Float[Array, ""],
    Float[Array, "n_users d"],
    Float[Array, " n_users"],
    Float[Array, "n_items d"],
    Float[Array, " n_items"],
]:
    """The sum of the loss over what is observed, and its gradients in w, b, x and c, in this order.

    With Z = x w' + b + c and E = slope(Z, value) where observed, 0 elsewhere::

        sum of loss(Z, value) where observed,   E' x,   E' 1,   E w,   E 1

    Penalties are the caller's, and an offset is c's or b's. Values under the mask are inert, NaN too. Products and sums
    are float32 (precision HIGHEST).

    Args:
        w: the users' features; d up to 510 fits in a v5e.
        b: their biases.
        x: the items' features.
        c: their biases.
        value: the ratings.
        where: True where there is one.
        loss: `half_squared_error`, `logistic`, or your own two lines.
        interpret: for tests, `pltpu.InterpretParams(...)`: what a TPU would do, on the CPU.
    """
    (n_items, n_users), d = value.shape, w.shape[1]
    f32 = lambda array: array.astype(jnp.float32)
    column = lambda array: f32(array)[:, None]
    if n_items == 0 or n_users == 0:  # there is no empty grid
        return jnp.float32(0), f32(w) * 0, f32(b) * 0, f32(x) * 0, f32(c) * 0
    w1 = jnp.concatenate([f32(w), jnp.ones((n_users, 1), jnp.float32), column(b)], axis=1)
    x1 = jnp.concatenate([f32(x), column(c), jnp.ones((n_items, 1), jnp.float32)], axis=1)
    # a mask of bools would come to a kernel as int32
    summed = partial(_summed, w1, x1, f32(value), where.astype(jnp.int8), loss=loss, interpret=interpret)
    of_item, of_user = summed(by_item=True), summed(by_item=False)
    return jnp.sum(of_item[:, d + 1]), of_user[:, :d], of_user[:, d + 1], of_item[:, :d], of_item[:, d]


def _summed(
    w1: Array, x1: Array, value: Array, where: Array, *, by_item: bool, loss: Pointwise, interpret: Any
) -> Array:
    """E w1 with each item's loss in its last column, or E' x1."""
    (n_items, n_users), k = value.shape, w1.shape[1]
    tile = min(ITEMS, n_items), min(USERS, n_users)
    blocks = pl.cdiv(n_items, tile[0]), pl.cdiv(n_users, tile[1])
    # What is summed over is the inner dimension of the grid, so that a block of sums is finished before the next.
    place = (lambda outer, inner: (outer, inner)) if by_item else (lambda outer, inner: (inner, outer))
    of_users = pl.BlockSpec((tile[1], k), lambda *step: (place(*step)[1], FIRST))
    of_items = pl.BlockSpec((tile[0], k), lambda *step: (place(*step)[0], FIRST))
    of_both = pl.BlockSpec(tile, place)
    return pl.pallas_call(
        partial(_kernel, n_items=n_items, n_users=n_users, by_item=by_item, loss=loss),
        out_shape=jax.ShapeDtypeStruct((n_items if by_item else n_users, k), jnp.float32),
        grid=blocks if by_item else blocks[::-1],
        in_specs=[of_users, of_items, of_both, of_both],
        out_specs=of_items if by_item else of_users,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="cost_by_item" if by_item else "cost_by_user",
    )(w1, x1, value, where)


def _kernel(
    w1: Any, x1: Any, value: Any, where: Any, out: Any, *, n_items: int, n_users: int, by_item: bool, loss: Pointwise
) -> None:
    outer, inner = pl.program_id(0), pl.program_id(1)
    row, col = (outer, inner) if by_item else (inner, outer)
    (items, users), k = value.shape, w1.shape[1]

    @pl.when(inner == 0)
    def clear() -> None:
        out[:] = jnp.zeros(out.shape, out.dtype)

    # What a ragged last block has beyond its array is anything, NaN too, and 0 times NaN is NaN.
    item = row * items + jax.lax.broadcasted_iota(jnp.int32, (items, 1), 0)
    user = col * users + jax.lax.broadcasted_iota(jnp.int32, (users, 1), 0)
    x, w = jnp.where(item < n_items, x1[:], 0), jnp.where(user < n_users, w1[:], 0)
    user_of_column = col * users + jax.lax.broadcasted_iota(jnp.int32, (1, users), 1)
    observed = (where[:].astype(jnp.int32) != 0) & (item < n_items) & (user_of_column < n_users)
    target = jnp.where(observed, value[:], 0)
    each, slope = loss(_product(x, w, 1, 1), target)
    errors = jnp.where(observed, slope, 0)  # [items, users]
    if not by_item:
        out[:] += _product(errors, x, 0, 0)
        return
    losses = jnp.sum(jnp.where(observed, each, 0), axis=1, keepdims=True)
    last = jax.lax.broadcasted_iota(jnp.int32, (1, k), 1) == k - 1
    out[:] += jnp.where(last, losses, _product(errors, w, 1, 0))


def _product(a: Array, b: Array, along_a: int, along_b: int) -> Array:
    """The matrix product over one dimension of each."""
    along = (((along_a,), (along_b,)), ((), ()))
    return jax.lax.dot_general(a, b, along, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
