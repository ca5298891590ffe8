"""Bag of items: a user is the sum of learned rows of the items in their history, and needs no parameters of their own.

    v(j) = sum over the history of weight(i,j) a(i) / count(j)^power        score(i, j) = v(j) . x(i) + c(i)

a is the encoder, x the decoder (the encoder too, if they are tied), c the items' biases. power = 0 is the sum, 1 the
mean, 1/2 in between: the sum of n independent rows grows as the square root of n. Trained as a denoising autoencoder: a
part of the history is dropped, and all of it is to be predicted (`drop_items`); new users need no training.

>>> import jax, jaxrec, optax
>>> from jaxrec import losses
>>> train = jaxrec.data.synthetic.low_rank(30, 20, 200, rng=0).ratings
>>> def cost(params, users, *, key):  # multinomial loss of each user's items
...     kept = drop_items(users.where, fraction=0.3, key=key)
...     v_user = user_vectors(params, users.other, kept)
...     return losses.catalogue_softmax(v_user, params.items, users.other, bias=params.bias, where=users.where)
>>> params, history = jaxrec.training.fit(
...     cost, init_params(20, 8, key=jax.random.key(0)), user_batches(jaxrec.data.rows(train, "user"), 10, rng=0),
...     optimizer=optax.adam(0.05), key=jax.random.key(1), epochs=5, progress=False)
>>> bool(history.loss[-1] < history.loss[0])
True
>>> users, items = all_vectors(params, jaxrec.data.linked(train))  # what evaluate and top_k take
>>> users.shape, items.shape
((30, 9), (20, 9))

Source: Liang et al. 2018, Variational autoencoders for collaborative filtering (Mult-DAE, here without hidden layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.kernels.bags import bag_sum
from jaxrec.kernels.csr import linked_matmul
from jaxrec.prediction import Vectors
from jaxrec.pytree import register_dataclass
from jaxrec.types import Bucket, Linked, Rows

__all__ = ["BagOfItems", "all_vectors", "drop_items", "init_params", "user_batches", "user_vectors"]


@register_dataclass
@dataclass(frozen=True)
class BagOfItems:
    """The parameters.

    Attributes:
        encoder: [n_items, d], a(i), summed over a history.
        decoder: [n_items, d], x(i), or None if the encoder is the decoder too.
        bias: [n_items], c(i).
    """

    encoder: Any
    decoder: Any
    bias: Any

    @property
    def items(self) -> Array:
        """The items' vectors that scores are products with: the decoder, or the encoder if they are tied."""
        return self.encoder if self.decoder is None else self.decoder


def init_params(
    n_items: int, rank: int, *, key: PRNGKeyArray, tied: bool = False, scale: float | Shaped[ArrayLike, ""] = 0.1
) -> BagOfItems:
    """Initial parameters: normally distributed rows, zero biases.

    Args:
        n_items: rows of the tables.
        rank: d.
        key: a random key.
        tied: whether the encoder is the decoder too.
        scale: the standard deviation of the entries.

    Raises:
        ValueError: a size below 1; a scale that is not positive.
    """
    check.random_key(key)
    check.size_of_table("n_items", n_items), check.whole_number("rank", rank, least=1)
    check.strength("scale", scale)
    key_encoder, key_decoder = jax.random.split(key)
    rows = lambda key: scale * jax.random.normal(key, (n_items, rank), jnp.float32)
    return BagOfItems(rows(key_encoder), None if tied else rows(key_decoder), jnp.zeros(n_items, jnp.float32))


def drop_items(
    where: Bool[ArrayLike, "n e"], *, fraction: float | Shaped[ArrayLike, ""], key: PRNGKeyArray
) -> Bool[Array, "n e"]:
    """Drops each item of each history with probability `fraction`, for a training step: a mask of the items kept.

    Raises:
        ValueError: a fraction that is not in [0, 1) (not checked under jit).
    """
    check.random_key(key)
    if not check.traced(fraction) and not 0 <= float(np.asarray(fraction)) < 1:
        raise ValueError(f"fraction: expected a number in [0, 1), got {fraction}.")
    return jnp.asarray(where) & jax.random.bernoulli(key, 1 - fraction, np.shape(where))


def user_vectors(
    params: BagOfItems,
    item: Int[ArrayLike, "n e"],
    where: Bool[ArrayLike, "n e"],
    *,
    weights: Shaped[ArrayLike, "n e"] | None = None,
    power: float | Shaped[ArrayLike, ""] = 0.5,
) -> Float[Array, "n d"]:
    """Vectors of users from their histories, as padded lists; scores are v . params.items[i] + params.bias[i].

    A user without items, or with all of them dropped, has a vector of zeros, and is ranked by the biases.

    Args:
        params: the parameters.
        item: ids of the items.
        where: False at padding and at items that are dropped, where item and weights may be anything.
        weights: one per item of a history; None: ones. The count is that of the items.
        power: the sum is divided by count^power.

    Raises:
        ValueError: lists of different shapes; ids that are not in the tables (not checked under jit).
    """
    check.same_shape(item=item, where=where, weights=weights)
    if np.ndim(item) != 2:
        raise ValueError(f"item: expected lists [n, e], one per user, got shape {np.shape(item)}.")
    encoder, weights = check.as_floats(encoder=params.encoder, weights=weights)
    valid = jnp.asarray(where)
    ids = jnp.where(valid, check.row_ids("item", item, size=len(encoder), where=where), 0)
    weight = jnp.where(valid, 1 if weights is None else weights, 0).astype(encoder.dtype)
    count = jnp.sum(valid, axis=1, dtype=encoder.dtype)
    return bag_sum(weight, encoder, ids) * _count_factor(count, power)[:, None]


def all_vectors(params: BagOfItems, ratings: Linked, *, power: float | Shaped[ArrayLike, ""] = 0.5) -> Vectors:
    """User and item vectors [., d + 1] whose products are the scores, for `evaluate` and `retrieval.top_k`.

    The users' histories are their entries in `ratings`; weights are not used.

    Raises:
        ValueError: parameters of other items than those of the ratings.
    """
    if len(params.encoder) != len(ratings.item_start) - 1:
        raise ValueError(
            f"params: expected tables of the ratings' {len(ratings.item_start) - 1} items, got {len(params.encoder)}."
        )
    encoder, items, bias = check.as_floats(encoder=params.encoder, items=params.items, bias=params.bias)
    one = ratings.where.astype(encoder.dtype)
    n_users = len(ratings.user_start) - 1
    count = jax.ops.segment_sum(one, ratings.user, n_users, indices_are_sorted=True)
    users = linked_matmul(one, ratings, encoder, "user") * _count_factor(count, power)[:, None]
    ones = jnp.ones((n_users, 1), users.dtype)
    return Vectors(jnp.concatenate([users, ones], axis=1), jnp.concatenate([items, bias[:, None]], axis=1))


def user_batches(rows: Rows, batch_size: int, *, rng: int) -> Callable[[int], Iterator[Bucket]]:
    """Returns a function from an epoch's number to its batches: every user once, those of similar length together.

    Each batch is a `Bucket` of `batch_size` users (fewer in a bucket that has fewer), so that one program is compiled
    per bucket; its order and that of its users are set by (rng, epoch). Users without items are in no batch.

    Args:
        rows: `data.rows(train, "user")`.
        batch_size: users per batch.
        rng: a seed.

    Raises:
        ValueError: rows of items; batch_size < 1.
    """
    check.whole_number("batch_size", batch_size, least=1)
    if rows.side != "user":
        raise ValueError(f"rows: expected those of users, data.rows(train, 'user'), got those of {rows.side}s.")
    buckets = [jax.tree.map(np.asarray, bucket) for bucket in rows.buckets]
    filled = [np.flatnonzero(bucket.where.any(axis=1)) for bucket in buckets]

    def epoch_batches(epoch: int) -> Iterator[Bucket]:
        generator = np.random.default_rng((rng, epoch))
        batches = []
        for bucket, lines in zip(buckets, filled, strict=True):
            order = generator.permutation(lines)
            size = min(batch_size, len(order))
            batches += [(bucket, order[first : first + size], size) for first in range(0, len(order), max(1, size))]
        for number in generator.permutation(len(batches)):
            bucket, lines, size = batches[number]
            padding = size - len(lines)
            pad = lambda array, lines=lines, padding=padding: np.pad(
                array[lines], ((0, padding), *[(0, 0)] * (array.ndim - 1))
            )
            yield jax.tree.map(lambda array, pad=pad: jnp.asarray(pad(array)), bucket)

    return epoch_batches


def _count_factor(count: Array, power: Any) -> Array:
    """count^-power, and 0 where the count is 0."""
    return jnp.where(count > 0, jnp.where(count > 0, count, 1) ** -power, 0)
