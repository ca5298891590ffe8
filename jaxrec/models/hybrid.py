"""Content and collaboration in one model: two towers over features and histories, beside learned ids, as `Factors`.

prediction(i, j) = scale v_u . v_m  +  w(j) . x(i)  +  b(j) + t_b b_h(j)  +  c(i) + t_c c_h(i)  +  mu

v_u and v_m are unit vectors of the towers, whose input is the declared features, the history's features and its sums of
learned rows (`models.history`); w, x, b, c belong to ids; b_h, c_h are the history's damped biases and t_b, t_c how far
they are trusted. The ids' part of a user or item that is not known (new, or dropped in training, so that the towers do
not lean on it) is 0: there the features speak alone.

The whole is computed into `Factors`, [scale v_u, w] . [v_m, x] and the biases, once for all users and items. So
`predict`, `losses.cost`, `losses.closed_form.cost` (with its cheap gradient), `as_vectors` and `retrieval.top_k`,
`recommend` and `storage.save` serve a hybrid as they serve any factorization.

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

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.models import factors as factorization
from jaxrec.models import history
from jaxrec.models.two_tower import TwoTower
from jaxrec.types import Factors, Linked

# Fields of pytrees are annotated Any: JAX rebuilds them with placeholders, and under test annotations are checked.
__all__ = ["Content", "Hybrid", "as_factors", "init_params", "user_vector", "weight_decay_mask"]


@register_dataclass
@dataclass(frozen=True)
class Content:
    """Features that do not come from ratings, such as `data.features` makes, one row per user and per item.

    Attributes:
        users: [n_users, f].
        items: [n_items, g]; another number of features.
        tags: [n_items, t], 1 where an item has a tag: users get their mean residual per tag. None for none.
    """

    users: Any
    items: Any
    tags: Any = None


@register_dataclass
@dataclass(frozen=True)
class Hybrid:
    """The parameters.

    Attributes:
        towers: the networks' (Flax).
        ids: Factors w, b, x, c of the ids, and mu.
        watched: [n_items, 2 e], a row that goes into the sum of every user who rated the item.
        raters: [n_users, 2 e], a row that goes into the sum of every item the user rated.
        scale: [], what a product of the towers' unit vectors is worth, in ratings.
        trust: [2], t_b and t_c.
        user_moments: [2, f], mean and standard deviation of the users' history features, in the whole history; data.
        item_moments: [2, 2], the items'.
    """

    towers: Any
    ids: Any
    watched: Any
    raters: Any
    scale: Any
    trust: Any
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
    """Random parameters.

    Args:
        towers: the networks.
        content: the features.
        ratings: the train part, for the mean and standard deviation of what history features there will be.
        key: a random key.
        rank: of the ids' part; 0 leaves only their biases.
        width: e, of each half of the histories' rows.
        mu: the ratings' mean.

    Raises:
        ValueError: features that are no tables, not finite, or of other users and items than the ratings.
    """
    content = _as_floats(content)
    check_content(content, ratings)
    n_users, n_items = len(content.users), len(content.items)
    tags = 0 if content.tags is None else content.tags.shape[1]
    key_towers, key_ids, key_watched, key_raters = jax.random.split(key, 4)
    dtype = content.users.dtype
    wide = lambda features, more: jnp.zeros((1, features.shape[1] + more), dtype)
    summary = history.history_features(ratings, mu=mu, tags=content.tags)
    largest = jnp.max(jnp.where(ratings.where, jnp.abs(ratings.value), 0), initial=0) + jnp.abs(mu)
    params = towers.init(key_towers, wide(content.users, 2 + tags + 2 * width), wide(content.items, 2 + 2 * width))
    row = lambda key, n: 0.1 * jax.random.normal(key, (n, 2 * width), dtype)
    return Hybrid(
        towers=params,
        ids=factorization.init(n_users, n_items, rank, key=key_ids, mu=mu, dtype=dtype),
        watched=row(key_watched, n_items),
        raters=row(key_raters, n_users),
        scale=jnp.ones((), dtype),
        trust=jnp.ones(2, dtype),
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
    drop: float = 0.1,
) -> Factors:
    """The model as Factors [n_users, layers[-1] + rank], [n_items, ...], for these histories.

    In training: `keep` from `history.sample_mask`, a `key`, and the cost on the ratings not kept. To predict: neither,
    so that all of `ratings` is history, which may hold ratings that were not there in training, such as a new user's.

    Args:
        towers: the networks.
        params: theirs and the rest.
        content: the features.
        ratings: whose history is looked at.
        keep: which of them; None: all.
        known: whose ids were trained; None: everyone's.
        key: makes this a training step: the towers' dropout, and ids dropped.
        drop: the chance that an id is not known in a training step, in [0, 1].

    Raises:
        ValueError: content, parameters, `keep` or `known` of other users, items or ratings than these; content that is
            not finite, where that can be seen; a chance out of range.
    """
    content = _as_floats(content)
    check_content(content, ratings)
    _check_params(params, len(content.users), len(content.items))
    if not check.traced(drop) and not 0 <= drop <= 1:
        raise ValueError(f"drop: expected a chance in [0, 1], got {drop}.")
    user_known, item_known = (
        jnp.ones(len(table), bool) if known is None else check.mask(f"known[{k}]", known[k], (len(table),))
        for k, table in enumerate((content.users, content.items))
    )
    rngs = None
    if key is not None:
        key_towers, key_user, key_item = jax.random.split(key, 3)
        rngs = {"dropout": key_towers}
        user_known = user_known & jax.random.bernoulli(key_user, 1 - drop, user_known.shape)
        item_known = item_known & jax.random.bernoulli(key_item, 1 - drop, item_known.shape)

    summary = history.history_features(
        ratings, keep, mu=0.0 if params.ids.mu is None else params.ids.mu, tags=content.tags
    )
    watched, raters = history.pooled_embeddings(summary, ratings, params.watched, params.raters)
    vectors: Any = towers.apply(
        params.towers,
        jnp.concatenate([content.users, standard(summary.user, params.user_moments), watched], axis=1),
        jnp.concatenate([content.items, standard(summary.item, params.item_moments), raters], axis=1),
        train=key is not None,
        rngs=rngs,
    )
    v_user, v_item = vectors
    of_known = lambda table, known: jnp.where(known if table.ndim == 1 else known[:, None], table, 0)
    ids = params.ids
    return Factors(
        w=jnp.concatenate([params.scale * v_user, of_known(ids.w, user_known)], axis=1),
        b=of_known(ids.b, user_known) + params.trust[0] * summary.b,
        x=jnp.concatenate([v_item, of_known(ids.x, item_known)], axis=1),
        c=of_known(ids.c, item_known) + params.trust[1] * summary.c,
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
    """One user's vector from what a request brings: her features and a padded list of her ratings; no id.

    Her row of `as_vectors(as_factors(...))` where her id is not known, so that its product with a row of the items'
    vectors is the whole prediction. One pass through the users' tower; `vmap` for several.

    Args:
        towers: the networks.
        params: theirs and the rest.
        features: declared ones, a row of `Content.users`.
        item: what the user rated.
        value: how.
        where: False at padding; nothing rated is fine.
        c: the items' damped biases, `history.history_features(...).c`, computed in advance.
        tags: as in Content.

    Raises:
        ValueError: as `history.user_history`; features of another number than the towers were made for, or not finite,
            where that can be seen; tags where `init_params` had none, or others.
    """
    mu = 0.0 if params.ids.mu is None else params.ids.mu
    summary, bag = history.user_history(item, value, where, c=c, mu=mu, watched=params.watched, tags=tags)
    (declared,) = check.as_floats(features=features)
    check.all_finite("features", declared)
    if declared.ndim != 1:
        raise ValueError(f"features: expected one user's, of shape [f], got {declared.shape}. vmap for several.")
    x = jnp.concatenate([declared, standard(summary, params.user_moments), bag])
    if (wide := _inputs(params.towers, "user")) not in (None, len(x)):
        raise ValueError(f"features: expected {len(declared) + wide - len(x)}, as in training, got {len(declared)}.")
    v: Any = towers.apply(params.towers, x[None], method="users")
    nobody = jnp.zeros(params.ids.w.shape[1:], x.dtype)
    return jnp.concatenate([params.scale * v[0], nobody, params.trust[:1] * summary[:1], jnp.ones(1, x.dtype)])


def weight_decay_mask(params: Hybrid) -> Hybrid:
    """Which parameters decoupled weight decay is for, as a tree of bools: the networks' kernels alone.

    optax.adamw(rate, weight_decay=1e-2, mask=hybrid.decayed). The ids have their own l2, in `losses.penalty`.
    """
    mask = jax.tree.map(lambda _: False, params)
    return dataclasses.replace(mask, towers=jax.tree.map(lambda leaf: leaf.ndim > 1, params.towers))


def standard(features: Shaped[ArrayLike, "*n f"], moments: Float[Array, "2 f"]) -> Float[Array, "*n f"]:
    """(features - mean) / std; moments are data, so that no gradient reaches them.

    Raises:
        ValueError: another number of features than of moments.
    """
    (x,) = check.as_floats(features=features)
    if x.shape[-1:] != moments.shape[1:]:
        raise ValueError(
            f"expected the {moments.shape[1]} features from histories that there were in training (two, and one for "
            f"every tag), got {x.shape[-1]}. Are tags given as they were to init?"
        )
    mean, std = jnp.expand_dims(jax.lax.stop_gradient(moments), tuple(range(1, x.ndim)))
    return (x - mean) / std


def _moments(features: Array, largest: Array) -> Array:
    """Mean and standard deviation, 1 where all are equal up to rounding, which must not be made a feature.

    All but the second feature, log(1 + count), are means of differences between numbers up to `largest`.
    """
    low, high = jnp.min(features, axis=0), jnp.max(features, axis=0)
    size = jnp.maximum(jnp.maximum(jnp.abs(low), jnp.abs(high)), jnp.where(jnp.arange(len(low)) == 1, 0, largest))
    varies = high - low > 16 * jnp.finfo(features.dtype).eps * size
    return jnp.stack([jnp.mean(features, axis=0), jnp.where(varies, jnp.std(features, axis=0), 1)])


def _as_floats(content: Content) -> Content:
    users, items, tags = check.as_floats(users=content.users, items=content.items, tags=content.tags)
    return Content(users, items, tags)


def _inputs(towers: Any, side: str) -> int | None:
    """How many numbers a tower takes, where it is one of `two_tower`'s."""
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
                f"ratings, got {np.shape(table)}. Parameters are of the tables they were trained on."
            )


def check_content(content: Content, ratings: Linked) -> None:
    """Tables of finite numbers, one row per user and per item of the ratings; under jit only the shapes.

    Raises:
        ValueError: otherwise.
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
