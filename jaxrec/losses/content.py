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
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.losses.pointwise import PointwiseLoss, squared_error
from jaxrec.numerics import log_softmax, product
from jaxrec.types import Total

__all__ = ["in_batch_softmax", "kernels", "log_popularity", "two_tower"]


def two_tower(
    v_user: Shaped[ArrayLike, "n d"],
    v_item: Shaped[ArrayLike, "n d"],
    target: Shaped[ArrayLike, " n"],
    *,
    where: Bool[ArrayLike, " n"] | None = None,
    weights: Shaped[ArrayLike, " n"] | None = None,
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

    Raises:
        ValueError: arrays that do not fit one another.

    Source: the notes, J = sum over r(i,j)=1 of (v_u . v_m - y)^2 + regularizer.
    """
    _check_pairs(v_user, v_item, target=target, where=where, weights=weights)
    v_user, v_item, scale, offset = check.as_floats(v_user=v_user, v_item=v_item, scale=scale, offset=offset)
    if where is not None:
        observed = jnp.asarray(where)[:, None]
        v_user, v_item = (jnp.where(observed, v, 0) for v in (v_user, v_item))
    product = jnp.sum(v_user * v_item, axis=-1)
    return loss(scale * product + offset, target, where=where, weights=weights)


def kernels(params: Any, *, l2: float | Float[Array, ""]) -> Float[Array, ""]:
    """The networks' regularizer: l2/2 times the sum of squares of every leaf named 'kernel'; biases are left free."""
    with_path = jax.tree_util.tree_leaves_with_path(params)
    found = [leaf for path, leaf in with_path if jax.tree_util.keystr(path[-1:], simple=True) == "kernel"]
    if not found:
        raise ValueError("params: no leaf is named 'kernel'; expected the parameters of Flax Dense layers.")
    check.strength("l2", l2, zero=True)
    squares = [jnp.sum(leaf**2) for each in found for leaf in check.as_floats(kernel=each)]
    return l2 / 2 * sum(squares[1:], start=squares[0])


def log_popularity(count: Shaped[ArrayLike, " n_items"]) -> Float[Array, " n_items"]:
    """Log q(i), the log-chance that a random training pair has item i: log count(i) - log of all. -inf for none.

    As a logarithm from the start: a chance of 1e-9 is no 0, and nothing is clipped.

    Raises:
        ValueError: counts that are negative, not finite or all 0 (under jit: NaN).
    """
    (count,) = check.as_floats(count=count)
    total = jnp.sum(count)
    if not check.traced(count) and not bool(jnp.all(count >= 0) & (total > 0) & jnp.isfinite(total)):
        raise ValueError("count: expected numbers >= 0, one at least > 0. Is the train part empty?")
    return jnp.log(count) - jnp.log(total)


def in_batch_softmax(
    v_user: Shaped[ArrayLike, "n d"],
    v_item: Shaped[ArrayLike, "n d"],
    item: Int[ArrayLike, " n"],
    *,
    log_q: Shaped[ArrayLike, " n"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    user: Int[ArrayLike, " n"] | None = None,
    where: Bool[ArrayLike, " n"] | None = None,
    weights: Shaped[ArrayLike, " n"] | None = None,
) -> Total:
    """Each pair's item against the other items of the batch: sum over pairs n of -log softmax_m(s(n, m)) at m = n.

    s(n, m) = v_user(n) . v_item(m) / temperature - log q(m): an item's chance to stand in the batch as a negative is
    its popularity q, which the correction takes out (without it the popular are pushed down). Accidental hits, other
    columns with the same item, and with `user` also those of the same user, are no negatives: they leave the sum.

    Args:
        v_user: f_u of each pair's user.
        v_item: f_m of its item.
        item: its id, by which accidental hits are known.
        log_q: log q of its item, `log_popularity(count)[item]`; None: no correction. An item of log q = -inf, of which
            training has none, is no negative of other pairs, and its own pair costs what q -> 0 makes of it: 0.
        temperature: > 0.
        user: the pair's user id; None looks at items only.
        where: False for padding, which is neither a pair nor a negative.
        weights: one per pair.

    Raises:
        ValueError: arrays that do not fit one another; ids that are no integers; a log q of +inf or NaN, or a
            temperature that is not positive (under jit they are trusted).

    Source: Yi et al. 2019, Sampling-bias-corrected neural modeling for large corpus item recommendations.
    """
    _check_pairs(v_user, v_item, item=item, user=user, log_q=log_q, where=where, weights=weights)
    n = jnp.shape(item)[0]
    check.strength("temperature", temperature)
    v_user, v_item, log_q, weights = check.as_floats(v_user=v_user, v_item=v_item, log_q=log_q, weights=weights)
    (item,) = check.comparable_ids(item=item)
    where = jnp.ones(n, bool) if where is None else jnp.asarray(where)
    v_user, v_item = (jnp.where(where[:, None], v, 0) for v in (v_user, v_item))
    score = product(v_user, v_item.T) / temperature
    itself = jnp.eye(n, dtype=bool)
    hit = item[:, None] == item[None, :]
    if user is not None:
        (user,) = check.comparable_ids(user=user)
        hit |= user[:, None] == user[None, :]
    if log_q is not None:
        log_q = jnp.where(where, log_q, 0)
        if not check.traced(log_q) and not bool(jnp.all(log_q < jnp.inf)):
            raise ValueError("log_q: expected logarithms of chances, got +inf or NaN. See log_popularity.")
        never = log_q == -jnp.inf
        hit |= never[None, :]
        score = jnp.where(itself & never[:, None], jnp.inf, score - jnp.where(never, 0, log_q)[None, :])
    log_probability = log_softmax(score, (where[None, :] & ~hit) | itself)
    weight = jnp.where(where, 1.0 if weights is None else weights, 0.0).astype(score.dtype)
    loss = jnp.where(where, -jnp.diagonal(log_probability), 0)
    loss = jnp.where((weight == 0) & jnp.isinf(loss), 0, loss)
    return Total(jnp.sum(loss * weight), jnp.sum(weight))


def _check_pairs(v_user: ArrayLike, v_item: ArrayLike, **columns: ArrayLike | None) -> None:
    """A vector of each side, and an entry of every column, for each pair."""
    check.same_shape(v_user=v_user, v_item=v_item)
    check.same_shape(**columns)
    n = next(jnp.shape(column) for column in columns.values() if column is not None)
    if jnp.ndim(v_user) != 2 or jnp.shape(v_user)[:1] != n:
        name = next(iter(columns))
        raise ValueError(f"expected vectors [n, d] and {name} [n], got shapes {jnp.shape(v_user)} and {n}.")
