"""Costs of content-based models: the loss of two towers over observed pairs, and the penalty of their networks.

Pure functions of the towers' outputs, whatever the towers are (see `models.two_tower`). For retrieval, towers are
trained by `losses.softmax.in_batch` instead.

>>> import jax.numpy as jnp
>>> v_user, v_item = jnp.array([[1.0, 0.0], [0.6, 0.8]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
>>> total = two_tower(v_user, v_item, jnp.array([1.0, 0.0]))  # (1 - 1)^2 + (0.6 - 0)^2
>>> round(float(total.sum), 4), float(total.count)
(0.36, 2.0)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.losses.pointwise import PointwiseLoss, squared_error
from jaxrec.types import Total

__all__ = ["kernel_l2", "two_tower"]


def two_tower(
    v_user: Shaped[ArrayLike, "n d"],
    v_item: Shaped[ArrayLike, "n d"],
    target: Shaped[ArrayLike, " n"],
    *,
    where: Bool[ArrayLike, " n"] | None = None,
    weights: Shaped[ArrayLike, " n"] | None = None,
    loss: PointwiseLoss = squared_error,
    scale: float | Shaped[ArrayLike, ""] = 1.0,
    offset: float | Shaped[ArrayLike, ""] = 0.0,
) -> Total:
    """Sum over observed pairs of loss(scale v_u . v_m + offset, target). `kernel_l2` is the regularizer.

    A product of unit vectors lies in [-1, 1]. Either the targets are scaled to it (`models.two_tower.to_unit`), or
    scale and offset are learned. With `losses.logistic` the targets are labels and the scaled product is the logit.

    Args:
        v_user: f_u of each pair's user.
        v_item: f_m of each pair's item.
        target: each pair's rating or label.
        where: which pairs are observed; all by default. Masked pairs may be NaN.
        weights: one per pair.
        loss: a pointwise loss.
        scale: multiplies the product.
        offset: added to the scaled product.

    Raises:
        ValueError: arrays that do not fit one another.

    Source: the lecture notes, J = sum over r(i,j)=1 of (v_u . v_m - y)^2 + regularizer.
    """
    check.pointwise_loss(loss)
    check.vector_pairs(v_user, v_item, target=target, where=where, weights=weights)
    v_user, v_item, scale, offset = check.as_floats(v_user=v_user, v_item=v_item, scale=scale, offset=offset)
    if where is not None:
        observed = jnp.asarray(where)[:, None]
        v_user, v_item = (jnp.where(observed, v, 0) for v in (v_user, v_item))
    product = jnp.sum(v_user * v_item, axis=-1)
    return loss(scale * product + offset, target, where=where, weights=weights)


def kernel_l2(params: Any, *, l2: float | Shaped[ArrayLike, ""]) -> Float[Array, ""]:
    """The networks' regularizer: l2/2 times the sum of squares of all leaves named 'kernel', so biases have none."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [leaf for path, leaf in leaves if jax.tree_util.keystr(path[-1:], simple=True) == "kernel"]
    if not kernels:
        raise ValueError("params: expected the parameters of Flax Dense layers, but no leaf is named 'kernel'.")
    check.strength("l2", l2, zero=True)
    squares = [jnp.sum(leaf**2) for kernel in kernels for leaf in check.as_floats(kernel=kernel)]
    return jnp.asarray(l2, squares[0].dtype) / 2 * sum(squares[1:], start=squares[0])
