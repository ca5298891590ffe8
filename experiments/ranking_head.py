"""Do ranking heads, trained on candidates, order them better than the product of the vectors?

Setting and candidates are those of experiments.retrieve_and_rank. A fifth of train is held out; the towers learn from
the rest, and requests built from the rest get candidates, whose labels are whether the user liked them in the held-out
fifth. The heads are trained on these. Besides the vectors they see the sources that proposed a candidate and its
popularity, and each user appears twice, the second time without any history. The number of epochs is chosen by NDCG at
10 on a part of the users. Then requests are built from all of train with the same towers, and the heads are measured on
what users liked later, against the product and popularity on the same candidates.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments import films, harness, retrieve_and_rank
from experiments.retrieve_and_rank import Request, build, request_vectors, respond, train_towers
from jaxrec import data, losses, metrics, training
from jaxrec.models.head import Head
from jaxrec.models.two_tower import TwoTower
from jaxrec.pytree import register_dataclass
from jaxrec.retrieval import rerank
from jaxrec.types import Ratings


@dataclass(frozen=True)
class Settings(retrieve_and_rank.Settings):
    """Settings of the retrieval, with the temperature that it chose, and of the heads."""

    temperature: float = 0.4
    hidden: tuple[int, ...] = (64, 32)
    head_dropout: float = 0.1
    head_decay: float = 1e-2
    head_rate: float = 1e-3
    head_batch: int = 128
    seeds: int = 4
    head_epochs: tuple[int, ...] = (10, 20, 40, 80, 160)


@register_dataclass
@dataclass(frozen=True)
class Lists:
    """c candidates of each of n requests, the head's inputs for them, and which were liked."""

    v_user: Array  # [n, d]
    v_item: Array  # [n, c, d]
    more: Array  # [n, c, sources + 1], which sources proposed it, and its popularity
    ids: Array  # [n, c]
    where: Array  # [n, c], False at padding
    liked: Array  # [n, c]


def main(settings: Settings) -> dict[str, Any]:
    """Trains the towers and the heads, measures them; returns what it wrote to OUT/ranking_head.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    train, later = data.splits.by_time(dataset.ratings, test_fraction=settings.later)
    harness.audit(train, later, settings)
    base, held_out = data.splits.random(train, test_fraction=0.2, rng=settings.seed)
    content, *_ = films.content(dataset)
    regions = retrieve_and_rank.regions_of(dataset)
    towers = TwoTower(layers=tuple(settings.layers), dropout=settings.dropout)
    params = train_towers(towers, content, base, settings.temperature, settings=settings)
    head = Head(tuple(settings.hidden), dropout=settings.head_dropout)

    liked = lambda ratings: ratings.take(np.flatnonzero(ratings.value >= settings.liked))

    def lists(known: Ratings, users: np.ndarray, after: Ratings, *, forget: bool = False) -> Lists:
        """Lists of requests built from `known`, labeled by `after`; with `forget` the users have no history."""
        catalog = build(towers, params, content, known, regions, settings)
        requests = retrieve_and_rank.requests_of(content, known, users, regions, settings)
        if forget:
            where, last_where = jnp.zeros_like(requests.where), jnp.zeros_like(requests.last_where)
            requests = requests._replace(where=where, last_where=last_where)
        return _lists(towers, catalog, requests, liked(known), _pairs(users, liked(after)), settings)

    def with_and_without_history(users: np.ndarray) -> Lists:
        both = lists(base, users, held_out), lists(base, users, held_out, forget=True)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *both)

    users = np.random.default_rng(settings.seed).permutation(np.unique(liked(held_out).user))
    fit_users, choice_users = np.sort(users[len(users) // 5 :]), np.sort(users[: len(users) // 5])
    validation, measured = with_and_without_history(choice_users), partial(_measure, settings=settings)
    relevant = data.padded_items(liked(held_out), np.tile(choice_users, 2))
    by_heads = jax.jit(partial(_by_heads, head))
    trained = _train(head, with_and_without_history(fit_users), settings)
    tried = {n: measured(by_heads(heads, validation), validation, relevant)["ndcg"] for n, heads in trained.items()}
    best = max(tried, key=tried.__getitem__)
    tried[0] = measured(_by_product(validation), validation, relevant)["ndcg"]
    print("validation NDCG at 10 by epochs: " + ", ".join(f"{e}: {tried[e]:.4f}" for e in sorted(tried)))

    asking = np.unique(liked(later).user)
    known = np.isin(asking, train.user)
    test = lists(train, asking, later)
    scores = {
        "by the heads": by_heads(trained[best], test),
        "by the product": _by_product(test),
        "by popularity": test.more[..., -1],
    }
    rows: list[dict[str, Any]] = []
    values: dict[str, Any] = {"epochs": best, "users": len(asking), "known_users": int(known.sum())}
    for name, score in scores.items():
        row: dict[str, Any] = {"candidates ranked": name}
        for who, mask in (("known", known), ("new", ~known)):
            if mask.any():
                part = jax.tree.map(lambda leaf, mask=mask: leaf[mask], test)
                measures = measured(score[mask], part, data.padded_items(liked(later), asking[mask]))
                row |= {f"{metric}, {who}": value for metric, value in measures.items()}
                values |= {f"{m}_{who}_{name.replace(' ', '_')}": value for m, value in measures.items()}
        rows.append(row)
    by_user = {
        name: _by_user(score, test, data.padded_items(liked(later), asking), settings) for name, score in scores.items()
    }
    comparison = harness.compare_groups(
        by_user, {"known": known, "new": ~known}, ("by the product", "by popularity"), "candidates ranked", values
    )
    harness.plot("ranking_head", settings, lambda axes: _draw(axes, rows))
    return harness.report("ranking_head", settings, values, time.perf_counter() - start, comparison=comparison)


def _lists(
    towers: TwoTower, catalog: Any, requests: Request, liked: Ratings, after: np.ndarray, settings: Settings
) -> Lists:
    """Lists of the requests' candidates; popularity is that of `liked`, and `after` [n, n_items] are the labels."""
    _, _, found = jax.jit(jax.vmap(partial(respond, towers, catalog, settings=settings)))(requests)
    popularity = jnp.log1p(jnp.bincount(jnp.asarray(liked.item), length=liked.n_items))
    more = [found.proposed_by.astype(jnp.float32), (popularity - popularity.mean())[found.ids][..., None]]
    vectors = request_vectors(towers, catalog, requests)
    was_liked = np.take_along_axis(after, np.asarray(found.ids), axis=1) & np.asarray(found.where)
    return Lists(
        vectors,
        catalog.items[found.ids],
        jnp.concatenate(more, axis=-1),
        found.ids,
        found.where,
        jnp.asarray(was_liked, jnp.float32),
    )


def _pairs(users: np.ndarray, ratings: Ratings) -> np.ndarray:
    """Mask [users, n_items], True where there is a rating."""
    mask = np.zeros((ratings.n_users, ratings.n_items), bool)
    mask[ratings.user, ratings.item] = True
    return mask[users]


def _train(head: Head, lists: Lists, settings: Settings) -> dict[int, Any]:
    """Number of epochs -> parameters [seeds, ...] of one head per seed after that many epochs of one training run."""

    def cost(params: Any, lists: Lists, *, key: Array) -> Any:
        score: Any = head.apply(params, lists.v_user, lists.v_item, lists.more, train=True, rngs={"dropout": key})
        return losses.softmax.listwise(score, lists.liked, where=lists.where)

    optimizer = optax.adamw(settings.head_rate, weight_decay=settings.head_decay)

    def init(key: Array) -> Any:
        params = head.init(key, lists.v_user[:1], lists.v_item[:1], lists.more[:1])
        return training.init_state(params, optimizer)

    def run(states: Any, keys: Array, epochs: int) -> Any:
        train = partial(training.epochs, training.make_step(cost, optimizer), batch_size=settings.head_batch)
        return jax.lax.map(lambda args: train(args[0], lists, key=args[1], epochs=epochs)[0], (states, keys))

    keys = jax.random.split(jax.random.key(settings.seed), settings.seeds)
    states, done, out = jax.vmap(init)(keys), 0, {}
    for total in sorted(settings.head_epochs):
        run_keys = jax.vmap(partial(jax.random.fold_in, data=total))(keys)
        states = jax.jit(run, static_argnums=2)(states, run_keys, total - done)
        done, out[total] = total, states.params
    return out


def _by_heads(head: Head, params: Any, lists: Lists) -> Array:
    """The mean of the heads' scores [n, c]."""
    score = lambda params: head.apply(params, lists.v_user, lists.v_item, lists.more)
    return jnp.mean(jax.lax.map(score, params), axis=0)


def _by_product(lists: Lists) -> Array:
    return jnp.sum(lists.v_user[:, None, :] * lists.v_item, axis=-1)


def _measure(scores: Array, lists: Lists, liked: tuple[np.ndarray, np.ndarray], settings: Settings) -> dict[str, float]:
    """Mean metrics over users of the k candidates with the highest scores, against padded lists of liked items."""
    return {name: float(jnp.mean(values)) for name, values in _by_user(scores, lists, liked, settings).items()}


def _by_user(scores: Array, lists: Lists, liked: tuple[np.ndarray, np.ndarray], settings: Settings) -> dict[str, Array]:
    """The same metrics of every user."""
    best, ids = jax.vmap(partial(rerank.order, k=settings.k))(scores, lists.ids, lists.where)
    relevant, where = map(jnp.asarray, liked)
    measures = {"precision": metrics.precision, "recall": metrics.recall, "ndcg": metrics.ndcg}
    masks = {"where": where, "filled": best > -jnp.inf}
    return {name: metric(ids, relevant, **masks) for name, metric in measures.items()}


def _draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    shown = [key for key in rows[0] if key.startswith("ndcg")]
    for offset, row in enumerate(rows):
        axes.bar(
            np.arange(len(shown)) + 0.25 * offset, [row[key] for key in shown], 0.22, label=row["candidates ranked"]
        )
    axes.set_xticks(np.arange(len(shown)) + 0.25, shown)
    axes.set(ylabel="NDCG at 10, of what users later liked")
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
