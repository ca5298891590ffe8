"""A cost on dense ratings and the data terms of its gradients for TPUs, without predictions or errors in HBM.

XLA fuses prediction, loss and slope, but must write the errors E [n_items, n_users], because the two products E W and
E' X need all of it. Here a tile of E lives in VMEM and enters its product there. This takes two passes over the
ratings, because a TPU must finish one block of results before the next: the first sums along users, E W, and the loss;
the second makes the tiles again and sums along items, E' X. The ratings and masks are read twice, and the masks once
more to be converted to bytes (12 bytes per entry in all), instead of these once and E three times (17); a tile takes 4
products instead of 3.

Biases are two more columns: with x1 = (x, c, 1) and w1 = (w, 1, b)::

    predictions of a tile         x1 w1'  =  x w' + c + b
    E w1  =  [ E w   E 1   E b ]          E b is not needed: the items' losses are stored there
    E' x1 =  [ E' x  E' c  E' 1 ]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float

from jaxrec.kernels.platform import BLOCK_ZERO
from jaxrec.numerics import HIGHEST

__all__ = ["Pointwise", "cost_and_sums", "half_squared_error", "logistic"]

# A loss as used here: (value, slope) of every entry, from (prediction, target).
Pointwise = Callable[[Array, Array], tuple[Array, Array]]

# Items and users of a tile: 1 MiB of errors in VMEM. Multiples of a mask's tile, 32 by 128.
TILE_ITEMS, TILE_USERS = 512, 512


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
    """The sum of the loss over observed entries, and its gradients with respect to w, b, x and c, in this order.

    With Z = x w' + b + c and E = slope(Z, value) where observed, 0 elsewhere::

        sum of loss(Z, value) where observed,   E' x,   E' 1,   E w,   E 1

    The caller adds penalties, and an offset to c or b. Masked values have no effect, NaN neither. Products
    and sums are float32 (precision HIGHEST).

    Args:
        w: the users' features; d up to 510 fits in a v5e.
        b: their biases.
        x: the items' features.
        c: their biases.
        value: the ratings.
        where: True where there is one.
        loss: `half_squared_error`, `logistic`, or another `Pointwise` function.
        interpret: for tests, `pltpu.InterpretParams(...)`: simulates a TPU on the CPU.
    """
    (n_items, n_users), d = value.shape, w.shape[1]
    f32 = lambda array: array.astype(jnp.float32)
    column = lambda array: f32(array)[:, None]
    if n_items == 0 or n_users == 0:  # Pallas has no empty grid
        return jnp.float32(0), f32(w) * 0, f32(b) * 0, f32(x) * 0, f32(c) * 0
    w1 = jnp.concatenate([f32(w), jnp.ones((n_users, 1), jnp.float32), column(b)], axis=1)
    x1 = jnp.concatenate([f32(x), column(c), jnp.ones((n_items, 1), jnp.float32)], axis=1)
    # bytes, because a kernel would receive a mask of bools as int32
    summed = partial(_sums, w1, x1, f32(value), where.astype(jnp.int8), loss=loss, interpret=interpret)
    item_sums, user_sums = summed(by_item=True), summed(by_item=False)
    return jnp.sum(item_sums[:, d + 1]), user_sums[:, :d], user_sums[:, d + 1], item_sums[:, :d], item_sums[:, d]


def _sums(w1: Array, x1: Array, value: Array, where: Array, *, by_item: bool, loss: Pointwise, interpret: Any) -> Array:
    """E w1 with each item's loss in its last column, or E' x1."""
    (n_items, n_users), k = value.shape, w1.shape[1]
    tile = min(TILE_ITEMS, n_items), min(TILE_USERS, n_users)
    blocks = pl.cdiv(n_items, tile[0]), pl.cdiv(n_users, tile[1])
    # The summed axis is the inner dimension of the grid, so that a block of sums is finished before the next.
    tile_index = (lambda outer, inner: (outer, inner)) if by_item else (lambda outer, inner: (inner, outer))
    user_spec = pl.BlockSpec((tile[1], k), lambda *step: (tile_index(*step)[1], BLOCK_ZERO))
    item_spec = pl.BlockSpec((tile[0], k), lambda *step: (tile_index(*step)[0], BLOCK_ZERO))
    tile_spec = pl.BlockSpec(tile, tile_index)
    return pl.pallas_call(
        partial(_kernel, n_items=n_items, n_users=n_users, by_item=by_item, loss=loss),
        out_shape=jax.ShapeDtypeStruct((n_items if by_item else n_users, k), jnp.float32),
        grid=blocks if by_item else blocks[::-1],
        in_specs=[user_spec, item_spec, tile_spec, tile_spec],
        out_specs=item_spec if by_item else user_spec,
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

    # A ragged last block holds arbitrary values after the end of its array, NaN too, and 0 times NaN is NaN.
    item = row * items + jax.lax.broadcasted_iota(jnp.int32, (items, 1), 0)
    user = col * users + jax.lax.broadcasted_iota(jnp.int32, (users, 1), 0)
    x, w = jnp.where(item < n_items, x1[:], 0), jnp.where(user < n_users, w1[:], 0)
    user_of_column = col * users + jax.lax.broadcasted_iota(jnp.int32, (1, users), 1)
    observed = (where[:].astype(jnp.int32) != 0) & (item < n_items) & (user_of_column < n_users)
    target = jnp.where(observed, value[:], 0)
    losses, slope = loss(_product(x, w, 1, 1), target)
    errors = jnp.where(observed, slope, 0)  # [items, users]
    if not by_item:
        out[:] += _product(errors, x, 0, 0)
        return
    item_loss = jnp.sum(jnp.where(observed, losses, 0), axis=1, keepdims=True)
    last = jax.lax.broadcasted_iota(jnp.int32, (1, k), 1) == k - 1
    out[:] += jnp.where(last, item_loss, _product(errors, w, 1, 0))


def _product(a: Array, b: Array, along_a: int, along_b: int) -> Array:
    """The matrix product over one dimension of each."""
    along = (((along_a,), (along_b,)), ((), ()))
    return jax.lax.dot_general(a, b, along, precision=HIGHEST, preferred_element_type=jnp.float32)
