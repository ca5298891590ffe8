"""Costs of content-based models: of two towers on observed pairs, and the in-batch softmax for retrieval.

Both are pure functions of the towers' outputs; what the towers are is the caller's (`models.two_tower`).

>>> import jax.numpy as jnp
>>> v_user, v_item = jnp.array([[1.0, 0.0], [0.6, 0.8]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
>>> total = two_tower(v_user, v_item, jnp.array([1.0, 0.0]))  # (1 - 1)^2 + (0.6 - 0)^2
>>> round(float(total.sum), 4), float(total.count)
(0.36, 2.0)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.losses.pointwise import PointwiseLoss, squared_error
from jaxrec.types import Total

__all__ = ["in_batch_softmax", "kernels", "log_popularity", "two_tower"]


def two_tower(
    v_user: Float[Array, "n d"],
    v_item: Float[Array, "n d"],
    target: Float[Array, " n"],
    *,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
    loss: PointwiseLoss = squared_error,
    scale: float | Float[Array, ""] = 1.0,
    offset: float | Float[Array, ""] = 0.0,
) -> Total:
    """Sum over observed pairs of loss(scale v_u . v_m + offset, target): the notes' cost, without its regularizer.

    A product of unit vectors lies in [-1, 1]. Either the targets are brought there (`models.two_tower.to_unit`),
    or scale and offset are learned with the rest; for `losses.logistic` targets are labels and the product a logit.

    Args:
        v_user: f_u of each pair's user.
        v_item: f_m of its item.
        target: its rating, or label.
        where: which pairs are observed; all by default. What is masked may be NaN.
        weights: one per pair.
        loss: pointwise.
        scale: multiplies the product.
        offset: is added.

    Source: the notes, J = sum over r(i,j)=1 of (v_u . v_m - y)^2 + regularizer.
    """
    if where is not None:
        v_user, v_item = (jnp.where(where[:, None], v, 0) for v in (v_user, v_item))
    product = jnp.sum(v_user * v_item, axis=-1)
    return loss(scale * product + offset, target, where=where, weights=weights)


def kernels(params: Any, *, l2: float | Float[Array, ""]) -> Float[Array, ""]:
    """The networks' regularizer: l2/2 times the sum of squares of every leaf named 'kernel'; biases are left free."""
    with_path = jax.tree_util.tree_leaves_with_path(params)
    found = [leaf for path, leaf in with_path if jax.tree_util.keystr(path[-1:], simple=True) == "kernel"]
    if not found:
        raise ValueError("params: no leaf is named 'kernel'; expected the parameters of Flax Dense layers.")
    return l2 / 2 * sum((jnp.sum(leaf**2) for leaf in found[1:]), start=jnp.sum(found[0] ** 2))


def log_popularity(count: Float[Array, " n_items"]) -> Float[Array, " n_items"]:
    """Log q(i), the log-chance that a random training pair has item i: log count(i) - log of all. -inf for none.

    As a logarithm from the start: a chance of 1e-9 is no 0, and nothing is clipped.
    """
    return jnp.log(count) - jnp.log(jnp.sum(count))


def in_batch_softmax(
    v_user: Float[Array, "n d"],
    v_item: Float[Array, "n d"],
    item: Int[Array, " n"],
    *,
    log_q: Float[Array, " n"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    user: Int[Array, " n"] | None = None,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> Total:
    """Each pair's item against the other items of the batch: sum over pairs n of -log softmax_m(s(n, m)) at m = n.

    s(n, m) = v_user(n) . v_item(m) / temperature - log q(m): an item's chance to stand in the batch as a negative is
    its popularity q, which the correction takes out (without it the popular are pushed down). Accidental hits, other
    columns with the same item, and with `user` also those of the same user, are no negatives: they leave the sum.

    Args:
        v_user: f_u of each pair's user.
        v_item: f_m of its item.
        item: its id, by which accidental hits are known.
        log_q: log q of its item, `log_popularity(count)[item]`; None: no correction.
        temperature: > 0.
        user: the pair's user id; None looks at items only.
        where: False for padding, which is neither a pair nor a negative.
        weights: one per pair.

    Source: Yi et al. 2019, Sampling-bias-corrected neural modeling for large corpus item recommendations.
    """
    n = len(item)
    where = jnp.ones(n, bool) if where is None else where
    v_user, v_item = (jnp.where(where[:, None], v, 0) for v in (v_user, v_item))
    score = v_user @ v_item.T / temperature
    if log_q is not None:
        score = score - jnp.where(where, log_q, 0)[None, :]
    hit = item[:, None] == item[None, :]
    if user is not None:
        hit |= user[:, None] == user[None, :]
    itself = jnp.eye(n, dtype=bool)
    score = jnp.where((where[None, :] & ~hit) | itself, score, -jnp.inf)
    loss = jax.nn.logsumexp(score, axis=1) - jnp.diagonal(score)
    weight = jnp.where(where, 1.0 if weights is None else weights, 0.0).astype(loss.dtype)
    return Total(jnp.sum(jnp.where(where, loss, 0) * weight), jnp.sum(weight))
