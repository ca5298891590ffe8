"""A hybrid of content and collaborative filtering: two towers over features and histories, plus learned id parameters.

prediction(i, j) = scale v_u . v_m  +  w(j) . x(i)  +  b(j) + t_b b_h(j)  +  c(i) + t_c c_h(i)  +  mu

v_u and v_m are the towers' unit vectors, computed from the content features, the history features and the pooled
embeddings (`models.history`). w, x, b, c are learned per id. b_h, c_h are the damped biases of the history, with
learned weights t_b, t_c. The id parameters of users and items that are not known count as 0: new ones, and those
dropped in training so that the towers do not rely on them.

The model is evaluated to `Factors`, once for all users and items::

    w of Factors = [scale v_u, w]      b of Factors = b + t_b b_h
    x of Factors = [v_m, x]            c of Factors = c + t_c c_h

so `predict`, `losses.cost`, `losses.closed_form.cost` (with its cheap gradient), `as_vectors`, `retrieval.top_k`,
`recommend` and `storage.save` work as for any factorization.

>>> import jax, jax.numpy as jnp, jaxrec
>>> from jaxrec.models.two_tower import TwoTower
>>> data = jaxrec.data.synthetic.low_rank(30, 20, 200, rng=0)
>>> ratings = jaxrec.data.linked(data.ratings)
>>> content = Content(users=jnp.ones((30, 4)), items=jnp.ones((20, 3)))
>>> towers = TwoTower(layers=(16, 8))
>>> params = init_params(towers, content, ratings, key=jax.random.key(0), rank=2, mu=3.5)
>>> as_factors(towers, params, content, ratings).w.shape
(30, 10)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.models import factors as factorization
from jaxrec.models import history
from jaxrec.models.two_tower import TwoTower
from jaxrec.pytree import register_dataclass
from jaxrec.types import Factors, Linked

__all__ = ["Content", "Hybrid", "as_factors", "init_params", "user_vector", "weight_decay_mask"]


# The fields are annotated Any: JAX rebuilds a pytree with other objects in its fields, and the tests check annotations.
@register_dataclass
@dataclass(frozen=True)
class Content:
    """Features that do not come from ratings, such as `data.features` makes, one row per user and per item.

    Attributes:
        users: [n_users, f].
        items: [n_items, g]; g may differ from f.
        tags: [n_items, t], 1 where an item has a tag, to compute users' mean residuals per tag. None for no tags.
    """

    users: Any
    items: Any
    tags: Any = None


@register_dataclass
@dataclass(frozen=True)
class Hybrid:
    """The parameters of the hybrid model.

    Attributes:
        towers: parameters of the networks (Flax).
        ids: Factors with the id parameters w, b, x, c, and mu.
        item_embedding: [n_items, 2 e], a row per item, summed over the items that each user rated.
        user_embedding: [n_users, 2 e], a row per user, summed over the users who rated each item.
        scale: [], multiplies the products of the towers' unit vectors, in units of ratings.
        history_bias_weights: [2], t_b and t_c, the weights of the history's damped biases.
        user_moments: [2, f], mean and standard deviation of users' history features over the full history; data.
        item_moments: [2, 2], the same of items' history features.
    """

    towers: Any
    ids: Any
    item_embedding: Any
    user_embedding: Any
    scale: Any
    history_bias_weights: Any
    user_moments: Any
    item_moments: Any


def init_params(
    towers: TwoTower,
    content: Content,
    ratings: Linked,
    *,
    key: PRNGKeyArray,
    rank: int = 8,
    width: int = 32,
    mu: float | Shaped[ArrayLike, ""] = 0.0,
) -> Hybrid:
    """Random initial parameters.

    Args:
        towers: the networks.
        content: the features.
        ratings: the train part, for the mean and standard deviation of the history features.
        key: a random key.
        rank: dimension of the id parameters w and x; 0 leaves only the biases.
        width: e, half the width of `item_embedding` and `user_embedding`.
        mu: the mean of the ratings.

    Raises:
        ValueError: features that are not tables, not finite, or of other users and items than the ratings.
    """
    check.random_key(key)
    content = _as_floats(content)
    check_content(content, ratings)
    n_users, n_items = len(content.users), len(content.items)
    n_tags = 0 if content.tags is None else content.tags.shape[1]
    key_towers, key_ids, key_item_rows, key_user_rows = jax.random.split(key, 4)
    dtype = content.users.dtype
    dummy_input = lambda features, n_more: jnp.zeros((1, features.shape[1] + n_more), dtype)
    summary = history.history_features(ratings, mu=mu, tags=content.tags)
    largest = jnp.max(jnp.where(ratings.where, jnp.abs(ratings.value), 0), initial=0) + jnp.abs(mu)
    params = towers.init(
        key_towers, dummy_input(content.users, 2 + n_tags + 2 * width), dummy_input(content.items, 2 + 2 * width)
    )
    random_rows = lambda key, n: 0.1 * jax.random.normal(key, (n, 2 * width), dtype)
    return Hybrid(
        towers=params,
        ids=factorization.init(n_users, n_items, rank, key=key_ids, mu=mu, dtype=dtype),
        item_embedding=random_rows(key_item_rows, n_items),
        user_embedding=random_rows(key_user_rows, n_users),
        scale=jnp.ones((), dtype),
        history_bias_weights=jnp.ones(2, dtype),
        user_moments=_moments(summary.user, largest),
        item_moments=_moments(summary.item, largest),
    )


def as_factors(
    towers: TwoTower,
    params: Hybrid,
    content: Content,
    ratings: Linked,
    keep: Bool[ArrayLike, " n"] | None = None,
    *,
    known: tuple[Bool[ArrayLike, " n_users"], Bool[ArrayLike, " n_items"]] | None = None,
    key: PRNGKeyArray | None = None,
    id_dropout: float = 0.1,
) -> Factors:
    """Evaluates the model to Factors, of dimension layers[-1] + rank, for the history in `ratings`.

    In training, pass `keep` from `history.sample_mask` and a `key`, and compute the cost on the ratings not kept. For
    prediction, pass neither: all of `ratings` is history, including ratings that were not in the training data, such as
    a new user's.

    Args:
        towers: the networks.
        params: the parameters.
        content: the features.
        ratings: the history.
        keep: which ratings are kept as history; None keeps all.
        known: masks (users', items') of the ids whose parameters were trained; None for all.
        key: a random key for a training step, for dropout in the towers and of ids; None for prediction.
        id_dropout: the probability that an id is dropped in a training step, in [0, 1].

    Raises:
        ValueError: content, parameters, `keep` or `known` of other users, items or ratings than these; content that is
            not finite (not checked under jit); `id_dropout` out of range.
    """
    check.random_key(key, optional=True)
    content = _as_floats(content)
    check_content(content, ratings)
    _check_params(params, len(content.users), len(content.items))
    if not check.traced(id_dropout) and not 0 <= id_dropout <= 1:
        raise ValueError(f"id_dropout: expected a probability in [0, 1], got {id_dropout}.")
    user_known, item_known = (
        jnp.ones(len(table), bool) if known is None else check.mask(f"known[{k}]", known[k], (len(table),))
        for k, table in enumerate((content.users, content.items))
    )
    rngs = None
    if key is not None:
        key_towers, key_user, key_item = jax.random.split(key, 3)
        rngs = {"dropout": key_towers}
        user_known = user_known & jax.random.bernoulli(key_user, 1 - id_dropout, user_known.shape)
        item_known = item_known & jax.random.bernoulli(key_item, 1 - id_dropout, item_known.shape)

    summary = history.history_features(
        ratings, keep, mu=0.0 if params.ids.mu is None else params.ids.mu, tags=content.tags
    )
    pooled = history.pooled_embeddings(summary, ratings, params.item_embedding, params.user_embedding)
    vectors: Any = towers.apply(
        params.towers,
        jnp.concatenate([content.users, standardize(summary.user, params.user_moments), pooled.users], axis=1),
        jnp.concatenate([content.items, standardize(summary.item, params.item_moments), pooled.items], axis=1),
        train=key is not None,
        rngs=rngs,
    )
    v_user, v_item = vectors
    zero_unknown = lambda table, known: jnp.where(known if table.ndim == 1 else known[:, None], table, 0)
    ids = params.ids
    return Factors(
        w=jnp.concatenate([params.scale * v_user, zero_unknown(ids.w, user_known)], axis=1),
        b=zero_unknown(ids.b, user_known) + params.history_bias_weights[0] * summary.b,
        x=jnp.concatenate([v_item, zero_unknown(ids.x, item_known)], axis=1),
        c=zero_unknown(ids.c, item_known) + params.history_bias_weights[1] * summary.c,
        mu=ids.mu,
    )


def user_vector(
    towers: TwoTower,
    params: Hybrid,
    features: Shaped[ArrayLike, " f"],
    item: Int[ArrayLike, " n"],
    value: Shaped[ArrayLike, " n"],
    where: Bool[ArrayLike, " n"],
    *,
    c: Shaped[ArrayLike, " n_items"],
    tags: Shaped[ArrayLike, "n_items t"] | None = None,
) -> Float[Array, " k"]:
    """Vector of one user from a request: their content features and a padded list of their ratings, without an id.

    Equals the user's row of `as_vectors(as_factors(...))` if their id is not known, so that its product with an item's
    row is the full prediction. One pass through the users' tower; `vmap` for several users.

    Args:
        towers: the networks.
        params: the parameters.
        features: content features, as a row of `Content.users`.
        item: ids of the items that the user rated.
        value: the ratings.
        where: False at padding; may be False everywhere.
        c: the items' damped biases, `history.history_features(...).c`, computed in advance.
        tags: as in `Content`.

    Raises:
        ValueError: as `history.user_history`; another number of features than in training, or features that are not
            finite (not checked under jit); other tags than for `init_params`.
    """
    mu = 0.0 if params.ids.mu is None else params.ids.mu
    summary, embedding = history.user_history(
        item, value, where, c=c, mu=mu, item_embedding=params.item_embedding, tags=tags
    )
    (content_features,) = check.as_floats(features=features)
    check.all_finite("features", content_features)
    if content_features.ndim != 1:
        raise ValueError(
            f"features: expected one user's, of shape [f], got {content_features.shape}. Use vmap for several users."
        )
    x = jnp.concatenate([content_features, standardize(summary, params.user_moments), embedding])
    if (n_inputs := _n_inputs(params.towers, "user")) not in (None, len(x)):
        raise ValueError(
            f"features: expected {len(content_features) + n_inputs - len(x)}, as in training, got "
            f"{len(content_features)}."
        )
    v: Any = towers.apply(params.towers, x[None], method="users")
    no_id = jnp.zeros(params.ids.w.shape[1:], x.dtype)
    return jnp.concatenate(
        [params.scale * v[0], no_id, params.history_bias_weights[:1] * summary[:1], jnp.ones(1, x.dtype)]
    )


def weight_decay_mask(params: Hybrid) -> Hybrid:
    """Which parameters get decoupled weight decay, as a tree of bools: only the networks' kernels.

    optax.adamw(rate, weight_decay=1e-2, mask=hybrid.weight_decay_mask). Ids have their own l2, in `losses.penalty`.
    """
    mask = jax.tree.map(lambda _: False, params)
    return dataclasses.replace(mask, towers=jax.tree.map(lambda leaf: leaf.ndim > 1, params.towers))


def standardize(features: Shaped[ArrayLike, "*n f"], moments: Float[Array, "2 f"]) -> Float[Array, "*n f"]:
    """Standardizes features: (features - mean) / std. Moments are data, so their gradient is stopped.

    Raises:
        ValueError: the numbers of features and of moments differ.
    """
    (x,) = check.as_floats(features=features)
    if x.shape[-1:] != moments.shape[1:]:
        raise ValueError(
            f"expected the {moments.shape[1]} history features of training (two, and one per tag), got "
            f"{x.shape[-1]}. Pass the same tags as to init_params."
        )
    mean, std = jnp.expand_dims(jax.lax.stop_gradient(moments), tuple(range(1, x.ndim)))
    return (x - mean) / std


def _moments(features: Array, largest: Array) -> Array:
    """Mean and standard deviation per feature; 1 instead of a standard deviation that is only rounding error.

    All features but the second, log(1 + count), are means of differences of numbers up to `largest`, which sets the
    magnitude of their rounding error.
    """
    low, high = jnp.min(features, axis=0), jnp.max(features, axis=0)
    magnitude = jnp.maximum(jnp.maximum(jnp.abs(low), jnp.abs(high)), jnp.where(jnp.arange(len(low)) == 1, 0, largest))
    varies = high - low > 16 * jnp.finfo(features.dtype).eps * magnitude
    return jnp.stack([jnp.mean(features, axis=0), jnp.where(varies, jnp.std(features, axis=0), 1)])


def _as_floats(content: Content) -> Content:
    users, items, tags = check.as_floats(users=content.users, items=content.items, tags=content.tags)
    return Content(users, items, tags)


def _n_inputs(towers: Any, side: str) -> int | None:
    """The number of inputs of a tower, or None if it is not a tower of `two_tower`."""
    try:
        return towers["params"][side]["Dense_0"]["kernel"].shape[0]
    except (KeyError, TypeError):
        return None


def _check_params(params: Hybrid, n_users: int, n_items: int) -> None:
    rank = params.ids.w.shape[1:]
    for name, table, expected in (
        ("ids.w", params.ids.w, (n_users, *rank)),
        ("ids.b", params.ids.b, (n_users,)),
        ("ids.x", params.ids.x, (n_items, *rank)),
        ("ids.c", params.ids.c, (n_items,)),
    ):
        if np.shape(table) != expected:
            raise ValueError(
                f"params.{name}: expected shape {expected}, for the {n_users} users and {n_items} items of the "
                f"ratings, got {np.shape(table)}. Use ratings with the users and items of training."
            )


def check_content(content: Content, ratings: Linked) -> None:
    """Checks that content has finite tables with one row per user and per item of the ratings; under jit only shapes.

    Raises:
        ValueError: if it does not.
    """
    for name, table in (("users", content.users), ("items", content.items), ("tags", content.tags)):
        if table is None:
            continue
        if np.ndim(table) != 2:
            raise ValueError(f"content.{name}: expected [rows, features], got shape {np.shape(table)}.")
        if not check.traced(table) and not (finite := np.isfinite(np.asarray(table)).all(axis=1)).all():
            row = int(np.argmin(finite))
            raise ValueError(f"content.{name}: expected finite features, got NaN or infinity in row {row}.")
    n_users, n_items = len(ratings.user_start) - 1, len(ratings.item_start) - 1
    for name, table, rows in (
        ("users", content.users, n_users),
        ("items", content.items, n_items),
        ("tags", content.tags, n_items),
    ):
        if table is not None and len(table) != rows:
            raise ValueError(f"content.{name}: expected {rows} rows, one for each in the ratings, got {len(table)}.")
